//! The multilayer perceptron.

use crate::error::Result;
use crate::graph::Tensor;
use crate::layers::Linear;

/// Linear layers with ReLU between them: x `[batch, …]` → logits `[batch, classes]`. Parameters are
/// named by position as in PyTorch's `Sequential`: `0`, `2`, ….
pub fn mlp(x: &Tensor, widths: &[u32], classes: u32) -> Result<Tensor> {
    let mut y = x.flatten()?;
    for (layer, &width) in widths.iter().enumerate() {
        y = Linear::new(width)
            .apply(&y, &(2 * layer).to_string())?
            .relu()?;
    }
    Linear::new(classes).apply(&y, &(2 * widths.len()).to_string())
}
