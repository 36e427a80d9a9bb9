//! Random draws from a key.

use compute::random::splitmix64;

/// A sequence of draws that depends on its key alone.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    key: u64,
    drawn: u64,
}

impl Random {
    /// The sequence of the numbers that make up its key.
    pub(crate) fn new(parts: &[u64]) -> Self {
        let key = parts
            .iter()
            .fold(0, |key, &part| splitmix64(key ^ splitmix64(part)));
        Self { key, drawn: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.drawn += 1;
        splitmix64(self.key.wrapping_add(self.drawn))
    }

    /// An integer below `bound`, which is not 0. Multiply-shift (Lemire 2019) without its
    /// rejection: the bias is below 2⁻³² for bounds below 2³².
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number between −1 and 1.
    pub(crate) fn symmetric(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Fisher and Yates' shuffle.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
