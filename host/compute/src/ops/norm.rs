//! Batch normalisation (Ioffe and Szegedy 2015).

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::{Dim, Shape};

/// The channels of x `[batch, channels, …]`, after checking that every other operand is
/// `[channels]`.
pub(crate) fn check(name: &str, x: &Node, vectors: &[&Node]) -> Result<u64, Error> {
    float(name, x)?;
    let Some(&Dim::Fixed(channels)) = x.shape.0.get(1) else {
        return Err(Error::shape(format!(
            "{name} takes [batch, channels, …], not {}",
            x.shape
        )));
    };
    for vector in vectors {
        float(name, vector)?;
        if vector.shape != Shape::fixed(&[channels]) {
            return Err(Error::shape(format!(
                "{name}: {} does not fit x {}, expected [{channels}]",
                vector.shape, x.shape
            )));
        }
    }
    Ok(channels)
}

pub(crate) fn check_epsilon(name: &str, epsilon: f64) -> Result<(), Error> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(Error::attribute(format!(
        "{name}: epsilon must be a number of at least 0"
    )))
}

pub(crate) fn statistics(channels: u64) -> Typed {
    (DType::F32, Shape::fixed(&[3, channels]))
}

/// With x̂ = (x − mean)·r and r = 1/√(variance + ε): dscale = Σ dy·x̂, dbias = Σ dy; in evaluation
/// dx = scale·r·dy; in training dx = scale·r·(dy − (dbias + x̂·dscale)/count).
pub(crate) fn gradient(
    b: &mut Builder,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let &[x, scale, _, statistics] = inputs else {
        return Ok(vec![None; inputs.len()]);
    };
    let typed = (DType::F32, b.node(x).shape.clone());
    let channels = b.node(scale).shape.clone();
    let pair = Shape([vec![Dim::Fixed(2)], channels.0.clone()].concat());
    let parameters = b.push(
        Op::BatchNormParameterGradient,
        &[x, dy, statistics],
        (DType::F32, pair),
    )?;
    let dx = if matches!(b.node(statistics).op, Op::BatchStatistics { .. }) {
        let operands = [dy, scale, statistics, x, parameters];
        b.push(Op::BatchNormTrainGradient, &operands, typed)?
    } else {
        b.push(Op::BatchNormEvalGradient, &[dy, scale, statistics], typed)?
    };
    let dscale = b.push(
        Op::Row { index: 0 },
        &[parameters],
        (DType::F32, channels.clone()),
    )?;
    let dbias = b.push(Op::Row { index: 1 }, &[parameters], (DType::F32, channels))?;
    // The statistics' own gradient is part of dx; fixed statistics are not trained.
    Ok(vec![Some(dx), Some(dscale), Some(dbias), None])
}
