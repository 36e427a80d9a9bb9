//! Random numbers.

use super::chunks::{CHUNK, Workers};
use crate::ops::random::{Dropout, bits, uniform};

/// out = x, with elements or rows of `row` elements dropped.
pub(crate) fn dropout(
    workers: Workers<'_>,
    dropout: &Dropout,
    step: u64,
    x: &[f32],
    row: usize,
    out: &mut [f32],
) {
    let (key, threshold, scale) = (
        Dropout::key(dropout.seed, step),
        dropout.threshold(),
        dropout.scale(),
    );
    let each = if dropout.rows { row } else { 1 };
    workers.chunks(out, CHUNK, |chunk, out| {
        for (i, (y, &x)) in out.iter_mut().zip(&x[chunk * CHUNK..]).enumerate() {
            let place = ((chunk * CHUNK + i) / each) as u64;
            *y = if bits(key, place) < threshold {
                0.0
            } else {
                x * scale
            };
        }
    });
}

/// out = numbers in 0 to 1.
pub(crate) fn fill(workers: Workers<'_>, seed: u64, step: u64, out: &mut [f32]) {
    let key = Dropout::key(seed, step);
    workers.chunks(out, CHUNK, |chunk, out| {
        for (i, y) in out.iter_mut().enumerate() {
            *y = uniform(key, (chunk * CHUNK + i) as u64);
        }
    });
}
