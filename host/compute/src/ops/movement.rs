//! Operators that move elements: reshape, permute, expand.

use super::Typed;
use crate::builder::Builder;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::{Dim, Shape};

/// A size of a reshape's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// This size.
    Size(Dim),
    /// Whatever is left; at most once.
    Rest,
}

pub(crate) fn reshape(x: &Node, target: &[Target]) -> Result<Typed, Error> {
    let refuse = |why: &str| {
        Err(Error::shape(format!(
            "reshape: {} does not become {target:?}: {why}",
            x.shape
        )))
    };
    let known: Vec<Dim> = target
        .iter()
        .filter_map(|t| match t {
            Target::Size(d) => Some(*d),
            Target::Rest => None,
        })
        .collect();
    if target.len() > known.len() + 1 {
        return refuse("only one size may be the rest");
    }
    let (Some(have), Some(want)) = (Shape::product(&x.shape.0), Shape::product(&known)) else {
        return refuse("the batch may occur only once");
    };
    let rest = match (have, want) {
        (Dim::Fixed(h), Dim::Fixed(w)) | (Dim::Batch(h), Dim::Batch(w)) => {
            (w > 0 && h % w == 0).then(|| Dim::Fixed(h / w))
        }
        (Dim::Batch(h), Dim::Fixed(w)) => (w > 0 && h % w == 0).then(|| Dim::Batch(h / w)),
        (Dim::Fixed(_), Dim::Batch(_)) => None,
    };
    let fits = if target.len() == known.len() {
        have == want
    } else {
        rest.is_some()
    };
    if !fits {
        return refuse("the numbers of elements differ");
    }
    let dims = target.iter().filter_map(|t| match t {
        Target::Size(d) => Some(*d),
        Target::Rest => rest,
    });
    Ok((x.dtype, Shape(dims.collect())))
}

pub(crate) fn permute(x: &Node, order: &[u32]) -> Result<(Vec<usize>, Typed), Error> {
    let order: Vec<usize> = order.iter().map(|&a| a as usize).collect();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..x.shape.rank()) {
        return Err(Error::attribute(format!(
            "permute: {order:?} is not an order of the axes of {}",
            x.shape
        )));
    }
    let shape = Shape(order.iter().map(|&a| x.shape.0[a]).collect());
    Ok((order, (x.dtype, shape)))
}

pub(crate) fn expand(x: &Node, shape: &Shape) -> Result<Typed, Error> {
    super::float("expand", x)?;
    if x.shape.broadcast(shape).as_ref() != Some(shape) {
        return Err(Error::shape(format!(
            "expand: {} does not expand to {shape}",
            x.shape
        )));
    }
    Ok((x.dtype, shape.clone()))
}

/// The gradient goes back through the inverse order.
pub(crate) fn permute_gradient(
    b: &mut Builder,
    order: &[usize],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let mut inverse = vec![0u32; order.len()];
    for (to, &from) in (0u32..).zip(order) {
        inverse[from] = to;
    }
    Ok(vec![Some(b.permute(dy, &inverse)?)])
}
