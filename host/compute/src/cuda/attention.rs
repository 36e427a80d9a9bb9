//! Attention: kernels that compute tiles of scores.

use bytemuck::{Pod, Zeroable};

use super::lower::Lowering;
use super::program::{Launch, Strided};
use crate::graph::{Node, Value};
use crate::ops::Op;
use crate::ops::attention::{Attention, Biases, Sizes};
use crate::walk::broadcast;

/// Queries or keys, and columns, of a block.
const SIDE: usize = 64;
/// Threads of a warp.
const WARP: usize = 32;

/// `Attention` of attention.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Attributes {
    sizes: [u32; 4],
    matrix: [u32; 3],
    causal: i32,
    scale: f32,
    biases: Strided,
}

impl Lowering<'_> {
    /// Launches the kernels of an operator of this family; `x` are its inputs' addresses.
    pub(super) fn attention(&mut self, node: &Node, x: &[u64], out: u64) {
        let [q, k, v] = [0, 1, 2].map(|i| self.shape(node.inputs[i]));
        let sizes = Sizes::new(&q, &k, &v);
        let lead = &q[..q.len() - 2];
        let heads: usize = lead.iter().product();
        let tiled = |kernel, lines: usize, columns: usize| {
            let blocks = [heads * lines.div_ceil(SIDE), columns.div_ceil(SIDE), 1];
            Launch::blocks(kernel, blocks)
        };
        let operands = |launch: Launch| x.iter().take(5).fold(launch, |launch, &x| launch.with(x));
        match &node.op {
            Op::Attention(attributes) => {
                let attributes = self.attributes(attributes, sizes, lead, node.inputs.get(3));
                let launch = tiled("attention", sizes.queries, sizes.values);
                let launch = x.iter().take(3).fold(launch, |launch, &x| launch.with(x));
                let bias = x.get(3).copied().unwrap_or(0);
                self.launch(launch.with(bias).with(out).with(attributes));
            }
            Op::AttentionGradient(attributes) => {
                let attributes = self.attributes(attributes, sizes, lead, node.inputs.get(5));
                let bias = x.get(5).copied().unwrap_or(0);
                let finish = |launch| operands(launch).with(bias).with(out).with(attributes);
                // What the first writes is read by those of keys, before that of queries replaces it.
                let rows = heads * sizes.queries;
                let launch = Launch::threads("attention_row_products", rows * WARP);
                let launch = launch.with(x[3]).with(x[4]).with(out).count(heads);
                self.launch(launch.with(attributes));
                let mut of_keys = |keys: bool, values: bool, columns: usize| {
                    let launch = tiled("attention_key_gradient", sizes.keys, columns);
                    let launch = launch.with(i32::from(keys)).with(i32::from(values));
                    self.launch(finish(launch));
                };
                // Scores are computed once for both where a block has all columns of each.
                if sizes.features.max(sizes.values) <= SIDE {
                    of_keys(true, true, SIDE);
                } else {
                    of_keys(true, false, sizes.features);
                    of_keys(false, true, sizes.values);
                }
                let of_queries = "attention_query_gradient";
                self.launch(finish(tiled(of_queries, sizes.queries, sizes.features)));
            }
            Op::AttentionBiasGradient(attributes) => {
                let attributes = self.attributes(attributes, sizes, lead, node.inputs.get(5));
                let bias = x.get(5).copied().unwrap_or(0);
                let own = self.shape(node.inputs[5]);
                let matrices: usize = own[..own.len().saturating_sub(2)].iter().product();
                let tiles = sizes.queries.div_ceil(SIDE) * sizes.keys.div_ceil(SIDE);
                let launch = Launch::blocks("attention_bias_gradient", [matrices * tiles, 1, 1]);
                let launch = operands(launch).with(bias).with(out).count(heads);
                self.launch(launch.with(attributes));
            }
            _ => {}
        }
    }

    fn attributes(
        &self,
        attributes: &Attention,
        sizes: Sizes,
        lead: &[usize],
        bias: Option<&Value>,
    ) -> Attributes {
        let biases = Biases::new(&bias.map(|&bias| self.shape(bias)).unwrap_or_default());
        let matrices = broadcast(&biases.lead, lead);
        let strides: Vec<usize> = matrices.iter().map(|n| n * biases.matrix).collect();
        let Sizes {
            queries,
            keys,
            features,
            values,
        } = sizes;
        Attributes {
            sizes: [queries, keys, features, values].map(|size| size as u32),
            matrix: [biases.matrix, biases.row, biases.column].map(|size| size as u32),
            causal: i32::from(attributes.causal),
            scale: attributes.scale as f32,
            biases: Strided::new(lead, &strides),
        }
    }
}
