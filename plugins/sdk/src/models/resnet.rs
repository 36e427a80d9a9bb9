//! Residual networks (He et al. 2016).

use crate::error::Result;
use crate::graph::Tensor;
use crate::layers::{BatchNorm2d, Conv2d, Linear};

/// The initializer of a residual network's convolutions (He et al. 2015), as in torchvision.
const CONVOLUTION: &str = "kaiming-normal";
/// Channels of a bottleneck's result for each of its own.
const EXPANSION: u32 = 4;

fn conv(outputs: u32, kernel: u32, stride: u32) -> Conv2d {
    Conv2d::new(outputs, kernel)
        .stride(stride)
        .padding(kernel / 2)
        .without_bias()
        .initializer(CONVOLUTION)
}

/// x itself, or where the shape changes a 1 × 1 convolution of it.
fn shortcut(x: &Tensor, outputs: u32, stride: u32, name: &str) -> Result<Tensor> {
    if stride == 1 && x.size(1)? == outputs {
        return Ok(x.clone());
    }
    let y = conv(outputs, 1, stride).apply(x, &format!("{name}.downsample.0"))?;
    BatchNorm2d::default().apply(&y, &format!("{name}.downsample.1"))
}

/// The basic residual block: x `[batch, in, height, width]` →
/// `[batch, outputs, height/stride, width/stride]`. Named as in torchvision: `NAME.conv1`,
/// `NAME.bn1`, `NAME.conv2`, `NAME.bn2`, and `NAME.downsample.0`, `NAME.downsample.1` where the
/// shape changes.
pub fn basic_block(x: &Tensor, outputs: u32, stride: u32, name: &str) -> Result<Tensor> {
    let norm = BatchNorm2d::default();
    let y = conv(outputs, 3, stride).apply(x, &format!("{name}.conv1"))?;
    let y = norm.apply(&y, &format!("{name}.bn1"))?.relu()?;
    let y = conv(outputs, 3, 1).apply(&y, &format!("{name}.conv2"))?;
    let y = norm.apply(&y, &format!("{name}.bn2"))?;
    (&y + &shortcut(x, outputs, stride, name)?)?.relu()
}

/// The block of deeper networks: 1 × 1 down to `width` channels, 3 × 3, 1 × 1 up to four times as
/// many.
fn bottleneck(x: &Tensor, width: u32, stride: u32, name: &str) -> Result<Tensor> {
    let norm = BatchNorm2d::default();
    let y = conv(width, 1, 1).apply(x, &format!("{name}.conv1"))?;
    let y = norm.apply(&y, &format!("{name}.bn1"))?.relu()?;
    let y = conv(width, 3, stride).apply(&y, &format!("{name}.conv2"))?;
    let y = norm.apply(&y, &format!("{name}.bn2"))?.relu()?;
    let y = conv(width * EXPANSION, 1, 1).apply(&y, &format!("{name}.conv3"))?;
    let y = norm.apply(&y, &format!("{name}.bn3"))?;
    (&y + &shortcut(x, width * EXPANSION, stride, name)?)?.relu()
}

type Block = fn(&Tensor, u32, u32, &str) -> Result<Tensor>;

fn resnet(x: &Tensor, block: Block, depths: [u32; 4], classes: u32) -> Result<Tensor> {
    let y = conv(64, 7, 2).apply(x, "conv1")?;
    let y = BatchNorm2d::default().apply(&y, "bn1")?.relu()?;
    let mut y = y.max_pool2d_strided(3, 2, 1)?;
    for (stage, depth) in (1u32..).zip(depths) {
        for number in 0..depth {
            let stride = if stage > 1 && number == 0 { 2 } else { 1 };
            let name = format!("layer{stage}.{number}");
            y = x.graph().block(|| block(&y, 32 << stage, stride, &name))?;
        }
    }
    Linear::new(classes).apply(&y.mean(&[2, 3], false)?, "fc")
}

/// ResNet-18.
pub fn resnet18(x: &Tensor, classes: u32) -> Result<Tensor> {
    resnet(x, basic_block, [2, 2, 2, 2], classes)
}

/// ResNet-34.
pub fn resnet34(x: &Tensor, classes: u32) -> Result<Tensor> {
    resnet(x, basic_block, [3, 4, 6, 3], classes)
}

/// ResNet-50, with torchvision's stride in the 3 × 3 convolution.
pub fn resnet50(x: &Tensor, classes: u32) -> Result<Tensor> {
    resnet(x, bottleneck, [3, 4, 6, 3], classes)
}

/// ResNet-101.
pub fn resnet101(x: &Tensor, classes: u32) -> Result<Tensor> {
    resnet(x, bottleneck, [3, 4, 23, 3], classes)
}

/// ResNet-152.
pub fn resnet152(x: &Tensor, classes: u32) -> Result<Tensor> {
    resnet(x, bottleneck, [3, 8, 36, 3], classes)
}

/// A small residual network for single spectrograms and images: x `[batch, channels, height,
/// width]` → logits `[batch, classes]`. A 3×3 convolution of stride 2, then one [`basic_block`] for
/// each width (the first of stride 1, the others of stride 2), the mean over height and width, and
/// a linear layer. Parameters are named as in torchvision's ResNet.
pub fn small_resnet(x: &Tensor, widths: &[u32], classes: u32) -> Result<Tensor> {
    let first = widths.first().copied().unwrap_or(0);
    let y = conv(first, 3, 2).apply(x, "conv1")?;
    let mut y = BatchNorm2d::default().apply(&y, "bn1")?.relu()?;
    for (number, &width) in (1..).zip(widths) {
        let stride = if number == 1 { 1 } else { 2 };
        y = basic_block(&y, width, stride, &format!("layer{number}.0"))?;
    }
    Linear::new(classes).apply(&y.mean(&[2, 3], false)?, "fc")
}
