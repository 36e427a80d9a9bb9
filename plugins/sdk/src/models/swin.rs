//! Swin Transformer V2 (Liu et al. 2022): attention within windows, shifted in every second block.

use crate::error::Result;
use crate::graph::Tensor;
use crate::host::types::Dtype;
use crate::layers::{Conv2d, LayerNorm, Linear};

const EPSILON: f64 = 1e-5;
/// Features between the two layers that make biases of relative positions.
const BIAS_FEATURES: u32 = 512;
/// What a pair of pixels of different regions has added to its score.
const HIDDEN: f32 = -100.0;

/// The sizes of a network.
#[derive(Debug, Clone, Copy)]
pub struct Swin {
    /// Features of the first stage; each further one has twice as many.
    pub width: u32,
    /// Blocks of each stage.
    pub depths: [u32; 4],
    /// Attention heads of each stage.
    pub heads: [u32; 4],
    /// Side of the windows.
    pub window: u32,
    /// The last block's probability of being dropped in training; earlier ones have less.
    pub drop_path: f64,
}

/// An image `[batch, height, width, channels]`, its sizes and what a block needs to know.
#[derive(Debug, Clone, Copy)]
struct Windows {
    side: u32,
    /// Rows and columns, padded to whole windows.
    padded: [u32; 2],
    /// Of every second block, along each axis.
    shift: [u32; 2],
    heads: u32,
}

impl Windows {
    fn count(&self) -> u32 {
        self.padded.iter().map(|size| size / self.side).product()
    }

    fn tokens(&self) -> u32 {
        self.side * self.side
    }

    /// The regions that shifted windows are made of, `[windows, tokens, tokens]`: pairs of pixels
    /// that were no neighbours have [`HIDDEN`].
    fn mask(&self) -> Vec<f32> {
        let region = |axis: usize, at: u32| {
            let (size, shift) = match axis {
                0 => (self.padded[0], self.shift[0]),
                _ => (self.padded[1], self.shift[1]),
            };
            match (shift, size - at) {
                (0, _) => 0u32,
                (shift, left) if left <= shift => 2,
                (_, left) if left <= self.side => 1,
                _ => 0,
            }
        };
        let columns = self.padded[1] / self.side;
        let mut mask = Vec::new();
        for window in 0..self.count() {
            let of = |token: u32| {
                let row = window / columns * self.side + token / self.side;
                let column = window % columns * self.side + token % self.side;
                3 * region(0, row) + region(1, column)
            };
            for a in 0..self.tokens() {
                let pairs = (0..self.tokens()).map(|b| if of(a) == of(b) { 0.0 } else { HIDDEN });
                mask.extend(pairs);
            }
        }
        mask
    }
}

/// Distances along both axes as the network sees them, `[pairs, 2]`: sign · log₂(1 + 8·|d|) / 3 of
/// d in −1 to 1.
fn distances(side: u32) -> Vec<f32> {
    let span = side as i32 - 1;
    let scaled = |d: i32| {
        let d = 8.0 * f64::from(d) / f64::from(span.max(1));
        (d.signum() * d.abs().ln_1p() / std::f64::consts::LN_2 / 3.0) as f32
    };
    let all = (-span..=span).flat_map(|row| (-span..=span).map(move |column| [row, column]));
    all.flatten().map(scaled).collect()
}

/// The number of each pair's distance among [`distances`].
fn pairs(side: u32) -> Vec<i64> {
    let (side, span) = (i64::from(side), 2 * i64::from(side) - 1);
    let tokens = side * side;
    let number = move |a: i64, b: i64| {
        let rows = a / side - b / side + side - 1;
        rows * span + a % side - b % side + side - 1
    };
    (0..tokens)
        .flat_map(|a| (0..tokens).map(move |b| number(a, b)))
        .collect()
}

impl Swin {
    /// x `[batch, channels, height, width]` → logits `[batch, classes]`.
    pub fn build(&self, x: &Tensor, classes: u32) -> Result<Tensor> {
        let norm = LayerNorm::new(EPSILON);
        let patches = Conv2d::new(self.width, 4).stride(4);
        let x = patches.apply(x, "features.0.0")?.permute(&[0, 2, 3, 1])?;
        let mut x = norm.apply(&x, "features.0.2")?;
        let last = f64::from(self.depths.iter().sum::<u32>().max(2) - 1);
        let mut done = 0u32;
        for (stage, (depth, heads)) in self.depths.into_iter().zip(self.heads).enumerate() {
            for number in 0..depth {
                let name = format!("features.{}.{number}", 2 * stage + 1);
                let drop = self.drop_path * f64::from(done) / last;
                let shifted = number % 2 == 1;
                let block = || self.block(&x, (heads, shifted), drop, u64::from(done), &name);
                x = x.graph().block(block)?;
                done += 1;
            }
            if stage < 3 {
                x = merge(&x, &format!("features.{}", 2 * stage + 2))?;
            }
        }
        let x = norm.apply(&x, "norm")?.mean(&[1, 2], false)?;
        Linear::new(classes).apply(&x, "head")
    }

    fn block(
        &self,
        x: &Tensor,
        attention: (u32, bool),
        drop: f64,
        seed: u64,
        name: &str,
    ) -> Result<Tensor> {
        let norm = LayerNorm::new(EPSILON);
        let y = self.attention(x, attention, &format!("{name}.attn"))?;
        let y = norm.apply(&y, &format!("{name}.norm1"))?;
        let x = (x + &y.drop_path(drop, 2 * seed)?)?;
        let width = x.size(3)?;
        let y = Linear::new(4 * width)
            .apply(&x, &format!("{name}.mlp.0"))?
            .gelu()?;
        let y = Linear::new(width).apply(&y, &format!("{name}.mlp.3"))?;
        let y = norm.apply(&y, &format!("{name}.norm2"))?;
        &x + &y.drop_path(drop, 2 * seed + 1)?
    }

    /// Attention of cosines within windows.
    fn attention(&self, x: &Tensor, (heads, shifted): (u32, bool), name: &str) -> Result<Tensor> {
        let side = self.window;
        let (rows, columns, width) = (x.size(1)?, x.size(2)?, x.size(3)?);
        let padded = [rows, columns].map(|size| size.next_multiple_of(side));
        let shift = padded.map(|size| if shifted && size > side { side / 2 } else { 0 });
        let w = Windows {
            side,
            padded,
            shift,
            heads,
        };
        let y = x.pad(
            &[0, 0, 0, 0],
            &[0, padded[0] - rows, padded[1] - columns, 0],
            0.0,
        )?;
        let moves = shift.map(|shift| shift as i32);
        let y = if shift == [0, 0] {
            y
        } else {
            y.roll(&moves.map(|shift| -shift), &[1, 2])?
        };
        // [batch, windows down, side, windows across, side, width] → [batch, windows, tokens, width]
        let across = padded.map(|size| size / side);
        let y = y
            .reshape(&[0, across[0], side, across[1], side, width])?
            .permute(&[0, 1, 3, 2, 4, 5])?
            .reshape(&[0, w.count(), w.tokens(), width])?;
        let y = scores(&y, &w, name)?;
        let y = Linear::new(width).apply(&y, &format!("{name}.proj"))?;
        let y = y
            .reshape(&[0, across[0], across[1], side, side, width])?
            .permute(&[0, 1, 3, 2, 4, 5])?
            .reshape(&[0, padded[0], padded[1], width])?;
        let y = if shift == [0, 0] {
            y
        } else {
            y.roll(&moves, &[1, 2])?
        };
        y.slice(1, 0, rows)?.slice(2, 0, columns)
    }
}

/// softmax(cos(q, k)·scale + bias)·v of x `[batch, windows, tokens, width]`.
fn scores(x: &Tensor, w: &Windows, name: &str) -> Result<Tensor> {
    let graph = x.graph();
    let (width, tokens, windows) = (x.size(3)?, w.tokens(), w.count());
    let features = width / w.heads;
    // The key has no bias: it would not change a softmax.
    let weight = graph.parameter(
        &format!("{name}.qkv.weight"),
        &[3 * width, width],
        "normal:0:0.02",
    )?;
    let bias = graph.parameter(&format!("{name}.qkv.bias"), &[3 * width], "zeros")?;
    let keep: Vec<f32> = (0..3 * width)
        .map(|i| {
            if (width..2 * width).contains(&i) {
                0.0
            } else {
                1.0
            }
        })
        .collect();
    let bias = (&bias * &graph.constant(&[3 * width], &keep)?)?;
    let qkv = x.linear(&weight, Some(&bias))?;
    let qkv = qkv
        .reshape(&[0, windows, tokens, 3, w.heads, features])?
        .permute(&[0, 3, 1, 4, 2, 5])?;
    let parts: Vec<Tensor> = (0..3)
        .map(|i| {
            qkv.slice(1, i, i + 1)?
                .reshape(&[0, windows, w.heads, tokens, features])
        })
        .collect::<Result<_>>()?;
    let [q, k, v] = &parts[..] else {
        return Err(crate::error("model.parts", "queries, keys and values"));
    };
    let scale = graph.parameter(
        &format!("{name}.logit_scale"),
        &[w.heads, 1, 1],
        &format!("constant:{}", 10f64.ln()),
    )?;
    let scale = scale.clamp(f64::from(f32::MIN), 100f64.ln())?.exp()?;
    let q = (&q.l2_normalize(&[4], 1e-12)? * &scale)?;
    let k = k.l2_normalize(&[4], 1e-12)?;
    let mut bias = position_bias(x, w, name)?;
    if w.shift != [0, 0] {
        let mask = graph.constant(&[windows, 1, tokens, tokens], &w.mask())?;
        bias = (&bias + &mask)?;
    }
    let y = q.attention_scaled(&k, v, Some(&bias), 1.0)?;
    y.permute(&[0, 1, 3, 2, 4])?
        .reshape(&[0, windows, tokens, width])
}

/// 16 · σ of two layers on the distance of each pair of tokens: `[heads, tokens, tokens]`.
fn position_bias(x: &Tensor, w: &Windows, name: &str) -> Result<Tensor> {
    let graph = x.graph();
    let span = 2 * w.side - 1;
    let table = graph.constant(&[span * span, 2], &distances(w.side))?;
    let y = Linear::new(BIAS_FEATURES)
        .apply(&table, &format!("{name}.cpb_mlp.0"))?
        .relu()?;
    let y = Linear::new(w.heads)
        .without_bias()
        .apply(&y, &format!("{name}.cpb_mlp.2"))?;
    let tokens = w.tokens();
    let by: Vec<u8> = pairs(w.side)
        .into_iter()
        .flat_map(i64::to_le_bytes)
        .collect();
    let by = graph
        .builder()
        .constant(Dtype::Int64, &[tokens * tokens], &by)?;
    let y = y.take(&graph.tensor(by), 0)?;
    let y = y.permute(&[1, 0])?.reshape(&[w.heads, tokens, tokens])?;
    y.sigmoid()?.affine(16.0, 0.0)
}

/// Each square of four neighbours as one with twice the features.
fn merge(x: &Tensor, name: &str) -> Result<Tensor> {
    let (rows, columns, width) = (x.size(1)?, x.size(2)?, x.size(3)?);
    let x = x.pad(&[0, 0, 0, 0], &[0, rows % 2, columns % 2, 0], 0.0)?;
    let (rows, columns) = (rows.div_ceil(2), columns.div_ceil(2));
    // Columns of a square first: [batch, rows, columns, column, row, width].
    let y = x
        .reshape(&[0, rows, 2, columns, 2, width])?
        .permute(&[0, 1, 3, 4, 2, 5])?
        .reshape(&[0, rows, columns, 4 * width])?;
    let y = Linear::new(2 * width)
        .without_bias()
        .apply(&y, &format!("{name}.reduction"))?;
    LayerNorm::new(EPSILON).apply(&y, &format!("{name}.norm"))
}

const TINY: Swin = Swin {
    width: 96,
    depths: [2, 2, 6, 2],
    heads: [3, 6, 12, 24],
    window: 8,
    drop_path: 0.2,
};

/// SwinV2-T.
pub fn swin_v2_t(x: &Tensor, classes: u32) -> Result<Tensor> {
    TINY.build(x, classes)
}

/// SwinV2-S.
pub fn swin_v2_s(x: &Tensor, classes: u32) -> Result<Tensor> {
    let small = Swin {
        depths: [2, 2, 18, 2],
        drop_path: 0.3,
        ..TINY
    };
    small.build(x, classes)
}

/// SwinV2-B.
pub fn swin_v2_b(x: &Tensor, classes: u32) -> Result<Tensor> {
    let base = Swin {
        width: 128,
        depths: [2, 2, 18, 2],
        heads: [4, 8, 16, 32],
        window: 8,
        drop_path: 0.5,
    };
    base.build(x, classes)
}

#[cfg(test)]
mod tests {
    use super::{Windows, distances, pairs};

    #[test]
    fn distances_run_from_one_corner_to_the_other() {
        let table = distances(8);
        assert_eq!(table.len(), 2 * 15 * 15);
        let end = (9f32).log2() / 3.0;
        assert!((table[0] + end).abs() < 1e-6 && (table[2 * 224 + 1] - end).abs() < 1e-6);
        assert_eq!(&table[2 * 112..2 * 113], [0.0, 0.0]);
    }

    #[test]
    fn a_token_is_at_no_distance_from_itself() {
        let pairs = pairs(8);
        assert!((0..64).all(|token| pairs[token * 64 + token] == 112));
        assert_eq!((pairs[63], pairs[63 * 64]), (0, 224));
    }

    #[test]
    fn shifted_windows_hide_pixels_that_were_no_neighbours() {
        let windows = Windows {
            side: 2,
            padded: [4, 4],
            shift: [1, 1],
            heads: 1,
        };
        let mask = windows.mask();
        assert_eq!(mask.len(), 4 * 4 * 4);
        assert!(mask[..16].iter().all(|&v| v == 0.0));
        // The last window has a pixel of each region.
        let last = &mask[48..];
        assert!((0..4).all(|i| (0..4).all(|j| (last[i * 4 + j] == 0.0) == (i == j))));
    }
}
