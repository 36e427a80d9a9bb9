//! Reductions. Sums are kept in float64, so that their order costs no accuracy.

use std::ops::Range;

use super::chunks::{CHUNK, Workers, vectorized};
use super::fused::{BLOCK, Machine};
use crate::ops::reduce::Reduction;
use crate::walk::{Walk, strides};

/// Results that one piece of work gives, at most.
const RESULTS: usize = 256;
/// Results that lie side by side and are given together, at least.
const NEIGHBOURS: usize = 64;
/// Elements of one result that are reduced one after the other; such parts are joined in their order.
const PART: usize = 1 << 16;

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

/// What is reduced.
pub(super) enum Operand<'a> {
    Stored(&'a [f32]),
    /// What a program gives, block by block.
    Computed(Machine<'a>),
}

/// The elements that a program gave last.
struct Window {
    first: usize,
    count: usize,
    elements: [f32; BLOCK],
}

impl Operand<'_> {
    /// Up to a block of elements from one on, in row-major order. Those up to `until` are read next.
    fn row<'a>(
        &'a self,
        (first, count): (usize, usize),
        until: usize,
        window: &'a mut Window,
    ) -> &'a [f32] {
        let machine = match self {
            Self::Stored(x) => return &x[first..first + count],
            Self::Computed(machine) => machine,
        };
        if first < window.first || first + count > window.first + window.count {
            window.first = first;
            window.count = BLOCK.min(count.max(until.saturating_sub(first)));
            machine.run(first, &mut window.elements[..window.count]);
        }
        &window.elements[first - window.first..][..count]
    }
}

/// Reduces x of `shape` over axes. `finish` is called once with every part of the result: the number of
/// its first element, and it.
pub(super) fn reduce(
    workers: Workers<'_>,
    kind: Reduction,
    x: &Operand<'_>,
    (shape, axes): (&[usize], &[usize]),
    out: &mut [f32],
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let split = Split::new(shape, axes);
    match kind {
        Reduction::Sum => Fold::new(x, split, 0.0, sum).fold(workers, out, finish),
        Reduction::Max => {
            Fold::new(x, split, f64::NEG_INFINITY, larger).fold(workers, out, finish);
        }
        Reduction::Min => Fold::new(x, split, f64::INFINITY, smaller).fold(workers, out, finish),
    }
}

#[inline(always)]
fn sum(a: f64, b: f64) -> f64 {
    a + b
}

/// NaN wins, as in PyTorch.
#[inline(always)]
fn larger(most: f64, x: f64) -> f64 {
    if x > most || x.is_nan() { x } else { most }
}

/// NaN wins, as in PyTorch.
#[inline(always)]
fn smaller(least: f64, x: f64) -> f64 {
    if x < least || x.is_nan() { x } else { least }
}

/// A reduction by `f`, which is associative, with `start` as its neutral element.
struct Fold<'a, F> {
    x: &'a Operand<'a>,
    split: Split,
    start: f64,
    f: F,
}

impl<'a, F: Fn(f64, f64) -> f64 + Sync> Fold<'a, F> {
    fn new(x: &'a Operand<'a>, split: Split, start: f64, f: F) -> Self {
        Self { x, split, start, f }
    }

    fn fold(
        &self,
        workers: Workers<'_>,
        out: &mut [f32],
        finish: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let (results, count) = (out.len(), self.split.reduced.len());
        let [stride] = self.split.kept.inner();
        let least = if stride == 1 { NEIGHBOURS } else { 1 };
        let size = (PART / count).clamp(least, RESULTS);
        if count <= PART {
            workers.chunks(out, size, |i, out| {
                let totals = &mut [self.start; RESULTS][..out.len()];
                self.part(i * size, 0..count, totals);
                out.iter_mut()
                    .zip(totals)
                    .for_each(|(y, total)| *y = *total as f32);
                finish(i * size, out);
            });
            return;
        }
        let mut totals = vec![self.start; count.div_ceil(PART) * results];
        let parts = totals.chunks_mut(results).enumerate();
        let items = parts.flat_map(|(part, totals)| {
            let terms = part * PART..count.min((part + 1) * PART);
            let pieces = totals.chunks_mut(size).enumerate();
            pieces.map(move |(i, totals)| (i * size, terms.clone(), totals))
        });
        workers.each(items.collect(), |(first, terms, totals)| {
            self.part(first, terms, totals);
        });
        for (i, y) in out.iter_mut().enumerate() {
            let parts = totals[i..].iter().step_by(results).copied();
            *y = parts.fold(self.start, &self.f) as f32;
        }
        finish(0, out);
    }

    /// Joins some elements of results from `first` on to their totals.
    fn part(&self, first: usize, terms: Range<usize>, totals: &mut [f64]) {
        let Split { kept, reduced } = &self.split;
        let ([kept_stride], [stride]) = (kept.inner(), reduced.inner());
        let mut window = Window {
            first: 0,
            count: 0,
            elements: [0.0; BLOCK],
        };
        let mut rest = totals;
        kept.runs(first, first + rest.len(), |[base], length| {
            let (totals, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            reduced.runs(terms.start, terms.end, |[at], run| {
                let from = base + at;
                // Either neighbours are of neighbouring results, or they are of one.
                if kept_stride == 1 {
                    let until = if stride == length {
                        from + run * stride
                    } else {
                        0
                    };
                    for step in 0..run {
                        let row = (from + step * stride, length);
                        self.join(totals, self.x.row(row, until, &mut window));
                    }
                    return;
                }
                let until = if kept_stride == run {
                    from + length * run
                } else {
                    0
                };
                for (step, total) in totals.iter_mut().enumerate() {
                    let from = from + step * kept_stride;
                    let mut lanes = [self.start; 8];
                    for piece in (0..run).step_by(BLOCK) {
                        let row = (from + piece, BLOCK.min(run - piece));
                        let row = self.x.row(row, until.max(from + run), &mut window);
                        self.join_lanes(&mut lanes, row);
                    }
                    *total = lanes.into_iter().fold(*total, &self.f);
                }
            });
        });
    }

    /// Joins a row of elements to totals, each to its own.
    fn join(&self, totals: &mut [f64], row: &[f32]) {
        vectorized(
            #[inline(always)]
            || {
                for (total, &x) in totals.iter_mut().zip(row) {
                    *total = (self.f)(*total, f64::from(x));
                }
            },
        );
    }

    /// Joins a row of elements to eight totals side by side, so that the additions need not wait.
    fn join_lanes(&self, lanes: &mut [f64; 8], row: &[f32]) {
        vectorized(
            #[inline(always)]
            || {
                let (eights, rest) = row.as_chunks::<8>();
                let mut own = *lanes;
                for eight in eights {
                    for (lane, &x) in own.iter_mut().zip(eight) {
                        *lane = (self.f)(*lane, f64::from(x));
                    }
                }
                for (lane, &x) in own.iter_mut().zip(rest) {
                    *lane = (self.f)(*lane, f64::from(x));
                }
                *lanes = own;
            },
        );
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::super::fused::Elements;
    use super::*;
    use crate::ops::elementwise::Unary;
    use crate::ops::fused::{Function, Instruction, Program, Source};
    use crate::shape::Shape;

    static NEVER: AtomicBool = AtomicBool::new(false);

    /// Twice an operand of a shape.
    fn doubled(shape: &[usize]) -> Program {
        let sizes: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
        Program {
            sources: vec![Source {
                shape: Shape::fixed(&sizes),
                offset: 0,
            }],
            instructions: vec![Instruction {
                function: Function::Unary(Unary::Affine {
                    factor: 2.0,
                    offset: 0.0,
                }),
                operands: [0; 3],
            }],
        }
    }

    /// The result, and how often its elements were finished.
    fn reduced(
        workers: Workers<'_>,
        kind: Reduction,
        x: &Operand<'_>,
        (shape, axes): (&[usize], &[usize]),
        results: usize,
    ) -> (Vec<f32>, Vec<u32>) {
        let mut out = vec![f32::NAN; results];
        let finished = Mutex::new(vec![0; results]);
        reduce(workers, kind, x, (shape, axes), &mut out, &|first, part| {
            let mut finished = finished.lock().unwrap();
            finished[first..][..part.len()]
                .iter_mut()
                .for_each(|n| *n += 1);
        });
        (out, finished.into_inner().unwrap())
    }

    #[test]
    fn parts_and_programs_give_the_same_on_any_number_of_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let pool = pool.unwrap();
        let cases: [(&[usize], &[usize]); 8] = [
            (&[200_001], &[0]),
            (&[3, 70_001], &[1]),
            (&[70_001, 3], &[0]),
            (&[2, 66_000, 3], &[1]),
            (&[2, 3, 700, 99], &[0, 2, 3]),
            (&[600, 7], &[1]),
            (&[40, 300], &[0]),
            (&[1, 1], &[1]),
        ];
        for (shape, axes) in cases {
            let count: usize = shape.iter().product();
            let number = |i: u64| crate::random::unit(i) as f32 - 0.4;
            let x: Vec<f32> = (0..count as u64).map(number).collect();
            let twice: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
            let program = doubled(shape);
            let machine = || Machine::new(&program, &[Elements::Floats(&x)], 1, shape);
            let kept = (0..shape.len()).filter(|axis| !axes.contains(axis));
            let kept: Vec<usize> = kept.collect();
            let results = kept.iter().map(|&axis| shape[axis]).product();
            for kind in [Reduction::Sum, Reduction::Max, Reduction::Min] {
                let run = |many: bool, x: &Operand<'_>| {
                    let workers = Workers::new(many, &NEVER);
                    pool.install(|| reduced(workers, kind, x, (shape, axes), results))
                };
                let (stored, finished) = run(false, &Operand::Stored(&twice));
                assert!(finished.iter().all(|&n| n == 1), "{shape:?} {axes:?}");
                for many in [false, true] {
                    let (computed, finished) = run(many, &Operand::Computed(machine()));
                    assert!(finished.iter().all(|&n| n == 1), "{shape:?} {axes:?}");
                    assert_eq!(computed, stored, "{shape:?} {axes:?}");
                    assert_eq!(run(many, &Operand::Stored(&twice)).0, stored);
                }
                let mut expected = vec![0.0f64; results];
                if kind != Reduction::Sum {
                    let sign = if kind == Reduction::Max { -1.0 } else { 1.0 };
                    expected.fill(sign * f64::INFINITY);
                }
                for (i, &x) in twice.iter().enumerate() {
                    let index = |axis: usize| {
                        let inner: usize = shape[axis + 1..].iter().product();
                        i / inner % shape[axis]
                    };
                    let at = kept
                        .iter()
                        .fold(0, |at, &axis| at * shape[axis] + index(axis));
                    expected[at] = match kind {
                        Reduction::Sum => expected[at] + f64::from(x),
                        Reduction::Max => expected[at].max(f64::from(x)),
                        Reduction::Min => expected[at].min(f64::from(x)),
                    };
                }
                for (y, expected) in stored.iter().zip(expected) {
                    let error = (f64::from(*y) - expected).abs();
                    assert!(error <= 1e-6 * expected.abs(), "{y} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_wins() {
        let x = [1.0, f32::NAN, 3.0];
        for kind in [Reduction::Max, Reduction::Min] {
            let workers = Workers::new(false, &NEVER);
            let (y, _) = reduced(workers, kind, &Operand::Stored(&x), (&[3], &[0]), 1);
            assert!(y[0].is_nan());
        }
    }
}
