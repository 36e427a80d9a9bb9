//! Element-wise kernels of integers; those of float32 and of truths are programs.

use super::chunks::{CHUNK, Workers};
use crate::ops::elementwise::{Binary, Comparison};
use crate::walk::{Walk, broadcast};

/// out = f(x), of another dtype.
pub(crate) fn convert<T: Copy + Sync, U: Send>(
    workers: Workers<'_>,
    x: &[T],
    out: &mut [U],
    f: impl Fn(T) -> U + Sync + Send,
) {
    workers.chunks(out, CHUNK, |i, out| {
        let pairs = out.iter_mut().zip(&x[i * CHUNK..]);
        pairs.for_each(|(y, &x)| *y = f(x));
    });
}

/// A tensor and its shape.
pub(crate) type Operand<'a, T> = (&'a [T], &'a [usize]);

/// out = f(a, b) with broadcasting to `shape`.
pub(crate) fn broadcasting<T: Copy + Sync, U: Send>(
    workers: Workers<'_>,
    (a, a_shape): Operand<'_, T>,
    (b, b_shape): Operand<'_, T>,
    (out, shape): (&mut [U], &[usize]),
    f: impl Fn(T, T) -> U + Sync + Send,
) {
    let walk = Walk::new(
        shape,
        [&broadcast(a_shape, shape), &broadcast(b_shape, shape)],
    );
    let inner = walk.inner();
    workers.chunks(out, CHUNK, |i, out| {
        let start = i * CHUNK;
        let end = start + out.len();
        let mut out = out;
        walk.runs(start, end, |[at, bt], length| {
            let (run, rest) = std::mem::take(&mut out).split_at_mut(length);
            out = rest;
            match inner {
                [0, _] => {
                    let x = a[at];
                    run.iter_mut()
                        .zip(&b[bt..])
                        .for_each(|(y, &b)| *y = f(x, b));
                }
                [_, 0] => {
                    let x = b[bt];
                    run.iter_mut()
                        .zip(&a[at..])
                        .for_each(|(y, &a)| *y = f(a, x));
                }
                _ => {
                    let pairs = a[at..].iter().zip(&b[bt..]);
                    run.iter_mut()
                        .zip(pairs)
                        .for_each(|(y, (&a, &b))| *y = f(a, b));
                }
            }
        });
    });
}

pub(crate) fn integer_binary(
    workers: Workers<'_>,
    kind: Binary,
    a: Operand<'_, i64>,
    b: Operand<'_, i64>,
    out: (&mut [i64], &[usize]),
) {
    broadcasting(workers, a, b, out, |a, b| kind.of_integers(a, b));
}

pub(crate) fn compare(
    workers: Workers<'_>,
    kind: Comparison,
    a: Operand<'_, i64>,
    b: Operand<'_, i64>,
    out: (&mut [u8], &[usize]),
) {
    broadcasting(workers, a, b, out, |a, b| u8::from(kind.holds(a, b)));
}

/// out = a where the condition holds, else b.
pub(crate) fn select<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    (condition, condition_shape): Operand<'_, u8>,
    (a, a_shape): Operand<'_, T>,
    (b, b_shape): Operand<'_, T>,
    (out, shape): (&mut [T], &[usize]),
) {
    let operands = [condition_shape, a_shape, b_shape].map(|own| broadcast(own, shape));
    let walk = Walk::new(shape, operands.each_ref().map(Vec::as_slice));
    let inner = walk.inner();
    workers.chunks(out, CHUNK, |i, out| {
        let start = i * CHUNK;
        let mut done = 0;
        walk.runs(start, start + out.len(), |at, length| {
            for (step, y) in out[done..done + length].iter_mut().enumerate() {
                let [c, a_at, b_at] = std::array::from_fn(|n| at[n] + step * inner[n]);
                *y = if condition[c] != 0 { a[a_at] } else { b[b_at] };
            }
            done += length;
        });
    });
}
