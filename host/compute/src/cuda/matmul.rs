//! Matrix products, by cuBLASLt.

use super::blas;
use super::lower::Lowering;
use crate::walk::{Walk, broadcast};

impl Lowering<'_> {
    /// Products of matrices over broadcast leading axes: one command where the matrices of each
    /// operand are evenly apart, else one for each run of them.
    pub(super) fn matmul(
        &mut self,
        (a, a_shape, transpose_a): (u64, &[usize], bool),
        (b, b_shape, transpose_b): (u64, &[usize], bool),
        bias: Option<u64>,
        (out, shape): (u64, &[usize]),
        [operands_as, result_as]: [blas::Element; 2],
    ) {
        let rank = shape.len();
        let (m, n) = (shape[rank - 2], shape[rank - 1]);
        let lead = &shape[..rank - 2];
        let last = |s: &[usize], i: usize| s[s.len() - i];
        let k = if transpose_a {
            last(a_shape, 2)
        } else {
            last(a_shape, 1)
        };
        let matrices = |s: &[usize], size: usize| {
            let strides = broadcast(&s[..s.len() - 2], lead);
            strides
                .into_iter()
                .map(|stride| stride * size)
                .collect::<Vec<_>>()
        };
        let walk = Walk::new(lead, [&matrices(a_shape, m * k), &matrices(b_shape, k * n)]);
        let (batch, [stride_a, stride_b]) = (walk.sizes[walk.sizes.len() - 1], walk.inner());
        let total = walk.len();
        let mut done = 0;
        walk.runs(0, total, |[at, bt], count| {
            debug_assert_eq!(count, batch);
            let shape = blas::Shape {
                m: m as u64,
                n: n as u64,
                k: k as u64,
                batch: count as u64,
                stride_a: stride_a as u64,
                stride_b: stride_b as u64,
                transpose_a,
                transpose_b,
                bias: bias.is_some(),
                operands: operands_as,
                result: result_as,
            };
            let operands = blas::Operands {
                a: a + at as u64 * operands_as.bytes(),
                b: b + bt as u64 * operands_as.bytes(),
                out: out + (done * m * n) as u64 * result_as.bytes(),
                bias: bias.unwrap_or(0),
            };
            done += count;
            self.multiply(shape, operands);
        });
    }
}
