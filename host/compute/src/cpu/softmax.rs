//! Softmax kernels, shifted by the largest element so that nothing overflows.

use super::chunks::{CHUNK, chunks};

/// The length of a line along an axis, and the distance between its elements.
fn lines(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis], shape[axis + 1..].iter().product())
}

pub(crate) fn softmax(
    parallel: bool,
    log: bool,
    x: &[f32],
    shape: &[usize],
    axis: usize,
    out: &mut [f32],
) {
    let (size, inner) = lines(shape, axis);
    let block = size * inner;
    let blocks = (CHUNK / block).max(1);
    chunks(parallel, out, blocks * block, |i, out| {
        let x = &x[i * blocks * block..];
        for first in (0..out.len()).step_by(block) {
            for column in first..first + inner {
                let line = || (column..column + size * inner).step_by(inner);
                let largest = line().fold(f32::NEG_INFINITY, |m, at| m.max(x[at]));
                let sum: f32 = line().map(|at| (x[at] - largest).exp()).sum();
                let log_sum = sum.ln();
                for at in line() {
                    let shifted = x[at] - largest;
                    out[at] = if log {
                        shifted - log_sum
                    } else {
                        shifted.exp() / sum
                    };
                }
            }
        }
    });
}

/// softmax: y·(dy − Σ y·dy); log-softmax: dy − exp(y)·Σ dy.
pub(crate) fn gradient(
    parallel: bool,
    log: bool,
    y: &[f32],
    dy: &[f32],
    shape: &[usize],
    axis: usize,
    out: &mut [f32],
) {
    let (size, inner) = lines(shape, axis);
    let block = size * inner;
    let blocks = (CHUNK / block).max(1);
    chunks(parallel, out, blocks * block, |i, out| {
        let (y, dy) = (&y[i * blocks * block..], &dy[i * blocks * block..]);
        for first in (0..out.len()).step_by(block) {
            for column in first..first + inner {
                let line = || (column..column + size * inner).step_by(inner);
                let sum: f32 = line()
                    .map(|at| if log { dy[at] } else { y[at] * dy[at] })
                    .sum();
                for at in line() {
                    out[at] = if log {
                        dy[at] - y[at].exp() * sum
                    } else {
                        y[at] * (dy[at] - sum)
                    };
                }
            }
        }
    });
}
