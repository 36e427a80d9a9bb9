//! bfloat16, the upper half of a float32: stored, never computed with.

use super::chunks::{CHUNK, Workers, vectorized};

#[inline(always)]
pub(super) fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn narrowed(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let kept = (bits >> 16) | 0x40;
    (if x.is_nan() { kept } else { rounded }) as u16
}

fn map<T: Copy + Sync, U: Send>(
    workers: Workers<'_>,
    x: &[T],
    out: &mut [U],
    f: impl Fn(T) -> U + Sync + Send,
) {
    workers.chunks(out, CHUNK, |i, out| {
        vectorized(
            #[inline(always)]
            || {
                let x = &x[i * CHUNK..];
                out.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
            },
        );
    });
}

pub(super) fn widen(workers: Workers<'_>, x: &[u16], out: &mut [f32]) {
    map(workers, x, out, widened);
}

pub(super) fn narrow(workers: Workers<'_>, x: &[f32], out: &mut [u16]) {
    map(workers, x, out, narrowed);
}

/// The nearest bfloat16s, as float32.
pub(super) fn round(workers: Workers<'_>, x: &[f32], out: &mut [f32]) {
    map(workers, x, out, |x| widened(narrowed(x)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_to_the_nearest_and_ties_to_even() {
        // 1 + k/256: halves of the last place, 1/128.
        let at = |k: u32| narrowed(1.0 + k as f32 / 256.0);
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(at),
            [0x3f80, 0x3f80, 0x3f81, 0x3f82, 0x3f82, 0x3f82]
        );
        assert_eq!(narrowed(1.0 + 1.01 / 256.0), 0x3f81);
        assert_eq!(narrowed(-1.0 - 3.0 / 256.0), 0xbf82);
        assert_eq!(narrowed(f32::MAX), 0x7f80);
        assert_eq!(narrowed(f32::NEG_INFINITY), 0xff80);
        assert_eq!(narrowed(1e-40), 1);
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for bits in [0x7f80_0001, 0xffff_ffff, 0x7fff_8000] {
            assert!(widened(narrowed(f32::from_bits(bits))).is_nan());
        }
    }

    #[test]
    fn what_is_stored_comes_back() {
        for bits in (0..=u16::MAX).filter(|&bits| !widened(bits).is_nan()) {
            assert_eq!(narrowed(widened(bits)), bits);
        }
    }
}
