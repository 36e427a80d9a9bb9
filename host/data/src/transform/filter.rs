//! Blur, sharpening and noise.

use pulp::Arch;

use super::colour::blend;
use crate::image::Pixels;
use crate::random::Random;

/// torchvision's `gaussian_blur` with a kernel of three deviations either way, the image mirrored at
/// its edges; `sigma` in pixels.
pub(super) fn blur(pixels: &mut Pixels, sigma: f64) {
    let radius = (3.0 * sigma).ceil() as usize;
    let offsets = (0..=2 * radius).map(|at| at as f64 - radius as f64);
    let weights: Vec<f64> = offsets
        .map(|x| (-0.5 * (x / sigma).powi(2)).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|weight| (weight / sum) as f32).collect();
    Arch::new().dispatch(|| blur_with(pixels, &weights));
}

/// The position that `at` is the mirror image of in a line of `length`, whose ends are not
/// repeated.
fn mirrored(at: isize, length: usize) -> usize {
    let period = (2 * length.saturating_sub(1)).max(1);
    let at = at.rem_euclid(period as isize) as usize;
    at.min(period - at).min(length.saturating_sub(1))
}

#[inline(always)]
fn blur_with(pixels: &mut Pixels, weights: &[f32]) {
    let (width, height, channels) = (pixels.width, pixels.height, pixels.channels);
    let radius = weights.len() / 2;
    let row = width * channels;
    let mut extended = vec![0f32; (width + 2 * radius) * channels];
    let mut across = vec![0f32; height * row];
    let rows = pixels.data.chunks_exact(row.max(1));
    for (from, to) in rows.zip(across.chunks_exact_mut(row.max(1))) {
        for (at, pixel) in extended.chunks_exact_mut(channels).enumerate() {
            let source = mirrored(at as isize - radius as isize, width) * channels;
            for (value, &from) in pixel.iter_mut().zip(&from[source..source + channels]) {
                *value = f32::from(from);
            }
        }
        for (tap, &weight) in weights.iter().enumerate() {
            for (to, from) in to.iter_mut().zip(&extended[tap * channels..]) {
                *to += weight * from;
            }
        }
    }
    let mut sums = vec![0f32; row];
    for (at, to) in pixels.data.chunks_exact_mut(row.max(1)).enumerate() {
        sums.fill(0.0);
        for (tap, &weight) in weights.iter().enumerate() {
            let source = mirrored((at + tap) as isize - radius as isize, height) * row;
            for (sum, from) in sums.iter_mut().zip(&across[source..source + row]) {
                *sum += weight * from;
            }
        }
        for (to, sum) in to.iter_mut().zip(&sums) {
            *to = sum.round_ties_even() as u8;
        }
    }
}

/// Pillow's `Sharpness`: from the image smoothed by 3 × 3 weights, 5 in the middle and 1 around it,
/// to the image itself and beyond; the edge is left as it is.
pub(super) fn sharpen(pixels: &mut Pixels, factor: f32) {
    let (row, channels) = (pixels.width * pixels.channels, pixels.channels);
    if pixels.width < 3 || pixels.height < 3 {
        return;
    }
    let source = pixels.data.clone();
    let rows = pixels.data.chunks_exact_mut(row).enumerate();
    for (at, to) in rows.skip(1).take(pixels.height - 2) {
        let above = &source[(at - 1) * row..at * row];
        let line = &source[at * row..(at + 1) * row];
        let below = &source[(at + 1) * row..(at + 2) * row];
        for column in channels..row - channels {
            let around = |line: &[u8]| {
                u32::from(line[column - channels])
                    + u32::from(line[column])
                    + u32::from(line[column + channels])
            };
            let sum = around(above) + around(line) + around(below) + 4 * u32::from(line[column]);
            let smooth = ((2 * sum + 13) / 26) as u8;
            to[column] = blend(smooth, line[column], factor);
        }
    }
}

/// Adds normal noise to each value, of a deviation in 0 to 1.
pub(super) fn noise(pixels: &mut Pixels, deviation: f32, random: &mut Random) {
    let scale = 255.0 * deviation;
    for values in pixels.data.chunks_mut(2) {
        for (value, noise) in values.iter_mut().zip(random.normal_pair()) {
            *value = (f32::from(*value) + scale * noise).round() as u8;
        }
    }
}
