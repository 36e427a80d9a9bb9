//! Kernels that move elements without changing them.

use super::chunks::{CHUNK, chunks};
use crate::walk::{Walk, broadcast, strides};

/// out of `shape` = x with `order[i]` of its axes as axis i.
pub(crate) fn permute<T: Copy + Sync + Send>(
    parallel: bool,
    x: &[T],
    x_shape: &[usize],
    order: &[usize],
    (out, shape): (&mut [T], &[usize]),
) {
    let own = strides(x_shape);
    let moved: Vec<usize> = order.iter().map(|&axis| own[axis]).collect();
    gather(parallel, x, &moved, out, shape);
}

/// out of `shape` = x repeated along its axes of size 1.
pub(crate) fn expand(
    parallel: bool,
    x: &[f32],
    x_shape: &[usize],
    (out, shape): (&mut [f32], &[usize]),
) {
    gather(parallel, x, &broadcast(x_shape, shape), out, shape);
}

fn gather<T: Copy + Sync + Send>(
    parallel: bool,
    x: &[T],
    strides: &[usize],
    out: &mut [T],
    shape: &[usize],
) {
    let walk = Walk::new(shape, [strides]);
    let [stride] = walk.inner();
    chunks(parallel, out, CHUNK, |i, out| {
        let start = i * CHUNK;
        let end = start + out.len();
        let mut out = out;
        walk.runs(start, end, |[at], length| {
            let (run, rest) = std::mem::take(&mut out).split_at_mut(length);
            out = rest;
            match stride {
                0 => run.fill(x[at]),
                1 => run.copy_from_slice(&x[at..at + length]),
                _ => run
                    .iter_mut()
                    .zip(x[at..].iter().step_by(stride))
                    .for_each(|(y, &x)| *y = x),
            }
        });
    });
}
