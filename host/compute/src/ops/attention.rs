//! Attention (Vaswani et al. 2017), without a tensor of all scores: they are computed by tiles, and
//! again for the gradients (Dao et al. 2022).

use super::{Op, float};
use crate::builder::{Builder, END};
use crate::error::Error;
use crate::graph::Value;
use crate::shape::{Dim, Shape};

/// Attributes of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Attention {
    /// Only keys that are not after the query count.
    pub(crate) causal: bool,
    pub(crate) scale: f64,
}

/// The sizes of one attention: those of all its heads are the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) features: usize,
    pub(crate) values: usize,
}

impl Sizes {
    /// From the shapes of q, k and v.
    pub(crate) fn new(q: &[usize], k: &[usize], v: &[usize]) -> Self {
        Self {
            queries: q[q.len() - 2],
            keys: k[k.len() - 2],
            features: q[q.len() - 1],
            values: v[v.len() - 1],
        }
    }
}

/// How a bias is read: for each head the number of its matrix, and what is between the rows and
/// between the columns of a matrix, in elements: 0 where there is one.
#[derive(Debug, Clone)]
pub(crate) struct Biases {
    pub(crate) matrix: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
    /// The shape of the matrices' numbers, broadcast to the heads'.
    pub(crate) lead: Vec<usize>,
}

impl Biases {
    /// From the shape of a bias.
    pub(crate) fn new(shape: &[usize]) -> Self {
        let size = |from_end: usize| shape.len().checked_sub(from_end).map_or(1, |i| shape[i]);
        let (rows, columns) = (size(2), size(1));
        Self {
            matrix: rows * columns,
            row: if rows == 1 { 0 } else { columns },
            column: usize::from(columns > 1),
            lead: shape[..shape.len().saturating_sub(2)].to_vec(),
        }
    }
}

/// With P the weights and D = Σ dy·y over values: dV = Pᵀ·dy, dS = P·(dy·Vᵀ − D), which is the bias's
/// gradient, dQ = scale·dS·K, dK = scale·dSᵀ·Q.
pub(crate) fn gradient(
    b: &mut Builder,
    attributes: Attention,
    inputs: &[Value],
    (y, dy): (Value, Value),
) -> Result<Vec<Option<Value>>, Error> {
    let shapes = [0, 1, 2].map(|i| b.node(inputs[i]).shape.clone());
    let dtype = b.node(y).dtype;
    let lead = shapes[0].rank() - 2;
    let mut parts = Vec::new();
    for shape in &shapes {
        parts.push(Shape(shape.0[lead..].to_vec()).elements(1)?);
    }
    let mut operands = vec![inputs[0], inputs[1], inputs[2], y, dy];
    operands.extend(inputs.get(3));
    let mut all = Shape(shapes[0].0[..lead].to_vec());
    all.0.push(Dim::Fixed(parts.iter().sum()));
    let all = b.push(Op::AttentionGradient(attributes), &operands, (dtype, all))?;
    let mut gradients = Vec::new();
    let mut from = 0;
    for (shape, size) in shapes.iter().zip(parts) {
        let (mut starts, mut ends) = (vec![0; lead + 1], vec![END; lead + 1]);
        (starts[lead], ends[lead]) = (from, from + size);
        let part = b.slice(all, &starts, &ends, &vec![1; lead + 1])?;
        gradients.push(Some(b.reshape_to(part, shape)?));
        from += size;
    }
    if let Some(&bias) = inputs.get(3) {
        let own = b.node(bias).shape.clone();
        let mut shape = own.0[..own.rank().saturating_sub(2)].to_vec();
        shape.extend([shapes[0].0[lead], shapes[1].0[lead]]);
        let op = Op::AttentionBiasGradient(attributes);
        let scores = b.push(op, &operands, (dtype, Shape(shape)))?;
        gradients.push(Some(b.reduce_like(scores, bias)?));
    }
    Ok(gradients)
}

impl Builder {
    /// softmax(scale·q·kᵀ + bias)·v, where `causal` only over keys that are not after the query:
    /// q `[…, queries, features]`, k `[…, keys, features]`, v `[…, keys, values]`, bias broadcast
    /// to `[…, queries, keys]`, result `[…, queries, values]`. The scale is 1/√features where none
    /// is given.
    pub fn attention(
        &mut self,
        (q, k, v): (Value, Value, Value),
        bias: Option<Value>,
        causal: bool,
        scale: Option<f64>,
    ) -> Result<Value, Error> {
        let name = "attention";
        let nodes = [self.operand(q)?, self.operand(k)?, self.operand(v)?];
        for node in nodes {
            self.at_next(float(name, node))?;
        }
        let dtype = nodes[0].dtype;
        let shapes = nodes.map(|node| node.shape.clone());
        let refuse = || {
            let [q, k, v] = &shapes;
            Error::shape(format!("attention: q {q}, k {k} and v {v} do not fit"))
        };
        let ends = shapes
            .each_ref()
            .map(|shape| shape.0.last_chunk::<2>().copied());
        let [
            Some([Dim::Fixed(queries), Dim::Fixed(features)]),
            Some([Dim::Fixed(keys), k_features]),
            Some([v_keys, Dim::Fixed(values)]),
        ] = ends
        else {
            return self.at_next(Err(refuse()));
        };
        if k_features != Dim::Fixed(features) || v_keys != Dim::Fixed(keys) {
            return self.at_next(Err(refuse()));
        }
        let [q_lead, k_lead, v_lead] = shapes.each_ref().map(|shape| {
            let lead = shape.rank() - 2;
            Shape(shape.0[..lead].to_vec())
        });
        let scores = q_lead.broadcast(&k_lead);
        let lead = scores.as_ref().and_then(|lead| lead.broadcast(&v_lead));
        let (Some(mut scores), Some(lead)) = (scores, lead) else {
            return self.at_next(Err(refuse()));
        };
        scores.0.extend([Dim::Fixed(queries), Dim::Fixed(keys)]);
        let with = |rows: u64, columns: u64| {
            let ends = [Dim::Fixed(rows), Dim::Fixed(columns)];
            Shape([&lead.0[..], &ends].concat())
        };
        let mut inputs = Vec::with_capacity(4);
        for (x, shape) in [
            (q, with(queries, features)),
            (k, with(keys, features)),
            (v, with(keys, values)),
        ] {
            let same = self.node(x).shape == shape;
            inputs.push(if same { x } else { self.expand(x, &shape.0)? });
        }
        if let Some(bias) = bias {
            let node = self.operand(bias)?;
            self.at_next(float(name, node))?;
            let shape = node.shape.clone();
            if shape.broadcast(&scores).as_ref() != Some(&scores) {
                let why = format!("attention: bias {shape} does not broadcast to {scores}");
                return self.at_next(Err(Error::shape(why)));
            }
            inputs.push(bias);
        }
        let attributes = Attention {
            causal,
            scale: scale.unwrap_or(1.0 / (features as f64).sqrt()),
        };
        let typed = (dtype, with(queries, values.saturating_add(1)));
        let both = self.push(Op::Attention(attributes), &inputs, typed)?;
        let rank = lead.rank() + 2;
        let mut ends = vec![END; rank];
        ends[rank - 1] = values;
        self.slice(both, &vec![0; rank], &ends, &vec![1; rank])
    }
}
