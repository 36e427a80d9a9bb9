//! Constant folding: what is computed from constants alone is computed once, by the processor's
//! kernels, when a graph is planned.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use super::rewrite::rewrite;
use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Leaf, Node, Value};
use crate::ops::Op;
use crate::plan::{Options, Plan};
use crate::shape::Dim;

/// The most bytes of anything that folding reads or makes: more is left to the runs, so that a plan
/// takes neither long nor much memory to make.
const MOST_BYTES: u64 = 64 << 10;
/// The most bytes that folding adds to a graph's constants.
const MOST_ADDED_BYTES: u64 = 4 << 20;

fn bytes(node: &Node) -> u64 {
    let elements = node.shape.elements(1).unwrap_or(u64::MAX);
    elements.saturating_mul(node.dtype.size_bytes() as u64)
}

fn small(node: &Node) -> bool {
    let fixed = node.shape.0.iter().all(|d| matches!(d, Dim::Fixed(_)));
    fixed && bytes(node) <= MOST_BYTES
}

/// For each node, whether it is a small constant or computed from such.
fn constant(graph: &Graph) -> Vec<bool> {
    let mut constant: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let computed = match &node.op {
            Op::Leaf(leaf) => matches!(leaf, Leaf::Constant(_)),
            Op::DivideBy(Dim::Batch(_)) | Op::Random { .. } | Op::Dropout(_) => false,
            op => !op.is_update(),
        };
        let inputs = node.inputs.iter().all(|x| constant[x.index()]);
        constant.push(computed && inputs && small(node));
    }
    constant
}

/// The graph with such results as constants. What cannot be computed, as an index out of range, is
/// left for a run to tell.
pub(crate) fn fold(graph: Graph) -> Graph {
    let constant = constant(&graph);
    let is_leaf = |v: Value| matches!(graph.node(v).op, Op::Leaf(_));
    // What something that is not folded uses.
    let used = graph.nodes.iter().enumerate();
    let used = used.filter(|(i, _)| !constant[*i]);
    let used = used.flat_map(|(_, node)| node.inputs.iter().copied());
    let mut wanted: Vec<Value> = used
        .chain(graph.outputs.iter().map(|(_, value)| *value))
        .filter(|v| constant[v.index()] && !is_leaf(*v))
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut added = 0;
    wanted.retain(|v| {
        added += bytes(graph.node(*v));
        added <= MOST_ADDED_BYTES
    });
    if wanted.is_empty() {
        return graph;
    }
    let Ok(mut folded) = evaluate(&graph, &constant, &wanted) else {
        return graph;
    };
    let mut old = 0..;
    rewrite(graph, |new, mut node| {
        if let Some(bytes) = old.next().and_then(|i: u32| folded.remove(&Value(i))) {
            node.op = Op::Leaf(Leaf::Constant(bytes));
            node.inputs.clear();
        }
        new.push(node)
    })
}

/// The elements of values that are computed from constants.
fn evaluate(
    graph: &Graph,
    constant: &[bool],
    wanted: &[Value],
) -> Result<HashMap<Value, Vec<u8>>, Error> {
    let mut part = Graph::default();
    let mut moved: HashMap<Value, Value> = HashMap::new();
    for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| constant[*i]) {
        let mut node = node.clone();
        node.inputs.iter_mut().for_each(|x| *x = moved[x]);
        moved.insert(Value(i as u32), part.push(node));
    }
    part.outputs = wanted
        .iter()
        .map(|value| (value.0.to_string(), moved[value]))
        .collect();
    let plan = Plan::scheduled(super::dead::remove(part), 1, Options::default())?;
    let mut session = CpuBackend::new(1)?.open(vec![plan], u64::MAX)?;
    session.run(0, 1, &[], &AtomicBool::new(false))?;
    let bytes = |&value: &Value| {
        let tensor = session.output(0, &value.0.to_string())?;
        Ok((value, tensor.bytes().to_vec()))
    };
    wanted.iter().map(bytes).collect()
}

/// Whether every element of a small constant is this number.
pub(super) fn is_all(node: &Node, number: i8) -> bool {
    let Op::Leaf(Leaf::Constant(bytes)) = &node.op else {
        return false;
    };
    match node.dtype {
        _ if bytes.len() as u64 > MOST_BYTES => false,
        DType::F32 => all(bytes, f32::from(number).to_le_bytes()),
        DType::I64 => all(bytes, i64::from(number).to_le_bytes()),
        _ => false,
    }
}

fn all<const N: usize>(bytes: &[u8], element: [u8; N]) -> bool {
    bytes.as_chunks::<N>().0.iter().all(|own| *own == element)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::passes::dead;

    #[test]
    fn what_constants_give_is_a_constant() {
        let mut b = Builder::new();
        let x = b
            .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(3)])
            .unwrap();
        let bytes: Vec<u8> = [1.0f32, 4.0, 9.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let c = b.constant(DType::F32, &[3], &bytes).unwrap();
        let root = b.sqrt(c).unwrap();
        let sum = b.add(root, root).unwrap();
        let y = b.mul(x, sum).unwrap();
        b.output("y", y).unwrap();
        b.output("sum", sum).unwrap();
        let graph = dead::remove(fold(b.graph()));
        assert_eq!(graph.nodes.len(), 3, "{}", graph.describe());
        let sum = graph.outputs[1].1;
        let expected: Vec<u8> = [2.0f32, 4.0, 6.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        assert_eq!(graph.node(sum).op, Op::Leaf(Leaf::Constant(expected)));
    }

    #[test]
    fn what_is_large_random_or_of_the_batch_is_left_to_runs_and_so_is_an_error() {
        let mut b = Builder::new();
        let one = b.scalar(1.0).unwrap();
        let large = b.expand(one, &[Dim::Fixed(1 << 20)]).unwrap();
        let batch = b.expand(one, &[Dim::Batch(1)]).unwrap();
        let random = b.dropout(one, 0.5, 0).unwrap();
        let index = b.constant(DType::I64, &[1], &7i64.to_le_bytes()).unwrap();
        let line = b.constant(DType::F32, &[2], &[0; 8]).unwrap();
        let outside = b.gather(line, index, 0).unwrap();
        for (name, value) in [("a", large), ("b", batch), ("c", random), ("d", outside)] {
            b.output(name, value).unwrap();
        }
        assert_eq!(fold(b.graph()), b.graph());
    }
}
