//! Softmax and its logarithm.

use super::{Op, Typed, axes, float};
use crate::builder::Builder;
use crate::error::Error;
use crate::graph::{Node, Value};

pub(crate) fn softmax(name: &str, x: &Node, axis: u32) -> Result<(usize, Typed), Error> {
    float(name, x)?;
    let axis = axes(name, &x.shape, &[axis])?[0];
    Ok((axis, (x.dtype, x.shape.clone())))
}

impl Builder {
    /// Exponentials along an axis, scaled to sum 1.
    pub fn softmax(&mut self, x: Value, axis: u32) -> Result<Value, Error> {
        let (axis, typed) = self.at_next(softmax("softmax", self.operand(x)?, axis))?;
        self.push(Op::Softmax { axis, log: false }, &[x], typed)
    }

    /// Logarithm of the softmax.
    pub fn log_softmax(&mut self, x: Value, axis: u32) -> Result<Value, Error> {
        let (axis, typed) = self.at_next(softmax("log-softmax", self.operand(x)?, axis))?;
        self.push(Op::Softmax { axis, log: true }, &[x], typed)
    }
}
