//! Handwritten digits: a small convolutional network on grey images of 28 × 28.

use hangar_sdk::{Conv2d, Input, Linear, Model, Pipeline, Result, Tensor, Training, pipeline};

/// The mean and deviation of MNIST's training images.
const MEAN: f64 = 0.1307;
const DEVIATION: f64 = 0.3081;

/// Two convolutions and two linear layers: x `[batch, 1, 28, 28]` → logits `[batch, classes]`.
fn cnn(x: &Tensor, classes: u32) -> Result<Tensor> {
    let x = Conv2d::new(16, 3)
        .apply(x, "conv1")?
        .relu()?
        .max_pool2d(2)?;
    let x = Conv2d::new(32, 3)
        .apply(&x, "conv2")?
        .relu()?
        .max_pool2d(2)?;
    let x = Linear::new(64).apply(&x.flatten()?, "fc1")?.relu()?;
    Linear::new(classes).apply(&x, "fc2")
}

pipeline!(Pipeline {
    name: "digits",
    version: env!("CARGO_PKG_VERSION"),
    description: "Recognises handwritten digits in grey images",
    models: vec![Model {
        name: "cnn",
        description: "Two convolutions, two linear layers",
        build: cnn
    }],
    input: Input::image().normalize(&[MEAN], &[DEVIATION]),
    training: Training::default(),
});
