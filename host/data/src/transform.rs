//! Transforms of one sample, applied by the loader in the order given.

use crate::dataset::Kind;
use crate::error::Error;
use crate::random::Random;

/// A change to each sample.
#[derive(Debug, Clone, PartialEq)]
pub enum Transform {
    /// Images: each channel less its mean, over its deviation.
    NormalizeChannels {
        /// The mean of each channel.
        mean: Vec<f32>,
        /// The deviation of each channel.
        deviation: Vec<f32>,
    },
    /// Audio: cut, or padded with zeros at the end, to this many samples.
    Fit(usize),
    /// Audio: moved by up to so many samples either way, at random, with zeros in the gap.
    Shift(usize),
    /// Audio: scaled by up to so many decibels either way, at random.
    Gain(f32),
    /// Audio: scaled to this peak; silence stays.
    NormalizePeak(f32),
}

/// Samples that audio may be fitted to or shifted by.
const MAXIMUM_SAMPLES: usize = 1 << 28;

impl Transform {
    /// Reads a transform of the plugin contract. Errors: `data.transform` where `kind` has none of
    /// that name, `option.unknown`, `option.value`.
    pub fn parse(kind: Kind, name: &str, options: &[(String, String)]) -> Result<Self, Error> {
        let known: &[&str] = match (kind, name) {
            (Kind::Image, "normalize") => &["mean", "deviation"],
            (Kind::Audio, "fit" | "shift") => &["samples"],
            (Kind::Audio, "gain") => &["decibels"],
            (Kind::Audio, "normalize") => &["peak"],
            _ => {
                let exist = match kind {
                    Kind::Image => "normalize",
                    Kind::Audio => "fit, shift, gain, normalize",
                };
                let message = format!("`{name}` is not a transform of {kind}; there are: {exist}");
                return Err(Error::new("data.transform", message));
            }
        };
        if let Some((option, _)) = options
            .iter()
            .find(|(option, _)| !known.contains(&&**option))
        {
            let message = format!(
                "`{option}` is not an option of `{name}`; there are: {}",
                known.join(", ")
            );
            return Err(Error::new("option.unknown", message));
        }
        let value = |option: &str| {
            let found = options.iter().rev().find(|(name, _)| name == option);
            found.map(|(_, value)| value.trim()).ok_or_else(|| {
                Error::new(
                    "option.value",
                    format!("`{name}` needs the option `{option}`"),
                )
            })
        };
        let invalid = |option: &str, value: &str, wanted: &str| {
            let message = format!("`{option}` of `{name}` is `{value}`, not {wanted}");
            Error::new("option.value", message)
        };
        let samples = |least: usize| {
            let text = value("samples")?;
            let parsed = text.parse().ok();
            parsed
                .filter(|count| (least..=MAXIMUM_SAMPLES).contains(count))
                .ok_or_else(|| {
                    invalid(
                        "samples",
                        text,
                        &format!("a number from {least} to {MAXIMUM_SAMPLES}"),
                    )
                })
        };
        let number = |option: &str, least: f32, most: f32| {
            let text = value(option)?;
            let parsed = text.parse::<f32>().ok();
            parsed
                .filter(|number| (least..=most).contains(number))
                .ok_or_else(|| invalid(option, text, &format!("a number from {least} to {most}")))
        };
        let numbers = |option: &str, accepted: fn(f32) -> bool, wanted: &str| {
            let text = value(option)?;
            let parsed: Option<Vec<f32>> = text
                .split(',')
                .map(|number| number.trim().parse().ok())
                .collect();
            parsed
                .filter(|numbers| numbers.iter().all(|&number| accepted(number)))
                .ok_or_else(|| invalid(option, text, wanted))
        };
        match (kind, name) {
            (Kind::Image, _) => {
                let mean = numbers("mean", f32::is_finite, "numbers separated by commas")?;
                let wanted = "numbers above 0 separated by commas";
                let deviation = numbers("deviation", |v| v.is_finite() && v > 0.0, wanted)?;
                if mean.len() != deviation.len() {
                    let message = format!(
                        "`normalize` has {} means and {} deviations",
                        mean.len(),
                        deviation.len()
                    );
                    return Err(Error::new("option.value", message));
                }
                Ok(Self::NormalizeChannels { mean, deviation })
            }
            (Kind::Audio, "fit") => Ok(Self::Fit(samples(1)?)),
            (Kind::Audio, "shift") => Ok(Self::Shift(samples(0)?)),
            (Kind::Audio, "gain") => Ok(Self::Gain(number("decibels", 0.0, 120.0)?)),
            (Kind::Audio, _) => Ok(Self::NormalizePeak(number("peak", f32::MIN_POSITIVE, 1e6)?)),
        }
    }

    /// The shape of a sample after the transform. Errors: `data.transform` where it does not fit.
    pub(crate) fn shape(&self, mut shape: Vec<usize>) -> Result<Vec<usize>, Error> {
        match self {
            Self::NormalizeChannels { mean, .. } => {
                let channels = shape.first().copied().unwrap_or_default();
                if mean.len() != channels {
                    let message = format!(
                        "`normalize` has {} means for samples of {channels} channels",
                        mean.len()
                    );
                    return Err(Error::new("data.transform", message));
                }
            }
            Self::Fit(samples) => shape = vec![*samples],
            Self::Shift(_) | Self::Gain(_) | Self::NormalizePeak(_) => {}
        }
        Ok(shape)
    }

    /// Applies the transform to the values of a sample.
    pub(crate) fn apply(&self, values: &mut Vec<f32>, random: &mut Random) {
        match self {
            Self::NormalizeChannels { mean, deviation } => {
                let channel = (values.len() / mean.len()).max(1);
                for (values, (mean, deviation)) in
                    values.chunks_mut(channel).zip(mean.iter().zip(deviation))
                {
                    values
                        .iter_mut()
                        .for_each(|value| *value = (*value - mean) / deviation);
                }
            }
            Self::Fit(samples) => values.resize(*samples, 0.0),
            Self::Shift(most) => {
                let by = random.below(2 * most + 1) as isize - *most as isize;
                let gap = by.unsigned_abs().min(values.len());
                if by >= 0 {
                    values.rotate_right(gap);
                    values[..gap].fill(0.0);
                } else {
                    values.rotate_left(gap);
                    let end = values.len() - gap;
                    values[end..].fill(0.0);
                }
            }
            Self::Gain(decibels) => {
                let gain = 10f64.powf(f64::from(*decibels) * random.symmetric() / 20.0) as f32;
                values.iter_mut().for_each(|value| *value *= gain);
            }
            Self::NormalizePeak(peak) => {
                let largest = values
                    .iter()
                    .fold(0f32, |largest, value| largest.max(value.abs()));
                if largest > 0.0 {
                    let scale = peak / largest;
                    values.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, name: &str, options: &[(&str, &str)]) -> Result<Transform, Error> {
        let options: Vec<_> = options
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Transform::parse(kind, name, &options)
    }

    fn applied(transform: &Transform, values: &[f32], key: u64) -> Vec<f32> {
        let mut values = values.to_vec();
        transform.apply(&mut values, &mut Random::new(&[key]));
        values
    }

    #[test]
    fn each_does_what_its_name_says() {
        let normalize = parse(
            Kind::Image,
            "normalize",
            &[("mean", "0.5, 1"), ("deviation", "0.5,2")],
        )
        .unwrap();
        assert_eq!(
            applied(&normalize, &[1.0, 0.0, 3.0, 1.0], 0),
            [1.0, -1.0, 1.0, 0.0]
        );
        assert!(normalize.shape(vec![1, 2, 2]).is_err());
        let fit = parse(Kind::Audio, "fit", &[("samples", "3")]).unwrap();
        assert_eq!(applied(&fit, &[1.0, 2.0], 0), [1.0, 2.0, 0.0]);
        assert_eq!(applied(&fit, &[1.0, 2.0, 3.0, 4.0], 0), [1.0, 2.0, 3.0]);
        let peak = parse(Kind::Audio, "normalize", &[("peak", "0.5")]).unwrap();
        assert_eq!(applied(&peak, &[0.1, -0.2], 0), [0.25, -0.5]);
        assert_eq!(applied(&peak, &[0.0, 0.0], 0), [0.0, 0.0]);
    }

    #[test]
    fn a_shift_moves_both_ways_and_leaves_zeros() {
        let shift = parse(Kind::Audio, "shift", &[("samples", "1")]).unwrap();
        let seen: std::collections::BTreeSet<String> = (0..50)
            .map(|key| format!("{:?}", applied(&shift, &[1.0, 2.0, 3.0], key)))
            .collect();
        let expected = ["[0.0, 1.0, 2.0]", "[1.0, 2.0, 3.0]", "[2.0, 3.0, 0.0]"];
        assert!(seen.iter().eq(expected), "{seen:?}");
        let far = parse(Kind::Audio, "shift", &[("samples", "1000")]).unwrap();
        for key in 0..50 {
            assert_eq!(applied(&far, &[1.0, 2.0], key).len(), 2);
        }
    }

    #[test]
    fn a_gain_stays_within_its_decibels() {
        let gain = parse(Kind::Audio, "gain", &[("decibels", "20")]).unwrap();
        let gains: Vec<f32> = (0..200).map(|key| applied(&gain, &[1.0], key)[0]).collect();
        assert!(gains.iter().all(|gain| (0.1..=10.0).contains(gain)));
        assert!(gains.iter().any(|&gain| gain < 0.3) && gains.iter().any(|&gain| gain > 3.0));
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        let code = |result: Result<Transform, Error>| result.unwrap_err().code();
        assert_eq!(code(parse(Kind::Image, "fit", &[])), "data.transform");
        assert_eq!(
            code(parse(Kind::Audio, "fit", &[("length", "3")])),
            "option.unknown"
        );
        for value in ["", "0", "-1", "1e3", "999999999999"] {
            assert_eq!(
                code(parse(Kind::Audio, "fit", &[("samples", value)])),
                "option.value"
            );
        }
        assert_eq!(code(parse(Kind::Audio, "gain", &[])), "option.value");
        assert_eq!(
            code(parse(Kind::Audio, "gain", &[("decibels", "NaN")])),
            "option.value"
        );
        let normalize = [("mean", "0,0"), ("deviation", "1")];
        assert_eq!(
            code(parse(Kind::Image, "normalize", &normalize)),
            "option.value"
        );
    }
}
