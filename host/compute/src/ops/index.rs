//! Operators that take elements by indices, and put them there.

use super::{Op, Typed, axes};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::{Dim, Shape};

fn indices(name: &str, node: &Node) -> Result<(), Error> {
    if node.dtype == DType::I64 {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "{name} takes int64 indices, not {}",
        node.dtype
    )))
}

/// Checks that the indices have x's shape but along the axis.
fn along(name: &str, x: &Shape, by: &Node, axis: u32) -> Result<usize, Error> {
    indices(name, by)?;
    let axis = axes(name, x, &[axis])?[0];
    let mut like = by.shape.clone();
    if like.rank() == x.rank() {
        like.0[axis] = x.0[axis];
    }
    let whole = [x, &by.shape].map(|shape| shape.0.get(axis).copied());
    if like != *x || whole.iter().any(|d| matches!(d, Some(Dim::Batch(_)))) {
        return Err(Error::shape(format!(
            "{name} along axis {axis}: indices {} do not fit {x}",
            by.shape
        )));
    }
    Ok(axis)
}

fn take(x: &Node, by: &Node, axis: u32) -> Result<(usize, Typed), Error> {
    indices("take", by)?;
    let axis = axes("take", &x.shape, &[axis])?[0];
    let (outer, inner) = (&x.shape.0[..axis], &x.shape.0[axis + 1..]);
    if matches!(x.shape.0[axis], Dim::Batch(_)) {
        return Err(Error::shape(format!(
            "take: axis {axis} of {} is the batch",
            x.shape
        )));
    }
    let shape = Shape([outer, &by.shape.0, inner].concat());
    let batches = shape.0.iter().filter(|d| matches!(d, Dim::Batch(_)));
    if batches.count() > 1 {
        return Err(Error::shape("take: the batch may occur only once"));
    }
    Ok((axis, (x.dtype, shape)))
}

/// The gradient of x is dy added up where it came from.
pub(crate) fn gather_gradient(
    b: &mut Builder,
    axis: usize,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let typed = (DType::F32, b.node(inputs[0]).shape.clone());
    let dx = b.push(Op::ScatterAdd { axis }, &[dy, inputs[1]], typed)?;
    Ok(vec![Some(dx), None])
}

/// The gradient of what was added up is dy taken there.
pub(crate) fn scatter_gradient(
    b: &mut Builder,
    axis: usize,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    Ok(vec![Some(b.gather(dy, inputs[1], axis as u32)?), None])
}

pub(crate) fn take_gradient(
    b: &mut Builder,
    axis: usize,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let typed = (DType::F32, b.node(inputs[0]).shape.clone());
    let dx = b.push(Op::TakeGradient { axis }, &[dy, inputs[1]], typed)?;
    Ok(vec![Some(dx), None])
}

impl Builder {
    /// Along an axis, the element that each index names; indices have x's shape but there.
    pub fn gather(&mut self, x: Value, by: Value, axis: u32) -> Result<Value, Error> {
        let (node, by_node) = (self.operand(x)?, self.operand(by)?);
        let axis = self.at_next(along("gather", &node.shape, by_node, axis))?;
        let typed = (node.dtype, by_node.shape.clone());
        self.push(Op::Gather { axis }, &[x, by], typed)
    }

    /// x with each update added, along an axis, at the element that its index names.
    pub fn scatter_add(
        &mut self,
        x: Value,
        by: Value,
        updates: Value,
        axis: u32,
    ) -> Result<Value, Error> {
        let (node, by_node, given) = (self.operand(x)?, self.operand(by)?, self.operand(updates)?);
        for operand in [node, given] {
            self.at_next(super::float("scatter-add", operand))?;
        }
        let axis = self.at_next(along("scatter-add", &node.shape, by_node, axis))?;
        if given.shape != by_node.shape {
            let why = format!(
                "scatter-add: updates {} and indices {} differ",
                given.shape, by_node.shape
            );
            return self.at_next(Err(Error::shape(why)));
        }
        let typed = (DType::F32, node.shape.clone());
        let sums = self.push(Op::ScatterAdd { axis }, &[updates, by], typed)?;
        self.add(x, sums)
    }

    /// The parts of x along an axis that indices name: the axis becomes the indices' axes.
    pub fn take(&mut self, x: Value, by: Value, axis: u32) -> Result<Value, Error> {
        let (axis, typed) = self.at_next(take(self.operand(x)?, self.operand(by)?, axis))?;
        self.push(Op::Take { axis }, &[x, by], typed)
    }

    /// The rows of a table `[rows, features]` that indices name.
    pub fn embedding(&mut self, table: Value, by: Value) -> Result<Value, Error> {
        let node = self.operand(table)?;
        if node.shape.rank() != 2 {
            let why = format!(
                "embedding takes a table [rows, features], not {}",
                node.shape
            );
            return self.at_next(Err(Error::shape(why)));
        }
        self.take(table, by, 0)
    }

    /// 1 (int64) along a new last axis where the index is, else 0.
    pub fn one_hot(&mut self, by: Value, classes: u64) -> Result<Value, Error> {
        let node = self.operand(by)?;
        self.at_next(indices("one-hot", node))?;
        let mut shape = node.shape.clone();
        shape.0.push(Dim::Fixed(1));
        let column = self.reshape_to(by, &shape)?;
        let all = self.iota(classes)?;
        let hit = self.equal(column, all)?;
        self.cast(hit, DType::I64)
    }

    /// The int64 numbers from 0, so many.
    pub(crate) fn iota(&mut self, count: u64) -> Result<Value, Error> {
        if count > 1 << 22 {
            let why = format!("{count} numbers; at most 4194304 are counted");
            return self.at_next(Err(Error::limit(why)));
        }
        let bytes: Vec<u8> = (0..count as i64).flat_map(i64::to_le_bytes).collect();
        self.constant(DType::I64, &[count], &bytes)
    }
}
