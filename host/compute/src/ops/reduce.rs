//! Reductions.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::{Dim, Shape};

/// How elements are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Max,
}

pub(crate) fn reduced(shape: &Shape, axes: &[usize], keep: bool) -> Shape {
    let dims = shape
        .0
        .iter()
        .enumerate()
        .filter_map(|(i, &d)| match axes.contains(&i) {
            false => Some(d),
            true => keep.then_some(Dim::Fixed(1)),
        });
    Shape(dims.collect())
}

pub(crate) fn reduce(
    name: &str,
    x: &Node,
    axes: &[u32],
    keep: bool,
) -> Result<(Vec<usize>, Typed), Error> {
    float(name, x)?;
    let axes = super::axes(name, &x.shape, axes)?;
    let shape = reduced(&x.shape, &axes, keep);
    Ok((axes, (x.dtype, shape)))
}

pub(crate) fn argmax(x: &Node, axis: u32) -> Result<(usize, Typed), Error> {
    float("argmax", x)?;
    let axis = super::axes("argmax", &x.shape, &[axis])?[0];
    Ok((axis, (DType::I64, reduced(&x.shape, &[axis], false))))
}

/// Sum: every element gets dy. Max: dy is shared equally among the largest (PyTorch's `amax`).
pub(crate) fn gradient(
    b: &mut Builder,
    kind: Reduction,
    axes: &[usize],
    x: Value,
    y: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let shape = b.node(x).shape.clone();
    let kept = reduced(&shape, axes, true);
    let dy = b.reshape_to(dy, &kept)?;
    let dx = match kind {
        Reduction::Sum => b.expand_to(dy, &shape)?,
        Reduction::Max => {
            let y = b.reshape_to(y, &kept)?;
            b.push(Op::AmaxGradient, &[x, y, dy], (DType::F32, shape))?
        }
    };
    Ok(vec![Some(dx)])
}
