//! Losses.

use super::{Typed, float};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Node;
use crate::shape::{Dim, Shape};

pub(crate) fn cross_entropy(logits: &Node, labels: &Node, smoothing: f64) -> Result<Typed, Error> {
    float("cross-entropy", logits)?;
    if labels.dtype != DType::I64 {
        return Err(Error::dtype(format!(
            "cross-entropy takes int64 labels, not {}",
            labels.dtype
        )));
    }
    let fits = matches!(logits.shape.0[..], [n, Dim::Fixed(1..)] if labels.shape.0 == [n]);
    if !fits {
        return Err(Error::shape(format!(
            "cross-entropy takes logits [batch, classes] and labels [batch], not {} and {}",
            logits.shape, labels.shape
        )));
    }
    if !(0.0..=1.0).contains(&smoothing) {
        return Err(Error::attribute(
            "cross-entropy: label smoothing lies between 0 and 1",
        ));
    }
    Ok((DType::F32, Shape::default()))
}
