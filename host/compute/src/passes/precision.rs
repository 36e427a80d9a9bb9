//! Storage in bfloat16: which results are kept with 8 bits of fraction instead of 24.
//!
//! The pass changes dtypes alone. Every operator computes in float32: a backend widens what is
//! stored as bfloat16 when it reads it, and rounds to nearest, ties to even, when it stores. Products
//! and convolutions round all that they multiply to bfloat16 and add up in float32. Parameters, and
//! whatever does not grow with the batch (statistics, gradients of parameters, optimizer state),
//! stay float32; so do inputs, outputs, losses with the logits that they are computed from, random
//! numbers, running sums and spectra.

use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Node, Value};
use crate::ops::Op;
use crate::ops::reduce::Reduction;
use crate::shape::Dim;

/// How intermediate results are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As computed.
    #[default]
    Float32,
    /// As bfloat16 where they grow with the batch.
    Bfloat16,
}

impl Precision {
    /// By the contract's name. Errors: `option.value`.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "float32" => Ok(Self::Float32),
            "bfloat16" => Ok(Self::Bfloat16),
            other => {
                let other = other.escape_debug();
                let message = format!("precision `{other}` is not float32 or bfloat16");
                Err(Error::new("option.value", message))
            }
        }
    }
}

/// The graph with its results stored so.
pub(crate) fn stored(mut graph: Graph, precision: Precision) -> Graph {
    if precision == Precision::Float32 {
        return graph;
    }
    let exact = exact(&graph);
    for (i, exact) in exact.into_iter().enumerate() {
        let node = &graph.nodes[i];
        let given = |x: &Value| graph.node(*x).dtype == DType::BF16;
        let narrow = match &node.op {
            _ if !grows(node) => false,
            // The same bytes as its operand's.
            Op::Reshape => given(&node.inputs[0]),
            _ if exact => false,
            // Moved as they are, and compared with what they come from.
            op if moves(op) => node.inputs.iter().any(given),
            _ => true,
        };
        if narrow {
            graph.nodes[i].dtype = DType::BF16;
        }
    }
    graph
}

/// Whether a node multiplies what it rounds to bfloat16 where results are stored so.
pub(crate) fn is_product(op: &Op) -> bool {
    matches!(
        op,
        Op::Matmul { .. }
            | Op::Conv2d(_)
            | Op::Conv2dInputGradient(_)
            | Op::Conv2dWeightGradient(_)
    )
}

/// What a kernel that computes in float32 needs of an operand first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conversion {
    /// bfloat16 to float32.
    Widen,
    /// float32 to the nearest bfloat16, as float32.
    Round,
}

/// What becomes of a node's operand; none where it is read as it is, or was converted as an earlier
/// operand of the node.
pub(crate) fn conversion(
    graph: &Graph,
    node: &Node,
    operand: usize,
    precision: Precision,
) -> Option<Conversion> {
    let value = node.inputs[operand];
    if node.op.is_update() || node.inputs[..operand].contains(&value) {
        return None;
    }
    // The third operand of a product is added.
    let rounds = precision == Precision::Bfloat16 && is_product(&node.op) && operand < 2;
    match graph.node(value).dtype {
        DType::BF16 => Some(Conversion::Widen),
        DType::F32 if rounds => Some(Conversion::Round),
        _ => None,
    }
}

/// Whether a node only moves elements that are all stored alike, so that none is converted.
pub(crate) fn only_moves(graph: &Graph, node: &Node) -> bool {
    let moved = match &node.op {
        Op::Permute(_)
        | Op::Expand
        | Op::Row { .. }
        | Op::Slice(_)
        | Op::Place { .. }
        | Op::Concat { .. } => &node.inputs[..],
        Op::Select => &node.inputs[1..],
        Op::Gather { .. } | Op::Take { .. } => &node.inputs[..1],
        _ => return false,
    };
    let alike = |x: &Value| graph.node(*x).dtype == node.dtype;
    moved.iter().all(alike)
}

/// Elements of converted operands and of a result before it is stored, each from a multiple of 16 on.
pub(crate) fn converted_elements(
    graph: &Graph,
    node: &Node,
    precision: Precision,
    batch: u64,
) -> Result<u64, Error> {
    if only_moves(graph, node) {
        return Ok(0);
    }
    let mut elements = 0u64;
    let mut add = |node: &Node| -> Result<(), Error> {
        elements = elements.saturating_add(node.shape.elements(batch)?.next_multiple_of(16));
        Ok(())
    };
    for (i, x) in node.inputs.iter().enumerate() {
        if conversion(graph, node, i, precision).is_some() {
            add(graph.node(*x))?;
        }
    }
    if node.dtype == DType::BF16 {
        add(node)?;
    }
    Ok(elements)
}

/// Whether a node is a float32 result that grows with the batch.
fn grows(node: &Node) -> bool {
    let batched = node.shape.0.iter().any(|dim| matches!(dim, Dim::Batch(_)));
    node.dtype == DType::F32 && batched && !matches!(node.op, Op::Leaf(_))
}

fn moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Permute(_) | Op::Slice(_) | Op::Place { .. } | Op::Concat { .. } | Op::Row { .. }
    ) || matches!(op, Op::Reduce { kind, .. } if matches!(kind, Reduction::Max | Reduction::Min))
}

/// The values that stay float32, those that reshapes of them show among them.
fn exact(graph: &Graph) -> Vec<bool> {
    let mut exact = vec![false; graph.nodes.len()];
    for (_, value) in &graph.outputs {
        exact[value.index()] = true;
    }
    // From the last node, so that a loss is known before what it is computed from.
    let mut of_loss = vec![false; graph.nodes.len()];
    for i in (0..graph.nodes.len()).rev() {
        let node = &graph.nodes[i];
        let reduces = matches!(node.op, Op::Reduce { .. } | Op::FusedReduce(_));
        let is_loss = reduces && node.shape.rank() == 0;
        let whole = is_loss || (of_loss[i] && element_wise(&node.op));
        let inputs = match &node.op {
            Op::CrossEntropy { .. } | Op::CrossEntropyGradient { .. } => &node.inputs[..1],
            Op::StftPower(_) | Op::Cumsum { .. } => &node.inputs[..],
            Op::Reshape if exact[i] => &node.inputs[..],
            _ if whole => &node.inputs[..],
            _ => &[],
        };
        for x in inputs {
            exact[x.index()] = true;
            of_loss[x.index()] |= whole;
        }
        exact[i] |= matches!(
            node.op,
            Op::Random { .. } | Op::StftPower(_) | Op::Cumsum { .. } | Op::CrossEntropy { .. }
        );
    }
    // What is made of a spectrum at once, as its logarithm is, which tells small powers apart.
    let mut spectrum = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let of_spectrum = node.inputs.iter().any(|x| spectrum[x.index()]);
        let made = matches!(node.op, Op::Unary(_) | Op::Fused(_)) && of_spectrum;
        spectrum[i] = matches!(node.op, Op::StftPower(_)) || made;
        exact[i] |= spectrum[i];
    }
    exact
}

/// Whether each element of a result comes from one of each operand, so that a loss that is made of
/// it is made of them.
fn element_wise(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(_)
            | Op::Fused(_)
            | Op::Binary(_)
            | Op::Select
            | Op::DivideBy(_)
            | Op::Expand
            | Op::Reshape
            | Op::Gather { .. }
            | Op::Reduce { .. }
            | Op::FusedReduce(_)
            | Op::Softmax { log: true, .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;

    fn stored_as(build: impl FnOnce(&mut Builder) -> Result<Vec<Value>, Error>) -> Vec<DType> {
        let mut b = Builder::new();
        let values = build(&mut b).unwrap();
        let graph = stored(b.graph(), Precision::Bfloat16);
        values
            .iter()
            .map(|value| graph.node(*value).dtype)
            .collect()
    }

    fn input(b: &mut Builder, sizes: &[u64]) -> Result<Value, Error> {
        let sizes = sizes.iter().map(|&size| Dim::Fixed(size));
        let dims: Vec<Dim> = std::iter::once(Dim::Batch(1)).chain(sizes).collect();
        b.input("x", DType::F32, &dims)
    }

    #[test]
    fn activations_are_narrow_and_what_trains_is_wide() {
        let dtypes = stored_as(|b| {
            let x = input(b, &[6])?;
            let labels = b.input("y", DType::I64, &[Dim::Batch(1)])?;
            let w = b.parameter("w", &[4, 6], "zeros", 0)?;
            let v = b.parameter("v", &[3, 4], "zeros", 0)?;
            let hidden = b.linear(x, w, None)?;
            let active = b.gelu(hidden, false)?;
            let logits = b.linear(active, v, None)?;
            let loss = b.cross_entropy(logits, labels, 0.0)?;
            let gradients = b.gradients(loss, &[w, v])?;
            b.output("loss", loss)?;
            Ok(vec![
                hidden,
                active,
                x,
                w,
                logits,
                loss,
                gradients[0],
                gradients[1],
            ])
        });
        let (narrow, wide) = dtypes.split_at(2);
        assert_eq!(narrow, [DType::BF16; 2]);
        assert_eq!(wide, [DType::F32; 6]);
    }

    #[test]
    fn losses_of_element_wise_operators_are_wide_from_their_logits() {
        let dtypes = stored_as(|b| {
            let x = input(b, &[6])?;
            let w = b.parameter("w", &[6, 6], "zeros", 0)?;
            let hidden = b.linear(x, w, None)?;
            let logits = b.linear(hidden, w, None)?;
            let difference = b.sub(logits, x)?;
            let square = b.mul(difference, difference)?;
            let mean = b.mean(square, &[], false)?;
            Ok(vec![hidden, logits, difference, square, mean])
        });
        assert_eq!(dtypes[0], DType::BF16);
        assert_eq!(dtypes[1..], [DType::F32; 4]);
    }

    #[test]
    fn an_output_is_wide_with_what_it_shows() {
        let dtypes = stored_as(|b| {
            let x = input(b, &[6])?;
            let hidden = b.exp(x)?;
            let wide = b.exp(hidden)?;
            let folded = b.reshape_to(
                wide,
                &crate::shape::Shape(vec![Dim::Batch(1), Dim::Fixed(2), Dim::Fixed(3)]),
            )?;
            b.output("folded", folded)?;
            Ok(vec![hidden, wide, folded])
        });
        assert_eq!(dtypes, [DType::BF16, DType::F32, DType::F32]);
    }

    #[test]
    fn an_unknown_precision_is_refused_with_those_there_are() {
        let error = Precision::parse("float16").unwrap_err();
        assert_eq!(error.code(), "option.value");
        assert!(error.to_string().contains("float32 or bfloat16"), "{error}");
    }
}
