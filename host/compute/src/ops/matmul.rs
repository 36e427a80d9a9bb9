//! Matrix products.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::ops::movement::Target;
use crate::shape::{Dim, Shape};

/// Shape of a·b over the last two axes, either operand transposed in them.
pub(crate) fn matmul(a: &Node, b: &Node, (ta, tb): (bool, bool)) -> Result<Typed, Error> {
    float("matmul", a)?;
    float("matmul", b)?;
    let refuse = || {
        Error::shape(format!(
            "matmul: shapes {} and {} do not fit",
            a.shape, b.shape
        ))
    };
    let split = |s: &Shape, t: bool| {
        let n = s.rank().checked_sub(2)?;
        let (rows, columns) = if t {
            (s.0[n + 1], s.0[n])
        } else {
            (s.0[n], s.0[n + 1])
        };
        Some((Shape(s.0[..n].to_vec()), rows, columns))
    };
    let (lead_a, m, k) = split(&a.shape, ta).ok_or_else(refuse)?;
    let (lead_b, k2, n) = split(&b.shape, tb).ok_or_else(refuse)?;
    if k != k2 {
        return Err(refuse());
    }
    let mut shape = lead_a.broadcast(&lead_b).ok_or_else(refuse)?;
    shape.0.extend([m, n]);
    Ok((a.dtype, shape))
}

/// y = a·b + bias: da = dy·bᵀ, db = aᵀ·dy, summed over broadcast leading axes, dbias = Σ dy.
pub(crate) fn gradient(
    g: &mut Builder,
    (ta, tb): (bool, bool),
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let (a, b) = (inputs[0], inputs[1]);
    let da = if ta {
        g.product(b, dy, (tb, true), None)?
    } else {
        g.product(dy, b, (false, !tb), None)?
    };
    let db = if tb {
        g.product(dy, a, (true, ta), None)?
    } else {
        g.product(a, dy, (!ta, false), None)?
    };
    let mut gradients = vec![Some(g.reduce_like(da, a)?), Some(g.reduce_like(db, b)?)];
    if let Some(&bias) = inputs.get(2) {
        gradients.push(Some(g.reduce_like(dy, bias)?));
    }
    Ok(gradients)
}

impl Builder {
    /// a·b, plus a bias `[columns]` that the caller has checked.
    pub(crate) fn product(
        &mut self,
        a: Value,
        b: Value,
        transpose: (bool, bool),
        bias: Option<Value>,
    ) -> Result<Value, Error> {
        let typed = matmul(self.operand(a)?, self.operand(b)?, transpose)?;
        let (transpose_a, transpose_b) = transpose;
        let inputs: Vec<Value> = [a, b].into_iter().chain(bias).collect();
        self.push(
            Op::Matmul {
                transpose_a,
                transpose_b,
            },
            &inputs,
            typed,
        )
    }
}

impl Builder {
    /// Matrix product over the last two axes.
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.at_next(matmul(self.operand(a)?, self.operand(b)?, (false, false)))?;
        self.product(a, b, (false, false), None)
    }

    /// x · weightᵀ + bias.
    pub fn linear(&mut self, x: Value, weight: Value, bias: Option<Value>) -> Result<Value, Error> {
        let (xn, wn) = (self.operand(x)?, self.operand(weight)?);
        let refuse = || {
            Error::shape(format!(
                "linear: x {} and weight {} do not fit",
                xn.shape, wn.shape
            ))
        };
        let [Dim::Fixed(outputs), Dim::Fixed(inputs)] = wn.shape.0[..] else {
            return self.at_next(Err(refuse()));
        };
        let Some((&Dim::Fixed(last), lead)) = xn.shape.0.split_last() else {
            return self.at_next(Err(refuse()));
        };
        if last != inputs {
            return self.at_next(Err(refuse()));
        }
        let mut result = lead.to_vec();
        result.push(Dim::Fixed(outputs));
        if let Some(bias) = bias {
            let node = self.operand(bias)?;
            self.at_next(crate::ops::float("linear", node))?;
            if node.shape != Shape::fixed(&[outputs]) {
                let why = format!("linear: bias {} is not [{outputs}]", node.shape);
                return self.at_next(Err(Error::shape(why)));
            }
        }
        let flat = self.reshape(x, &[Target::Rest, Target::Size(Dim::Fixed(inputs))])?;
        let y = self.product(flat, weight, (false, true), bias)?;
        self.reshape_to(y, &Shape(result))
    }
}
