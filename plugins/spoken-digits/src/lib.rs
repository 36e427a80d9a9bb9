//! Spoken digits: a spectrogram made on the device, and a small residual network.

use hangar_sdk::models::small_resnet;
use hangar_sdk::{
    BatchNorm2d, Input, Model, Optimizer, Pipeline, Result, Schedule, Tensor, Training, pipeline,
};

/// Samples of a recording, 0.77 s at 8 kHz; 97 in 100 recordings are shorter.
const SAMPLES: u32 = 6144;
/// Samples of a spectrum, 16 ms: 65 frequencies up to 4 kHz, which show the formants and not the
/// pitch of a voice.
const SIZE: u32 = 128;
/// Samples between spectra.
const HOP: u32 = 64;
/// Power below which nothing is heard: a full-scale tone has 1024.
const FLOOR: f64 = 1e-3;

/// Samples `[batch, samples]` → logarithm of the power spectrogram → logits `[batch, classes]`.
fn resnet(x: &Tensor, classes: u32) -> Result<Tensor> {
    let power = x.stft_power(SIZE, HOP)?;
    let (frequencies, times) = (power.size(1)?, power.size(2)?);
    let decibels = power
        .affine(1.0, FLOOR)?
        .log()?
        .reshape(&[0, 1, frequencies, times])?;
    let spectrogram = BatchNorm2d::default().apply(&decibels, "norm")?;
    small_resnet(&spectrogram, &[16, 32, 64], classes)
}

pipeline!(Pipeline {
    name: "spoken-digits",
    version: env!("CARGO_PKG_VERSION"),
    description: "Recognises spoken digits in recordings at 8 kHz",
    models: vec![Model {
        name: "resnet",
        description: "Log spectrogram, small residual network",
        build: resnet
    }],
    input: Input::audio().peak(1.0).fit(SAMPLES).shift(1024).gain(6.0),
    training: Training {
        epochs: 60,
        batch_size: 32,
        learning_rate: 3e-3,
        optimizer: Optimizer::AdamW { weight_decay: 0.05 },
        schedule: Schedule::Cosine { warmup: 5 },
        label_smoothing: 0.1,
    },
});
