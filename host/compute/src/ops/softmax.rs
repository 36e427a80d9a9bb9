//! Softmax and its logarithm.

use super::{Typed, axes, float};
use crate::error::Error;
use crate::graph::Node;

pub(crate) fn softmax(name: &str, x: &Node, axis: u32) -> Result<(usize, Typed), Error> {
    float(name, x)?;
    let axis = axes(name, &x.shape, &[axis])?[0];
    Ok((axis, (x.dtype, x.shape.clone())))
}
