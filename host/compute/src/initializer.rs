//! Initial values of parameters and buffers.
//!
//! A random element i is a function of seed, name and i alone, the same on every machine.

use crate::error::Error;
use crate::random::{splitmix64, unit};
use crate::shape::Shape;

/// How a tensor is filled before training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initializer {
    /// One value everywhere.
    Constant(f32),
    /// Uniform between bounds.
    Uniform(f32, f32),
    /// Normal with mean and deviation.
    Normal(f32, f32),
}

impl Initializer {
    /// Reads the notation of the plugin contract, for a tensor of `shape`. Errors:
    /// `graph.attribute`.
    pub fn parse(text: &str, shape: &Shape) -> Result<Self, Error> {
        let fan_in: f64 = shape.0.iter().skip(1).map(|d| d.at(1) as f64).product();
        let fan_in = fan_in.max(1.0);
        let invalid = || {
            Error::attribute(format!(
                "initializer `{text}` is not one of zeros, ones, kaiming-uniform, kaiming-normal, \
                 torch-uniform, constant:V, uniform:LOW:HIGH, normal:MEAN:DEVIATION"
            ))
        };
        let uniform = |bound: f64| Self::Uniform(-bound as f32, bound as f32);
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let numbers = parts
            .map(|p| p.parse::<f32>().ok().filter(|v| v.is_finite()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(invalid)?;
        match (name, numbers.as_slice()) {
            ("zeros", []) => Ok(Self::Constant(0.0)),
            ("ones", []) => Ok(Self::Constant(1.0)),
            ("kaiming-uniform", []) => Ok(uniform((6.0 / fan_in).sqrt())),
            ("kaiming-normal", []) => Ok(Self::Normal(0.0, (2.0 / fan_in).sqrt() as f32)),
            ("torch-uniform", []) => Ok(uniform(1.0 / fan_in.sqrt())),
            ("constant", &[v]) => Ok(Self::Constant(v)),
            ("uniform", &[low, high]) if low <= high => Ok(Self::Uniform(low, high)),
            ("normal", &[mean, deviation]) if deviation >= 0.0 => Ok(Self::Normal(mean, deviation)),
            _ => Err(invalid()),
        }
    }

    /// Fills a tensor.
    pub fn fill(self, seed: u64, name: &str, out: &mut [f32]) {
        let key = name
            .bytes()
            .fold(splitmix64(seed), |h, b| splitmix64(h ^ u64::from(b)));
        let unit = |i: u64| unit(key.wrapping_add(i));
        for (i, value) in (0u64..).zip(out) {
            *value = match self {
                Self::Constant(v) => v,
                Self::Uniform(low, high) => {
                    (f64::from(low) + (f64::from(high) - f64::from(low)) * unit(i)) as f32
                }
                Self::Normal(mean, deviation) => {
                    // Box and Muller 1958; 1 − u keeps the logarithm's argument above zero.
                    let radius = (-2.0 * (1.0 - unit(2 * i)).ln()).sqrt();
                    let angle = std::f64::consts::TAU * unit(2 * i + 1);
                    (f64::from(mean) + f64::from(deviation) * radius * angle.cos()) as f32
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str, shape: &[u64], seed: u64) -> Vec<f32> {
        let shape = Shape::fixed(shape);
        let mut out = vec![0.0; shape.elements(1).unwrap() as usize];
        Initializer::parse(text, &shape)
            .unwrap()
            .fill(seed, "w", &mut out);
        out
    }

    #[test]
    fn random_values_have_the_moments_of_their_distribution() {
        let moments = |v: &[f32]| {
            let n = v.len() as f64;
            let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let variance = v
                .iter()
                .map(|&x| (f64::from(x) - mean).powi(2))
                .sum::<f64>()
                / n;
            (mean, variance.sqrt())
        };
        let (mean, deviation) = moments(&filled("kaiming-normal", &[200, 50], 1));
        assert!(
            mean.abs() < 0.01 && (deviation - 0.2).abs() < 0.005,
            "{mean} {deviation}"
        );
        let values = filled("torch-uniform", &[400, 25], 1);
        assert!(values.iter().all(|v| v.abs() <= 0.2));
        assert!((moments(&values).1 - 0.2 / 3f64.sqrt()).abs() < 0.005);
    }

    #[test]
    fn values_depend_on_the_seed_and_repeat() {
        assert_eq!(
            filled("uniform:0:1", &[8], 1),
            filled("uniform:0:1", &[8], 1)
        );
        assert_ne!(
            filled("uniform:0:1", &[8], 1),
            filled("uniform:0:1", &[8], 2)
        );
    }

    #[test]
    fn an_unknown_initializer_is_refused_with_the_list() {
        for text in [
            "xavier",
            "constant",
            "constant:x",
            "uniform:1:0",
            "normal:0:-1",
            "zeros:1",
            "",
        ] {
            let e = Initializer::parse(text, &Shape::fixed(&[1])).unwrap_err();
            assert!(e.to_string().contains("kaiming-uniform"), "{e}");
        }
    }
}
