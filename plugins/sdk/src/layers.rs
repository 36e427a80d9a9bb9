//! Layers with parameters, initialised and named as PyTorch does.

use crate::error::Result;
use crate::graph::{Mode, Tensor};

/// Running statistics move by this towards the batch's, PyTorch's default.
const BATCH_NORM_MOMENTUM: f64 = 0.1;
/// Added to the variance, PyTorch's default.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// The initializer of a bias next to a weight with this fan-in: ±1/√fan-in, PyTorch's default.
fn bias_initializer(fan_in: u64) -> String {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    format!("uniform:{}:{bound}", -bound)
}

/// x · weightᵀ + bias. Parameters `NAME.weight` `[out, in]` and `NAME.bias` `[out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    outputs: u32,
}

impl Linear {
    /// A layer with `outputs` features.
    pub fn new(outputs: u32) -> Self {
        Self { outputs }
    }

    /// x `[…, in]` → `[…, out]`.
    pub fn apply(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let graph = x.graph();
        let inputs = x.size(x.shape()?.len().saturating_sub(1))?;
        let weight = graph.parameter(
            &format!("{name}.weight"),
            &[self.outputs, inputs],
            "torch-uniform",
        )?;
        let bias = bias_initializer(u64::from(inputs));
        let bias = graph.parameter(&format!("{name}.bias"), &[self.outputs], &bias)?;
        Ok(graph.tensor(
            graph
                .builder()
                .linear(x.id(), weight.id(), Some(bias.id()))?,
        ))
    }
}

/// Two-dimensional convolution with a square kernel. Parameters `NAME.weight`
/// `[out, in/groups, kernel, kernel]` and `NAME.bias` `[out]`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    outputs: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
    groups: u32,
    bias: bool,
    initializer: &'static str,
}

impl Conv2d {
    /// `outputs` channels, stride 1, no padding, one group, with bias.
    pub fn new(outputs: u32, kernel: u32) -> Self {
        let initializer = "torch-uniform";
        Self {
            outputs,
            kernel,
            stride: 1,
            padding: 0,
            groups: 1,
            bias: true,
            initializer,
        }
    }

    /// Moves the window by `stride`.
    pub fn stride(self, stride: u32) -> Self {
        Self { stride, ..self }
    }

    /// Adds `padding` zeros on each side.
    pub fn padding(self, padding: u32) -> Self {
        Self { padding, ..self }
    }

    /// Splits the channels into `groups`, each convolved apart.
    pub fn groups(self, groups: u32) -> Self {
        Self { groups, ..self }
    }

    /// Leaves the bias out, as before a batch norm.
    pub fn without_bias(self) -> Self {
        Self {
            bias: false,
            ..self
        }
    }

    /// Initialises the weight by `initializer` instead of `torch-uniform`.
    pub fn initializer(self, initializer: &'static str) -> Self {
        Self {
            initializer,
            ..self
        }
    }

    /// x `[batch, in, height, width]` → `[batch, out, height', width']`.
    pub fn apply(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let graph = x.graph();
        let inputs = x.size(1)?.checked_div(self.groups).unwrap_or(0);
        let shape = [self.outputs, inputs, self.kernel, self.kernel];
        let weight = graph.parameter(&format!("{name}.weight"), &shape, self.initializer)?;
        let fan_in = u64::from(inputs) * u64::from(self.kernel).pow(2);
        let bias = self
            .bias
            .then(|| {
                graph.parameter(
                    &format!("{name}.bias"),
                    &[self.outputs],
                    &bias_initializer(fan_in),
                )
            })
            .transpose()?;
        Ok(graph.tensor(graph.builder().conv2d(
            x.id(),
            weight.id(),
            bias.map(|bias| bias.id()),
            (self.stride, self.stride),
            (self.padding, self.padding),
            (1, 1),
            self.groups,
        )?))
    }
}

/// Batch normalisation over `[batch, channels, …]`. Parameters `NAME.weight` and `NAME.bias`,
/// buffers `NAME.running_mean` and `NAME.running_var`, all `[channels]`.
#[derive(Debug, Clone, Default)]
pub struct BatchNorm2d;

impl BatchNorm2d {
    /// Normalises by the batch's statistics or the running ones, as the graph's mode says.
    pub fn apply(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let graph = x.graph();
        let shape = [x.size(1)?];
        let scale = graph
            .parameter(&format!("{name}.weight"), &shape, "ones")?
            .id();
        let bias = graph
            .parameter(&format!("{name}.bias"), &shape, "zeros")?
            .id();
        let mean = graph
            .buffer(&format!("{name}.running_mean"), &shape, "zeros")?
            .id();
        let variance = graph
            .buffer(&format!("{name}.running_var"), &shape, "ones")?
            .id();
        let builder = graph.builder();
        let epsilon = BATCH_NORM_EPSILON;
        let y = match graph.mode() {
            Mode::Train => builder.batch_norm_train(
                x.id(),
                scale,
                bias,
                mean,
                variance,
                BATCH_NORM_MOMENTUM,
                epsilon,
            )?,
            Mode::Evaluate => {
                builder.batch_norm_eval(x.id(), scale, bias, mean, variance, epsilon)?
            }
        };
        Ok(graph.tensor(y))
    }
}

#[cfg(test)]
mod tests {
    use super::bias_initializer;

    #[test]
    fn a_bias_is_drawn_within_one_over_the_root_of_the_fan_in() {
        assert_eq!(bias_initializer(16), "uniform:-0.25:0.25");
    }

    #[test]
    fn a_fan_in_of_zero_gives_a_finite_bound() {
        assert_eq!(bias_initializer(0), "uniform:-1:1");
    }
}
