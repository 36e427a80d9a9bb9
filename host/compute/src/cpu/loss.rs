//! Softmax cross-entropy of logits `[batch, classes]` with labels `[batch]`, mean over the batch.

use super::chunks::{CHUNK, Workers, vectorized};
use super::math::{exp, lanes};
use crate::error::Error;

/// Exponentials that are added in float32 before their sum is added in float64.
const BLOCK: usize = 2048;

/// ln Σ exp(x), shifted by the largest element.
fn log_sum_exp(x: &[f32]) -> f32 {
    let (mut largest, mut sum) = (f32::NEG_INFINITY, 0.0f64);
    vectorized(
        #[inline(always)]
        || {
            let most = lanes(x, f32::NEG_INFINITY, |m, x| if x > m { x } else { m });
            largest = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
            for block in x.chunks(BLOCK) {
                let sums = lanes(block, 0.0, |sum, x| sum + exp(x - largest));
                sum += f64::from(sums.into_iter().sum::<f32>());
            }
        },
    );
    (f64::from(largest) + sum.ln()) as f32
}

/// Errors: `data.label` for a label that is not the number of a class.
fn check(labels: &[i64], classes: usize) -> Result<(), Error> {
    let known = |label: &&i64| usize::try_from(**label).is_ok_and(|label| label < classes);
    match labels.iter().find(|label| !known(label)) {
        None => Ok(()),
        Some(&label) => Err(Error::label(label, classes)),
    }
}

/// −(1 − s)·log p(label) − s/classes·Σ log p, with smoothing s (Szegedy et al. 2016).
pub(crate) fn cross_entropy(
    workers: Workers<'_>,
    logits: &[f32],
    labels: &[i64],
    smoothing: f64,
) -> Result<f32, Error> {
    let classes = logits.len() / labels.len();
    check(labels, classes)?;
    let rows = (CHUNK / classes).max(1);
    let mut losses = vec![0.0; labels.len()];
    workers.chunks(&mut losses, rows, |chunk, losses| {
        let first = chunk * rows;
        let rows = logits[first * classes..].chunks_exact(classes);
        for ((loss, row), &label) in losses.iter_mut().zip(rows).zip(&labels[first..]) {
            let log_sum = log_sum_exp(row);
            *loss = (1.0 - smoothing) * f64::from(log_sum - row[label as usize]);
            if smoothing > 0.0 {
                let all: f64 = row.iter().map(|&x| f64::from(log_sum - x)).sum();
                *loss += smoothing / classes as f64 * all;
            }
        }
    });
    Ok((losses.iter().sum::<f64>() / labels.len() as f64) as f32)
}

/// dy/batch · (p − (1 − s)·onehot(label) − s/classes).
pub(crate) fn gradient(
    workers: Workers<'_>,
    logits: &[f32],
    labels: &[i64],
    smoothing: f64,
    dy: f32,
    out: &mut [f32],
) -> Result<(), Error> {
    let classes = logits.len() / labels.len();
    check(labels, classes)?;
    let scale = dy / labels.len() as f32;
    let (hit, smooth) = (
        (1.0 - smoothing) as f32,
        (smoothing / classes as f64) as f32,
    );
    let rows = (CHUNK / classes).max(1);
    workers.chunks(out, rows * classes, |chunk, out| {
        let first = chunk * rows;
        let rows = logits[first * classes..].chunks_exact(classes);
        let rows = out.chunks_exact_mut(classes).zip(rows);
        for ((out, row), &label) in rows.zip(&labels[first..]) {
            let log_sum = log_sum_exp(row);
            vectorized(
                #[inline(always)]
                || {
                    for (y, &x) in out.iter_mut().zip(row) {
                        *y = scale * (exp(x - log_sum) - smooth);
                    }
                },
            );
            let label = label as usize;
            out[label] = scale * (exp(row[label] - log_sum) - hit - smooth);
        }
    });
    Ok(())
}
