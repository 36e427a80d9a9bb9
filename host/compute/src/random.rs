//! Counter-based random numbers: a value is a function of its key alone, the same on every machine.

/// splitmix64 (Steele, Lea and Flood 2014): 64 random bits for a key.
pub fn splitmix64(key: u64) -> u64 {
    let z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in 0 to 1, without 1, for a key.
pub fn unit(key: u64) -> f64 {
    (splitmix64(key) >> 11) as f64 / (1u64 << 53) as f64
}
