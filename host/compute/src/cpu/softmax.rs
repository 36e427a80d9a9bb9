//! Softmax kernels, shifted by the largest element so that nothing overflows.

use super::chunks::{CHUNK, Workers, vectorized};
use super::math::{exp, lanes};

/// The length of a line along an axis, and the distance between its elements.
fn lines(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis], shape[axis + 1..].iter().product())
}

pub(crate) fn softmax(
    workers: Workers<'_>,
    log: bool,
    x: &[f32],
    shape: &[usize],
    axis: usize,
    out: &mut [f32],
) {
    let (size, inner) = lines(shape, axis);
    let block = size * inner;
    let blocks = (CHUNK / block).max(1);
    workers.chunks(out, blocks * block, |i, out| {
        let x = &x[i * blocks * block..];
        for first in (0..out.len()).step_by(block) {
            for column in first..first + inner {
                if workers.cancelled() {
                    return;
                }
                if inner == 1 {
                    row(log, &x[first..first + size], &mut out[first..first + size]);
                    continue;
                }
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

/// One line of neighbours.
fn row(log: bool, x: &[f32], out: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            let largest = lanes(x, f32::NEG_INFINITY, |m, x| if x > m { x } else { m });
            let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
            for (y, &x) in out.iter_mut().zip(x) {
                *y = exp(x - largest);
            }
            let sum: f32 = lanes(out, 0.0, |sum, y| sum + y).into_iter().sum();
            if log {
                let log_sum = sum.ln();
                for (y, &x) in out.iter_mut().zip(x) {
                    *y = x - largest - log_sum;
                }
            } else {
                let scale = 1.0 / sum;
                out.iter_mut().for_each(|y| *y *= scale);
            }
        },
    );
}

fn row_gradient(log: bool, y: &[f32], dy: &[f32], out: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            if log {
                let sum: f32 = lanes(dy, 0.0, |sum, dy| sum + dy).into_iter().sum();
                for ((d, &y), &dy) in out.iter_mut().zip(y).zip(dy) {
                    *d = dy - exp(y) * sum;
                }
            } else {
                for ((d, &y), &dy) in out.iter_mut().zip(y).zip(dy) {
                    *d = y * dy;
                }
                let sum: f32 = lanes(out, 0.0, |sum, d| sum + d).into_iter().sum();
                for ((d, &y), &dy) in out.iter_mut().zip(y).zip(dy) {
                    *d = y * (dy - sum);
                }
            }
        },
    );
}

/// softmax: y·(dy − Σ y·dy); log-softmax: dy − exp(y)·Σ dy.
pub(crate) fn gradient(
    workers: Workers<'_>,
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
    workers.chunks(out, blocks * block, |i, out| {
        let (y, dy) = (&y[i * blocks * block..], &dy[i * blocks * block..]);
        for first in (0..out.len()).step_by(block) {
            for column in first..first + inner {
                if workers.cancelled() {
                    return;
                }
                if inner == 1 {
                    let (y, dy) = (&y[first..first + size], &dy[first..first + size]);
                    row_gradient(log, y, dy, &mut out[first..first + size]);
                    continue;
                }
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
