//! What holds of every graph between two passes.

use crate::graph::{Graph, Leaf, Node, Value};
use crate::ops::fused::{Program, Source};
use crate::ops::{Op, Typed, conv, matmul, reduce};
use crate::shape::Shape;

/// Dtype and shape of a node by its operator and its operands; none where they are not checked again.
fn typed(graph: &Graph, node: &Node) -> Option<Result<Typed, String>> {
    let operand = |i: usize| graph.node(node.inputs[i]);
    let refuse = |error: crate::error::Error| error.to_string();
    let own = |shape: Shape| Some(Ok((node.dtype, shape)));
    match &node.op {
        Op::Unary(_) | Op::UnaryGradient(_) | Op::Cast | Op::DivideBy(_) | Op::BatchNorm => {
            own(operand(0).shape.clone())
        }
        Op::Binary(_) | Op::Compare(_) | Op::Logic(_) | Op::Select => {
            let mut shape = Shape::default();
            for i in 0..node.inputs.len() {
                match shape.broadcast(&operand(i).shape) {
                    Some(wider) => shape = wider,
                    None => return Some(Err("operands do not broadcast".to_owned())),
                }
            }
            own(shape)
        }
        Op::Fused(program) => Some(computed(program, &node.shape).map(|shape| (node.dtype, shape))),
        Op::FusedReduce(reduced) => {
            let shape = computed(&reduced.program, &reduced.shape);
            let result = |shape| reduce::reduced(&shape, &reduced.axes, reduced.keep);
            Some(shape.map(|shape| (node.dtype, result(shape))))
        }
        Op::Reshape => {
            let elements = [1, 2].map(|batch| {
                operand(0).shape.elements(batch).ok() == node.shape.elements(batch).ok()
            });
            match elements {
                [true, true] => own(node.shape.clone()),
                _ => Some(Err(format!("{} is not of as many", operand(0).shape))),
            }
        }
        Op::Permute(order) => {
            let x = &operand(0).shape;
            own(Shape(order.iter().map(|&axis| x.0[axis]).collect()))
        }
        Op::Reduce { axes, keep, .. } => own(reduce::reduced(&operand(0).shape, axes, *keep)),
        Op::Conv2d(c) => {
            let bias = node.inputs.get(2).map(|_| operand(2));
            Some(conv::conv2d(c, operand(0), operand(1), bias).map_err(refuse))
        }
        Op::Matmul {
            transpose_a,
            transpose_b,
        } => {
            let transposed = (*transpose_a, *transpose_b);
            Some(matmul::matmul(operand(0), operand(1), transposed).map_err(refuse))
        }
        _ => None,
    }
}

/// The shape that a program is to give, where its sources are broadcast to it.
fn computed(program: &Program, shape: &Shape) -> Result<Shape, String> {
    let fits = |source: &Source| shape.broadcast(&source.shape).as_ref() == Some(shape);
    match program.sources.iter().all(fits) {
        true => Ok(shape.clone()),
        false => Err("a source does not broadcast".to_owned()),
    }
}

/// Names, dtypes and shapes of what a graph takes and gives, and of what it keeps.
fn interface(graph: &Graph) -> Vec<String> {
    let leaves = graph.nodes.iter().filter_map(|node| match &node.op {
        Op::Leaf(Leaf::Input(name)) => Some((format!("input {name}"), node)),
        Op::Leaf(Leaf::Variable(variable)) => Some((format!("variable {}", variable.name), node)),
        _ => None,
    });
    let outputs = graph
        .outputs
        .iter()
        .map(|(name, value)| (format!("output {name}"), graph.node(*value)));
    let describe = |(name, node): (String, &Node)| format!("{name}: {} {}", node.dtype, node.shape);
    leaves.chain(outputs).map(describe).collect()
}

/// What is wrong with a graph that a pass made of another one.
pub(crate) fn verify(before: &Graph, after: &Graph) -> Result<(), String> {
    for (i, node) in after.nodes.iter().enumerate() {
        let refuse = |why: &str| Err(format!("%{i} {}: {why}", node.op.describe()));
        if node.inputs.iter().any(|x| x.index() >= i) {
            return refuse("an operand comes after it");
        }
        if node.inputs.iter().any(|&x| after.node(x).op.is_update()) {
            return refuse("an operand has no result");
        }
        if let Err(error) = node.shape.check() {
            return refuse(&error.to_string());
        }
        match typed(after, node) {
            Some(Err(why)) => return refuse(&why),
            Some(Ok((dtype, shape))) if (dtype, &shape) != (node.dtype, &node.shape) => {
                let (own, declared) = (node.dtype, &node.shape);
                return refuse(&format!("is {dtype} {shape}, not {own} {declared}"));
            }
            _ => {}
        }
    }
    let outside = |v: &Value| v.index() >= after.nodes.len();
    if after.outputs.iter().any(|(_, value)| outside(value)) {
        return Err("an output is not there".to_owned());
    }
    let (had, has) = (interface(before), interface(after));
    if had != has {
        return Err(format!("takes, keeps and gives {has:?}, not {had:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::dtype::DType;
    use crate::ops::fused::Reduced;
    use crate::shape::Dim;

    #[test]
    fn a_graph_that_is_wrong_is_told() {
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[Dim::Batch(1)]).unwrap();
        let y = b.exp(x).unwrap();
        let z = b.add(x, y).unwrap();
        b.output("z", z).unwrap();
        let good = b.graph();
        assert_eq!(verify(&good, &good), Ok(()));
        let wrong: [fn(&mut Graph); 4] = [
            |graph| graph.nodes[1].inputs[0] = Value(2),
            |graph| graph.nodes[2].shape = Shape::fixed(&[3]),
            |graph| graph.outputs.clear(),
            |graph| graph.nodes[2].dtype = DType::I64,
        ];
        for change in wrong {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(verify(&good, &bad).is_err(), "{}", bad.describe());
        }
    }

    #[test]
    fn a_reduction_with_a_program_that_is_wrong_is_told() {
        let mut b = Builder::new();
        let x = b
            .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(4)])
            .unwrap();
        let y = b.exp(x).unwrap();
        let z = b.sum(y, &[1], false).unwrap();
        b.output("z", z).unwrap();
        let good = crate::passes::optimize(&b.graph());
        assert_eq!(verify(&good, &good), Ok(()));
        let wrong: [fn(&mut Reduced); 4] = [
            |reduced| reduced.axes = vec![0],
            |reduced| reduced.keep = true,
            |reduced| reduced.shape = Shape::fixed(&[3, 4]),
            |reduced| reduced.program.sources[0].shape = Shape::fixed(&[5]),
        ];
        for change in wrong {
            let mut bad = good.clone();
            let reduced = bad.nodes.iter_mut().find_map(|node| match &mut node.op {
                Op::FusedReduce(reduced) => Some(reduced),
                _ => None,
            });
            change(reduced.unwrap());
            assert!(verify(&good, &bad).is_err(), "{}", bad.describe());
        }
    }
}
