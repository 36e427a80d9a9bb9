//! Changes of images that keep their size, each made with a probability.

use super::options::Options;
use super::{clahe, colour, crop, filter};
use crate::error::Error;
use crate::image::Pixels;
use crate::random::Random;

/// The names that [`Augmentation::parse`] knows.
pub(super) const NAMES: [&str; 6] = ["flip", "colour-jitter", "noise", "blur", "clahe", "sharpen"];

/// Tiles along a side of an image.
const MAXIMUM_TILES: usize = 64;

/// A change that is made with a probability.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Augmentation {
    /// 0 to 1.
    probability: f32,
    change: Change,
}

#[derive(Debug, Clone, PartialEq)]
enum Change {
    /// Left becomes right.
    Mirror,
    /// Up becomes down.
    TurnOver,
    /// Brightness, contrast, saturation and hue.
    Colour(colour::Jitter),
    /// Normal noise of a deviation between these, in 0 to 1.
    Noise([f32; 2]),
    /// A Gaussian blur of a deviation between these, in pixels.
    Blur([f32; 2]),
    /// Contrast-limited adaptive histogram equalisation.
    Clahe(clahe::Clahe),
    /// Sharpened by a factor between these; 1 changes nothing.
    Sharpen([f32; 2]),
}

impl Augmentation {
    /// Reads one of [`NAMES`]. Errors: `option.unknown`, `option.value`.
    pub(super) fn parse(options: &Options<'_>) -> Result<Self, Error> {
        let mut likely = 1.0;
        let only = |known: &[&str]| options.only(&[known, &["probability"]].concat());
        let change = match options.name {
            "flip" => {
                only(&["direction"])?;
                likely = 0.5;
                match options.choice("direction", &["horizontal", "vertical"])? {
                    0 => Change::Mirror,
                    _ => Change::TurnOver,
                }
            }
            "colour-jitter" => {
                only(&["brightness", "contrast", "saturation", "hue"])?;
                Change::Colour(colour::Jitter::parse(options)?)
            }
            "noise" => {
                only(&["deviation"])?;
                Change::Noise(options.between("deviation", 0.0..=1.0)?)
            }
            "blur" => {
                only(&["sigma"])?;
                Change::Blur(options.between("sigma", 0.01..=50.0)?)
            }
            "clahe" => {
                only(&["clip-limit", "rows", "columns"])?;
                Change::Clahe(clahe::Clahe {
                    clip_limit: options.number_or("clip-limit", 2.0, 0.0..=256.0)?,
                    rows: options.integer_or("rows", 8, 1..=MAXIMUM_TILES)?,
                    columns: options.integer_or("columns", 8, 1..=MAXIMUM_TILES)?,
                })
            }
            _ => {
                only(&["factor"])?;
                Change::Sharpen(options.between("factor", 0.0..=100.0)?)
            }
        };
        Ok(Self {
            probability: options.number_or("probability", likely, 0.0..=1.0)?,
            change,
        })
    }

    pub(super) fn apply(&self, pixels: &mut Pixels, random: &mut Random) {
        if !random.happens(self.probability) {
            return;
        }
        match &self.change {
            Change::Mirror => crop::mirror(pixels),
            Change::TurnOver => crop::turn_over(pixels),
            Change::Colour(jitter) => jitter.apply(pixels, random),
            Change::Noise(deviation) => {
                let deviation = random.between(deviation.map(f64::from)) as f32;
                filter::noise(pixels, deviation, random);
            }
            Change::Blur(sigma) => filter::blur(pixels, random.between(sigma.map(f64::from))),
            Change::Clahe(clahe) => clahe.apply(pixels),
            Change::Sharpen(factor) => {
                filter::sharpen(pixels, random.between(factor.map(f64::from)) as f32);
            }
        }
    }
}
