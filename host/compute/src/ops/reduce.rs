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
    Min,
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

/// An operator along one axis.
fn along(name: &str, x: &Node, axis: u32) -> Result<usize, Error> {
    float(name, x)?;
    Ok(super::axes(name, &x.shape, &[axis])?[0])
}

/// The number of elements of an axis, which must not be the batch.
fn line(name: &str, x: &Node, axis: usize) -> Result<u64, Error> {
    match x.shape.0[axis] {
        Dim::Fixed(size) => Ok(size),
        Dim::Batch(_) => Err(Error::shape(format!(
            "{name}: axis {axis} of {} is the batch",
            x.shape
        ))),
    }
}

/// Sum: every element gets dy. Max and min: dy is shared equally among the elements that are
/// the extreme (PyTorch's `amax`).
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
        Reduction::Max | Reduction::Min => {
            let y = b.reshape_to(y, &kept)?;
            b.push(Op::ExtremeGradient, &[x, y, dy], (DType::F32, shape))?
        }
    };
    Ok(vec![Some(dx)])
}

/// The sums from the other end.
pub(crate) fn cumulative_gradient(
    b: &mut Builder,
    (axis, reverse): (usize, bool),
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    Ok(vec![Some(b.cumsum(dy, axis as u32, !reverse)?)])
}

impl Builder {
    fn reduce(
        &mut self,
        name: &str,
        kind: Reduction,
        x: Value,
        (axes, keep): (&[u32], bool),
    ) -> Result<Value, Error> {
        let (axes, typed) = self.at_next(reduce(name, self.operand(x)?, axes, keep))?;
        self.push(Op::Reduce { kind, axes, keep }, &[x], typed)
    }

    /// Sum over axes, all where none are named.
    pub fn sum(&mut self, x: Value, axes: &[u32], keep: bool) -> Result<Value, Error> {
        self.reduce("sum", Reduction::Sum, x, (axes, keep))
    }

    /// Mean over axes, all where none are named.
    pub fn mean(&mut self, x: Value, axes: &[u32], keep: bool) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let list = self.at_next(super::axes("mean", &node.shape, axes))?;
        let sizes: Vec<Dim> = list.iter().map(|&a| node.shape.0[a]).collect();
        let count = Shape::product(&sizes);
        let sum = self.sum(x, axes, keep)?;
        match count {
            Some(count) => self.divide_by(sum, count),
            None => Err(Error::shape("mean: the batch may occur only once").at(sum)),
        }
    }

    /// Mean square distance from the mean over axes, all where none are named; Bessel's correction
    /// where `unbiased`.
    pub fn variance(
        &mut self,
        x: Value,
        axes: &[u32],
        keep: bool,
        unbiased: bool,
    ) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let list = self.at_next(super::axes("variance", &node.shape, axes))?;
        let sizes: Vec<Dim> = list.iter().map(|&a| node.shape.0[a]).collect();
        let mean = self.mean(x, axes, true)?;
        let centred = self.sub(x, mean)?;
        let square = self.mul(centred, centred)?;
        let variance = self.mean(square, axes, keep)?;
        if !unbiased {
            return Ok(variance);
        }
        match Shape::product(&sizes) {
            Some(Dim::Fixed(count)) if count > 1 => {
                self.affine(variance, count as f64 / (count - 1) as f64, 0.0)
            }
            _ => self.at_next(Err(Error::shape(
                "variance: the unbiased one takes at least 2 elements, without the batch",
            ))),
        }
    }

    /// Largest over axes, all where none are named.
    pub fn amax(&mut self, x: Value, axes: &[u32], keep: bool) -> Result<Value, Error> {
        self.reduce("amax", Reduction::Max, x, (axes, keep))
    }

    /// Smallest over axes, all where none are named.
    pub fn amin(&mut self, x: Value, axes: &[u32], keep: bool) -> Result<Value, Error> {
        self.reduce("amin", Reduction::Min, x, (axes, keep))
    }

    fn position(
        &mut self,
        name: &str,
        x: Value,
        axis: u32,
        smallest: bool,
    ) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let axis = self.at_next(along(name, node, axis))?;
        let typed = (DType::I64, reduced(&node.shape, &[axis], false));
        self.push(Op::Argmax { axis, smallest }, &[x], typed)
    }

    /// Index of the first largest element along an axis.
    pub fn argmax(&mut self, x: Value, axis: u32) -> Result<Value, Error> {
        self.position("argmax", x, axis, false)
    }

    /// Index of the first smallest element along an axis.
    pub fn argmin(&mut self, x: Value, axis: u32) -> Result<Value, Error> {
        self.position("argmin", x, axis, true)
    }

    /// Indices of the `count` largest (or smallest) elements along an axis, in their order; of
    /// equal elements the first comes first.
    pub fn top_k(
        &mut self,
        x: Value,
        count: u64,
        axis: u32,
        smallest: bool,
    ) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let axis = self.at_next(along("top-k", node, axis))?;
        let size = self.at_next(line("top-k", node, axis))?;
        if count == 0 || count > size {
            let why = format!("top-k: {count} of {size} elements");
            return self.at_next(Err(Error::attribute(why)));
        }
        let mut shape = node.shape.clone();
        shape.0[axis] = Dim::Fixed(count);
        self.push(Op::TopK { axis, smallest }, &[x], (DType::I64, shape))
    }

    /// Sums of all elements up to each along an axis, from the end where `reverse`.
    pub fn cumsum(&mut self, x: Value, axis: u32, reverse: bool) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let axis = self.at_next(along("cumsum", node, axis))?;
        self.at_next(line("cumsum", node, axis))?;
        let typed = (node.dtype, node.shape.clone());
        self.push(Op::Cumsum { axis, reverse }, &[x], typed)
    }
}
