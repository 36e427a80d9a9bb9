//! Losses.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
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

impl Builder {
    /// Mean cross-entropy of logits against class indices.
    pub fn cross_entropy(
        &mut self,
        logits: Value,
        labels: Value,
        smoothing: f64,
    ) -> Result<Value, Error> {
        let typed = cross_entropy(self.operand(logits)?, self.operand(labels)?, smoothing);
        let typed = self.at_next(typed)?;
        self.push(Op::CrossEntropy { smoothing }, &[logits, labels], typed)
    }

    /// Checks that predictions and targets are float32 of one shape.
    fn pair(&self, name: &str, x: Value, target: Value) -> Result<(), Error> {
        let (a, b) = (self.operand(x)?, self.operand(target)?);
        for node in [a, b] {
            self.at_next(float(name, node))?;
        }
        if a.shape != b.shape {
            let why = format!("{name}: {} and targets {} differ", a.shape, b.shape);
            return self.at_next(Err(Error::shape(why)));
        }
        Ok(())
    }

    /// Mean square difference.
    pub fn mse_loss(&mut self, x: Value, target: Value) -> Result<Value, Error> {
        self.pair("mse-loss", x, target)?;
        let difference = self.sub(x, target)?;
        let square = self.mul(difference, difference)?;
        self.mean(square, &[], false)
    }

    /// Mean of −target·log σ(x) − (1 − target)·log(1 − σ(x)).
    pub fn bce_with_logits(&mut self, x: Value, target: Value) -> Result<Value, Error> {
        self.pair("bce-with-logits", x, target)?;
        // = log(1 + eˣ) − x·target, which does not overflow.
        let all = self.softplus(x)?;
        let hit = self.mul(x, target)?;
        let loss = self.sub(all, hit)?;
        self.mean(loss, &[], false)
    }

    /// Kullback and Leibler's divergence of probabilities `[batch, …]` from predicted logarithms
    /// of probabilities, summed over all but the batch.
    pub fn kl_divergence(&mut self, x: Value, target: Value) -> Result<Value, Error> {
        self.pair("kl-divergence", x, target)?;
        let Some(&batch) = self.node(x).shape.0.first() else {
            let why = "kl-divergence takes at least one axis";
            return self.at_next(Err(Error::shape(why)));
        };
        // 0·log 0 is 0.
        let least = f64::from(f32::MIN_POSITIVE);
        let above_zero = self.clamp(target, least, f64::MAX)?;
        let log = self.log(above_zero)?;
        let difference = self.sub(log, x)?;
        let product = self.mul(target, difference)?;
        let sum = self.sum(product, &[], false)?;
        self.divide_by(sum, batch)
    }
}
