//! Random numbers. Each is a function of a seed, the number of the optimizer step and its place,
//! so that a training that was interrupted goes on with the same ones.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Value;
use crate::random::splitmix64;
use crate::shape::{Dim, Shape};

/// What becomes of an operand's elements, or of the rows of its first axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dropout {
    pub(crate) seed: u64,
    /// Of becoming 0.
    pub(crate) probability: f64,
    /// Whether whole rows are dropped.
    pub(crate) rows: bool,
}

impl Dropout {
    /// The key of a step's numbers.
    pub(crate) fn key(seed: u64, step: u64) -> u64 {
        splitmix64(seed ^ splitmix64(step))
    }

    /// Numbers below this, of 2²⁴, drop.
    pub(crate) fn threshold(&self) -> u32 {
        (self.probability * f64::from(1 << 24)) as u32
    }

    /// The factor of what stays.
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }
}

/// A number of 24 bits.
pub(crate) fn bits(key: u64, place: u64) -> u32 {
    (splitmix64(key.wrapping_add(place)) >> 40) as u32
}

/// A number in 0 to 1, without 1.
pub(crate) fn uniform(key: u64, place: u64) -> f32 {
    bits(key, place) as f32 / (1 << 24) as f32
}

/// dy is dropped where x was.
pub(crate) fn gradient(
    b: &mut Builder,
    dropout: Dropout,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let typed: Typed = (DType::F32, b.node(dy).shape.clone());
    Ok(vec![Some(b.push(Op::Dropout(dropout), &[dy], typed)?)])
}

impl Builder {
    fn push_dropout(&mut self, name: &str, x: Value, dropout: Dropout) -> Result<Value, Error> {
        let node = self.operand(x)?;
        self.at_next(float(name, node))?;
        if !(0.0..1.0).contains(&dropout.probability) {
            let why = format!("{name}: the probability lies between 0 and 1, without 1");
            return self.at_next(Err(Error::attribute(why)));
        }
        if dropout.rows && node.shape.rank() == 0 {
            return self.at_next(Err(Error::shape(format!("{name} takes at least one axis"))));
        }
        if dropout.probability == 0.0 {
            return Ok(x);
        }
        let typed = (DType::F32, node.shape.clone());
        self.push(Op::Dropout(dropout), &[x], typed)
    }

    /// Elements set to 0 at random, the others scaled so that the mean stays.
    pub fn dropout(&mut self, x: Value, probability: f64, seed: u64) -> Result<Value, Error> {
        let dropout = Dropout {
            seed,
            probability,
            rows: false,
        };
        self.push_dropout("dropout", x, dropout)
    }

    /// The same for all elements of a sample together (stochastic depth, Huang et al. 2016).
    pub fn drop_path(&mut self, x: Value, probability: f64, seed: u64) -> Result<Value, Error> {
        let dropout = Dropout {
            seed,
            probability,
            rows: true,
        };
        self.push_dropout("drop-path", x, dropout)
    }

    /// Numbers in 0 to 1, without 1, other ones at every optimizer step.
    pub fn random_uniform(&mut self, shape: &[Dim], seed: u64) -> Result<Value, Error> {
        let shape = Shape(shape.to_vec());
        if shape.0.iter().skip(1).any(|d| matches!(d, Dim::Batch(_))) {
            let why = format!("random: only the first size of {shape} may be the batch");
            return self.at_next(Err(Error::shape(why)));
        }
        self.push(Op::Random { seed }, &[], (DType::F32, shape))
    }

    /// Numbers of mean 0 and deviation 1 (Box and Muller 1958), other ones at every optimizer step.
    pub fn random_normal(&mut self, shape: &[Dim], seed: u64) -> Result<Value, Error> {
        let first = self.random_uniform(shape, seed)?;
        let second = self.random_uniform(shape, splitmix64(seed))?;
        let above_zero = self.affine(first, -1.0, 1.0)?;
        let log = self.log(above_zero)?;
        let square = self.affine(log, -2.0, 0.0)?;
        let radius = self.sqrt(square)?;
        let angle = self.affine(second, std::f64::consts::TAU, 0.0)?;
        let cosine = self.cos(angle)?;
        self.mul(radius, cosine)
    }
}
