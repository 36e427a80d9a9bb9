//! A language model of GPT-2's shape (Radford et al. 2019).

use crate::error::Result;
use crate::graph::Tensor;
use crate::layers::{LayerNorm, Linear, multi_head_attention};

/// Added to variances.
const EPSILON: f64 = 1e-5;

/// The sizes of a language model.
#[derive(Debug, Clone, Copy)]
pub struct Gpt {
    /// Blocks.
    pub layers: u32,
    /// Features of a token.
    pub width: u32,
    /// Attention heads of a block.
    pub heads: u32,
    /// Tokens that are known.
    pub vocabulary: u32,
    /// The longest text, tokens.
    pub context: u32,
}

impl Gpt {
    /// Tokens (int64) `[batch, length]` → logits `[batch, length, vocabulary]` of the token that
    /// follows each. The head shares the tokens' embeddings.
    pub fn build(&self, tokens: &Tensor) -> Result<Tensor> {
        let graph = tokens.graph();
        let length = tokens.size(1)?;
        let table = |name: &str, rows: u32| {
            graph.parameter(&format!("{name}.weight"), &[rows, self.width], "normal:0:1")
        };
        let (words, places) = (table("wte", self.vocabulary)?, table("wpe", self.context)?);
        let mut x = (&words.take(tokens, 0)? + &places.slice(0, 0, length)?)?;
        let norm = LayerNorm::new(EPSILON);
        for layer in 0..self.layers {
            let name = |part: &str| format!("b.{layer}.{part}");
            x = graph.block(|| {
                let y = norm.apply(&x, &name("l1"))?;
                let qkv = Linear::new(3 * self.width).apply(&y, &name("qkv"))?;
                let y = multi_head_attention(&qkv, self.heads, true)?;
                let y = Linear::new(self.width).apply(&y, &name("o"))?;
                let x = (&x + &y)?;
                let y = norm.apply(&x, &name("l2"))?;
                let y = Linear::new(4 * self.width)
                    .apply(&y, &name("f"))?
                    .gelu_tanh()?;
                &x + &Linear::new(self.width).apply(&y, &name("p"))?
            })?;
        }
        let x = norm.apply(&x, "ln")?;
        x.linear(&words, None)
    }
}

/// GPT-2 of 124 million parameters, its vocabulary padded to 50,304.
pub fn gpt2(tokens: &Tensor) -> Result<Tensor> {
    let sizes = Gpt {
        layers: 12,
        width: 768,
        heads: 12,
        vocabulary: 50_304,
        context: 1024,
    };
    sizes.build(tokens)
}
