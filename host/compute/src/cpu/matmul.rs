//! Matrix products, by the `gemm` crate.

use gemm::Parallelism;

use super::chunks::Workers;
use crate::walk::{Walk, broadcast};

/// Multiplications of a band of a product: some 70 ms of one core.
const BAND_OPERATIONS: usize = 1 << 31;
/// Rows or columns of a band at least, so that packing the other operand again costs little.
const LEAST_BAND: usize = 96;

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

/// out = a·b, or out + a·b where `accumulate`; out is row-major. Each element is the sum over k in an
/// order that depends on the sizes alone: `gemm` divides the results among threads, never the sums.
pub(crate) fn gemm(
    workers: Workers<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    accumulate: bool,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && a.data.len() >= m * k && b.data.len() >= k * n && out.len() >= m * n);
    let (band_rows, band_columns) = band(m, k, n);
    for row in (0..m).step_by(band_rows) {
        for column in (0..n).step_by(band_columns) {
            if workers.cancelled() {
                return;
            }
            let first = (row, column);
            let size = (band_rows.min(m - row), band_columns.min(n - column));
            multiply(workers, a, b, out, accumulate, first, size);
        }
    }
}

/// Rows and columns of the results that are computed between two looks at the wish to end.
fn band(m: usize, k: usize, n: usize) -> (usize, usize) {
    let part = |count: usize, other: usize| {
        let fits = BAND_OPERATIONS / k.saturating_mul(other).max(1);
        fits.clamp(LEAST_BAND.min(count), count)
    };
    if m < n {
        (m.max(1), part(n, m).max(1))
    } else {
        (part(m, n).max(1), n.max(1))
    }
}

/// A band of the results of [`gemm`]: `size` rows and columns from `first` on, within the results.
fn multiply(
    workers: Workers<'_>,
    a: Matrix<'_>,
    b: Matrix<'_>,
    out: &mut [f32],
    accumulate: bool,
    first: (usize, usize),
    size: (usize, usize),
) {
    let (k, n) = (a.columns, b.columns);
    let parallelism = if workers.many() {
        Parallelism::Rayon(0)
    } else {
        Parallelism::None
    };
    let out = &mut out[first.0 * n + first.1..];
    let a_data = &a.data[first.0 * a.row_stride..];
    let b_data = &b.data[first.1 * b.column_stride..];
    // SAFETY: `gemm` holds the operands to their sizes and the band to the results; a `Matrix` is
    // dense, so that its strides address its first rows × columns elements, and those from a row or
    // a column on; `out` is borrowed mutably, so that it overlaps neither operand.
    unsafe {
        gemm::gemm(
            size.0,
            size.1,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a_data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b_data.as_ptr(),
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
