//! Dead code: the nodes that no output and no update needs.

use crate::graph::Graph;

/// For each node, whether it has to run. Running statistics move only where the graph also has an
/// optimizer step, so that evaluating a training graph changes nothing.
pub(crate) fn reachable(graph: &Graph) -> Vec<bool> {
    use crate::ops::Op;
    let trains = graph.nodes.iter().any(|n| matches!(n.op, Op::Optimize(_)));
    let mut live = vec![false; graph.nodes.len()];
    for (_, value) in &graph.outputs {
        live[value.index()] = true;
    }
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        live[i] |= trains && node.op.is_update();
        if live[i] {
            for input in &node.inputs {
                live[input.index()] = true;
            }
        }
    }
    live
}
