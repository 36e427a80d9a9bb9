//! Batch normalisation kernels. A statistics tensor is `[3, channels]`: mean, 1/√(variance + ε),
//! biased variance.

use pulp::{Arch, Simd, WithSimd};

use super::chunks::Workers;

/// x `[batch, channels, …]`: the number of channels, and elements of a plane.
fn planes(shape: &[usize]) -> (usize, usize) {
    (shape[1], shape[2..].iter().product())
}

/// Sums of a channel that are added side by side, so that vectors can hold them.
const SUMS: usize = 16;

/// Sums of both of `f` over pairs of elements, in float64.
struct Sums<'a, F> {
    x: &'a [f32],
    y: &'a [f32],
    f: F,
    sums: &'a mut [[f64; SUMS]; 2],
}

impl<F: Fn(f64, f64) -> (f64, f64)> WithSimd for Sums<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [mut first, mut second] = *self.sums;
        let ((x, x_rest), (y, y_rest)) = (self.x.as_chunks::<SUMS>(), self.y.as_chunks::<SUMS>());
        for (x, y) in x.iter().zip(y) {
            let sums = first.iter_mut().zip(&mut second);
            for ((first, second), (&x, &y)) in sums.zip(x.iter().zip(y)) {
                let (a, b) = (self.f)(f64::from(x), f64::from(y));
                *first += a;
                *second += b;
            }
        }
        for (i, (&x, &y)) in x_rest.iter().zip(y_rest).enumerate() {
            let (a, b) = (self.f)(f64::from(x), f64::from(y));
            first[i % SUMS] += a;
            second[i % SUMS] += b;
        }
        *self.sums = [first, second];
    }
}

/// Sums both of `f` over the elements of a channel of x and y, in float64.
fn channel_sums(
    shape: &[usize],
    channel: usize,
    (x, y): (&[f32], &[f32]),
    f: impl Fn(f64, f64) -> (f64, f64),
) -> (f64, f64) {
    let (channels, size) = planes(shape);
    let mut sums = [[0.0; SUMS]; 2];
    for n in 0..shape[0] {
        let start = (n * channels + channel) * size;
        Arch::new().dispatch(Sums {
            x: &x[start..start + size],
            y: &y[start..start + size],
            f: &f,
            sums: &mut sums,
        });
    }
    let [first, second] = sums;
    (first.iter().sum(), second.iter().sum())
}

/// Calls `work` with a channel and its `N` results; `out` is `[N, channels]`.
fn each_channel<const N: usize>(
    workers: Workers<'_>,
    out: &mut [f32],
    work: impl Fn(usize) -> [f64; N] + Sync + Send,
) {
    let channels = out.len() / N;
    let mut results = vec![[0.0; N]; channels];
    workers.chunks(&mut results, 1, |channel, result| result[0] = work(channel));
    for (row, out) in out.chunks_exact_mut(channels).enumerate() {
        out.iter_mut()
            .zip(&results)
            .for_each(|(y, result)| *y = result[row] as f32);
    }
}

pub(crate) fn batch_statistics(
    workers: Workers<'_>,
    epsilon: f64,
    x: &[f32],
    shape: &[usize],
    out: &mut [f32],
) {
    let count = (x.len() / shape[1]) as f64;
    each_channel(workers, out, |channel| {
        // Around an element of the channel, so that little cancels.
        let (_, size) = planes(shape);
        let middle = x.get(channel * size).map_or(0.0, |&x| f64::from(x));
        let (sum, squares) = channel_sums(shape, channel, (x, x), |x, _| {
            let distance = x - middle;
            (distance, distance * distance)
        });
        let mean = middle + sum / count;
        let variance = (squares - sum * sum / count) / count;
        // Not `max`, which would hide NaN.
        let variance = if variance < 0.0 { 0.0 } else { variance };
        [mean, 1.0 / (variance + epsilon).sqrt(), variance]
    });
}

pub(crate) fn fixed_statistics(
    workers: Workers<'_>,
    epsilon: f64,
    mean: &[f32],
    variance: &[f32],
    out: &mut [f32],
) {
    each_channel(workers.alone(), out, |channel| {
        let variance = f64::from(variance[channel]);
        [
            f64::from(mean[channel]),
            1.0 / (variance + epsilon).sqrt(),
            variance,
        ]
    });
}

/// Calls `work` with the number of every plane, its channel and its results.
fn each_plane(
    workers: Workers<'_>,
    shape: &[usize],
    out: &mut [f32],
    work: impl Fn(usize, std::ops::Range<usize>, &mut [f32]) + Sync + Send,
) {
    let (channels, size) = planes(shape);
    // Vectors `[batch, channels]` have planes of one element: a chunk is a sample, not a plane.
    workers.chunks(out, channels * size, |n, out| {
        for (channel, out) in out.chunks_exact_mut(size).enumerate() {
            let start = (n * channels + channel) * size;
            work(channel, start..start + size, out);
        }
    });
}

/// What x is multiplied by and what is added: r·scale and bias − mean·r·scale.
fn coefficient(scale: &[f32], bias: &[f32], statistics: &[f32], channel: usize) -> (f32, f32) {
    let factor = statistics[scale.len() + channel] * scale[channel];
    (factor, bias[channel] - statistics[channel] * factor)
}

/// `[2, channels]`: those of every channel.
pub(crate) fn coefficients(scale: &[f32], bias: &[f32], statistics: &[f32], out: &mut [f32]) {
    let (factors, offsets) = out.split_at_mut(scale.len());
    for (channel, (factor, offset)) in factors.iter_mut().zip(offsets).enumerate() {
        (*factor, *offset) = coefficient(scale, bias, statistics, channel);
    }
}

/// (x − mean)·r·scale + bias.
pub(crate) fn batch_norm(
    workers: Workers<'_>,
    x: &[f32],
    shape: &[usize],
    scale: &[f32],
    bias: &[f32],
    statistics: &[f32],
    out: &mut [f32],
) {
    each_plane(workers, shape, out, |channel, range, out| {
        let (factor, offset) = coefficient(scale, bias, statistics, channel);
        out.iter_mut()
            .zip(&x[range])
            .for_each(|(y, &x)| *y = factor * x + offset);
    });
}

/// `[2, channels]`: Σ dy·x̂ and Σ dy.
pub(crate) fn parameter_gradient(
    workers: Workers<'_>,
    x: &[f32],
    shape: &[usize],
    dy: &[f32],
    statistics: &[f32],
    out: &mut [f32],
) {
    let channels = shape[1];
    each_channel(workers, out, |channel| {
        let (mean, r) = (
            f64::from(statistics[channel]),
            f64::from(statistics[channels + channel]),
        );
        let terms = |x: f64, dy: f64| ((x - mean) * dy, dy);
        let (hits, sum) = channel_sums(shape, channel, (x, dy), terms);
        [hits * r, sum]
    });
}

/// scale·r·(dy − (dbias + x̂·dscale)/count); without dy, `out` holds it.
#[allow(
    clippy::too_many_arguments,
    reason = "the operator's operands, one each"
)]
pub(crate) fn train_gradient(
    workers: Workers<'_>,
    shape: &[usize],
    dy: Option<&[f32]>,
    scale: &[f32],
    statistics: &[f32],
    x: &[f32],
    parameters: &[f32],
    out: &mut [f32],
) {
    let channels = shape[1];
    let count = (x.len() / channels) as f32;
    each_plane(workers, shape, out, |channel, range, out| {
        let (mean, r) = (statistics[channel], statistics[channels + channel]);
        let factor = scale[channel] * r;
        let slope = factor * r * parameters[channel] / count;
        let offset = factor * parameters[channels + channel] / count - slope * mean;
        if let Some(dy) = dy {
            out.copy_from_slice(&dy[range.clone()]);
        }
        out.iter_mut()
            .zip(&x[range])
            .for_each(|(y, &x)| *y = factor * *y - slope * x - offset);
    });
}

/// scale·r·dy.
pub(crate) fn eval_gradient(
    workers: Workers<'_>,
    shape: &[usize],
    dy: &[f32],
    scale: &[f32],
    statistics: &[f32],
    out: &mut [f32],
) {
    let channels = shape[1];
    each_plane(workers, shape, out, |channel, range, out| {
        let factor = scale[channel] * statistics[channels + channel];
        out.iter_mut()
            .zip(&dy[range])
            .for_each(|(y, &dy)| *y = factor * dy);
    });
}

/// running ← (1 − momentum)·running + momentum·batch, with the unbiased variance.
pub(crate) fn update_running(
    momentum: f64,
    mean: &mut [f32],
    variance: &mut [f32],
    statistics: &[f32],
    count: u64,
) {
    let channels = mean.len();
    let unbiased = count as f64 / (count.max(2) - 1) as f64;
    let step = |running: &mut [f32], batch: &[f32], factor: f64| {
        for (running, &batch) in running.iter_mut().zip(batch) {
            let moved =
                (1.0 - momentum) * f64::from(*running) + momentum * factor * f64::from(batch);
            *running = moved as f32;
        }
    };
    step(mean, &statistics[..channels], 1.0);
    step(variance, &statistics[2 * channels..], unbiased);
}
