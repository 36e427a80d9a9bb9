//! Weighted sums of neighbours along an axis.

use super::chunks::Workers;

/// out `[outer, results, inner]` of x `[outer, size, inner]`: result i is the sum of x from
/// first\[i\] on, weighted.
pub(crate) fn resample(
    workers: Workers<'_>,
    x: &[f32],
    (size, inner): (usize, usize),
    (first, weights): (&[i64], &[f32]),
    out: &mut [f32],
) {
    let (results, taps) = (first.len(), weights.len() / first.len());
    workers.chunks(out, results * inner, |outer, out| {
        let x = &x[outer * size * inner..][..size * inner];
        let rows = out.chunks_exact_mut(inner).zip(first);
        for ((out, &first), weights) in rows.zip(weights.chunks_exact(taps)) {
            out.fill(0.0);
            let x = x[first as usize * inner..].chunks_exact(inner);
            for (x, &weight) in x.zip(weights) {
                out.iter_mut().zip(x).for_each(|(y, &x)| *y += weight * x);
            }
        }
    });
}
