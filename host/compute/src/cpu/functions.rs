//! Element-wise functions of float32, over slices of one length that fit into the cache.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::chunks::vectorized;
use super::math::{erf, exp, sigmoid, tanh};
use crate::ops::elementwise::{Binary, Comparison, Logic, Unary};

/// √(2/π), of the tanh form of GELU.
const TANH_SCALE: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

fn hard_sigmoid(x: f32) -> f32 {
    (x / 6.0 + 0.5).clamp(0.0, 1.0)
}

/// −1, 0 or 1; NaN stays.
fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x * 0.0
    }
}

/// out = f(x).
fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    vectorized(
        #[inline(always)]
        || {
            for (y, &x) in out.iter_mut().zip(x) {
                *y = f(x);
            }
        },
    );
}

/// out = f(a, b).
fn zip(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    vectorized(
        #[inline(always)]
        || {
            for ((y, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
        },
    );
}

pub(super) fn unary(kind: Unary, x: &[f32], out: &mut [f32]) {
    match kind {
        Unary::Affine { factor, offset } => {
            let (factor, offset) = (factor as f32, offset as f32);
            map(x, out, |x| factor * x + offset);
        }
        Unary::Abs => map(x, out, f32::abs),
        Unary::Exp => map(x, out, exp),
        Unary::Log => map(x, out, f32::ln),
        Unary::Sqrt => map(x, out, f32::sqrt),
        Unary::Rsqrt => map(x, out, |x| 1.0 / x.sqrt()),
        Unary::Sin => map(x, out, f32::sin),
        Unary::Cos => map(x, out, f32::cos),
        Unary::Erf => map(x, out, erf),
        Unary::Pow { exponent } => map(x, out, |x| x.powf(exponent as f32)),
        // NaN stays NaN, as in PyTorch.
        Unary::Clamp { low, high } => {
            let (low, high) = (low as f32, high as f32);
            map(x, out, |x| {
                if x < low {
                    low
                } else if x > high {
                    high
                } else {
                    x
                }
            });
        }
        Unary::Relu => map(x, out, |x| if x < 0.0 { 0.0 } else { x }),
        Unary::LeakyRelu { slope } => {
            let slope = slope as f32;
            map(x, out, |x| if x < 0.0 { slope * x } else { x });
        }
        Unary::Gelu => {
            map(x, out, |x| 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2)));
        }
        Unary::GeluTanh => map(x, out, |x| {
            0.5 * x * (1.0 + tanh(TANH_SCALE * (x + 0.044_715 * x * x * x)))
        }),
        Unary::Silu => map(x, out, |x| x * sigmoid(x)),
        Unary::Sigmoid => map(x, out, sigmoid),
        Unary::Tanh => map(x, out, tanh),
        Unary::Elu { alpha } => {
            let alpha = alpha as f32;
            map(x, out, |x| if x < 0.0 { alpha * x.exp_m1() } else { x });
        }
        // log(1 + eˣ) = max(x, 0) + log(1 + e^−|x|), which does not overflow.
        Unary::Softplus => map(x, out, |x| {
            (if x < 0.0 { 0.0 } else { x }) + (-x.abs()).exp().ln_1p()
        }),
        Unary::HardSigmoid => map(x, out, hard_sigmoid),
        Unary::HardSwish => map(x, out, |x| x * hard_sigmoid(x)),
        Unary::Sign => map(x, out, sign),
        Unary::Floor => map(x, out, f32::floor),
        Unary::Ceil => map(x, out, f32::ceil),
        Unary::Round => map(x, out, f32::round_ties_even),
        Unary::Tan => map(x, out, f32::tan),
        Unary::Asin => map(x, out, f32::asin),
        Unary::Acos => map(x, out, f32::acos),
        Unary::Atan => map(x, out, f32::atan),
        Unary::Sinh => map(x, out, f32::sinh),
        Unary::Cosh => map(x, out, f32::cosh),
        Unary::Asinh => map(x, out, libm::asinhf),
        Unary::Acosh => map(x, out, libm::acoshf),
        Unary::Atanh => map(x, out, libm::atanhf),
    }
}

/// out = dy · f′(x).
pub(super) fn unary_gradient(kind: Unary, x: &[f32], dy: &[f32], out: &mut [f32]) {
    let mut with = |derivative: &(dyn Fn(f32) -> f32 + Sync)| {
        zip(x, dy, out, |x, dy| dy * derivative(x));
    };
    match kind {
        Unary::Affine { factor, .. } => with(&|_| factor as f32),
        Unary::Abs => with(&sign),
        Unary::Exp => zip(x, dy, out, |x, dy| dy * exp(x)),
        Unary::Log => with(&|x| 1.0 / x),
        Unary::Sqrt => with(&|x| 0.5 / x.sqrt()),
        Unary::Rsqrt => with(&|x| -0.5 / (x * x.sqrt())),
        Unary::Sin => with(&f32::cos),
        Unary::Cos => with(&|x| -x.sin()),
        Unary::Erf => with(&|x| FRAC_2_SQRT_PI * (-x * x).exp()),
        Unary::Pow { exponent } => {
            with(&|x| exponent as f32 * x.powf((exponent - 1.0) as f32));
        }
        Unary::Clamp { low, high } => {
            with(&|x| {
                if x < low as f32 || x > high as f32 {
                    0.0
                } else {
                    1.0
                }
            });
        }
        Unary::Relu => zip(x, dy, out, |x, dy| if x > 0.0 { dy } else { 0.0 }),
        Unary::LeakyRelu { slope } => {
            let slope = slope as f32;
            zip(x, dy, out, |x, dy| if x > 0.0 { dy } else { slope * dy });
        }
        // Φ(x) + x·φ(x)
        Unary::Gelu => zip(x, dy, out, |x, dy| {
            let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * exp(-0.5 * x * x);
            dy * (0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * density)
        }),
        Unary::GeluTanh => zip(x, dy, out, |x, dy| {
            let t = tanh(TANH_SCALE * (x + 0.044_715 * x * x * x));
            let slope = TANH_SCALE * (1.0 + 3.0 * 0.044_715 * x * x);
            dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }),
        Unary::Silu => zip(x, dy, out, |x, dy| {
            let s = sigmoid(x);
            dy * (s * (1.0 + x * (1.0 - s)))
        }),
        Unary::Sigmoid => zip(x, dy, out, |x, dy| {
            let s = sigmoid(x);
            dy * (s * (1.0 - s))
        }),
        Unary::Tanh => zip(x, dy, out, |x, dy| {
            let t = tanh(x);
            dy * (1.0 - t * t)
        }),
        Unary::Elu { alpha } => with(&|x| if x > 0.0 { 1.0 } else { alpha as f32 * x.exp() }),
        Unary::Softplus => with(&sigmoid),
        Unary::HardSigmoid => with(&|x| if x.abs() < 3.0 { 1.0 / 6.0 } else { 0.0 }),
        Unary::HardSwish => zip(x, dy, out, |x, dy| {
            let inside = if x < 3.0 { x / 3.0 + 0.5 } else { 1.0 };
            if x <= -3.0 { 0.0 } else { dy * inside }
        }),
        Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round => out.fill(0.0),
        Unary::Tan => with(&|x| {
            let t = x.tan();
            1.0 + t * t
        }),
        Unary::Asin => with(&|x| 1.0 / (1.0 - x * x).sqrt()),
        Unary::Acos => with(&|x| -1.0 / (1.0 - x * x).sqrt()),
        Unary::Atan => with(&|x| 1.0 / (1.0 + x * x)),
        Unary::Sinh => with(&f32::cosh),
        Unary::Cosh => with(&f32::sinh),
        Unary::Asinh => with(&|x| 1.0 / (1.0 + x * x).sqrt()),
        Unary::Acosh => with(&|x| 1.0 / (x * x - 1.0).sqrt()),
        Unary::Atanh => with(&|x| 1.0 / (1.0 - x * x)),
    }
}

/// out = f(a, b).
pub(super) fn binary(kind: Binary, a: &[f32], b: &[f32], out: &mut [f32]) {
    match kind {
        Binary::Add => zip(a, b, out, |a, b| a + b),
        Binary::Sub => zip(a, b, out, |a, b| a - b),
        Binary::Mul => zip(a, b, out, |a, b| a * b),
        Binary::Div => zip(a, b, out, |a, b| a / b),
        // NaN wins, as in PyTorch.
        Binary::Maximum => zip(a, b, out, |a, b| if a > b || a.is_nan() { a } else { b }),
        Binary::Minimum => zip(a, b, out, |a, b| if a < b || a.is_nan() { a } else { b }),
    }
}

fn truth(holds: bool) -> f32 {
    if holds { 1.0 } else { 0.0 }
}

/// out = whether a comparison holds.
pub(super) fn compare(kind: Comparison, a: &[f32], b: &[f32], out: &mut [f32]) {
    match kind {
        Comparison::Equal => zip(a, b, out, |a, b| truth(a == b)),
        Comparison::NotEqual => zip(a, b, out, |a, b| truth(a != b)),
        Comparison::Less => zip(a, b, out, |a, b| truth(a < b)),
        Comparison::LessOrEqual => zip(a, b, out, |a, b| truth(a <= b)),
        Comparison::Greater => zip(a, b, out, |a, b| truth(a > b)),
        Comparison::GreaterOrEqual => zip(a, b, out, |a, b| truth(a >= b)),
    }
}

/// out = whether both hold, or one.
pub(super) fn logic(kind: Logic, a: &[f32], b: &[f32], out: &mut [f32]) {
    match kind {
        Logic::And => zip(a, b, out, |a, b| truth(a != 0.0 && b != 0.0)),
        Logic::Or => zip(a, b, out, |a, b| truth(a != 0.0 || b != 0.0)),
    }
}

/// out = whether x is not 0.
pub(super) fn not_zero(x: &[f32], out: &mut [f32]) {
    map(x, out, |x| truth(x != 0.0));
}

/// out = x · factor.
pub(super) fn scale(factor: f32, x: &[f32], out: &mut [f32]) {
    map(x, out, |x| x * factor);
}

/// out = a where the condition holds, else b.
pub(super) fn select(condition: &[f32], a: &[f32], b: &[f32], out: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (((y, &c), &a), &b) in out.iter_mut().zip(condition).zip(a).zip(b) {
                *y = if c != 0.0 { a } else { b };
            }
        },
    );
}

/// out = dy where a wins over b, half of it where they are equal.
pub(super) fn extremum_gradient(maximum: bool, a: &[f32], b: &[f32], dy: &[f32], out: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (((y, &a), &b), &dy) in out.iter_mut().zip(a).zip(b).zip(dy) {
                let share = if a == b {
                    0.5
                } else if (a > b) == maximum {
                    1.0
                } else {
                    0.0
                };
                *y = share * dy;
            }
        },
    );
}
