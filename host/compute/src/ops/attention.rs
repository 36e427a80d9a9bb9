//! Attention (Vaswani et al. 2017).

use super::float;
use crate::builder::Builder;
use crate::error::Error;
use crate::graph::Value;
use crate::shape::{Dim, Shape};

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
        let refuse = || {
            let [q, k, v] = nodes.map(|node| &node.shape);
            Error::shape(format!("attention: q {q}, k {k} and v {v} do not fit"))
        };
        let ends = nodes.map(|node| node.shape.0.last_chunk::<2>().copied());
        let [
            Some([Dim::Fixed(queries), Dim::Fixed(features)]),
            Some([Dim::Fixed(keys), k_features]),
            Some([v_keys, _]),
        ] = ends
        else {
            return self.at_next(Err(refuse()));
        };
        if k_features != Dim::Fixed(features) || v_keys != Dim::Fixed(keys) {
            return self.at_next(Err(refuse()));
        }
        let scale = scale.unwrap_or(1.0 / (features as f64).sqrt());
        let scaled = self.affine(q, scale, 0.0)?;
        let mut scores = self.product(scaled, k, (false, true), None)?;
        if let Some(bias) = bias {
            let (shape, own) = (&self.operand(bias)?.shape, &self.node(scores).shape);
            if shape.broadcast(own).as_ref() != Some(own) {
                let why = format!("attention: bias {shape} does not broadcast to {own}");
                return self.at_next(Err(Error::shape(why)));
            }
            scores = self.add(scores, bias)?;
        }
        if causal {
            let rows = self.iota(queries)?;
            let rows = self.reshape_to(rows, &Shape::fixed(&[queries, 1]))?;
            let columns = self.iota(keys)?;
            let seen = self.greater_or_equal(rows, columns)?;
            let hidden = self.scalar(f32::NEG_INFINITY)?;
            scores = self.select(seen, scores, hidden)?;
        }
        let last = self.node(scores).shape.rank() as u32 - 1;
        let weights = self.softmax(scores, last)?;
        self.matmul(weights, v)
    }
}
