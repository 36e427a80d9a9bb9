//! MobileNetV3 (Howard et al. 2019).

use crate::error::Result;
use crate::graph::Tensor;
use crate::layers::{BatchNorm2d, Conv2d, Linear};

/// What follows a convolution and its norm.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Activation {
    None,
    Relu,
    HardSwish,
}

use Activation::{HardSwish as HS, Relu as RE};

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Relu => x.relu(),
            Self::HardSwish => x.hard_swish(),
        }
    }
}

/// A row of the paper's tables: kernel, expanded channels, channels, squeeze and excite,
/// activation, stride.
type Row = (u32, u32, u32, bool, Activation, u32);

const LARGE: [Row; 15] = [
    (3, 16, 16, false, RE, 1),
    (3, 64, 24, false, RE, 2),
    (3, 72, 24, false, RE, 1),
    (5, 72, 40, true, RE, 2),
    (5, 120, 40, true, RE, 1),
    (5, 120, 40, true, RE, 1),
    (3, 240, 80, false, HS, 2),
    (3, 200, 80, false, HS, 1),
    (3, 184, 80, false, HS, 1),
    (3, 184, 80, false, HS, 1),
    (3, 480, 112, true, HS, 1),
    (3, 672, 112, true, HS, 1),
    (5, 672, 160, true, HS, 2),
    (5, 960, 160, true, HS, 1),
    (5, 960, 160, true, HS, 1),
];
const SMALL: [Row; 11] = [
    (3, 16, 16, true, RE, 2),
    (3, 72, 24, false, RE, 2),
    (3, 88, 24, false, RE, 1),
    (5, 96, 40, true, HS, 2),
    (5, 240, 40, true, HS, 1),
    (5, 240, 40, true, HS, 1),
    (5, 120, 48, true, HS, 1),
    (5, 144, 48, true, HS, 1),
    (5, 288, 96, true, HS, 2),
    (5, 576, 96, true, HS, 1),
    (5, 576, 96, true, HS, 1),
];

/// A convolution `NAME.0`, its norm `NAME.1` and an activation; groups as many as channels where
/// `depthwise`.
fn unit(
    x: &Tensor,
    (outputs, kernel, stride): (u32, u32, u32),
    depthwise: bool,
    activation: Activation,
    name: &str,
) -> Result<Tensor> {
    let conv = Conv2d::new(outputs, kernel)
        .stride(stride)
        .padding(kernel / 2)
        .groups(if depthwise { outputs } else { 1 })
        .without_bias()
        .initializer("kaiming-normal");
    let y = conv.apply(x, &format!("{name}.0"))?;
    let y = BatchNorm2d::new(0.001, 0.01).apply(&y, &format!("{name}.1"))?;
    activation.apply(&y)
}

/// The multiple of 8 that is nearest, not below nine tenths (torchvision's `_make_divisible`).
fn divisible(channels: u32) -> u32 {
    let near = ((channels + 4) / 8 * 8).max(8);
    if 10 * near < 9 * channels {
        near + 8
    } else {
        near
    }
}

/// Channels weighted by what the whole image has of them (Hu et al. 2018).
fn squeeze_and_excite(x: &Tensor, name: &str) -> Result<Tensor> {
    let channels = x.size(1)?;
    let point = |outputs: u32| Conv2d::new(outputs, 1).initializer("kaiming-normal");
    let y = x.mean(&[2, 3], true)?;
    let y = point(divisible(channels / 4))
        .apply(&y, &format!("{name}.fc1"))?
        .relu()?;
    let y = point(channels)
        .apply(&y, &format!("{name}.fc2"))?
        .hard_sigmoid()?;
    x * &y
}

fn inverted_residual(x: &Tensor, row: Row, name: &str) -> Result<Tensor> {
    let (kernel, expanded, outputs, squeezes, activation, stride) = row;
    let mut part = 0;
    let mut next = || {
        part += 1;
        format!("{name}.block.{}", part - 1)
    };
    let mut y = x.clone();
    if x.size(1)? != expanded {
        y = unit(&y, (expanded, 1, 1), false, activation, &next())?;
    }
    y = unit(&y, (expanded, kernel, stride), true, activation, &next())?;
    if squeezes {
        y = squeeze_and_excite(&y, &next())?;
    }
    y = unit(&y, (outputs, 1, 1), false, Activation::None, &next())?;
    if stride == 1 && x.size(1)? == outputs {
        return &y + x;
    }
    Ok(y)
}

fn mobilenet(x: &Tensor, rows: &[Row], last: u32, classes: u32) -> Result<Tensor> {
    let mut y = unit(x, (16, 3, 2), false, HS, "features.0")?;
    for (number, &row) in (1..).zip(rows) {
        y = inverted_residual(&y, row, &format!("features.{number}"))?;
    }
    let wide = 6 * y.size(1)?;
    let name = format!("features.{}", rows.len() + 1);
    let y = unit(&y, (wide, 1, 1), false, HS, &name)?;
    let head = |outputs: u32| Linear::new(outputs).initializer("normal:0:0.01");
    let y = head(last)
        .apply(&y.mean(&[2, 3], false)?, "classifier.0")?
        .hard_swish()?;
    head(classes).apply(&y.dropout(0.2, 0)?, "classifier.3")
}

/// MobileNetV3-Large.
pub fn mobilenet_v3_large(x: &Tensor, classes: u32) -> Result<Tensor> {
    mobilenet(x, &LARGE, 1280, classes)
}

/// MobileNetV3-Small.
pub fn mobilenet_v3_small(x: &Tensor, classes: u32) -> Result<Tensor> {
    mobilenet(x, &SMALL, 1024, classes)
}

#[cfg(test)]
mod tests {
    use super::divisible;

    #[test]
    fn channels_are_rounded_to_multiples_of_eight_but_not_far_down() {
        let rounded = [16 / 4, 72 / 4, 96 / 4, 120 / 4, 672 / 4, 11, 12, 19].map(divisible);
        assert_eq!(rounded, [8, 24, 24, 32, 168, 16, 16, 24]);
    }
}
