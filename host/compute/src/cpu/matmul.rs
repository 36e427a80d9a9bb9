//! Matrix products over the last two axes.

use super::chunks::Workers;
use super::gemm::{Matrix, gemm_with};
use crate::walk::{Walk, broadcast};

/// Multiplications of a product up to which threads take whole products.
const SMALL: usize = 1 << 24;

/// An operand: elements, shape, and whether its last two axes are transposed.
pub(crate) type Operand<'a> = (&'a [f32], &'a [usize], bool);

/// out of `shape` = a·b over the last two axes, the leading ones broadcast. `finish` is called once
/// with every piece of a row that is done: the number of its first element, and the piece.
pub(crate) fn matmul(
    workers: Workers<'_>,
    (a, a_shape, ta): Operand<'_>,
    (b, b_shape, tb): Operand<'_>,
    (out, shape): (&mut [f32], &[usize]),
    finish: impl Fn(usize, &mut [f32]) + Sync,
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
    let mut results = out.chunks_exact_mut(size).enumerate();
    let mut products = Vec::with_capacity(walk.len());
    walk.runs(0, walk.len(), |[at, bt], length| {
        for (step, (number, out)) in results.by_ref().take(length).enumerate() {
            let a = Matrix::new(&a[at + step * inner[0]..], a_rows, a_columns).transposed_if(ta);
            let b = Matrix::new(&b[bt + step * inner[1]..], b_rows, b_columns).transposed_if(tb);
            products.push((number * size, a, b, out));
        }
    });
    let depth = if ta { a_rows } else { a_columns };
    let product = |workers, (first, a, b, out): (usize, Matrix<'_>, Matrix<'_>, &mut [f32])| {
        gemm_with(workers, a, b, out, false, |at, piece| {
            finish(first + at, piece)
        });
    };
    if size * depth <= SMALL {
        workers.each(products, |item| product(workers.alone(), item));
    } else {
        products.into_iter().for_each(|item| product(workers, item));
    }
}

/// Leading axes, rows and columns.
fn split(shape: &[usize]) -> (&[usize], usize, usize) {
    let lead = shape.len() - 2;
    (&shape[..lead], shape[lead], shape[lead + 1])
}
