//! Dead code: nodes that no output and no update needs.

use super::rewrite::rewrite;
use crate::graph::{Graph, Value};
use crate::ops::Op;

/// Whether the graph has an optimizer step.
pub(crate) fn trains(graph: &Graph) -> bool {
    graph
        .nodes
        .iter()
        .any(|node| matches!(node.op, Op::Optimize(_)))
}

/// For each node, whether it has to run. Running statistics move only where the graph also has an
/// optimizer step, so that evaluating a training graph changes nothing.
pub(crate) fn live(graph: &Graph) -> Vec<bool> {
    let trains = trains(graph);
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

/// The graph without them.
pub(crate) fn remove(graph: Graph) -> Graph {
    let mut live = live(&graph).into_iter();
    rewrite(graph, |new, node| match live.next() {
        Some(true) => new.push(node),
        // No live node refers to it.
        _ => Value(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::dtype::DType;
    use crate::shape::Dim;

    #[test]
    fn statistics_move_in_graphs_that_train_and_nothing_unused_is_left() {
        for train in [false, true] {
            let mut b = Builder::new();
            let x = b
                .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(3)])
                .unwrap();
            let [scale, bias] = ["scale", "bias"].map(|n| b.parameter(n, &[3], "ones", 0).unwrap());
            let [mean, variance] = ["m", "v"].map(|n| b.buffer(n, &[3], "ones").unwrap());
            let y = b
                .batch_norm_train(x, scale, bias, mean, variance, 0.1, 1e-5)
                .unwrap();
            b.exp(y).unwrap();
            let loss = b.sum(y, &[], false).unwrap();
            b.output("loss", loss).unwrap();
            if train {
                let gradients = b.gradients(loss, &[bias]).unwrap();
                b.sgd(&[bias], &gradients, 0.0, false, 0.0).unwrap();
            }
            let graph = remove(b.graph());
            let updates = graph.nodes.iter().filter(|node| node.op.is_update());
            assert_eq!(updates.count(), if train { 2 } else { 0 });
            assert!(
                !graph.describe().contains("Unary(Exp)"),
                "{}",
                graph.describe()
            );
        }
    }
}
