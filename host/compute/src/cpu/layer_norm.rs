//! Normalisation of rows.

use super::chunks::{CHUNK, Workers, vectorized};
use crate::ops::norm::{LayerNorm, PART_ROWS};

/// Mean (0 where it is not taken off) and 1/√(variance + ε) of a row.
#[inline(always)]
fn statistics(attributes: &LayerNorm, row: &[f32]) -> (f32, f32) {
    let count = row.len() as f64;
    let mean = if attributes.centre {
        sum(row, |x| x) / count
    } else {
        0.0
    };
    let variance = sum(row, |x| (x - mean) * (x - mean)) / count;
    let reciprocal = 1.0 / (variance + attributes.epsilon).sqrt();
    (mean as f32, reciprocal as f32)
}

/// Σ f(x), in eight sums side by side.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (eights, rest) = row.as_chunks::<8>();
    for eight in eights {
        for (lane, &x) in lanes.iter_mut().zip(eight) {
            *lane += f(f64::from(x));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(x));
    }
    lanes.iter().sum()
}

/// out = (x − mean)·r, scaled and shifted by rows `[size]` where there are such.
pub(crate) fn layer_norm(
    workers: Workers<'_>,
    attributes: &LayerNorm,
    x: &[f32],
    size: usize,
    scale: Option<&[f32]>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let rows = (CHUNK / size).max(1);
    workers.chunks(out, rows * size, |chunk, out| {
        let x = x[chunk * rows * size..].chunks_exact(size);
        let rows = out.chunks_exact_mut(size).zip(x);
        rows.for_each(|(out, x)| {
            vectorized(
                #[inline(always)]
                || normalize(attributes, x, (scale, bias), out),
            )
        });
    });
}

#[inline(always)]
fn normalize(
    attributes: &LayerNorm,
    x: &[f32],
    (scale, bias): (Option<&[f32]>, Option<&[f32]>),
    out: &mut [f32],
) {
    let (mean, reciprocal) = statistics(attributes, x);
    let pairs = out.iter_mut().zip(x);
    match (scale, bias) {
        (Some(scale), Some(bias)) => {
            for ((y, &x), (&s, &b)) in pairs.zip(scale.iter().zip(bias)) {
                *y = (x - mean) * reciprocal * s + b;
            }
        }
        (Some(scale), None) => pairs
            .zip(scale)
            .for_each(|((y, &x), &s)| *y = (x - mean) * reciprocal * s),
        _ => pairs.for_each(|(y, &x)| *y = (x - mean) * reciprocal),
    }
}

/// out = the gradient of x.
pub(crate) fn input_gradient(
    workers: Workers<'_>,
    attributes: &LayerNorm,
    (x, dy): (&[f32], &[f32]),
    size: usize,
    scale: Option<&[f32]>,
    out: &mut [f32],
) {
    let rows = (CHUNK / size).max(1);
    workers.chunks(out, rows * size, |chunk, out| {
        let start = chunk * rows * size;
        let pairs = x[start..]
            .chunks_exact(size)
            .zip(dy[start..].chunks_exact(size));
        let rows = out.chunks_exact_mut(size).zip(pairs);
        rows.for_each(|(out, pair)| {
            vectorized(
                #[inline(always)]
                || row_gradient(attributes, pair, scale, out),
            )
        });
    });
}

#[inline(always)]
fn row_gradient(
    attributes: &LayerNorm,
    (x, dy): (&[f32], &[f32]),
    scale: Option<&[f32]>,
    out: &mut [f32],
) {
    let (mean, reciprocal) = statistics(attributes, x);
    // out first holds g = scale·dy.
    match scale {
        Some(scale) => out
            .iter_mut()
            .zip(dy.iter().zip(scale))
            .for_each(|(g, (&dy, &s))| *g = dy * s),
        None => out.copy_from_slice(dy),
    }
    let (mut all, mut along) = ([0.0f64; 8], [0.0f64; 8]);
    let mut add = |i: usize, g: f32, x: f32| {
        all[i] += f64::from(g);
        along[i] += f64::from(g) * f64::from((x - mean) * reciprocal);
    };
    let ((g_eights, g_rest), (x_eights, x_rest)) = (out.as_chunks::<8>(), x.as_chunks::<8>());
    for (g, x) in g_eights.iter().zip(x_eights) {
        (0..8).for_each(|i| add(i, g[i], x[i]));
    }
    let rest = g_rest.iter().zip(x_rest).enumerate();
    rest.for_each(|(i, (&g, &x))| add(i, g, x));
    let mean_of = |lanes: [f64; 8]| (lanes.iter().sum::<f64>() / x.len() as f64) as f32;
    let all = if attributes.centre { mean_of(all) } else { 0.0 };
    let along = mean_of(along);
    for (g, &x) in out.iter_mut().zip(x) {
        *g = reciprocal * (*g - all - (x - mean) * reciprocal * along);
    }
}

/// out `[2, size]` = Σ dy·x̂ and Σ dy over rows.
pub(crate) fn parameter_gradient(
    workers: Workers<'_>,
    attributes: &LayerNorm,
    (x, dy): (&[f32], &[f32]),
    size: usize,
    out: &mut [f32],
    workspace: &mut [f32],
) {
    let parts = (x.len() / size).div_ceil(PART_ROWS);
    let parts = &mut workspace[..parts * 2 * size];
    workers.chunks(parts, 2 * size, |part, sums| {
        sums.fill(0.0);
        let (scales, biases) = sums.split_at_mut(size);
        let start = part * PART_ROWS * size;
        let end = (start + PART_ROWS * size).min(x.len());
        let pairs = x[start..end]
            .chunks_exact(size)
            .zip(dy[start..end].chunks_exact(size));
        vectorized(
            #[inline(always)]
            || {
                for (x, dy) in pairs {
                    let (mean, reciprocal) = statistics(attributes, x);
                    let sums = scales.iter_mut().zip(biases.iter_mut());
                    for ((s, b), (&x, &dy)) in sums.zip(x.iter().zip(dy)) {
                        *s += dy * ((x - mean) * reciprocal);
                        *b += dy;
                    }
                }
            },
        );
    });
    let parts = &*parts;
    workers.chunks(out, CHUNK, |chunk, out| {
        for (i, y) in out.iter_mut().enumerate() {
            let at = chunk * CHUNK + i;
            let column = parts[at..].iter().step_by(2 * size);
            *y = column.map(|&x| f64::from(x)).sum::<f64>() as f32;
        }
    });
}
