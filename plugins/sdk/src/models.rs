//! Models as functions that build a graph.

use crate::error::Result;
use crate::graph::Tensor;
use crate::layers::{BatchNorm2d, Conv2d, Linear};

/// The initializer of a residual network's convolutions (He et al. 2015), as in torchvision.
const CONVOLUTION: &str = "kaiming-normal";

/// The basic residual block (He et al. 2016): x `[batch, in, height, width]` →
/// `[batch, outputs, height/stride, width/stride]`. Named as in torchvision: `NAME.conv1`,
/// `NAME.bn1`, `NAME.conv2`, `NAME.bn2`, and `NAME.downsample.0`, `NAME.downsample.1` where the
/// shape changes.
pub fn basic_block(x: &Tensor, outputs: u32, stride: u32, name: &str) -> Result<Tensor> {
    let wide = Conv2d::new(outputs, 3)
        .padding(1)
        .without_bias()
        .initializer(CONVOLUTION);
    let y = wide
        .clone()
        .stride(stride)
        .apply(x, &format!("{name}.conv1"))?;
    let y = BatchNorm2d.apply(&y, &format!("{name}.bn1"))?.relu()?;
    let y = wide.apply(&y, &format!("{name}.conv2"))?;
    let y = BatchNorm2d.apply(&y, &format!("{name}.bn2"))?;
    if stride == 1 && x.size(1)? == outputs {
        return (&y + x)?.relu();
    }
    let point = Conv2d::new(outputs, 1)
        .stride(stride)
        .without_bias()
        .initializer(CONVOLUTION);
    let shortcut = point.apply(x, &format!("{name}.downsample.0"))?;
    let shortcut = BatchNorm2d.apply(&shortcut, &format!("{name}.downsample.1"))?;
    (&y + &shortcut)?.relu()
}

/// A small residual network for single spectrograms and images: x `[batch, channels, height,
/// width]` → logits `[batch, classes]`. A 3×3 convolution of stride 2, then one [`basic_block`] for
/// each width (the first of stride 1, the others of stride 2), the mean over height and width, and
/// a linear layer. Parameters are named as in torchvision's ResNet.
pub fn small_resnet(x: &Tensor, widths: &[u32], classes: u32) -> Result<Tensor> {
    let first = widths.first().copied().unwrap_or(0);
    let stem = Conv2d::new(first, 3)
        .stride(2)
        .padding(1)
        .without_bias()
        .initializer(CONVOLUTION);
    let mut y = BatchNorm2d.apply(&stem.apply(x, "conv1")?, "bn1")?.relu()?;
    for (number, &width) in (1..).zip(widths) {
        let stride = if number == 1 { 1 } else { 2 };
        y = basic_block(&y, width, stride, &format!("layer{number}.0"))?;
    }
    Linear::new(classes).apply(&y.mean(&[2, 3], false)?, "fc")
}
