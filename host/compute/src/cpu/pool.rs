//! Pooling kernels, plane by plane.

use super::chunks::Workers;
use crate::ops::pool::Pool2d;

/// Planes of `height` × `width` pixels and their results.
#[derive(Debug, Clone, Copy)]
struct Planes {
    input: (usize, usize),
    output: (usize, usize),
}

impl Planes {
    fn new(x: &[usize], y: &[usize]) -> Self {
        Self {
            input: (x[2], x[3]),
            output: (y[2], y[3]),
        }
    }

    /// Calls `window` with every result's index, and the rows and columns of its window that fall
    /// into the image.
    fn windows(
        self,
        pool: &Pool2d,
        mut window: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>),
    ) {
        let range = |at: usize, stride: u32, padding: u32, size: u32, end: usize| {
            let start = at * stride as usize;
            let last = (start + size as usize)
                .saturating_sub(padding as usize)
                .min(end);
            start.saturating_sub(padding as usize).min(last)..last
        };
        for i in 0..self.output.0 {
            let rows = range(
                i,
                pool.stride.0,
                pool.padding.0,
                pool.window.0,
                self.input.0,
            );
            for j in 0..self.output.1 {
                let columns = range(
                    j,
                    pool.stride.1,
                    pool.padding.1,
                    pool.window.1,
                    self.input.1,
                );
                window(i * self.output.1 + j, rows.clone(), columns);
            }
        }
    }
}

/// The index in a plane of the first of the largest pixels of a window; NaN wins.
fn largest(
    x: &[f32],
    width: usize,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
) -> usize {
    let mut best = rows.start * width + columns.start;
    for row in rows {
        for at in row * width + columns.start..row * width + columns.end {
            if x[at] > x[best] || (x[at].is_nan() && !x[best].is_nan()) {
                best = at;
            }
        }
    }
    best
}

pub(crate) fn pool2d(
    workers: Workers<'_>,
    pool: &Pool2d,
    x: &[f32],
    x_shape: &[usize],
    (out, shape): (&mut [f32], &[usize]),
) {
    let planes = Planes::new(x_shape, shape);
    let (size, width) = (planes.input.0 * planes.input.1, planes.input.1);
    let area = pool.window.0 as f32 * pool.window.1 as f32;
    workers.chunks(out, planes.output.0 * planes.output.1, |n, out| {
        let x = &x[n * size..][..size];
        planes.windows(pool, |at, rows, columns| {
            out[at] = if pool.maximum {
                x[largest(x, width, rows, columns)]
            } else {
                let row_sum = |row: usize| -> f32 {
                    x[row * width + columns.start..row * width + columns.end]
                        .iter()
                        .sum()
                };
                rows.map(row_sum).sum::<f32>() / area
            };
        });
    });
}

pub(crate) fn gradient(
    workers: Workers<'_>,
    pool: &Pool2d,
    x: &[f32],
    dy: &[f32],
    dy_shape: &[usize],
    (dx, shape): (&mut [f32], &[usize]),
) {
    let planes = Planes::new(shape, dy_shape);
    let (size, width) = (planes.input.0 * planes.input.1, planes.input.1);
    let results = planes.output.0 * planes.output.1;
    let area = pool.window.0 as f32 * pool.window.1 as f32;
    workers.chunks(dx, size, |n, dx| {
        let (x, dy) = (&x[n * size..][..size], &dy[n * results..][..results]);
        dx.fill(0.0);
        planes.windows(pool, |at, rows, columns| {
            if pool.maximum {
                dx[largest(x, width, rows, columns)] += dy[at];
                return;
            }
            for row in rows {
                let row = &mut dx[row * width + columns.start..row * width + columns.end];
                row.iter_mut().for_each(|y| *y += dy[at] / area);
            }
        });
    });
}
