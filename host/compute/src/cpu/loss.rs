//! Softmax cross-entropy of logits `[batch, classes]` with labels `[batch]`, mean over the batch.

use super::chunks::{CHUNK, Workers};
use crate::error::Error;

/// ln Σ exp(x), shifted by the largest element.
fn log_sum_exp(x: &[f32]) -> f32 {
    let largest = x.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    largest + x.iter().map(|x| (x - largest).exp()).sum::<f32>().ln()
}

/// Refuses labels that are not the numbers of classes. Errors: `data.label`.
fn check(labels: &[i64], classes: usize) -> Result<(), Error> {
    let wrong = |label: &i64| usize::try_from(*label).map_or(true, |label| label >= classes);
    match labels.iter().copied().find(wrong) {
        None => Ok(()),
        Some(label) => Err(Error::label(label, classes)),
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
    let mut losses = vec![0.0; labels.len()];
    let rows = (CHUNK / classes).max(1);
    workers.chunks(&mut losses, rows, |chunk, losses| {
        let first = chunk * rows;
        let rows = logits[first * classes..].chunks_exact(classes);
        for ((loss, row), &label) in losses.iter_mut().zip(rows).zip(&labels[first..]) {
            let log_sum = log_sum_exp(row);
            let hit = f64::from(log_sum - row[label as usize]);
            let all: f64 = row.iter().map(|&x| f64::from(log_sum - x)).sum();
            *loss = (1.0 - smoothing) * hit + smoothing / classes as f64 * all;
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
    let smooth = (smoothing / classes as f64) as f32;
    let hit = (1.0 - smoothing) as f32;
    let rows = (CHUNK / classes).max(1);
    workers.chunks(out, rows * classes, |chunk, out| {
        let first = chunk * rows;
        let rows = logits[first * classes..].chunks_exact(classes);
        let outs = out.chunks_exact_mut(classes);
        for ((row, out), &label) in rows.zip(outs).zip(&labels[first..]) {
            let log_sum = log_sum_exp(row);
            for (k, (y, &x)) in out.iter_mut().zip(row).enumerate() {
                let hit = if k as i64 == label { hit } else { 0.0 };
                *y = scale * ((x - log_sum).exp() - hit - smooth);
            }
        }
    });
    Ok(())
}
