//! Kernels that take elements by indices, and add them there.

use super::chunks::{CHUNK, Workers};
use crate::error::Error;

/// Refuses an index that names no element. Errors: `data.index`.
fn check(by: &[i64], size: usize) -> Result<(), Error> {
    match by.iter().find(|&&index| index < 0 || index >= size as i64) {
        None => Ok(()),
        Some(index) => Err(Error::index(*index, size)),
    }
}

/// out `[outer, count, inner]` = along the axis of x `[outer, size, inner]` the element that each
/// index names.
pub(crate) fn gather<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    by: &[i64],
    (size, count, inner): (usize, usize, usize),
    out: &mut [T],
) -> Result<(), Error> {
    check(by, size)?;
    let row = count * inner;
    workers.chunks(out, row, |outer, out| {
        let (x, by) = (&x[outer * size * inner..], &by[outer * row..]);
        for (i, (y, &index)) in out.iter_mut().zip(by).enumerate() {
            *y = x[index as usize * inner + i % inner];
        }
    });
    Ok(())
}

/// out `[outer, size, inner]` = zeros with each update `[outer, count, inner]` added at its index.
pub(crate) fn scatter_add(
    workers: Workers<'_>,
    updates: &[f32],
    by: &[i64],
    (size, count, inner): (usize, usize, usize),
    out: &mut [f32],
) -> Result<(), Error> {
    check(by, size)?;
    let row = count * inner;
    workers.chunks(out, size * inner, |outer, out| {
        out.fill(0.0);
        let (updates, by) = (&updates[outer * row..][..row], &by[outer * row..]);
        for (i, (&update, &index)) in updates.iter().zip(by).enumerate() {
            out[index as usize * inner + i % inner] += update;
        }
    });
    Ok(())
}

/// out `[outer, indices, inner]` = the parts of x `[outer, size, inner]` that indices name.
pub(crate) fn take<T: Copy + Sync + Send>(
    workers: Workers<'_>,
    x: &[T],
    by: &[i64],
    (size, inner): (usize, usize),
    out: &mut [T],
) -> Result<(), Error> {
    check(by, size)?;
    let rows = (CHUNK / inner).max(1);
    workers.chunks(out, rows * inner, |chunk, out| {
        for (i, out) in out.chunks_mut(inner).enumerate() {
            let row = chunk * rows + i;
            let from = row / by.len() * size + by[row % by.len()] as usize;
            out.copy_from_slice(&x[from * inner..][..inner]);
        }
    });
    Ok(())
}

/// out `[outer, size, inner]` = zeros with each part of dy `[outer, indices, inner]` added at its
/// index. A chunk of rows is one thread's, which looks for its indices in their order.
pub(crate) fn take_gradient(
    workers: Workers<'_>,
    dy: &[f32],
    by: &[i64],
    (size, inner): (usize, usize),
    out: &mut [f32],
) -> Result<(), Error> {
    check(by, size)?;
    let rows = (CHUNK / inner).max(1);
    workers.chunks(out, rows * inner, |chunk, out| {
        out.fill(0.0);
        let (first, last) = (chunk * rows, chunk * rows + out.len() / inner);
        for outer in first / size..last.div_ceil(size) {
            for (i, &index) in by.iter().enumerate() {
                let row = outer * size + index as usize;
                if row < first || row >= last {
                    continue;
                }
                let dy = &dy[(outer * by.len() + i) * inner..][..inner];
                out[(row - first) * inner..][..inner]
                    .iter_mut()
                    .zip(dy)
                    .for_each(|(y, &dy)| *y += dy);
            }
        }
    });
    Ok(())
}
