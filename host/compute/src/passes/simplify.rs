//! Algebra: operators that change nothing, or whose effect another one has.

use std::collections::HashMap;

use super::constants::is_all;
use super::rewrite::rewrite;
use crate::graph::{Graph, Node, Value};
use crate::ops::Op;
use crate::ops::elementwise::{Binary, Unary};
use crate::shape::Dim;

/// The graph without them.
pub(crate) fn simplify(graph: Graph) -> Graph {
    // Each rectifier by what it is of.
    let mut rectified: HashMap<Value, (Unary, Value)> = HashMap::new();
    rewrite(graph, |new, mut node| {
        through(new, &mut node);
        if let Op::UnaryGradient(kind) = node.op
            && let Some((of, y)) = rectified.get(&node.inputs[0])
            && *of == kind
        {
            // The result has its operand's sign, and is kept anyway where something follows.
            node.inputs[0] = *y;
        }
        if let Some(same) = identity(new, &node) {
            return same;
        }
        let rectifier = match node.op {
            Op::Unary(kind @ Unary::Relu) => Some((kind, node.inputs[0])),
            Op::Unary(kind @ Unary::LeakyRelu { slope }) if slope > 0.0 => {
                Some((kind, node.inputs[0]))
            }
            _ => None,
        };
        let value = new.push(node);
        if let Some((kind, x)) = rectifier {
            rectified.insert(x, (kind, value));
        }
        value
    })
}

/// Reads what a chain of the same movement starts from.
fn through(new: &Graph, node: &mut Node) {
    let Some(&x) = node.inputs.first() else {
        return;
    };
    let from = new.node(x);
    match (&mut node.op, &from.op) {
        (Op::Reshape, Op::Reshape) | (Op::Expand, Op::Expand) => node.inputs[0] = from.inputs[0],
        (Op::Permute(order), Op::Permute(first)) => {
            order.iter_mut().for_each(|axis| *axis = first[*axis]);
            node.inputs[0] = from.inputs[0];
        }
        _ => {}
    }
}

/// The operand that a node gives unchanged.
fn identity(new: &Graph, node: &Node) -> Option<Value> {
    let x = *node.inputs.first()?;
    let same = |v: Value| {
        let from = new.node(v);
        from.dtype == node.dtype && from.shape == node.shape
    };
    let all = |v: Value, number| is_all(new.node(v), number);
    match &node.op {
        Op::Reshape | Op::Expand | Op::Cast => same(x).then_some(x),
        Op::Permute(order) => order.iter().is_sorted().then_some(x),
        Op::Concat { .. } => (node.inputs.len() == 1).then_some(x),
        Op::DivideBy(count) => (*count == Dim::Fixed(1)).then_some(x),
        Op::Unary(Unary::Affine { factor, offset }) => {
            (*factor == 1.0 && *offset == 0.0).then_some(x)
        }
        Op::Binary(kind) => {
            let y = node.inputs[1];
            let (left, right) = match kind {
                Binary::Add => (all(x, 0), all(y, 0)),
                Binary::Sub => (false, all(y, 0)),
                Binary::Mul => (all(x, 1), all(y, 1)),
                Binary::Div => (false, all(y, 1)),
                Binary::Maximum | Binary::Minimum => (false, false),
            };
            if right && same(x) {
                Some(x)
            } else {
                (left && same(y)).then_some(y)
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::dtype::DType;
    use crate::passes::dead;

    fn input(b: &mut Builder) -> Value {
        let dims = [Dim::Batch(1), Dim::Fixed(2), Dim::Fixed(3)];
        b.input("x", DType::F32, &dims).unwrap()
    }

    #[test]
    fn what_changes_nothing_goes() {
        let mut b = Builder::new();
        let x = input(&mut b);
        let [zero, one] = [0.0, 1.0].map(|k| b.scalar(k).unwrap());
        let y = b.add(x, zero).unwrap();
        let y = b.mul(one, y).unwrap();
        let y = b.sub(y, zero).unwrap();
        let y = b.div(y, one).unwrap();
        let y = b.affine(y, 1.0, 0.0).unwrap();
        let y = b.permute(y, &[1, 2, 0]).unwrap();
        let y = b.permute(y, &[2, 0, 1]).unwrap();
        let y = b.cast(y, DType::F32).unwrap();
        let flat = b.reshape_to(y, &crate::Shape(vec![Dim::Batch(6)])).unwrap();
        let y = b.reshape_like(flat, x).unwrap();
        b.output("y", y).unwrap();
        let graph = dead::remove(simplify(b.graph()));
        assert_eq!(graph.nodes.len(), 1, "{}", graph.describe());
    }

    #[test]
    fn what_changes_shapes_or_numbers_stays() {
        let mut b = Builder::new();
        let x = input(&mut b);
        let row = b.sum(x, &[0], true).unwrap();
        let zeros = b.constant(DType::F32, &[5, 1, 1], &[0; 20]).unwrap();
        let wider = b.add(row, zeros).unwrap();
        let zero = b.scalar(0.0).unwrap();
        let opposite = b.sub(zero, x).unwrap();
        let turned = b.permute(x, &[0, 2, 1]).unwrap();
        for (name, y) in [("a", wider), ("b", opposite), ("c", turned)] {
            b.output(name, y).unwrap();
        }
        let graph = b.graph();
        assert_eq!(simplify(graph.clone()), graph);
    }

    #[test]
    fn a_rectifiers_gradient_reads_its_result() {
        let mut b = Builder::new();
        let x = input(&mut b);
        let square = b.mul(x, x).unwrap();
        let y = b.relu(square).unwrap();
        let loss = b.sum(y, &[], false).unwrap();
        let gradient = b.gradients(loss, &[x]).unwrap()[0];
        b.output("gradient", gradient).unwrap();
        let graph = simplify(b.graph());
        let of = |v: Value| &graph.node(v).op;
        let gradients: Vec<&Node> = graph
            .nodes
            .iter()
            .filter(|node| matches!(node.op, Op::UnaryGradient(_)))
            .collect();
        assert_eq!(gradients.len(), 1);
        assert_eq!(of(gradients[0].inputs[0]), &Op::Unary(Unary::Relu));
    }
}
