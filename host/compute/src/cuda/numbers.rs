//! How kernels know functions, element types and broadcasts: the numbers and structures that the `.cu`
//! files take.

use super::narrow::computed;
use super::program::{Launch, Pair};
use crate::dtype::DType;
use crate::ops::elementwise::{Binary, Unary};
use crate::walk::broadcast;

pub(super) fn pair(a: &[usize], b: &[usize], own: &[usize]) -> Pair {
    Pair::new(own, &broadcast(a, own), &broadcast(b, own))
}

/// out = a + b, of `n` elements of shape `own`, b broadcast from `b_shape`.
pub(super) fn add_broadcast(
    a: u64,
    b: u64,
    out: u64,
    own: &[usize],
    b_shape: &[usize],
    n: usize,
) -> Launch {
    let launch = Launch::threads("binary_broadcast", n).with(binary(Binary::Add));
    let launch = launch.with(a).with(b).with(out);
    launch.with(pair(own, b_shape, own)).count(n)
}

/// The kernel for elements of the size that a dtype is computed with.
pub(super) fn by_size(dtype: DType, [one, four, eight]: [&'static str; 3]) -> &'static str {
    match computed(dtype).size_bytes() {
        1 => one,
        4 => four,
        _ => eight,
    }
}

/// The number of a function in elementwise.cu, and its constants.
pub(super) fn unary(kind: Unary) -> (i32, f32, f32) {
    match kind {
        Unary::Affine { factor, offset } => (0, factor as f32, offset as f32),
        Unary::Abs => (1, 0.0, 0.0),
        Unary::Exp => (2, 0.0, 0.0),
        Unary::Log => (3, 0.0, 0.0),
        Unary::Sqrt => (4, 0.0, 0.0),
        Unary::Rsqrt => (5, 0.0, 0.0),
        Unary::Sin => (6, 0.0, 0.0),
        Unary::Cos => (7, 0.0, 0.0),
        Unary::Erf => (8, 0.0, 0.0),
        Unary::Pow { exponent } => (9, exponent as f32, 0.0),
        Unary::Clamp { low, high } => (10, low as f32, high as f32),
        Unary::Relu => (11, 0.0, 0.0),
        Unary::LeakyRelu { slope } => (12, slope as f32, 0.0),
        Unary::Gelu => (13, 0.0, 0.0),
        Unary::GeluTanh => (14, 0.0, 0.0),
        Unary::Silu => (15, 0.0, 0.0),
        Unary::Sigmoid => (16, 0.0, 0.0),
        Unary::Tanh => (17, 0.0, 0.0),
        Unary::Elu { alpha } => (18, alpha as f32, 0.0),
        Unary::Softplus => (19, 0.0, 0.0),
        Unary::HardSigmoid => (20, 0.0, 0.0),
        Unary::HardSwish => (21, 0.0, 0.0),
        Unary::Sign => (22, 0.0, 0.0),
        Unary::Floor => (23, 0.0, 0.0),
        Unary::Ceil => (24, 0.0, 0.0),
        Unary::Round => (25, 0.0, 0.0),
        Unary::Tan => (26, 0.0, 0.0),
        Unary::Asin => (27, 0.0, 0.0),
        Unary::Acos => (28, 0.0, 0.0),
        Unary::Atan => (29, 0.0, 0.0),
        Unary::Sinh => (30, 0.0, 0.0),
        Unary::Cosh => (31, 0.0, 0.0),
        Unary::Asinh => (32, 0.0, 0.0),
        Unary::Acosh => (33, 0.0, 0.0),
        Unary::Atanh => (34, 0.0, 0.0),
    }
}

pub(super) fn binary(kind: Binary) -> i32 {
    match kind {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
        Binary::Div => 3,
        Binary::Maximum => 4,
        Binary::Minimum => 5,
    }
}

/// The number of an element type in elementwise.cu.
pub(super) fn type_of(dtype: DType) -> i32 {
    match dtype {
        DType::F32 | DType::BF16 => 0,
        DType::I64 => 1,
        DType::U8 => 3,
        _ => 2,
    }
}
