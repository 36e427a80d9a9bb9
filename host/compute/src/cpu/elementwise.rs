//! Element-wise kernels.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::chunks::{CHUNK, Workers, vectorized};
use super::math::{erf, exp, sigmoid, tanh};
use crate::ops::elementwise::{Binary, Comparison, Logic, Unary};
use crate::walk::{Walk, broadcast};

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
pub(crate) fn map(
    workers: Workers<'_>,
    x: &[f32],
    out: &mut [f32],
    f: impl Fn(f32) -> f32 + Sync + Send,
) {
    workers.chunks(out, CHUNK, |i, out| {
        vectorized(|| {
            for (y, &x) in out.iter_mut().zip(&x[i * CHUNK..]) {
                *y = f(x);
            }
        });
    });
}

/// out = f(x), of another dtype.
pub(crate) fn convert<T: Copy + Sync, U: Send>(
    workers: Workers<'_>,
    x: &[T],
    out: &mut [U],
    f: impl Fn(T) -> U + Sync + Send,
) {
    workers.chunks(out, CHUNK, |i, out| {
        let pairs = out.iter_mut().zip(&x[i * CHUNK..]);
        pairs.for_each(|(y, &x)| *y = f(x));
    });
}

/// out = f(a, b), all of one shape.
fn zip(
    workers: Workers<'_>,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    f: impl Fn(f32, f32) -> f32 + Sync + Send,
) {
    workers.chunks(out, CHUNK, |i, out| {
        vectorized(|| {
            for ((y, &a), &b) in out.iter_mut().zip(&a[i * CHUNK..]).zip(&b[i * CHUNK..]) {
                *y = f(a, b);
            }
        });
    });
}

pub(crate) fn unary(workers: Workers<'_>, kind: Unary, x: &[f32], out: &mut [f32]) {
    match kind {
        Unary::Affine { factor, offset } => {
            let (factor, offset) = (factor as f32, offset as f32);
            map(workers, x, out, |x| factor * x + offset);
        }
        Unary::Abs => map(workers, x, out, f32::abs),
        Unary::Exp => map(workers, x, out, exp),
        Unary::Log => map(workers, x, out, f32::ln),
        Unary::Sqrt => map(workers, x, out, f32::sqrt),
        Unary::Rsqrt => map(workers, x, out, |x| 1.0 / x.sqrt()),
        Unary::Sin => map(workers, x, out, f32::sin),
        Unary::Cos => map(workers, x, out, f32::cos),
        Unary::Erf => map(workers, x, out, erf),
        Unary::Pow { exponent } => map(workers, x, out, |x| x.powf(exponent as f32)),
        // NaN stays NaN, as in PyTorch.
        Unary::Clamp { low, high } => {
            let (low, high) = (low as f32, high as f32);
            map(workers, x, out, |x| {
                if x < low {
                    low
                } else if x > high {
                    high
                } else {
                    x
                }
            });
        }
        Unary::Relu => map(workers, x, out, |x| if x < 0.0 { 0.0 } else { x }),
        Unary::LeakyRelu { slope } => {
            let slope = slope as f32;
            map(workers, x, out, |x| if x < 0.0 { slope * x } else { x });
        }
        Unary::Gelu => {
            map(workers, x, out, |x| {
                0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))
            });
        }
        Unary::GeluTanh => map(workers, x, out, |x| {
            0.5 * x * (1.0 + tanh(TANH_SCALE * (x + 0.044_715 * x * x * x)))
        }),
        Unary::Silu => map(workers, x, out, |x| x * sigmoid(x)),
        Unary::Sigmoid => map(workers, x, out, sigmoid),
        Unary::Tanh => map(workers, x, out, tanh),
        Unary::Elu { alpha } => {
            let alpha = alpha as f32;
            map(workers, x, out, |x| {
                if x < 0.0 { alpha * x.exp_m1() } else { x }
            });
        }
        // log(1 + eˣ) = max(x, 0) + log(1 + e^−|x|), which does not overflow.
        Unary::Softplus => map(workers, x, out, |x| {
            (if x < 0.0 { 0.0 } else { x }) + (-x.abs()).exp().ln_1p()
        }),
        Unary::HardSigmoid => map(workers, x, out, hard_sigmoid),
        Unary::HardSwish => map(workers, x, out, |x| x * hard_sigmoid(x)),
        Unary::Sign => map(workers, x, out, sign),
        Unary::Floor => map(workers, x, out, f32::floor),
        Unary::Ceil => map(workers, x, out, f32::ceil),
        Unary::Round => map(workers, x, out, f32::round_ties_even),
        Unary::Tan => map(workers, x, out, f32::tan),
        Unary::Asin => map(workers, x, out, f32::asin),
        Unary::Acos => map(workers, x, out, f32::acos),
        Unary::Atan => map(workers, x, out, f32::atan),
        Unary::Sinh => map(workers, x, out, f32::sinh),
        Unary::Cosh => map(workers, x, out, f32::cosh),
        Unary::Asinh => map(workers, x, out, libm::asinhf),
        Unary::Acosh => map(workers, x, out, libm::acoshf),
        Unary::Atanh => map(workers, x, out, libm::atanhf),
    }
}

/// out = dy · f′(x).
pub(crate) fn unary_gradient(
    workers: Workers<'_>,
    kind: Unary,
    x: &[f32],
    dy: &[f32],
    out: &mut [f32],
) {
    let mut with = |derivative: &(dyn Fn(f32) -> f32 + Sync)| {
        zip(workers, x, dy, out, |x, dy| dy * derivative(x));
    };
    match kind {
        Unary::Affine { factor, .. } => with(&|_| factor as f32),
        Unary::Abs => with(&sign),
        Unary::Exp => zip(workers, x, dy, out, |x, dy| dy * exp(x)),
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
        Unary::Relu => zip(workers, x, dy, out, |x, dy| if x > 0.0 { dy } else { 0.0 }),
        Unary::LeakyRelu { slope } => {
            let slope = slope as f32;
            zip(
                workers,
                x,
                dy,
                out,
                |x, dy| if x > 0.0 { dy } else { slope * dy },
            );
        }
        // Φ(x) + x·φ(x)
        Unary::Gelu => zip(workers, x, dy, out, |x, dy| {
            let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * exp(-0.5 * x * x);
            dy * (0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * density)
        }),
        Unary::GeluTanh => zip(workers, x, dy, out, |x, dy| {
            let t = tanh(TANH_SCALE * (x + 0.044_715 * x * x * x));
            let slope = TANH_SCALE * (1.0 + 3.0 * 0.044_715 * x * x);
            dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }),
        Unary::Silu => zip(workers, x, dy, out, |x, dy| {
            let s = sigmoid(x);
            dy * (s * (1.0 + x * (1.0 - s)))
        }),
        Unary::Sigmoid => zip(workers, x, dy, out, |x, dy| {
            let s = sigmoid(x);
            dy * (s * (1.0 - s))
        }),
        Unary::Tanh => zip(workers, x, dy, out, |x, dy| {
            let t = tanh(x);
            dy * (1.0 - t * t)
        }),
        Unary::Elu { alpha } => with(&|x| if x > 0.0 { 1.0 } else { alpha as f32 * x.exp() }),
        Unary::Softplus => with(&sigmoid),
        Unary::HardSigmoid => with(&|x| if x.abs() < 3.0 { 1.0 / 6.0 } else { 0.0 }),
        Unary::HardSwish => zip(workers, x, dy, out, |x, dy| {
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

/// A tensor and its shape.
pub(crate) type Operand<'a, T> = (&'a [T], &'a [usize]);

/// out = f(a, b) with broadcasting to `shape`.
pub(crate) fn broadcasting<T: Copy + Sync, U: Send>(
    workers: Workers<'_>,
    (a, a_shape): Operand<'_, T>,
    (b, b_shape): Operand<'_, T>,
    (out, shape): (&mut [U], &[usize]),
    f: impl Fn(T, T) -> U + Sync + Send,
) {
    let walk = Walk::new(
        shape,
        [&broadcast(a_shape, shape), &broadcast(b_shape, shape)],
    );
    let inner = walk.inner();
    workers.chunks(out, CHUNK, |i, out| {
        let start = i * CHUNK;
        let end = start + out.len();
        let mut out = out;
        walk.runs(start, end, |[at, bt], length| {
            let (run, rest) = std::mem::take(&mut out).split_at_mut(length);
            out = rest;
            match inner {
                [0, _] => {
                    let x = a[at];
                    run.iter_mut()
                        .zip(&b[bt..])
                        .for_each(|(y, &b)| *y = f(x, b));
                }
                [_, 0] => {
                    let x = b[bt];
                    run.iter_mut()
                        .zip(&a[at..])
                        .for_each(|(y, &a)| *y = f(a, x));
                }
                _ => {
                    let pairs = a[at..].iter().zip(&b[bt..]);
                    run.iter_mut()
                        .zip(pairs)
                        .for_each(|(y, (&a, &b))| *y = f(a, b));
                }
            }
        });
    });
}

pub(crate) fn binary(
    workers: Workers<'_>,
    kind: Binary,
    a: Operand<'_, f32>,
    b: Operand<'_, f32>,
    out: (&mut [f32], &[usize]),
) {
    match kind {
        Binary::Add => broadcasting(workers, a, b, out, |a, b| a + b),
        Binary::Sub => broadcasting(workers, a, b, out, |a, b| a - b),
        Binary::Mul => broadcasting(workers, a, b, out, |a, b| a * b),
        Binary::Div => broadcasting(workers, a, b, out, |a, b| a / b),
        // NaN wins, as in PyTorch.
        Binary::Maximum => {
            broadcasting(
                workers,
                a,
                b,
                out,
                |a: f32, b| if a > b || a.is_nan() { a } else { b },
            );
        }
        Binary::Minimum => {
            broadcasting(
                workers,
                a,
                b,
                out,
                |a: f32, b| if a < b || a.is_nan() { a } else { b },
            );
        }
    }
}

pub(crate) fn integer_binary(
    workers: Workers<'_>,
    kind: Binary,
    a: Operand<'_, i64>,
    b: Operand<'_, i64>,
    out: (&mut [i64], &[usize]),
) {
    broadcasting(workers, a, b, out, |a, b| kind.of_integers(a, b));
}

pub(crate) fn compare<T: Copy + Sync + PartialOrd>(
    workers: Workers<'_>,
    kind: Comparison,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    out: (&mut [u8], &[usize]),
) {
    broadcasting(workers, a, b, out, |a, b| u8::from(kind.holds(a, b)));
}

pub(crate) fn logic(
    workers: Workers<'_>,
    kind: Logic,
    a: Operand<'_, u8>,
    b: Operand<'_, u8>,
    out: (&mut [u8], &[usize]),
) {
    match kind {
        Logic::And => broadcasting(workers, a, b, out, |a, b| a & b),
        Logic::Or => broadcasting(workers, a, b, out, |a, b| a | b),
    }
}

/// out = a where the condition holds, else b.
pub(crate) fn select<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    (condition, condition_shape): Operand<'_, u8>,
    (a, a_shape): Operand<'_, T>,
    (b, b_shape): Operand<'_, T>,
    (out, shape): (&mut [T], &[usize]),
) {
    let operands = [condition_shape, a_shape, b_shape].map(|own| broadcast(own, shape));
    let walk = Walk::new(shape, operands.each_ref().map(Vec::as_slice));
    let inner = walk.inner();
    workers.chunks(out, CHUNK, |i, out| {
        let start = i * CHUNK;
        let mut done = 0;
        walk.runs(start, start + out.len(), |at, length| {
            for (step, y) in out[done..done + length].iter_mut().enumerate() {
                let [c, a_at, b_at] = std::array::from_fn(|n| at[n] + step * inner[n]);
                *y = if condition[c] != 0 { a[a_at] } else { b[b_at] };
            }
            done += length;
        });
    });
}

/// Adds `row` to every row of `out`.
pub(crate) fn add_rows(workers: Workers<'_>, row: &[f32], out: &mut [f32]) {
    let rows = (CHUNK / row.len()).max(1);
    workers.chunks(out, rows * row.len(), |_, out| {
        for out in out.chunks_exact_mut(row.len()) {
            out.iter_mut().zip(row).for_each(|(y, &x)| *y += x);
        }
    });
}

/// out = dy where a wins over b, half of it where they are equal.
pub(crate) fn extremum_gradient(
    workers: Workers<'_>,
    maximum: bool,
    a: Operand<'_, f32>,
    b: Operand<'_, f32>,
    dy: &[f32],
    (out, shape): (&mut [f32], &[usize]),
) {
    broadcasting(workers, a, b, (&mut *out, shape), |a, b| {
        if a == b {
            0.5
        } else if (a > b) == maximum {
            1.0
        } else {
            0.0
        }
    });
    workers.chunks(out, CHUNK, |i, out| {
        out.iter_mut()
            .zip(&dy[i * CHUNK..])
            .for_each(|(y, &dy)| *y *= dy);
    });
}
