//! Batch normalisation with fixed statistics, folded into the convolution or the product before it.
//!
//! (w·x + b − mean)·f + bias with f = scale/√(variance + ε) is (w·f)·x + (b − mean)·f + bias. The new
//! weights depend on variables alone, so that the prologue computes them.

use super::prologue::fixed;
use super::rewrite::{rewrite, uses};
use crate::dtype::DType;
use crate::graph::{Graph, Node, Value};
use crate::ops::Op;
use crate::ops::elementwise::Binary;
use crate::shape::{Dim, Shape};

/// The axis of a weight along which its results lie, where a node's results are its second axis.
fn result_axis(graph: &Graph, node: &Node) -> Option<usize> {
    match node.op {
        Op::Conv2d(_) => Some(0),
        Op::Matmul { transpose_b, .. } if node.shape.rank() == 2 => {
            let weight = graph.node(*node.inputs.get(1)?);
            (weight.shape.rank() == 2).then_some(usize::from(!transpose_b))
        }
        _ => None,
    }
}

/// The graph with such normalisations folded, where nothing else uses what they normalise and the
/// graph takes no optimizer step.
pub(crate) fn fold(graph: Graph) -> Graph {
    let (fixed, uses) = (fixed(&graph), uses(&graph));
    let is_fixed = |v: &Value| fixed[v.index()];
    // By the normalisation, in the old graph: the axis of the weight.
    let folded: Vec<Option<usize>> = graph
        .nodes
        .iter()
        .map(|node| {
            let (x, rest) = node.inputs.split_first()?;
            let (op, product) = (&node.op, graph.node(*x));
            let float = node.dtype == DType::F32 && product.dtype == DType::F32;
            let alone = float && *op == Op::BatchNorm && uses[x.index()] == 1;
            let weights = product.inputs.get(1..)?;
            (alone && rest.iter().chain(weights).all(is_fixed))
                .then(|| result_axis(&graph, product))?
        })
        .collect();
    let mut folded = folded.into_iter();
    rewrite(graph, |new, node| match folded.next().flatten() {
        Some(axis) => replacement(new, &node, axis),
        None => new.push(node),
    })
}

/// The product of a normalisation with its new weights.
fn replacement(new: &mut Graph, norm: &Node, axis: usize) -> Value {
    let &[x, scale, bias, statistics] = &*norm.inputs else {
        return new.push(norm.clone());
    };
    let mut product = new.node(x).clone();
    let weight = product.inputs[1];
    let (weight_shape, channels) = (
        new.node(weight).shape.clone(),
        new.node(scale).shape.clone(),
    );
    let mut column = vec![Dim::Fixed(1); weight_shape.rank()];
    column[axis] = channels.0[0];
    let mut push = |op, inputs: &[Value], shape: &Shape| {
        new.push(Node {
            op,
            inputs: inputs.to_vec(),
            shape: shape.clone(),
            ..norm.clone()
        })
    };
    let mean = push(Op::Row { index: 0 }, &[statistics], &channels);
    let deviation = push(Op::Row { index: 1 }, &[statistics], &channels);
    let factor = push(Op::Binary(Binary::Mul), &[deviation, scale], &channels);
    let column = push(Op::Reshape, &[factor], &Shape(column));
    let weight = push(Op::Binary(Binary::Mul), &[weight, column], &weight_shape);
    let shift = match product.inputs.get(2) {
        Some(&own) => push(Op::Binary(Binary::Sub), &[mean, own], &channels),
        None => mean,
    };
    let shift = push(Op::Binary(Binary::Mul), &[shift, factor], &channels);
    let bias = push(Op::Binary(Binary::Sub), &[bias, shift], &channels);
    product.inputs = vec![product.inputs[0], weight, bias];
    product.origin = norm.origin;
    new.push(product)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{Builder, Conv2d};
    use crate::passes::dead;

    /// The operators left of a convolution and a product, each normalised.
    fn folded(train: bool) -> String {
        let mut b = Builder::new();
        let dims = [Dim::Batch(1), Dim::Fixed(3), Dim::Fixed(5), Dim::Fixed(5)];
        let x = b.input("x", DType::F32, &dims).unwrap();
        let w = b.parameter("w", &[4, 3, 3, 3], "ones", 0).unwrap();
        let v = b.parameter("v", &[4, 36], "ones", 0).unwrap();
        let [scale, bias, mean, variance] =
            ["s", "b", "m", "v2"].map(|name| b.parameter(name, &[4], "ones", 0).unwrap());
        let y = b.conv2d(x, w, Some(bias), Conv2d::default()).unwrap();
        let y = b
            .batch_norm_eval(y, scale, bias, mean, variance, 1e-5)
            .unwrap();
        let y = b
            .reshape_to(y, &Shape(vec![Dim::Batch(1), Dim::Fixed(36)]))
            .unwrap();
        let y = b.linear(y, v, None).unwrap();
        let y = b
            .batch_norm_eval(y, scale, bias, mean, variance, 1e-5)
            .unwrap();
        let loss = b.sum(y, &[], false).unwrap();
        b.output("loss", loss).unwrap();
        if train {
            let gradients = b.gradients(loss, &[w]).unwrap();
            b.sgd(&[w], &gradients, 0.0, false, 0.0).unwrap();
        }
        dead::remove(fold(b.graph())).describe()
    }

    #[test]
    fn normalisations_are_folded_where_no_step_is_taken() {
        let text = folded(false);
        assert!(!text.contains("BatchNorm"), "{text}");
        assert!(folded(true).contains("BatchNorm"));
    }
}
