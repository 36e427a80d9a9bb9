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

    /// A number from 0 to 1, below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number from the first to the second.
    pub(crate) fn between(&mut self, [least, most]: [f64; 2]) -> f64 {
        least + (most - least) * self.unit()
    }

    /// Two independent numbers of the standard normal distribution (Box and Muller 1958).
    pub(crate) fn normal_pair(&mut self) -> [f32; 2] {
        let bits = self.bits();
        let unit = |bits: u64| bits as f32 / (1u64 << 32) as f32;
        // The first is above 0, so that its logarithm is finite.
        let radius = (-2.0 * unit((bits >> 32) + 1).ln()).sqrt();
        let (sine, cosine) = (std::f32::consts::TAU * unit(bits & 0xffff_ffff)).sin_cos();
        [radius * cosine, radius * sine]
    }

    /// Whether what has this probability happens.
    pub(crate) fn happens(&mut self, probability: f32) -> bool {
        self.unit() < f64::from(probability)
    }

    /// Fisher and Yates' shuffle.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
