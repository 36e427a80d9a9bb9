//! Brightness, contrast, saturation and hue, as torchvision's `ColorJitter` changes them: the first
//! three in Pillow's arithmetic, hue in that of tensors.

use super::image::luma;
use super::options::Options;
use crate::error::Error;
use crate::image::Pixels;
use crate::random::Random;

/// The range of each change; none where it is not made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Jitter {
    /// Factors: 0 is black, 1 changes nothing.
    brightness: Option<[f32; 2]>,
    /// Factors: 0 is the mean grey, 1 changes nothing.
    contrast: Option<[f32; 2]>,
    /// Factors: 0 is grey, 1 changes nothing.
    saturation: Option<[f32; 2]>,
    /// Parts of the colour circle, −0.5 to 0.5.
    hue: Option<[f32; 2]>,
}

impl Jitter {
    /// Errors: `option.value`.
    pub(super) fn parse(options: &Options<'_>) -> Result<Self, Error> {
        let factors = |option| {
            let around = |by: f32| [(1.0 - by).max(0.0), 1.0 + by];
            options.around(option, 0.0..=10.0, around)
        };
        Ok(Self {
            brightness: factors("brightness")?,
            contrast: factors("contrast")?,
            saturation: factors("saturation")?,
            hue: options.around("hue", -0.5..=0.5, |by| [-by.abs(), by.abs()])?,
        })
    }

    /// Makes the changes, in an order drawn too.
    pub(super) fn apply(&self, pixels: &mut Pixels, random: &mut Random) {
        let mut order = [0, 1, 2, 3];
        random.shuffle(&mut order);
        let ranges = [self.brightness, self.contrast, self.saturation, self.hue];
        let drawn = ranges.map(|range| Some(random.between(range?.map(f64::from)) as f32));
        for change in order {
            let Some(amount) = drawn[change] else {
                continue;
            };
            match change {
                0 => brightness(pixels, amount),
                1 => contrast(pixels, amount),
                2 => saturation(pixels, amount),
                _ => hue(pixels, amount),
            }
        }
    }
}

/// Pillow's `blend`: from `from` to `to`, or beyond, rounded towards zero.
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let difference = i16::from(to) - i16::from(from);
    (f32::from(from) + factor * f32::from(difference)) as u8
}

fn brightness(pixels: &mut Pixels, factor: f32) {
    let table: [u8; 256] = std::array::from_fn(|value| blend(0, value as u8, factor));
    for value in &mut pixels.data {
        *value = table[usize::from(*value)];
    }
}

fn contrast(pixels: &mut Pixels, factor: f32) {
    let count = (pixels.width * pixels.height).max(1) as f64;
    let sum: u64 = match pixels.channels {
        3 => {
            let pixels = pixels.data.chunks_exact(3);
            pixels.map(|p| u64::from(luma(p[0], p[1], p[2]))).sum()
        }
        _ => pixels.data.iter().map(|&value| u64::from(value)).sum(),
    };
    let mean = (sum as f64 / count + 0.5) as u8;
    let table: [u8; 256] = std::array::from_fn(|value| blend(mean, value as u8, factor));
    for value in &mut pixels.data {
        *value = table[usize::from(*value)];
    }
}

fn saturation(pixels: &mut Pixels, factor: f32) {
    if pixels.channels != 3 {
        return;
    }
    for pixel in pixels.data.chunks_exact_mut(3) {
        let grey = luma(pixel[0], pixel[1], pixel[2]);
        for value in pixel {
            *value = blend(grey, *value, factor);
        }
    }
}

/// Turns the colour circle by a part of it (Smith 1978, "Color gamut transform pairs").
fn hue(pixels: &mut Pixels, turn: f32) {
    if pixels.channels != 3 {
        return;
    }
    for pixel in pixels.data.chunks_exact_mut(3) {
        let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(|v| f32::from(v) / 255.0);
        let value = red.max(green).max(blue);
        let range = value - red.min(green).min(blue);
        if range == 0.0 {
            continue;
        }
        let saturation = range / value;
        let [from_red, from_green, from_blue] = [red, green, blue].map(|v| (value - v) / range);
        let sixth = if value == red {
            from_blue - from_green
        } else if value == green {
            2.0 + from_red - from_blue
        } else {
            4.0 + from_green - from_red
        };
        let hue = (sixth / 6.0 + 1.0 + turn).rem_euclid(1.0) * 6.0;
        let sector = hue.floor();
        let within = hue - sector;
        let low = value * (1.0 - saturation);
        let falling = value * (1.0 - saturation * within);
        let rising = value * (1.0 - saturation * (1.0 - within));
        let turned = match sector as u8 {
            0 | 6 => [value, rising, low],
            1 => [falling, value, low],
            2 => [low, value, rising],
            3 => [low, falling, value],
            4 => [rising, low, value],
            _ => [value, low, falling],
        };
        // torchvision's conversion of floats to bytes.
        pixel.copy_from_slice(&turned.map(|value| (value * 255.999) as u8));
    }
}
