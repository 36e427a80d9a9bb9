//! Short-time Fourier transform.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::{Dim, Shape};

/// The weights of a frame's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// 0.5 − 0.5·cos(2πn/size), periodic.
    Hann,
    /// 0.54 − 0.46·cos(2πn/size), periodic.
    Hamming,
    /// 1.
    Rectangular,
}

impl std::str::FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "hann" => Ok(Self::Hann),
            "hamming" => Ok(Self::Hamming),
            "rectangular" => Ok(Self::Rectangular),
            other => Err(Error::attribute(format!(
                "stft-power: window `{other}` is not one of hann, hamming, rectangular"
            ))),
        }
    }
}

/// Attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stft {
    pub(crate) size: u32,
    pub(crate) hop: u32,
    pub(crate) window: Window,
}

pub(crate) fn stft_power(stft: &Stft, x: &Node) -> Result<Typed, Error> {
    float("stft-power", x)?;
    let (size, hop) = (u64::from(stft.size), u64::from(stft.hop));
    if size < 2 || size % 2 == 1 || size > 1 << 20 || hop == 0 {
        return Err(Error::attribute(format!(
            "stft-power: size {size} must be even, 2 to 1048576, and hop {hop} at least 1"
        )));
    }
    match x.shape.0[..] {
        [n, Dim::Fixed(samples)] if samples >= size => {
            let frames = 1 + (samples - size) / hop;
            Ok((
                DType::F32,
                Shape(vec![n, Dim::Fixed(size / 2 + 1), Dim::Fixed(frames)]),
            ))
        }
        _ => Err(Error::shape(format!(
            "stft-power takes [batch, samples] with at least {size} samples, not {}",
            x.shape
        ))),
    }
}

impl Builder {
    /// Power spectrum `[batch, size/2 + 1, frames]` of `[batch, samples]`.
    pub fn stft_power(
        &mut self,
        x: Value,
        size: u32,
        hop: u32,
        window: Window,
    ) -> Result<Value, Error> {
        let stft = Stft { size, hop, window };
        let typed = self.at_next(stft_power(&stft, self.operand(x)?))?;
        self.push(Op::StftPower(stft), &[x], typed)
    }
}
