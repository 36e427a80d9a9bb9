//! bfloat16, the upper half of a float32.

pub(crate) fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To nearest, ties to even.
pub(crate) fn narrowed(x: f32) -> u16 {
    let (whole, rest) = ((x.to_bits() >> 16) as u16, x.to_bits() & 0xffff);
    if x.is_nan() {
        return whole | 0x40;
    }
    whole + u16::from(rest > 0x8000 || (rest == 0x8000 && whole & 1 == 1))
}
