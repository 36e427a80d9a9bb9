//! Optimizer steps.

use crate::error::Error;

/// An optimizer's rule and its constants; the learning rate and the step are the session's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Optimizer {
    /// g ← g + decay·p; v ← momentum·v + g; p ← p − rate·(nesterov ? g + momentum·v : v).
    Sgd {
        momentum: f64,
        nesterov: bool,
        decay: f64,
    },
    /// m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²;
    /// p ← p − rate·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε); decay is added to g, or where
    /// `decoupled` p ← p·(1 − rate·decay) first.
    Adam {
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        decay: f64,
        decoupled: bool,
    },
    /// Of a buffer p and a parameter g: p ← decay·p + (1 − decay)·g, from g at the first step.
    Average { decay: f64 },
}

impl Optimizer {
    /// The names of the state tensors, each of the parameter's shape.
    pub(crate) fn states(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd { momentum, .. } if *momentum == 0.0 => &[],
            Self::Sgd { .. } => &["momentum"],
            Self::Adam { .. } => &["first-moment", "second-moment"],
            Self::Average { .. } => &[],
        }
    }

    /// What changes from step to step, `step` counting from 1. SGD: the rate. Average: the decay. Adam: rate/(1 − β₁ᵗ),
    /// √(1 − β₂ᵗ), and the factor by which decoupled decay shrinks the parameter.
    pub(crate) fn step_values(&self, rate: f64, step: u64) -> [f32; 4] {
        match *self {
            Self::Sgd { .. } => [rate as f32, 0.0, 0.0, 0.0],
            Self::Average { .. } if step == 1 => [0.0; 4],
            Self::Average { decay } => [decay as f32, 0.0, 0.0, 0.0],
            Self::Adam {
                beta1,
                beta2,
                decay,
                decoupled,
                ..
            } => {
                let power = i32::try_from(step).unwrap_or(i32::MAX);
                let shrink = if decoupled { 1.0 - rate * decay } else { 1.0 };
                [
                    (rate / (1.0 - beta1.powi(power))) as f32,
                    (1.0 - beta2.powi(power)).sqrt() as f32,
                    shrink as f32,
                    0.0,
                ]
            }
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let valid = match *self {
            Self::Sgd {
                momentum,
                decay,
                nesterov,
            } => {
                (0.0..=1.0).contains(&momentum)
                    && decay >= 0.0
                    && decay.is_finite()
                    && (!nesterov || momentum > 0.0)
            }
            Self::Adam {
                beta1,
                beta2,
                epsilon,
                decay,
                ..
            } => {
                (0.0..1.0).contains(&beta1)
                    && (0.0..1.0).contains(&beta2)
                    && epsilon >= 0.0
                    && epsilon.is_finite()
                    && decay >= 0.0
                    && decay.is_finite()
            }
            Self::Average { decay } => (0.0..1.0).contains(&decay),
        };
        if valid {
            return Ok(());
        }
        Err(Error::attribute(format!(
            "optimizer constants out of range: {self:?}"
        )))
    }
}
