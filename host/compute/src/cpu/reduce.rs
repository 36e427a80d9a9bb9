//! Reductions. Sums are kept in float64, so that their order costs no accuracy.

use super::chunks::{CHUNK, Workers};
use crate::ops::reduce::Reduction;
use crate::walk::{Walk, strides};

/// Results that one chunk of work gives.
const RESULTS: usize = 256;
/// Elements of one result that are reduced between two looks at the wish to end.
const PART: usize = 1 << 20;

/// Sizes of the axes that stay and of those that are reduced, with x's strides along them.
struct Split {
    kept: Walk<1>,
    reduced: Walk<1>,
}

impl Split {
    fn new(shape: &[usize], axes: &[usize]) -> Self {
        let own = strides(shape);
        let walk = |wanted: bool| {
            let axes = (0..shape.len()).filter(|axis| axes.contains(axis) == wanted);
            let (sizes, strides): (Vec<_>, Vec<_>) =
                axes.map(|axis| (shape[axis], own[axis])).unzip();
            Walk::new(&sizes, [&strides])
        };
        Self {
            kept: walk(false),
            reduced: walk(true),
        }
    }
}

pub(crate) fn reduce(
    workers: Workers<'_>,
    kind: Reduction,
    x: &[f32],
    shape: &[usize],
    axes: &[usize],
    out: &mut [f32],
) {
    let split = Split::new(shape, axes);
    match kind {
        Reduction::Sum => fold(workers, x, &split, out, 0.0, |sum, x| sum + x),
        // NaN wins, as in PyTorch.
        Reduction::Max => fold(workers, x, &split, out, f64::NEG_INFINITY, |largest, x| {
            if x > largest || x.is_nan() {
                x
            } else {
                largest
            }
        }),
        Reduction::Min => fold(workers, x, &split, out, f64::INFINITY, |least, x| {
            if x < least || x.is_nan() { x } else { least }
        }),
    }
}

/// `f` is associative, and `start` its neutral element.
fn fold(
    workers: Workers<'_>,
    x: &[f32],
    split: &Split,
    out: &mut [f32],
    start: f64,
    f: impl Fn(f64, f64) -> f64 + Sync + Send,
) {
    let ([kept_stride], [stride]) = (split.kept.inner(), split.reduced.inner());
    let count = split.reduced.len();
    workers.chunks(out, RESULTS, |i, out| {
        let first = i * RESULTS;
        let mut totals = [start; RESULTS];
        let mut done = 0;
        split.kept.runs(first, first + out.len(), |[base], length| {
            let totals = &mut totals[done..done + length];
            done += length;
            let mut reduce = |[at]: [usize; 1], run: usize| {
                if kept_stride == 1 {
                    for step in 0..run {
                        let from = base + at + step * stride;
                        let row = &x[from..from + length];
                        totals
                            .iter_mut()
                            .zip(row)
                            .for_each(|(total, &x)| *total = f(*total, f64::from(x)));
                    }
                    return;
                }
                for (step, total) in totals.iter_mut().enumerate() {
                    let from = base + step * kept_stride + at;
                    // Eight totals side by side, so that the additions need not wait.
                    let mut lanes = [start; 8];
                    if stride == 1 {
                        let mut eights = x[from..from + run].chunks_exact(8);
                        for eight in &mut eights {
                            lanes
                                .iter_mut()
                                .zip(eight)
                                .for_each(|(lane, &x)| *lane = f(*lane, f64::from(x)));
                        }
                        let rest = eights.remainder();
                        lanes
                            .iter_mut()
                            .zip(rest)
                            .for_each(|(lane, &x)| *lane = f(*lane, f64::from(x)));
                    } else {
                        for step in 0..run {
                            lanes[step % 8] =
                                f(lanes[step % 8], f64::from(x[from + step * stride]));
                        }
                    }
                    for lane in lanes {
                        *total = f(*total, lane);
                    }
                }
            };
            for start in (0..count).step_by(PART) {
                if workers.cancelled() {
                    return;
                }
                let end = count.min(start + PART);
                split.reduced.runs(start, end, &mut reduce);
            }
        });
        out.iter_mut()
            .zip(totals)
            .for_each(|(y, total)| *y = total as f32);
    });
}

/// out = dy shared equally among the elements of x equal to y, which keep x's rank.
pub(crate) fn extreme_gradient(
    workers: Workers<'_>,
    x: &[f32],
    shape: &[usize],
    y: &[f32],
    dy: &[f32],
    kept: &[usize],
    out: &mut [f32],
) {
    let axes: Vec<usize> = (0..shape.len())
        .filter(|&axis| kept[axis] != shape[axis])
        .collect();
    let split = Split::new(shape, &axes);
    let ([kept_stride], [stride]) = (split.kept.inner(), split.reduced.inner());
    let mut result = 0;
    split.kept.runs(0, y.len(), |[base], length| {
        for step in 0..length {
            if workers.cancelled() {
                return;
            }
            let base = base + step * kept_stride;
            let mut ties = 0;
            let elements = |visit: &mut dyn FnMut(usize)| {
                split.reduced.runs(0, split.reduced.len(), |[at], run| {
                    (0..run).for_each(|step| visit(base + at + step * stride));
                });
            };
            elements(&mut |at| ties += usize::from(x[at] == y[result]));
            let share = if ties == 0 {
                0.0
            } else {
                dy[result] / ties as f32
            };
            elements(&mut |at| out[at] = if x[at] == y[result] { share } else { 0.0 });
            result += 1;
        }
    });
}

/// The position of the first of the largest (or smallest) elements along an axis; NaN wins.
pub(crate) fn argmax(
    workers: Workers<'_>,
    x: &[f32],
    shape: &[usize],
    axis: usize,
    smallest: bool,
    out: &mut [i64],
) {
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let results = (CHUNK / size).max(1);
    workers.chunks(out, results, |chunk, out| {
        for (i, y) in out.iter_mut().enumerate() {
            let i = chunk * results + i;
            let base = i / inner * size * inner + i % inner;
            let mut best = 0;
            for k in 1..size {
                let (value, found) = (x[base + k * inner], x[base + best * inner]);
                let beats = if smallest {
                    value < found
                } else {
                    value > found
                };
                if beats || (value.is_nan() && !found.is_nan()) {
                    best = k;
                }
            }
            *y = best as i64;
        }
    });
}

/// The positions of the largest (or smallest) elements along an axis, as many as `out` has room
/// for; NaN counts as the extreme.
pub(crate) fn top_k(
    workers: Workers<'_>,
    x: &[f32],
    shape: &[usize],
    axis: usize,
    smallest: bool,
    (out, count): (&mut [i64], usize),
) {
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    workers.chunks(out, count * inner, |outer, out| {
        let mut order: Vec<usize> = Vec::with_capacity(size);
        for column in 0..inner {
            if workers.cancelled() {
                return;
            }
            let value = |k: usize| x[(outer * size + k) * inner + column];
            order.clear();
            order.extend(0..size);
            order.sort_by(|&a, &b| {
                let (a, b) = (value(a), value(b));
                let by_value = if smallest {
                    a.partial_cmp(&b)
                } else {
                    b.partial_cmp(&a)
                };
                by_value.unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
            });
            for (rank, &k) in order[..count].iter().enumerate() {
                out[rank * inner + column] = k as i64;
            }
        }
    });
}

/// Sums of all elements up to each along an axis, or from each on.
pub(crate) fn cumsum(
    workers: Workers<'_>,
    x: &[f32],
    shape: &[usize],
    axis: usize,
    reverse: bool,
    out: &mut [f32],
) {
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let block = size * inner;
    workers.chunks(out, block, |i, out| {
        let x = &x[i * block..];
        for column in 0..inner {
            if workers.cancelled() {
                return;
            }
            let mut total = 0.0;
            for step in 0..size {
                let k = if reverse { size - 1 - step } else { step };
                total += f64::from(x[k * inner + column]);
                out[k * inner + column] = total as f32;
            }
        }
    });
}
