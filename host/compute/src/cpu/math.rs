//! Functions of float32 without branches, so that loops over them become vector instructions. Each
//! is within a few units in the last place, which the tests measure.

/// Adding and taking off this rounds to the nearest integer, for |x| below 2²².
const ROUNDER: f32 = 12_582_912.0;

/// ln 2⁻¹²⁶: below it results are subnormal.
const LEAST: f32 = -87.336_54;

/// eˣ: x = n·ln 2 + r, a polynomial of r (Cephes' `expf`), and 2ⁿ in two factors. Subnormal results
/// are 0, as processors take a hundred times as long for one.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or infinite; NaN passes through all comparisons.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < LEAST { LEAST } else { clamped };
    let n = clamped * std::f32::consts::LOG2_E + ROUNDER - ROUNDER;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_66;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let n = n as i32;
    let half = n >> 1;
    let y = y * power(half) * power(n - half);
    if x < LEAST { 0.0 } else { y }
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent: near 0 a polynomial (Cephes' `tanhf`), else 1 − 2/(e²ˣ + 1).
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_6e-3;
    let p = p * z + 2.063_908_8e-2;
    let p = p * z - 5.373_971e-2;
    let p = p * z + 0.133_314_42;
    let p = p * z - 0.333_332_8;
    let near = p * z * x + x;
    let size = x.abs();
    let far = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    if size < 0.625 { near } else { far }
}

/// The error function, as a quotient of polynomials (the one of Eigen's `generic_fast_erf`).
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let z = x * x;
    let p = -2.726_142_4e-10;
    let p = p * z + 2.770_681_5e-8;
    let p = p * z - 2.101_024e-6;
    let p = p * z - 5.692_506_3e-5;
    let p = p * z - 7.349_906_3e-4;
    let p = p * z - 2.954_6e-3;
    let p = p * z - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * z - 2.133_740_6e-4;
    let q = q * z - 1.682_827e-3;
    let q = q * z - 7.373_329e-3;
    let q = q * z - 1.426_473_9e-2;
    x * p / q
}

/// A fold in 16 lanes side by side, whose results are still to be joined.
#[inline(always)]
pub(super) fn lanes(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    let mut lanes = [start; 16];
    let (parts, rest) = x.as_chunks::<16>();
    for part in parts {
        for (lane, &x) in lanes.iter_mut().zip(part) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest relative error on `range`, numbers below 1e-30 apart.
    fn error(range: (f64, f64), got: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let steps = 200_000;
        let at = |i: usize| (range.0 + (range.1 - range.0) * i as f64 / f64::from(steps)) as f32;
        let one = |x: f32| {
            let exact = exact(f64::from(x));
            (f64::from(got(x)) - exact).abs() / exact.abs().max(1e-30)
        };
        (0..=steps as usize).map(at).map(one).fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_within_a_few_units_in_the_last_place() {
        let unit = f64::from(f32::EPSILON);
        assert!(error((-60.0, 88.0), exp, f64::exp) < 1.5 * unit);
        assert!(error((-9.0, 9.0), tanh, f64::tanh) < 2.0 * unit);
        assert!(error((-60.0, 60.0), sigmoid, |x| 1.0 / (1.0 + (-x).exp())) < 2.5 * unit);
        let of = error((-5.0, 5.0), erf, libm::erf);
        assert!(of < 4.0 * unit, "{}", of / unit);
    }

    #[test]
    fn the_ends_and_what_is_no_number_are_as_they_should_be() {
        assert_eq!([exp(1000.0), exp(f32::INFINITY)], [f32::INFINITY; 2]);
        assert_eq!([exp(-1000.0), exp(f32::NEG_INFINITY)], [0.0; 2]);
        assert!([-87.0, -87.3, LEAST].iter().all(|&x| exp(x).is_normal()));
        assert_eq!([exp(LEAST.next_down()), exp(-100.0)], [0.0; 2]);
        assert_eq!([tanh(50.0), tanh(f32::NEG_INFINITY)], [1.0, -1.0]);
        assert!(1.0 - erf(50.0) <= f32::EPSILON && 1.0 + erf(f32::NEG_INFINITY) <= f32::EPSILON);
        assert_eq!([exp(0.0), tanh(0.0), erf(0.0)], [1.0, 0.0, 0.0]);
        for f in [exp, tanh, erf, sigmoid] {
            assert!(f(f32::NAN).is_nan());
        }
    }
}
