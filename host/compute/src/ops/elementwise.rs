//! Element-wise operators.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Unary {
    Affine { factor: f64, offset: f64 },
    Abs,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Erf,
    Pow { exponent: f64 },
    Clamp { low: f64, high: f64 },
    Relu,
    LeakyRelu { slope: f64 },
    Gelu,
    GeluTanh,
    Silu,
    Sigmoid,
    Tanh,
}

/// A function of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Maximum,
    Minimum,
}

impl Binary {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Maximum => "maximum",
            Self::Minimum => "minimum",
        }
    }
}

pub(crate) fn broadcast(name: &str, a: &Node, b: &Node) -> Result<Typed, Error> {
    if a.dtype != b.dtype {
        return Err(Error::dtype(format!(
            "{name}: {} and {} differ",
            a.dtype, b.dtype
        )));
    }
    let shape = a.shape.broadcast(&b.shape).ok_or_else(|| {
        Error::shape(format!(
            "{name}: shapes {} and {} do not broadcast",
            a.shape, b.shape
        ))
    })?;
    Ok((a.dtype, shape))
}

pub(crate) fn binary(kind: Binary, a: &Node, b: &Node) -> Result<Typed, Error> {
    float(kind.name(), a)?;
    float(kind.name(), b)?;
    broadcast(kind.name(), a, b)
}

pub(crate) fn equal(a: &Node, b: &Node) -> Result<Typed, Error> {
    broadcast("equal", a, b).map(|(_, shape)| (DType::Bool, shape))
}

pub(crate) fn unary_gradient(
    b: &mut Builder,
    kind: Unary,
    x: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    // d(f·x + o) = f·dx needs no x, so x need not be kept.
    if let Unary::Affine { factor, .. } = kind {
        return Ok(vec![Some(b.affine(dy, factor, 0.0)?)]);
    }
    let typed = (DType::F32, b.node(x).shape.clone());
    Ok(vec![Some(b.push(
        Op::UnaryGradient(kind),
        &[x, dy],
        typed,
    )?)])
}

pub(crate) fn binary_gradient(
    b: &mut Builder,
    kind: Binary,
    x: Value,
    y: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let (dx, dz) = match kind {
        Binary::Add => (dy, dy),
        Binary::Sub => (dy, b.neg(dy)?),
        Binary::Mul => (b.mul(dy, y)?, b.mul(dy, x)?),
        // d(x/y) = dx/y − x·dy/y²
        Binary::Div => {
            let dx = b.div(dy, y)?;
            let scaled = b.mul(dx, x)?;
            let ratio = b.div(scaled, y)?;
            (dx, b.neg(ratio)?)
        }
        Binary::Maximum | Binary::Minimum => {
            let op = Op::ExtremumGradient {
                maximum: kind == Binary::Maximum,
            };
            let typed = (DType::F32, b.node(dy).shape.clone());
            let dx = b.push(op.clone(), &[x, y, dy], typed.clone())?;
            (dx, b.push(op, &[y, x, dy], typed)?)
        }
    };
    Ok(vec![
        Some(b.reduce_like(dx, x)?),
        Some(b.reduce_like(dz, y)?),
    ])
}
