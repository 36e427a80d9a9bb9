//! Transforms of images.

use super::augment::{self, Augmentation};
use super::options::Options;
use super::{crop, resize};
use crate::error::Error;
use crate::image::{MAXIMUM_PIXELS, Pixels};
use crate::random::Random;

/// Pixels along a side of what a transform makes, and of padding.
const MAXIMUM_SIDE: usize = 1 << 14;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum ImageTransform {
    /// Resized.
    Resize(Size),
    /// The middle, `[height, width]`.
    CentreCrop([usize; 2]),
    /// A window anywhere, with zeros around the image.
    RandomCrop {
        /// `[height, width]`.
        size: [usize; 2],
        /// Zeros on each side, in pixels.
        padding: usize,
    },
    /// A window anywhere of a random area and ratio, resized.
    RandomResizedCrop {
        /// `[height, width]`.
        size: [usize; 2],
        /// The least and the largest share of the image's area.
        scale: [f32; 2],
        /// The least and the largest width, in heights.
        ratio: [f32; 2],
    },
    /// Changed within its size, at random.
    Augment(Augmentation),
    /// Grey (1) or RGB (3).
    Channels(usize),
    /// Made numbers.
    Normalize(Normalize),
}

/// What an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Size {
    /// The shorter side, in pixels; the other keeps the ratio.
    Short(usize),
    /// `[height, width]`.
    Exact([usize; 2]),
}

impl Size {
    /// The size of an image of this one.
    fn of(self, [height, width]: [usize; 2]) -> [usize; 2] {
        let short = match self {
            Self::Exact(size) => return size,
            Self::Short(short) => short,
        };
        // As torchvision, the longer side is rounded down.
        if width <= height {
            [short * height / width.max(1), short]
        } else {
            [short, short * width / height.max(1)]
        }
    }
}

/// Each channel, from 0 to 1, less its mean, over its deviation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Normalize {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl Normalize {
    /// For each channel what its 256 values become.
    pub(crate) fn tables(&self) -> Vec<[f32; 256]> {
        let channels = self.mean.iter().zip(&self.deviation);
        channels
            .map(|(mean, deviation)| {
                std::array::from_fn(|at| (at as f32 / 255.0 - mean) / deviation)
            })
            .collect()
    }
}

impl ImageTransform {
    pub(super) fn parse(options: &Options<'_>) -> Result<Self, Error> {
        let side = |option| options.integer(option, 1..=MAXIMUM_SIDE);
        let size = || Ok::<_, Error>([side("height")?, side("width")?]);
        Ok(match options.name {
            "resize" => {
                options.only(&["short-side", "height", "width"])?;
                Self::Resize(match options.text("short-side") {
                    None => Size::Exact(size()?),
                    Some(_) => {
                        options.only(&["short-side"])?;
                        Size::Short(side("short-side")?)
                    }
                })
            }
            "centre-crop" => {
                options.only(&["height", "width"])?;
                Self::CentreCrop(size()?)
            }
            "random-crop" => {
                options.only(&["height", "width", "padding"])?;
                Self::RandomCrop {
                    size: size()?,
                    padding: options.integer_or("padding", 0, 0..=MAXIMUM_SIDE)?,
                }
            }
            "random-resized-crop" => {
                options.only(&["height", "width", "scale", "ratio"])?;
                let between = |option, default, range| match options.text(option) {
                    Some(_) => options.between(option, range),
                    None => Ok(default),
                };
                Self::RandomResizedCrop {
                    size: size()?,
                    scale: between("scale", [0.08, 1.0], 1e-6..=1.0)?,
                    ratio: between("ratio", [3.0 / 4.0, 4.0 / 3.0], 0.01..=100.0)?,
                }
            }
            "channels" => {
                options.only(&["count"])?;
                Self::Channels(match options.choice("count", &["1", "3"])? {
                    0 => 1,
                    _ => 3,
                })
            }
            "normalize" => {
                options.only(&["mean", "deviation"])?;
                let wanted = "numbers separated by commas";
                let mean = options.list("mean", f32::is_finite, wanted)?;
                let wanted = "numbers above 0 separated by commas";
                let deviation = options.list("deviation", |v| v.is_finite() && v > 0.0, wanted)?;
                if mean.len() != deviation.len() {
                    let message = format!(
                        "`normalize` has {} means and {} deviations",
                        mean.len(),
                        deviation.len()
                    );
                    return Err(Error::new("option.value", message));
                }
                Self::Normalize(Normalize { mean, deviation })
            }
            name if augment::NAMES.contains(&name) => Self::Augment(Augmentation::parse(options)?),
            name => {
                let message = format!(
                    "`{name}` is not a transform of image; there are: resize, centre-crop, \
                     random-crop, random-resized-crop, {}, channels, normalize",
                    augment::NAMES.join(", ")
                );
                return Err(Error::new("data.transform", message));
            }
        })
    }

    pub(super) fn equalises(&self) -> bool {
        match self {
            Self::Resize(size) => matches!(size, Size::Exact(_)),
            Self::CentreCrop(_) | Self::RandomCrop { .. } | Self::RandomResizedCrop { .. } => true,
            Self::Augment(_) | Self::Channels(_) | Self::Normalize(_) => false,
        }
    }

    /// The shape after it of a sample of this shape, `[channels, height, width]`. Errors:
    /// `data.transform`.
    pub(super) fn shape(&self, shape: Vec<usize>) -> Result<Vec<usize>, Error> {
        let [channels, height, width] = shape[..] else {
            return Ok(shape);
        };
        let sized = |[height, width]: [usize; 2]| vec![channels, height, width];
        Ok(match self {
            Self::Resize(size) => sized(size.of([height, width])),
            Self::CentreCrop(size)
            | Self::RandomCrop { size, .. }
            | Self::RandomResizedCrop { size, .. } => sized(*size),
            Self::Channels(count) => vec![*count, height, width],
            Self::Augment(_) => shape,
            Self::Normalize(normalize) => {
                let figures = normalize.mean.len();
                if figures != channels {
                    let message = format!(
                        "`normalize` has {figures} means for samples of {channels} channels"
                    );
                    return Err(Error::new("data.transform", message));
                }
                shape
            }
        })
    }

    /// Applies the transform. Errors: why it cannot.
    pub(super) fn apply(&self, pixels: &mut Pixels, random: &mut Random) -> Result<(), String> {
        match self {
            Self::Resize(size) => {
                let size = size.of([pixels.height, pixels.width]);
                if size[0].saturating_mul(size[1]) > MAXIMUM_PIXELS {
                    return Err(format!(
                        "resized to {} × {} it would have more than {MAXIMUM_PIXELS} pixels",
                        size[1], size[0]
                    ));
                }
                *pixels = resize::resize(pixels, size);
            }
            Self::CentreCrop(size) => *pixels = crop::centre(pixels, *size),
            Self::RandomCrop { size, padding } => {
                *pixels = crop::random(pixels, *size, *padding, random);
            }
            Self::RandomResizedCrop { size, scale, ratio } => {
                let window = crop::random_area(pixels, *scale, *ratio, random);
                *pixels = resize::resize(&window, *size);
            }
            Self::Augment(augmentation) => augmentation.apply(pixels, random),
            Self::Channels(1) => to_grey(pixels),
            Self::Channels(_) => to_rgb(pixels),
            // The loader normalises as it makes numbers of the pixels.
            Self::Normalize(_) => {}
        }
        Ok(())
    }
}

/// The luma of a pixel (ITU-R BT.601), in Pillow's arithmetic.
pub(super) fn luma(red: u8, green: u8, blue: u8) -> u8 {
    let sum = 19595 * u32::from(red) + 38470 * u32::from(green) + 7471 * u32::from(blue);
    ((sum + 0x8000) >> 16) as u8
}

fn to_grey(pixels: &mut Pixels) {
    if pixels.channels == 3 {
        pixels.data = pixels
            .data
            .chunks_exact(3)
            .map(|pixel| luma(pixel[0], pixel[1], pixel[2]))
            .collect();
        pixels.channels = 1;
    }
}

fn to_rgb(pixels: &mut Pixels) {
    if pixels.channels == 1 {
        pixels.data = pixels.data.iter().flat_map(|&grey| [grey; 3]).collect();
        pixels.channels = 3;
    }
}
