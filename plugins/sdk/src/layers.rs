//! Layers with parameters, initialised and named as PyTorch does.

use crate::error::Result;
use crate::graph::{Mode, Tensor};

/// The initializer of a bias next to a weight with this fan-in: ±1/√fan-in, PyTorch's default.
fn bias_initializer(fan_in: u64) -> String {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    format!("uniform:{}:{bound}", -bound)
}

/// x · weightᵀ + bias. Parameters `NAME.weight` `[out, in]` and `NAME.bias` `[out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    outputs: u32,
    bias: bool,
    initializer: &'static str,
    names: [&'static str; 2],
}

impl Linear {
    /// A layer with `outputs` features.
    pub fn new(outputs: u32) -> Self {
        Self {
            outputs,
            bias: true,
            initializer: "torch-uniform",
            names: ["weight", "bias"],
        }
    }

    /// Leaves the bias out.
    pub fn without_bias(self) -> Self {
        Self {
            bias: false,
            ..self
        }
    }

    /// Initialises the weight by `initializer` instead of `torch-uniform`, and the bias by zeros.
    pub fn initializer(self, initializer: &'static str) -> Self {
        Self {
            initializer,
            ..self
        }
    }

    /// Names the parameters otherwise than `weight` and `bias`.
    pub fn named(self, weight: &'static str, bias: &'static str) -> Self {
        Self {
            names: [weight, bias],
            ..self
        }
    }

    /// x `[…, in]` → `[…, out]`.
    pub fn apply(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let graph = x.graph();
        let inputs = x.size(x.shape()?.len().saturating_sub(1))?;
        let [weight, bias] = self.names.map(|own| format!("{name}.{own}"));
        let weight = graph.parameter(&weight, &[self.outputs, inputs], self.initializer)?;
        if !self.bias {
            return x.linear(&weight, None);
        }
        let initial = match self.initializer {
            "torch-uniform" => bias_initializer(u64::from(inputs)),
            _ => "zeros".to_owned(),
        };
        let bias = graph.parameter(&bias, &[self.outputs], &initial)?;
        x.linear(&weight, Some(&bias))
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
#[derive(Debug, Clone)]
pub struct BatchNorm2d {
    epsilon: f64,
    momentum: f64,
}

impl Default for BatchNorm2d {
    /// PyTorch's: 1e-5 and 0.1.
    fn default() -> Self {
        Self::new(1e-5, 0.1)
    }
}

impl BatchNorm2d {
    /// `epsilon` is added to the variance; running statistics move by `momentum` towards the
    /// batch's.
    pub fn new(epsilon: f64, momentum: f64) -> Self {
        Self { epsilon, momentum }
    }

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
        let epsilon = self.epsilon;
        let y = match graph.mode() {
            Mode::Train => builder.batch_norm_train(
                x.id(),
                scale,
                bias,
                mean,
                variance,
                self.momentum,
                epsilon,
            )?,
            Mode::Evaluate => {
                builder.batch_norm_eval(x.id(), scale, bias, mean, variance, epsilon)?
            }
        };
        Ok(graph.tensor(y))
    }
}

/// The last axis with mean 0 and variance 1, then scaled and shifted. Parameters `NAME.weight` and
/// `NAME.bias` `[features]`.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    epsilon: f64,
}

impl LayerNorm {
    /// `epsilon` is added to the variance.
    pub fn new(epsilon: f64) -> Self {
        Self { epsilon }
    }

    /// x `[…, features]`, and the same shape.
    pub fn apply(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let graph = x.graph();
        let shape = [x.size(x.shape()?.len().saturating_sub(1))?];
        let scale = graph.parameter(&format!("{name}.weight"), &shape, "ones")?;
        let bias = graph.parameter(&format!("{name}.bias"), &shape, "zeros")?;
        let builder = graph.builder();
        let y = builder.layer_norm(x.id(), scale.id(), bias.id(), self.epsilon)?;
        Ok(graph.tensor(y))
    }
}

/// Attention of tokens among themselves: queries, keys and values `[batch, tokens, 3·width]`, one
/// after the other, in so many heads → `[batch, tokens, width]`; where `causal` only of tokens
/// before.
pub fn multi_head_attention(qkv: &Tensor, heads: u32, causal: bool) -> Result<Tensor> {
    let (tokens, width) = (qkv.size(1)?, qkv.size(2)? / 3);
    let features = width.checked_div(heads).unwrap_or(0);
    let qkv = qkv
        .reshape(&[0, tokens, 3, heads, features])?
        .permute(&[0, 2, 3, 1, 4])?;
    let part = |i: u32| {
        qkv.slice(1, i, i + 1)?
            .reshape(&[0, heads, tokens, features])
    };
    let y = part(0)?.attention(&part(1)?, &part(2)?, None, causal)?;
    y.permute(&[0, 2, 1, 3])?.reshape(&[0, tokens, width])
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
