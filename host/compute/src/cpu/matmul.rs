//! Matrix products, by the `gemm` crate.

use gemm::Parallelism;

use super::chunks::Workers;
use crate::walk::{Walk, broadcast};

/// A row-major matrix of `rows` × `columns`, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The first `rows` × `columns` elements of `data`.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// The transpose.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    fn transposed_if(self, transpose: bool) -> Self {
        if transpose { self.transposed() } else { self }
    }
}

/// out = a·b, or out + a·b where `accumulate`; out is row-major.
pub(crate) fn gemm(
    workers: Workers<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    accumulate: bool,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && a.data.len() >= m * k && b.data.len() >= k * n && out.len() >= m * n);
    let parallelism = if workers.many() {
        Parallelism::Rayon(0)
    } else {
        Parallelism::None
    };
    // SAFETY: the assertion above holds the operands to the sizes given here; a `Matrix` is dense,
    // so that its strides address its first rows × columns elements; `out` is borrowed mutably, so
    // that it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// An operand: elements, shape, and whether its last two axes are transposed.
pub(crate) type Operand<'a> = (&'a [f32], &'a [usize], bool);

/// out of `shape` = a·b over the last two axes, the leading ones broadcast.
pub(crate) fn matmul(
    workers: Workers<'_>,
    (a, a_shape, ta): Operand<'_>,
    (b, b_shape, tb): Operand<'_>,
    (out, shape): (&mut [f32], &[usize]),
) {
    let lead = shape.len() - 2;
    let (a_lead, a_rows, a_columns) = split(a_shape);
    let (b_lead, b_rows, b_columns) = split(b_shape);
    let size = shape[lead] * shape[lead + 1];
    let scaled = |lead: &[usize], matrix: usize| -> Vec<usize> {
        broadcast(lead, &shape[..shape.len() - 2])
            .iter()
            .map(|stride| stride * matrix)
            .collect()
    };
    let (a_strides, b_strides) = (
        scaled(a_lead, a_rows * a_columns),
        scaled(b_lead, b_rows * b_columns),
    );
    let walk = Walk::new(&shape[..lead], [&a_strides, &b_strides]);
    let inner = walk.inner();
    let mut results = out.chunks_exact_mut(size);
    walk.runs(0, walk.len(), |[at, bt], length| {
        for (step, out) in results.by_ref().take(length).enumerate() {
            let a = Matrix::new(&a[at + step * inner[0]..], a_rows, a_columns).transposed_if(ta);
            let b = Matrix::new(&b[bt + step * inner[1]..], b_rows, b_columns).transposed_if(tb);
            gemm(workers, a, b, out, false);
        }
    });
}

/// Leading axes, rows and columns.
fn split(shape: &[usize]) -> (&[usize], usize, usize) {
    let lead = shape.len() - 2;
    (&shape[..lead], shape[lead], shape[lead + 1])
}
