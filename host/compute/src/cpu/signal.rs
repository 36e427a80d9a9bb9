//! Short-time Fourier transform, by the `realfft` crate.

use std::collections::HashMap;
use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

use super::chunks::Workers;
use crate::ops::signal::{Stft, Window};

/// What a transform needs that depends on its attributes alone.
pub(crate) struct Transform {
    window: Vec<f32>,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

/// The transforms used by a session.
pub(crate) type Transforms = HashMap<Stft, Transform>;

impl Transform {
    pub(crate) fn new(stft: &Stft) -> Self {
        let size = stft.size as usize;
        let cosine = |offset: f64, factor: f64| -> Vec<f32> {
            let angle = |n| std::f64::consts::TAU * n as f64 / size as f64;
            (0..size)
                .map(|n| (offset - factor * angle(n).cos()) as f32)
                .collect()
        };
        let mut planner = RealFftPlanner::new();
        Self {
            window: match stft.window {
                Window::Hann => cosine(0.5, 0.5),
                Window::Hamming => cosine(0.54, 0.46),
                Window::Rectangular => vec![1.0; size],
            },
            forward: planner.plan_fft_forward(size),
            inverse: planner.plan_fft_inverse(size),
        }
    }

    /// The spectrum of the windowed frame that starts at `x`.
    fn spectrum(
        &self,
        x: &[f32],
        frame: &mut [f32],
        spectrum: &mut [Complex32],
        scratch: &mut [Complex32],
    ) {
        let windowed = x.iter().zip(&self.window);
        frame
            .iter_mut()
            .zip(windowed)
            .for_each(|(y, (&x, &w))| *y = x * w);
        // The buffers are of the lengths asked for, the only thing that can fail.
        let _ = self.forward.process_with_scratch(frame, spectrum, scratch);
    }

    /// `[batch, bins, frames]` of |spectrum|².
    pub(crate) fn power(
        &self,
        workers: Workers<'_>,
        hop: usize,
        x: &[f32],
        samples: usize,
        out: &mut [f32],
    ) {
        let bins = self.window.len() / 2 + 1;
        let frames = 1 + (samples - self.window.len()) / hop;
        workers.chunks(out, bins * frames, |n, out| {
            let x = &x[n * samples..][..samples];
            let mut frame = self.forward.make_input_vec();
            let mut spectrum = self.forward.make_output_vec();
            let mut scratch = self.forward.make_scratch_vec();
            for t in 0..frames {
                if workers.cancelled() {
                    return;
                }
                self.spectrum(&x[t * hop..], &mut frame, &mut spectrum, &mut scratch);
                let column = out[t..].iter_mut().step_by(frames);
                column
                    .zip(&spectrum)
                    .for_each(|(y, value)| *y = value.norm_sqr());
            }
        });
    }

    /// dx = Σ over frames of window · Re Σₖ 2·dy·X·e^{2πikn/size}: with G = 2·dy·X, the sum over
    /// bins 0 to size/2 is an inverse real transform of G with its inner bins halved.
    pub(crate) fn gradient(
        &self,
        workers: Workers<'_>,
        hop: usize,
        x: &[f32],
        dy: &[f32],
        samples: usize,
        dx: &mut [f32],
    ) {
        let size = self.window.len();
        let bins = size / 2 + 1;
        let frames = 1 + (samples - size) / hop;
        workers.chunks(dx, samples, |n, dx| {
            let (x, dy) = (&x[n * samples..][..samples], &dy[n * bins * frames..]);
            let mut frame = self.forward.make_input_vec();
            let mut spectrum = self.forward.make_output_vec();
            let mut scratch = self.forward.make_scratch_vec();
            let mut inverse_scratch = self.inverse.make_scratch_vec();
            dx.fill(0.0);
            for t in 0..frames {
                if workers.cancelled() {
                    return;
                }
                self.spectrum(&x[t * hop..], &mut frame, &mut spectrum, &mut scratch);
                for (k, value) in spectrum.iter_mut().enumerate() {
                    let edge = k == 0 || k + 1 == bins;
                    *value *= dy[k * frames + t] * if edge { 2.0 } else { 1.0 };
                    if edge {
                        value.im = 0.0;
                    }
                }
                let _ = self.inverse.process_with_scratch(
                    &mut spectrum,
                    &mut frame,
                    &mut inverse_scratch,
                );
                let windowed = frame.iter().zip(&self.window);
                dx[t * hop..]
                    .iter_mut()
                    .zip(windowed)
                    .for_each(|(y, (&g, &w))| *y += g * w);
            }
        });
    }
}
