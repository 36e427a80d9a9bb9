//! Normalisation of rows.

use super::lower::Lowering;
use super::program::Launch;
use super::reduce::join;
use crate::graph::Node;
use crate::ops::Op;
use crate::ops::norm::{LayerNorm, PART_ROWS};
use crate::ops::reduce::Reduction;

impl Lowering<'_> {
    /// Launches the kernels of an operator of this family; `x` are its inputs' addresses.
    pub(super) fn layer_norm(&mut self, node: &Node, x: &[u64], out: u64, own: &[usize]) {
        let shape = self.shape(node.inputs[0]);
        let size = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().product::<usize>() / size;
        let optional = |i: usize| x.get(i).copied().unwrap_or(0);
        let finish = |launch: Launch, attributes: &LayerNorm| {
            let launch = launch.with(i32::from(attributes.centre));
            launch
                .with(attributes.epsilon as f32)
                .count(rows)
                .count(size)
        };
        match &node.op {
            Op::LayerNorm(attributes) => {
                let launch = Launch::threads("layer_norm", rows * 32).with(x[0]);
                let launch = launch.with(optional(1)).with(optional(2)).with(out);
                self.launch(finish(launch, attributes));
            }
            Op::LayerNormGradient(attributes) => {
                let launch = Launch::threads("layer_norm_gradient", rows * 32).with(x[0]);
                let launch = launch.with(x[1]).with(optional(2)).with(out);
                self.launch(finish(launch, attributes));
            }
            Op::LayerNormParameterGradient(attributes) => {
                let (blocks, results) = (rows.div_ceil(PART_ROWS), own.iter().product());
                let parts = self.workspace((blocks * results) as u64 * 4);
                let launch = Launch::blocks("layer_norm_parameter_gradient", [blocks, 1, 1]);
                let launch = launch.with(x[0]).with(x[1]).with(parts);
                self.launch(finish(launch, attributes));
                self.launch(join(Reduction::Sum, parts, out, results, blocks));
            }
            _ => {}
        }
    }
}
