//! Making a graph from another one.

use crate::graph::{Graph, Node, Value};

/// Calls `each` with every node in order, its inputs those of the new graph; `each` adds what the new
/// graph needs and tells which of its values stands for the node.
pub(super) fn rewrite(graph: Graph, mut each: impl FnMut(&mut Graph, Node) -> Value) -> Graph {
    let mut new = Graph::default();
    let mut moved: Vec<Value> = Vec::with_capacity(graph.nodes.len());
    for mut node in graph.nodes {
        node.inputs.iter_mut().for_each(|x| *x = moved[x.index()]);
        moved.push(each(&mut new, node));
    }
    let outputs = graph.outputs.into_iter();
    new.outputs = outputs.map(|(name, v)| (name, moved[v.index()])).collect();
    new
}

/// How many inputs and outputs each value of a graph is.
pub(super) fn uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.nodes.len()];
    let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
    let outputs = graph.outputs.iter().map(|(_, value)| value);
    inputs.chain(outputs).for_each(|x| uses[x.index()] += 1);
    uses
}
