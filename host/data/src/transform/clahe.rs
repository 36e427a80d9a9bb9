//! Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) in OpenCV's arithmetic.

use super::image::luma;
use crate::image::Pixels;

/// The equalisation of grey images; of RGB images the luma's, whose change is added to each channel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Clahe {
    /// The most that a value of a tile may occur, in means; 0 for no limit.
    pub(super) clip_limit: f32,
    /// Tiles from top to bottom.
    pub(super) rows: usize,
    /// Tiles from left to right.
    pub(super) columns: usize,
}

/// What each value of a tile becomes.
type Table = [u8; 256];

impl Clahe {
    pub(super) fn apply(&self, pixels: &mut Pixels) {
        if pixels.data.is_empty() {
            return;
        }
        let (width, height) = (pixels.width, pixels.height);
        if pixels.channels == 1 {
            pixels.data = self.equalised(&pixels.data, width, height);
            return;
        }
        let before: Vec<u8> = pixels
            .data
            .chunks_exact(3)
            .map(|pixel| luma(pixel[0], pixel[1], pixel[2]))
            .collect();
        let after = self.equalised(&before, width, height);
        let changes = before.iter().zip(&after);
        for (pixel, (&before, &after)) in pixels.data.chunks_exact_mut(3).zip(changes) {
            let change = i16::from(after) - i16::from(before);
            for value in pixel {
                *value = (i16::from(*value) + change).clamp(0, 255) as u8;
            }
        }
    }

    fn equalised(&self, grey: &[u8], width: usize, height: usize) -> Vec<u8> {
        // An image that the tiles do not divide is mirrored at its right and lower edges.
        let divided = width.is_multiple_of(self.columns) && height.is_multiple_of(self.rows);
        let extended = |size: usize, tiles: usize| match divided {
            true => size / tiles,
            false => (size + tiles - size % tiles) / tiles,
        };
        let tile = [extended(height, self.rows), extended(width, self.columns)];
        let tables: Vec<Table> = (0..self.rows * self.columns)
            .map(|number| {
                let corner = [
                    number / self.columns * tile[0],
                    number % self.columns * tile[1],
                ];
                self.table(grey, [height, width], corner, tile)
            })
            .collect();
        let across: Vec<_> = (0..width)
            .map(|at| between(at, tile[1], self.columns))
            .collect();
        let mut equalised = Vec::with_capacity(grey.len());
        for (at, row) in grey.chunks_exact(width).enumerate() {
            let ([above, below], down) = between(at, tile[0], self.rows);
            for (&value, &([left, right], along)) in row.iter().zip(&across) {
                let of = |row: usize, column: usize| {
                    f32::from(tables[row * self.columns + column][usize::from(value)])
                };
                let upper = of(above, left) * (1.0 - along) + of(above, right) * along;
                let lower = of(below, left) * (1.0 - along) + of(below, right) * along;
                let mixed = upper * (1.0 - down) + lower * down;
                equalised.push(mixed.round_ties_even() as u8);
            }
        }
        equalised
    }

    /// The equalisation of one tile.
    fn table(
        &self,
        grey: &[u8],
        [height, width]: [usize; 2],
        [top, left]: [usize; 2],
        tile: [usize; 2],
    ) -> Table {
        let mirrored = |at: usize, length: usize| match at < length {
            true => at,
            // The edge itself is not repeated; a narrow image is crossed only once.
            false => (2 * length).saturating_sub(at + 2).min(length - 1),
        };
        let mut counts = [0usize; 256];
        for row in top..top + tile[0] {
            let row = mirrored(row, height) * width;
            for column in left..left + tile[1] {
                counts[usize::from(grey[row + mirrored(column, width)])] += 1;
            }
        }
        let area = tile[0] * tile[1];
        if self.clip_limit > 0.0 {
            let limit = (self.clip_limit * area as f32 / 256.0) as usize;
            clip(&mut counts, limit.max(1));
        }
        let scale = 255.0 / area as f32;
        let mut sum = 0;
        counts.map(|count| {
            sum += count;
            (sum as f32 * scale).round_ties_even() as u8
        })
    }
}

/// Cuts counts off at a limit and spreads what is cut off over all values.
fn clip(counts: &mut [usize; 256], limit: usize) {
    let mut clipped = 0;
    for count in counts.iter_mut() {
        clipped += count.saturating_sub(limit);
        *count = (*count).min(limit);
    }
    let rest = clipped % 256;
    counts.iter_mut().for_each(|count| *count += clipped / 256);
    // The rest is below 256.
    let step = 256usize.checked_div(rest).unwrap_or(1);
    let spread = counts.iter_mut().step_by(step).take(rest);
    spread.for_each(|count| *count += 1);
}

/// The two tiles whose middles a position lies between, and how far it is on the way.
fn between(at: usize, tile: usize, tiles: usize) -> ([usize; 2], f32) {
    let position = at as f32 * (1.0 / tile as f32) - 0.5;
    let first = position.floor();
    let second = (first + 1.0) as usize;
    // A position before the first middle converts to 0.
    ([first as usize, second.min(tiles - 1)], position - first)
}
