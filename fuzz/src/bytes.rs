//! Choices read from bytes.

/// Numbers that are likely to be mishandled, and plain ones.
const NUMBERS: [f64; 16] = [
    1.0,
    0.5,
    0.1,
    0.9,
    2.0,
    -1.0,
    3.7,
    1e-5,
    0.0,
    -0.0,
    1e300,
    -1e300,
    1e-300,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
];
/// Sizes that do not fit anywhere.
const LARGE: [u64; 8] = [
    1 << 16,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    1 << 62,
    i64::MAX as u64,
    u64::MAX,
];

/// Bytes that are read one by one; after their end come zeros.
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// True once in 16 times.
    pub(crate) fn seldom(&mut self) -> bool {
        self.byte() >= 240
    }

    pub(crate) fn number(&mut self) -> f64 {
        NUMBERS[self.below(NUMBERS.len())]
    }

    /// A size of 1 to 9, seldom of any kind.
    pub(crate) fn size(&mut self) -> u64 {
        let byte = self.byte();
        match byte {
            0..200 => 1 + u64::from(byte % 6),
            200..240 => u64::from(byte - 200),
            240..248 => 64,
            _ => LARGE[usize::from(byte - 248)],
        }
    }

    pub(crate) fn small(&mut self) -> u32 {
        self.size().min(u64::from(u32::MAX)) as u32
    }

    pub(crate) fn pair(&mut self) -> (u32, u32) {
        let first = self.small();
        if self.flag() {
            (first, first)
        } else {
            (first, self.small())
        }
    }

    /// One of `rank` axes, seldom one that is none.
    pub(crate) fn axis(&mut self, rank: usize) -> u32 {
        match self.byte() {
            255 => u32::MAX,
            byte @ 250.. => rank as u32 + u32::from(byte) % 2,
            byte => u32::from(byte) % rank.max(1) as u32,
        }
    }

    pub(crate) fn list<T>(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| item(self)).collect()
    }
}

/// Bytes drawn by a seed.
pub(crate) fn random(seed: u64, count: usize) -> Vec<u8> {
    let word = |i| compute::random::splitmix64(seed.wrapping_mul(1 << 20).wrapping_add(i));
    (0..count as u64).map(|i| word(i) as u8).collect()
}
