//! Kernels that move elements without changing them.

use super::chunks::{CHUNK, Workers};
use crate::ops::movement::Window;
use crate::walk::{Walk, broadcast, strides};

/// out of `shape` = x with `order[i]` of its axes as axis i.
pub(crate) fn permute<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    x_shape: &[usize],
    order: &[usize],
    (out, shape): (&mut [T], &[usize]),
) {
    let own = strides(x_shape);
    let moved: Vec<usize> = order.iter().map(|&axis| own[axis]).collect();
    gather(workers, x, &moved, out, shape);
}

/// out of `shape` = x repeated along its axes of size 1.
pub(crate) fn expand<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    x_shape: &[usize],
    (out, shape): (&mut [T], &[usize]),
) {
    gather(workers, x, &broadcast(x_shape, shape), out, shape);
}

fn gather<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    strides: &[usize],
    out: &mut [T],
    shape: &[usize],
) {
    let walk = Walk::new(shape, [strides]);
    let [stride] = walk.inner();
    workers.chunks(out, CHUNK, |i, out| {
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

/// Where a result's element along an axis comes from: an offset in x, or nowhere.
type Sources = Vec<Option<usize>>;

/// out = the elements of x at a window, which starts over past the end of an axis.
pub(crate) fn slice<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    x_shape: &[usize],
    window: &Window,
    (out, shape): (&mut [T], &[usize]),
) {
    let own = strides(x_shape);
    let axis = |axis: usize| -> Sources {
        let (start, step) = (window.starts[axis] as i64, window.steps[axis]);
        let size = x_shape[axis] as i64;
        let at = |i: usize| (start + step * i as i64).rem_euclid(size) as usize;
        (0..shape[axis]).map(|i| Some(at(i) * own[axis])).collect()
    };
    let axes: Vec<Sources> = (0..shape.len()).map(axis).collect();
    collect(workers, x, &axes, None, (out, shape));
}

/// out = `fill`, and x at a window.
pub(crate) fn place<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    x_shape: &[usize],
    (window, fill): (&Window, T),
    (out, shape): (&mut [T], &[usize]),
) {
    let own = strides(x_shape);
    let axis = |axis: usize| -> Sources {
        let mut sources = vec![None; shape[axis]];
        for i in 0..x_shape[axis] {
            let at = window.starts[axis] as i64 + window.steps[axis] * i as i64;
            if let Some(source) = usize::try_from(at).ok().and_then(|at| sources.get_mut(at)) {
                *source = Some(i * own[axis]);
            }
        }
        sources
    };
    let axes: Vec<Sources> = (0..shape.len()).map(axis).collect();
    collect(workers, x, &axes, Some(fill), (out, shape));
}

/// Copies every element from the sum of its sources along all axes; `fill` where one has none.
fn collect<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    axes: &[Sources],
    fill: Option<T>,
    (out, shape): (&mut [T], &[usize]),
) {
    let Some((last, outer)) = axes.split_last() else {
        out.copy_from_slice(&x[..1]);
        return;
    };
    // Neighbours that are neighbours in x too are copied together.
    let mut runs: Vec<(usize, usize, Option<usize>)> = Vec::new();
    for (i, &source) in last.iter().enumerate() {
        match runs.last_mut() {
            Some((_, length, first)) if first.map(|at| at + *length) == source => *length += 1,
            _ => runs.push((i, 1, source)),
        }
    }
    let row = last.len();
    let rows = (CHUNK / row).max(1);
    workers.chunks(out, rows * row, |chunk, out| {
        for (number, out) in out.chunks_mut(row).enumerate() {
            let mut rest = chunk * rows + number;
            let mut base = Some(0);
            for (axis, sources) in outer.iter().enumerate().rev() {
                base = base.zip(sources[rest % shape[axis]]).map(|(a, b)| a + b);
                rest /= shape[axis];
            }
            for &(start, length, source) in &runs {
                let out = &mut out[start..start + length];
                match (base.zip(source), fill) {
                    (Some((base, source)), _) => {
                        let from = base + source;
                        out.copy_from_slice(&x[from..from + length]);
                    }
                    (None, Some(fill)) => out.fill(fill),
                    (None, None) => {}
                }
            }
        }
    });
}

/// out = operands one after the other along an axis; each with its size there.
pub(crate) fn concat<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    operands: &[(&[T], usize)],
    (out, shape): (&mut [T], &[usize]),
    axis: usize,
) {
    let inner: usize = shape[axis + 1..].iter().product();
    let row = shape[axis] * inner;
    let rows = (CHUNK / row).max(1);
    workers.chunks(out, rows * row, |chunk, out| {
        for (number, mut out) in out.chunks_mut(row).enumerate() {
            for (x, size) in operands {
                let length = size * inner;
                let from = (chunk * rows + number) * length;
                let (own, rest) = out.split_at_mut(length);
                own.copy_from_slice(&x[from..from + length]);
                out = rest;
            }
        }
    });
}
