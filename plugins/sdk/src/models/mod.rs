//! Models as functions that build a graph, with torchvision's architectures and parameter names.
//!
//! Each takes a batch `[batch, channels, height, width]` (the perceptron and the language model what
//! they say) and gives logits `[batch, classes]`.

mod gpt;
mod mlp;
mod mobilenet;
mod resnet;
mod swin;
mod vit;

pub use gpt::{Gpt, gpt2};
pub use mlp::mlp;
pub use mobilenet::{mobilenet_v3_large, mobilenet_v3_small};
pub use resnet::{basic_block, resnet18, resnet34, resnet50, resnet101, resnet152, small_resnet};
pub use swin::{Swin, swin_v2_b, swin_v2_s, swin_v2_t};
pub use vit::{Vit, vit_b_16, vit_b_32, vit_l_16, vit_l_32};
