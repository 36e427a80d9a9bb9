//! Reuse in place: a result that is computed element by element takes the memory of an operand of
//! which nothing is read afterwards.

use crate::dtype::DType;
use crate::graph::{Graph, Node, Value};
use crate::ops::Op;
use crate::ops::fused::Program;

/// The value whose memory a chain of reshapes shows.
pub(crate) fn root(graph: &Graph, mut value: Value) -> Value {
    while graph.node(value).op == Op::Reshape {
        value = graph.node(value).inputs[0];
    }
    value
}

/// Whether a node reads an element of an operand only as it writes the result's element of the same
/// number.
fn in_step(graph: &Graph, node: &Node, operand: usize) -> bool {
    let own = graph.node(node.inputs[operand]);
    let many =
        [1, 2].map(|batch| own.shape.elements(batch).ok() == node.shape.elements(batch).ok());
    if node.dtype != DType::F32 || own.dtype != DType::F32 || many != [true, true] {
        return false;
    }
    match &node.op {
        Op::Fused(program) => program.sources[operand].offset == 0,
        // dy.
        Op::BatchNormTrainGradient => operand == 0,
        _ => Program::of(graph, node).is_some(),
    }
}

/// The operand whose memory a node's result may take, as the value that it is kept for, the one
/// computed last where there are several; `dies` tells of such a value whether nothing reads it after
/// the node.
pub(crate) fn taken(graph: &Graph, node: &Node, dies: impl Fn(Value) -> bool) -> Option<Value> {
    let roots: Vec<Value> = node.inputs.iter().map(|&x| root(graph, x)).collect();
    let all_in_step = |of: Value| {
        let mut all = (0..roots.len()).filter(|&i| roots[i] == of);
        all.all(|i| in_step(graph, node, i))
    };
    let fits = |of: &Value| graph.node(*of).dtype == DType::F32 && dies(*of) && all_in_step(*of);
    roots.iter().copied().filter(fits).max()
}
