//! Vision transformers (Dosovitskiy et al. 2021).

use crate::error::Result;
use crate::graph::Tensor;
use crate::layers::{Conv2d, LayerNorm, Linear, multi_head_attention};

/// Added to variances, as in torchvision.
const EPSILON: f64 = 1e-6;

/// The sizes of a vision transformer.
#[derive(Debug, Clone, Copy)]
pub struct Vit {
    /// Side of the square patches, pixels.
    pub patch: u32,
    /// Blocks.
    pub layers: u32,
    /// Attention heads of a block.
    pub heads: u32,
    /// Features of a token.
    pub hidden: u32,
    /// Features within a block's perceptron.
    pub mlp: u32,
}

impl Vit {
    /// x `[batch, channels, height, width]` → logits `[batch, classes]`.
    pub fn build(&self, x: &Tensor, classes: u32) -> Result<Tensor> {
        let graph = x.graph();
        let hidden = self.hidden;
        let patches = Conv2d::new(hidden, self.patch).stride(self.patch);
        let x = patches.apply(x, "conv_proj")?;
        let count = x.size(2)? * x.size(3)?;
        let x = x.reshape(&[0, hidden, count])?.permute(&[0, 2, 1])?;
        let class = graph.parameter("class_token", &[1, 1, hidden], "zeros")?;
        let x = class.expand(&[0, 1, hidden])?.concat(&[&x], 1)?;
        let position = graph.parameter(
            "encoder.pos_embedding",
            &[1, count + 1, hidden],
            "normal:0:0.02",
        )?;
        let mut x = (&x + &position)?;
        for layer in 0..self.layers {
            let name = format!("encoder.layers.encoder_layer_{layer}");
            x = graph.block(|| self.block(&x, &name))?;
        }
        let x = LayerNorm::new(EPSILON).apply(&x, "encoder.ln")?;
        let x = x.slice(1, 0, 1)?.reshape(&[0, hidden])?;
        Linear::new(classes)
            .initializer("zeros")
            .apply(&x, "heads.head")
    }

    fn block(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let norm = LayerNorm::new(EPSILON);
        let y = norm.apply(x, &format!("{name}.ln_1"))?;
        let y = self.attention(&y, &format!("{name}.self_attention"))?;
        let x = (x + &y)?;
        let y = norm.apply(&x, &format!("{name}.ln_2"))?;
        let y = Linear::new(self.mlp)
            .apply(&y, &format!("{name}.mlp.0"))?
            .gelu()?;
        let y = Linear::new(self.hidden).apply(&y, &format!("{name}.mlp.3"))?;
        &x + &y
    }

    fn attention(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let qkv = Linear::new(3 * self.hidden)
            .named("in_proj_weight", "in_proj_bias")
            .apply(x, name)?;
        let y = multi_head_attention(&qkv, self.heads, false)?;
        Linear::new(self.hidden).apply(&y, &format!("{name}.out_proj"))
    }
}

const BASE: Vit = Vit {
    patch: 16,
    layers: 12,
    heads: 12,
    hidden: 768,
    mlp: 3072,
};
const LARGE: Vit = Vit {
    patch: 16,
    layers: 24,
    heads: 16,
    hidden: 1024,
    mlp: 4096,
};

/// ViT-B/16.
pub fn vit_b_16(x: &Tensor, classes: u32) -> Result<Tensor> {
    BASE.build(x, classes)
}

/// ViT-B/32.
pub fn vit_b_32(x: &Tensor, classes: u32) -> Result<Tensor> {
    Vit { patch: 32, ..BASE }.build(x, classes)
}

/// ViT-L/16.
pub fn vit_l_16(x: &Tensor, classes: u32) -> Result<Tensor> {
    LARGE.build(x, classes)
}

/// ViT-L/32.
pub fn vit_l_32(x: &Tensor, classes: u32) -> Result<Tensor> {
    Vit { patch: 32, ..LARGE }.build(x, classes)
}
