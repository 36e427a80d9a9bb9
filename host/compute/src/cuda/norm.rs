//! Batch normalisation.

use super::lower::Lowering;
use super::program::Launch;
use crate::graph::Node;
use crate::ops::Op;

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
                let (_, channels, plane) = planes(&shape);
                let launch = Launch::each("batch_statistics", channels)
                    .with(x[0])
                    .with(out);
                launch
                    .with(*epsilon as f32)
                    .count(shape[0])
                    .count(channels)
                    .count(plane)
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
                let (_, channels, plane) = planes(&shape);
                let launch = all(Launch::each("batch_norm_parameter_gradient", channels));
                launch
                    .with(out)
                    .count(shape[0])
                    .count(channels)
                    .count(plane)
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
}
