//! The prologue: what depends on variables and constants alone, in a graph that does not change
//! variables. It is computed once after variables change, and kept between runs.

use crate::graph::{Graph, Leaf, Node};
use crate::ops::Op;
use crate::shape::Dim;

/// Results of so many bytes are kept even where they are larger than what they are computed from.
const SMALL_BYTES: u64 = 64 << 10;

fn bytes(node: &Node) -> u64 {
    let elements = node.shape.elements(1).unwrap_or(u64::MAX);
    elements.saturating_mul(node.dtype.size_bytes() as u64)
}

/// For each node, whether it is a variable, a constant, or computed from such alone and worth
/// keeping: what repeats elements is not. None is in a graph that takes optimizer steps.
pub(crate) fn fixed(graph: &Graph) -> Vec<bool> {
    let trains = super::dead::trains(graph);
    let mut fixed: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let computed = match &node.op {
            Op::Leaf(leaf) => !matches!(leaf, Leaf::Input(_)),
            Op::DivideBy(Dim::Batch(_)) | Op::Random { .. } | Op::Dropout(_) => false,
            op => !op.is_update(),
        };
        let inputs = node.inputs.iter().all(|x| fixed[x.index()]);
        let batch = node.shape.0.iter().any(|d| matches!(d, Dim::Batch(_)));
        let operands = node.inputs.iter().map(|&x| bytes(graph.node(x)));
        let most = operands.fold(SMALL_BYTES, u64::saturating_add);
        let grows = !matches!(node.op, Op::Leaf(_)) && bytes(node) > most;
        fixed.push(!trains && computed && inputs && !batch && !grows);
    }
    fixed
}
