//! Batch normalisation.

use super::lower::Lowering;
use super::program::Launch;
use crate::graph::Node;
use crate::ops::Op;

/// Elements of a channel that a block adds up at least.
const SHARE: usize = 8192;
/// Blocks above which channels are not divided among more.
const BLOCKS: usize = 2048;

/// Among how many blocks the elements of each channel are divided: the same on every GPU.
fn splits(channels: usize, count: usize) -> usize {
    (BLOCKS / channels.max(1)).clamp(1, count.div_ceil(SHARE).max(1))
}

/// `[batch, channels, …]`: elements, channels, elements of a plane.
fn planes(shape: &[usize]) -> (usize, usize, usize) {
    (
        shape.iter().product(),
        shape[1],
        shape[2..].iter().product(),
    )
}

impl Lowering<'_> {
    /// Launches the kernel of an operator of this family; `x` are its inputs' addresses.
    pub(super) fn norm(&mut self, node: &Node, x: &[u64], out: u64) {
        let all = |launch: Launch| {
            x.iter()
                .fold(launch, |launch, &address| launch.with(address))
        };
        let of = |i: usize| self.shape(node.inputs[i]);
        let launch = match &node.op {
            Op::BatchStatistics { epsilon } => {
                let shape = of(0);
                let (n, channels, plane) = planes(&shape);
                let (parts, splits) =
                    self.sums("batch_moments", &x[..1], shape[0], [n, channels, plane]);
                let launch = Launch::each("batch_statistics", channels).with(x[0]);
                let launch = launch.with(parts).with(out).with(*epsilon as f32);
                let launch = launch.count(shape[0]).count(channels).count(plane);
                launch.count(splits)
            }
            Op::FixedStatistics { epsilon } => {
                let channels = of(0)[0];
                let launch = all(Launch::threads("fixed_statistics", channels)).with(out);
                launch.with(*epsilon as f32).count(channels)
            }
            Op::BatchNormCoefficients => {
                let channels = of(0)[0];
                let launch = all(Launch::threads("batch_norm_coefficients", channels));
                launch.with(out).count(channels)
            }
            Op::BatchNorm => {
                let (n, channels, plane) = planes(&of(0));
                let launch = all(Launch::threads("batch_norm", n)).with(out);
                launch.count(n).count(channels).count(plane)
            }
            Op::BatchNormParameterGradient => {
                let shape = of(0);
                let (n, channels, plane) = planes(&shape);
                let (parts, splits) =
                    self.sums("batch_norm_products", x, shape[0], [n, channels, plane]);
                let launch = Launch::each("batch_norm_parameter_gradient", channels);
                let launch = launch.with(parts).with(x[2]).with(out);
                launch.count(channels).count(splits)
            }
            Op::BatchNormTrainGradient => {
                let (n, channels, plane) = planes(&of(0));
                let launch = all(Launch::threads("batch_norm_train_gradient", n)).with(out);
                launch.count(n).count(channels).count(plane)
            }
            Op::BatchNormEvalGradient => {
                let (n, channels, plane) = planes(&of(0));
                let launch = all(Launch::threads("batch_norm_eval_gradient", n)).with(out);
                launch.count(n).count(channels).count(plane)
            }
            Op::UpdateRunning { momentum, count } => {
                let channels = of(0)[0];
                let count = count.at(self.batch() as u64);
                let unbiased = count as f64 / (count.max(2) - 1) as f64;
                Launch::threads("update_running", channels)
                    .with(x[0])
                    .with(x[1])
                    .with(x[2])
                    .with(*momentum as f32)
                    .with(unbiased as f32)
                    .count(channels)
            }
            _ => return,
        };
        self.launch(launch);
    }

    /// Launches a kernel that adds up parts of channels; where it writes two sums for each part and
    /// channel, and the number of parts.
    fn sums(
        &mut self,
        kernel: &'static str,
        x: &[u64],
        batch: usize,
        [n, channels, plane]: [usize; 3],
    ) -> (u64, usize) {
        let count = n / channels.max(1);
        let splits = splits(channels, count);
        let parts = self.workspace((splits * 2 * channels) as u64 * 8);
        let blocks = [channels, splits, 1];
        let launch = Launch::blocks(kernel, blocks);
        let launch = x.iter().fold(launch, |launch, &x| launch.with(x));
        let launch = launch.with(parts).count(batch).count(channels);
        self.launch(launch.count(plane).count(count.div_ceil(splits)));
        (parts, splits)
    }
}
