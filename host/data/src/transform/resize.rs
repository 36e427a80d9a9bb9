//! Resizing with a triangle filter as wide as the step between output pixels: bilinear with
//! antialiasing, in Pillow's arithmetic of whole numbers, and equal to it bit for bit.

use pulp::Arch;

use crate::image::Pixels;

/// Bits of a weight behind the point (Pillow's `PRECISION_BITS`).
const PRECISION: u32 = 32 - 8 - 2;

/// Columns summed at a time in the vertical pass: what fits into vector registers.
const BLOCK: usize = 64;

/// For each output pixel the input pixels it is made of, and their weights.
struct Filter {
    /// The first input pixel of each output pixel.
    first: Vec<usize>,
    /// The weights of each output pixel, behind one another.
    weights: Vec<i32>,
    /// Where the weights of each output pixel begin, and their end.
    start: Vec<usize>,
}

impl Filter {
    /// Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`.
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let mut filter = Self {
            first: Vec::with_capacity(to),
            weights: Vec::new(),
            start: vec![0],
        };
        let mut weights = Vec::new();
        for at in 0..to {
            let centre = (at as f64 + 0.5) * scale;
            // The conversions round towards zero, and negative numbers to zero.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            weights.clear();
            weights.extend((first..end).map(|pixel| {
                let distance = (pixel as f64 - centre + 0.5) * (1.0 / support);
                (1.0 - distance.abs()).max(0.0)
            }));
            let sum: f64 = weights.iter().sum();
            filter.first.push(first);
            filter.weights.extend(weights.iter().map(|weight| {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                (0.5 + weight * f64::from(1 << PRECISION)) as i32
            }));
            filter.start.push(filter.weights.len());
        }
        filter
    }

    /// The first input pixel of each output pixel, and its weights.
    fn taps(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let ranges = self.start.iter().zip(self.start.iter().skip(1));
        self.first
            .iter()
            .zip(ranges)
            .map(|(&first, (&start, &end))| (first, &self.weights[start..end]))
    }
}

/// What a sum begins with, so that it is rounded.
const HALF: i32 = 1 << (PRECISION - 1);

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The image in another size.
pub(super) fn resize(pixels: &Pixels, [height, width]: [usize; 2]) -> Pixels {
    let narrowed = (pixels.width != width).then(|| {
        let filter = Filter::new(pixels.width, width);
        Arch::new().dispatch(|| match pixels.channels {
            1 => horizontally::<1>(pixels, width, &filter),
            _ => horizontally::<3>(pixels, width, &filter),
        })
    });
    let pixels = narrowed.as_ref().unwrap_or(pixels);
    if pixels.height == height {
        return pixels.clone();
    }
    let filter = Filter::new(pixels.height, height);
    Arch::new().dispatch(|| vertically(pixels, height, &filter))
}

#[inline(always)]
fn horizontally<const CHANNELS: usize>(pixels: &Pixels, width: usize, filter: &Filter) -> Pixels {
    let mut data = vec![0; pixels.height * width * CHANNELS];
    let rows = pixels.data.chunks_exact(pixels.width * CHANNELS);
    for (from, to) in rows.zip(data.chunks_exact_mut(width * CHANNELS)) {
        for (to, (first, weights)) in to.chunks_exact_mut(CHANNELS).zip(filter.taps()) {
            let mut sums = [HALF; CHANNELS];
            let from = &from[first * CHANNELS..(first + weights.len()) * CHANNELS];
            for (from, weight) in from.chunks_exact(CHANNELS).zip(weights) {
                for (sum, &from) in sums.iter_mut().zip(from) {
                    *sum += i32::from(from) * weight;
                }
            }
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = clip(sum);
            }
        }
    }
    Pixels {
        width,
        height: pixels.height,
        channels: CHANNELS,
        data,
    }
}

#[inline(always)]
fn vertically(pixels: &Pixels, height: usize, filter: &Filter) -> Pixels {
    let row = pixels.width * pixels.channels;
    let mut data = vec![0; height * row];
    for (to, (first, weights)) in data.chunks_exact_mut(row).zip(filter.taps()) {
        for (block, to) in to.chunks_mut(BLOCK).enumerate() {
            let mut sums = [HALF; BLOCK];
            for (line, weight) in weights.iter().enumerate() {
                let start = (first + line) * row + block * BLOCK;
                let from = &pixels.data[start..start + to.len()];
                for (sum, &from) in sums.iter_mut().zip(from) {
                    *sum += i32::from(from) * weight;
                }
            }
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = clip(sum);
            }
        }
    }
    Pixels {
        height,
        data,
        ..*pixels
    }
}
