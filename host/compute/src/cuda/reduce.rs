//! Reductions: sums and the like along axes, in parts where there are few results, and softmax.

use super::fused::Steps;
use super::lower::Lowering;
use super::program::{Launch, Strided};
use crate::ops::reduce::Reduction;
use crate::walk::strides;

/// Reductions with fewer results than this many blocks are split.
const SPLIT_BELOW: usize = 1024;
/// The least elements that a part of a split reduction adds up.
const SPLIT_ELEMENTS: usize = 4096;

/// Sums `splits` parts of `results` elements.
pub(super) fn join(kind: Reduction, parts: u64, out: u64, results: usize, splits: usize) -> Launch {
    let kernel = if results == 1 {
        "reduce_inner"
    } else {
        "reduce_outer"
    };
    Launch::blocks(kernel, [results.div_ceil(32).min(1 << 16), 1, 1])
        .with(kind as i32)
        .with(parts)
        .with(out)
        .with(Strided::new(&[results], &[1]))
        .with(Strided::new(&[splits], &[results]))
        .count(results)
        .count(splits)
        .count(1)
}

/// What is reduced.
pub(super) enum Reduced {
    /// The elements at an address.
    At(u64),
    /// What a program gives.
    Computed(Box<Steps>),
}

/// The axes that stay and those that are reduced, with the numbers of their elements.
pub(super) fn split(shape: &[usize], axes: &[usize]) -> (Strided, Strided, usize, usize) {
    let all = strides(shape);
    let part = |wanted: bool| {
        let axes = (0..shape.len()).filter(|axis| axes.contains(axis) == wanted);
        let (sizes, strides): (Vec<_>, Vec<_>) = axes.map(|axis| (shape[axis], all[axis])).unzip();
        (
            Strided::new(&sizes, &strides),
            sizes.iter().product::<usize>(),
        )
    };
    let ((kept, results), (reduced, count)) = (part(false), part(true));
    (kept, reduced, results, count)
}

impl Lowering<'_> {
    /// How many parts a sum of `count` elements for each of `results` results is split into.
    pub(super) fn splits(&self, results: usize, blocks: usize, count: usize) -> usize {
        let wanted = (SPLIT_BELOW / blocks.max(1)).min(count / SPLIT_ELEMENTS);
        let room = (self.free() / 4 / results.max(1) as u64).min(65_535) as usize;
        wanted.min(room).max(1)
    }

    pub(super) fn join(
        &mut self,
        kind: Reduction,
        parts: u64,
        out: u64,
        results: usize,
        splits: usize,
    ) {
        self.launch(join(kind, parts, out, results, splits));
    }

    pub(super) fn reduce(
        &mut self,
        kind: Reduction,
        from: Reduced,
        shape: &[usize],
        axes: &[usize],
        out: u64,
    ) {
        let (kept, reduced, results, count) = split(shape, axes);
        let outer = kept.inner() == 1 && results > 1;
        let columns = if outer { 32 } else { 1 };
        let blocks = results.div_ceil(columns);
        let splits = self.splits(results, blocks, count);
        let parts = if splits > 1 {
            self.workspace((results * splits) as u64 * 4)
        } else {
            out
        };
        let start = |kernel| Launch::blocks(kernel, [blocks.min(1 << 16), splits, 1]);
        let launch = match from {
            Reduced::At(x) if outer => start("reduce_outer").with(kind as i32).with(x),
            Reduced::At(x) => start("reduce_inner").with(kind as i32).with(x),
            Reduced::Computed(ref steps) => start("fused_reduce").with(**steps).with(kind as i32),
        };
        let launch = launch.with(parts).with(kept).with(reduced);
        let launch = launch.count(results).count(count).count(splits);
        self.launch(match from {
            Reduced::At(_) => launch,
            Reduced::Computed(_) => launch.count(columns),
        });
        if splits > 1 {
            self.join(kind, parts, out, results, splits);
        }
    }

    pub(super) fn softmax(
        &mut self,
        [rows, lines]: [&'static str; 2],
        log: bool,
        x: &[u64],
        out: u64,
        shape: &[usize],
        axis: usize,
    ) {
        let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        let count = shape.iter().product::<usize>() / size;
        let launch = if inner == 1 {
            Launch::threads(rows, count * 32)
        } else {
            Launch::threads(lines, count)
        };
        let launch = x
            .iter()
            .fold(launch.with(i32::from(log)), |launch, &x| launch.with(x));
        let launch = launch.with(out).count(count).count(size);
        self.launch(if inner == 1 {
            launch
        } else {
            launch.count(inner)
        });
    }
}
