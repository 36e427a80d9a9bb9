//! Transforms of recordings.

use super::options::Options;
use crate::error::Error;
use crate::random::Random;

/// Samples that a recording may be fitted to or shifted by.
const MAXIMUM_SAMPLES: usize = 1 << 28;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum AudioTransform {
    /// Cut, or padded with zeros at the end, to this many samples.
    Fit(usize),
    /// Moved by up to so many samples either way, at random, with zeros in the gap.
    Shift(usize),
    /// Scaled by up to so many decibels either way, at random.
    Gain(f32),
    /// Scaled to this peak; silence stays.
    NormalizePeak(f32),
}

impl AudioTransform {
    pub(super) fn parse(options: &Options<'_>) -> Result<Self, Error> {
        match options.name {
            "fit" => {
                options.only(&["samples"])?;
                Ok(Self::Fit(options.integer("samples", 1..=MAXIMUM_SAMPLES)?))
            }
            "shift" => {
                options.only(&["samples"])?;
                Ok(Self::Shift(
                    options.integer("samples", 0..=MAXIMUM_SAMPLES)?,
                ))
            }
            "gain" => {
                options.only(&["decibels"])?;
                Ok(Self::Gain(options.number("decibels", 0.0..=120.0)?))
            }
            "normalize" => {
                options.only(&["peak"])?;
                let peak = options.number("peak", f32::MIN_POSITIVE..=1e6)?;
                Ok(Self::NormalizePeak(peak))
            }
            name => {
                let message = format!(
                    "`{name}` is not a transform of audio; there are: fit, shift, gain, normalize"
                );
                Err(Error::new("data.transform", message))
            }
        }
    }

    pub(super) fn shape(&self, shape: Vec<usize>) -> Vec<usize> {
        match self {
            Self::Fit(samples) => vec![*samples],
            Self::Shift(_) | Self::Gain(_) | Self::NormalizePeak(_) => shape,
        }
    }

    pub(super) fn apply(&self, values: &mut Vec<f32>, random: &mut Random) {
        match self {
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

    fn parse(name: &str, options: &[(&str, &str)]) -> Result<AudioTransform, Error> {
        let options: Vec<_> = options
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        AudioTransform::parse(&Options::new(name, &options))
    }

    fn applied(transform: &AudioTransform, values: &[f32], key: u64) -> Vec<f32> {
        let mut values = values.to_vec();
        transform.apply(&mut values, &mut Random::new(&[key]));
        values
    }

    #[test]
    fn each_does_what_its_name_says() {
        let fit = parse("fit", &[("samples", "3")]).unwrap();
        assert_eq!(applied(&fit, &[1.0, 2.0], 0), [1.0, 2.0, 0.0]);
        assert_eq!(applied(&fit, &[1.0, 2.0, 3.0, 4.0], 0), [1.0, 2.0, 3.0]);
        let peak = parse("normalize", &[("peak", "0.5")]).unwrap();
        assert_eq!(applied(&peak, &[0.1, -0.2], 0), [0.25, -0.5]);
        assert_eq!(applied(&peak, &[0.0, 0.0], 0), [0.0, 0.0]);
    }

    #[test]
    fn a_shift_moves_both_ways_and_leaves_zeros() {
        let shift = parse("shift", &[("samples", "1")]).unwrap();
        let seen: std::collections::BTreeSet<String> = (0..50)
            .map(|key| format!("{:?}", applied(&shift, &[1.0, 2.0, 3.0], key)))
            .collect();
        let expected = ["[0.0, 1.0, 2.0]", "[1.0, 2.0, 3.0]", "[2.0, 3.0, 0.0]"];
        assert!(seen.iter().eq(expected), "{seen:?}");
        let far = parse("shift", &[("samples", "1000")]).unwrap();
        for key in 0..50 {
            assert_eq!(applied(&far, &[1.0, 2.0], key).len(), 2);
        }
    }

    #[test]
    fn a_gain_stays_within_its_decibels() {
        let gain = parse("gain", &[("decibels", "20")]).unwrap();
        let gains: Vec<f32> = (0..200).map(|key| applied(&gain, &[1.0], key)[0]).collect();
        assert!(gains.iter().all(|gain| (0.1..=10.0).contains(gain)));
        assert!(gains.iter().any(|&gain| gain < 0.3) && gains.iter().any(|&gain| gain > 3.0));
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        let code = |result: Result<AudioTransform, Error>| result.unwrap_err().code();
        assert_eq!(code(parse("resize", &[])), "data.transform");
        assert_eq!(code(parse("fit", &[("length", "3")])), "option.unknown");
        for value in ["", "0", "-1", "1e3", "999999999999"] {
            assert_eq!(code(parse("fit", &[("samples", value)])), "option.value");
        }
        assert_eq!(code(parse("gain", &[])), "option.value");
        assert_eq!(code(parse("gain", &[("decibels", "NaN")])), "option.value");
    }
}
