//! Softmax cross-entropy of logits `[batch, classes]` with labels `[batch]`, mean over the batch.

use crate::error::Error;

/// ln Σ exp(x), shifted by the largest element.
fn log_sum_exp(x: &[f32]) -> f32 {
    let largest = x.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    largest + x.iter().map(|x| (x - largest).exp()).sum::<f32>().ln()
}

/// Errors: `data.label` for a label that is not the number of a class.
fn class(label: i64, classes: usize) -> Result<usize, Error> {
    usize::try_from(label)
        .ok()
        .filter(|&label| label < classes)
        .ok_or_else(|| Error::label(label, classes))
}

/// −(1 − s)·log p(label) − s/classes·Σ log p, with smoothing s (Szegedy et al. 2016).
pub(crate) fn cross_entropy(logits: &[f32], labels: &[i64], smoothing: f64) -> Result<f32, Error> {
    let classes = logits.len() / labels.len();
    let mut total = 0.0;
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let label = class(label, classes)?;
        let log_sum = log_sum_exp(row);
        let hit = f64::from(log_sum - row[label]);
        let all: f64 = row.iter().map(|&x| f64::from(log_sum - x)).sum();
        total += (1.0 - smoothing) * hit + smoothing / classes as f64 * all;
    }
    Ok((total / labels.len() as f64) as f32)
}

/// dy/batch · (p − (1 − s)·onehot(label) − s/classes).
pub(crate) fn gradient(
    logits: &[f32],
    labels: &[i64],
    smoothing: f64,
    dy: f32,
    out: &mut [f32],
) -> Result<(), Error> {
    let classes = logits.len() / labels.len();
    let scale = dy / labels.len() as f32;
    let smooth = (smoothing / classes as f64) as f32;
    for ((row, out), &label) in logits
        .chunks_exact(classes)
        .zip(out.chunks_exact_mut(classes))
        .zip(labels)
    {
        let label = class(label, classes)?;
        let log_sum = log_sum_exp(row);
        for (k, (y, &x)) in out.iter_mut().zip(row).enumerate() {
            let hit = if k == label {
                (1.0 - smoothing) as f32
            } else {
                0.0
            };
            *y = scale * ((x - log_sum).exp() - hit - smooth);
        }
    }
    Ok(())
}
