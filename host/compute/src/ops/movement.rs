//! Operators that move elements.

use super::{Op, Typed};
use crate::builder::Builder;
use crate::dtype::DType;
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

/// Where the elements of one tensor lie in another, axis by axis: at `start + step·i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    /// Below the size of the axis.
    pub(crate) starts: Vec<u64>,
    /// Never 0; −1 runs backwards.
    pub(crate) steps: Vec<i64>,
}

impl Window {
    /// Every element.
    fn whole(rank: usize) -> Self {
        Self {
            starts: vec![0; rank],
            steps: vec![1; rank],
        }
    }
}

/// The most operands of a concatenation.
const MOST_OPERANDS: usize = 256;

/// "To the end", as the end of a slice.
pub const END: u64 = u32::MAX as u64;

fn fixed(name: &str, shape: &Shape, axis: usize) -> Result<u64, Error> {
    match shape.0[axis] {
        Dim::Fixed(size) => Ok(size),
        Dim::Batch(_) => Err(Error::shape(format!(
            "{name}: axis {axis} of {shape} is the batch"
        ))),
    }
}

fn slice(x: &Node, starts: &[u64], ends: &[u64], steps: &[u64]) -> Result<(Window, Typed), Error> {
    let rank = x.shape.rank();
    let refuse = |why: String| Err(Error::attribute(format!("slice of {}: {why}", x.shape)));
    if [starts.len(), ends.len(), steps.len()] != [rank; 3] {
        return refuse(format!("it takes {rank} starts, ends and steps"));
    }
    let mut shape = x.shape.clone();
    for axis in 0..rank {
        let (start, end, step) = (starts[axis], ends[axis], steps[axis]);
        if (start, end, step) == (0, END, 1) {
            continue;
        }
        let size = fixed("slice", &x.shape, axis)?;
        let end = if end == END { size } else { end };
        if step == 0 || step > i32::MAX as u64 || start >= end || end > size {
            return refuse(format!(
                "{start} to {end} by {step} is no part of axis {axis}"
            ));
        }
        shape.0[axis] = Dim::Fixed((end - start).div_ceil(step));
    }
    let window = Window {
        starts: starts.to_vec(),
        steps: steps.iter().map(|&step| step as i64).collect(),
    };
    Ok((window, (x.dtype, shape)))
}

/// Zeros, and dy where the elements came from.
pub(crate) fn slice_gradient(
    b: &mut Builder,
    window: &Window,
    x: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let shape = b.node(x).shape.clone();
    let all = b.node(dy).shape == shape;
    let dx = if all {
        // Every element was moved: back, element start + step·i from i.
        let sizes: Vec<u64> = shape.0.iter().map(|d| d.at(1)).collect();
        let back = window.starts.iter().zip(&window.steps).zip(sizes);
        let starts = back.map(|((&start, &step), size)| match step {
            1 => (size - start) % size,
            _ => start,
        });
        let window = Window {
            starts: starts.collect(),
            steps: window.steps.clone(),
        };
        b.push(Op::Slice(window), &[dy], (DType::F32, shape))?
    } else {
        let window = window.clone();
        b.push(Op::Place { window, fill: 0.0 }, &[dy], (DType::F32, shape))?
    };
    Ok(vec![Some(dx)])
}

/// The part of dy where x was put.
pub(crate) fn place_gradient(
    b: &mut Builder,
    window: &Window,
    x: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let typed = (DType::F32, b.node(x).shape.clone());
    let dx = b.push(Op::Slice(window.clone()), &[dy], typed)?;
    Ok(vec![Some(dx)])
}

/// Each operand's part of dy.
pub(crate) fn concat_gradient(
    b: &mut Builder,
    axis: usize,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let sizes = inputs.iter().map(|&x| b.node(x).shape.0[axis].at(1));
    let parts = b.split(dy, &sizes.collect::<Vec<_>>(), axis as u32)?;
    Ok(parts.into_iter().map(Some).collect())
}

fn concat(nodes: &[&Node], axis: u32) -> Result<(usize, Typed), Error> {
    let Some(first) = nodes.first().filter(|_| nodes.len() <= MOST_OPERANDS) else {
        return Err(Error::attribute(format!(
            "concat takes 1 to {MOST_OPERANDS} operands, not {}",
            nodes.len()
        )));
    };
    let axis = super::axes("concat", &first.shape, &[axis])?[0];
    let mut total = 0u64;
    for node in nodes {
        let mut like = node.shape.clone();
        let fits = like.rank() == first.shape.rank() && {
            like.0[axis] = first.shape.0[axis];
            like == first.shape
        };
        if !fits {
            return Err(Error::shape(format!(
                "concat along axis {axis}: {} and {} do not fit",
                first.shape, node.shape
            )));
        }
        if node.dtype != first.dtype {
            return Err(Error::dtype(format!(
                "concat: {} and {} differ",
                first.dtype, node.dtype
            )));
        }
        total = total.saturating_add(fixed("concat", &node.shape, axis)?);
    }
    let mut shape = first.shape.clone();
    shape.0[axis] = Dim::Fixed(total);
    Ok((axis, (first.dtype, shape)))
}

impl Builder {
    /// The same elements in another shape.
    pub fn reshape(&mut self, x: Value, target: &[Target]) -> Result<Value, Error> {
        let typed = self.at_next(reshape(self.operand(x)?, target))?;
        self.push(Op::Reshape, &[x], typed)
    }

    /// Axes in another order.
    pub fn permute(&mut self, x: Value, axes: &[u32]) -> Result<Value, Error> {
        let (order, typed) = self.at_next(permute(self.operand(x)?, axes))?;
        self.push(Op::Permute(order), &[x], typed)
    }

    /// Sizes of 1 repeated up to `shape`.
    pub fn expand(&mut self, x: Value, shape: &[Dim]) -> Result<Value, Error> {
        let typed = self.at_next(expand(self.operand(x)?, &Shape(shape.to_vec())))?;
        self.push(Op::Expand, &[x], typed)
    }

    /// Elements `start` up to `end` (without it, [`END`] for all) of every axis, by steps.
    pub fn slice(
        &mut self,
        x: Value,
        starts: &[u64],
        ends: &[u64],
        steps: &[u64],
    ) -> Result<Value, Error> {
        let (window, typed) = self.at_next(slice(self.operand(x)?, starts, ends, steps))?;
        if window == Window::whole(window.starts.len()) && typed.1 == self.node(x).shape {
            return Ok(x);
        }
        self.push(Op::Slice(window), &[x], typed)
    }

    /// Elements `start` up to `end` of one axis.
    pub(crate) fn part(
        &mut self,
        x: Value,
        axis: usize,
        start: u64,
        end: u64,
    ) -> Result<Value, Error> {
        let rank = self.operand(x)?.shape.rank();
        let (mut starts, mut ends) = (vec![0; rank], vec![END; rank]);
        (starts[axis], ends[axis]) = (start, end);
        self.slice(x, &starts, &ends, &vec![1; rank])
    }

    /// Neighbouring parts of so many elements along an axis, all of it together.
    pub fn split(&mut self, x: Value, sizes: &[u64], axis: u32) -> Result<Vec<Value>, Error> {
        let node = self.operand(x)?;
        let axis = self.at_next(super::axes("split", &node.shape, &[axis]))?[0];
        let size = self.at_next(fixed("split", &node.shape, axis))?;
        let total = sizes.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
        if total != Some(size) || sizes.contains(&0) {
            let why = format!("split: {sizes:?} are not parts of {size} elements");
            return self.at_next(Err(Error::attribute(why)));
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(sizes.len());
        for size in sizes {
            parts.push(self.part(x, axis, start, start + size)?);
            start += size;
        }
        Ok(parts)
    }

    /// Every element of some axes in the opposite order.
    pub fn flip(&mut self, x: Value, axes: &[u32]) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let axes = self.at_next(super::axes("flip", &node.shape, axes))?;
        let mut window = Window::whole(node.shape.rank());
        for axis in axes {
            window.starts[axis] = self.at_next(fixed("flip", &node.shape, axis))? - 1;
            window.steps[axis] = -1;
        }
        let typed = (node.dtype, node.shape.clone());
        self.push(Op::Slice(window), &[x], typed)
    }

    /// Every element moved by so many places along axes; what leaves one end enters at the other.
    pub fn roll(&mut self, x: Value, shifts: &[i32], axes: &[u32]) -> Result<Value, Error> {
        let node = self.operand(x)?;
        if shifts.len() != axes.len() || axes.is_empty() {
            return self.at_next(Err(Error::attribute("roll takes a shift for each axis")));
        }
        self.at_next(super::axes("roll", &node.shape, axes))?;
        let mut window = Window::whole(node.shape.rank());
        for (&axis, &shift) in axes.iter().zip(shifts) {
            let axis = axis as usize;
            let size = self.at_next(fixed("roll", &node.shape, axis))?;
            window.starts[axis] = i64::from(shift)
                .wrapping_neg()
                .rem_euclid(size.min(1 << 40) as i64) as u64;
        }
        let typed = (node.dtype, node.shape.clone());
        self.push(Op::Slice(window), &[x], typed)
    }

    /// x within a larger tensor of `value`, so many elements before and after along every axis.
    pub fn pad(
        &mut self,
        x: Value,
        before: &[u64],
        after: &[u64],
        value: f64,
    ) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let rank = node.shape.rank();
        if node.dtype == DType::U8 {
            return self.at_next(Err(Error::dtype("pad does not take uint8: cast it first")));
        }
        if [before.len(), after.len()] != [rank; 2] {
            return self.at_next(Err(Error::attribute(format!(
                "pad of {}: it takes {rank} numbers before and after",
                node.shape
            ))));
        }
        let mut shape = node.shape.clone();
        for axis in 0..rank {
            let added = before[axis].saturating_add(after[axis]);
            if added > 0 {
                let size = self.at_next(fixed("pad", &node.shape, axis))?;
                shape.0[axis] = Dim::Fixed(size.saturating_add(added));
            }
        }
        if shape == node.shape {
            return Ok(x);
        }
        let window = Window {
            starts: before.to_vec(),
            ..Window::whole(rank)
        };
        let typed = (node.dtype, shape);
        self.push(
            Op::Place {
                window,
                fill: value,
            },
            &[x],
            typed,
        )
    }

    /// Operands one after the other along an axis.
    pub fn concat(&mut self, values: &[Value], axis: u32) -> Result<Value, Error> {
        let nodes = values
            .iter()
            .map(|&v| self.operand(v))
            .collect::<Result<Vec<_>, _>>()?;
        let (axis, typed) = self.at_next(concat(&nodes, axis))?;
        if let &[only] = values {
            return Ok(only);
        }
        self.push(Op::Concat { axis }, values, typed)
    }
}
