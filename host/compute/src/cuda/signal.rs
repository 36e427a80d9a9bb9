//! Short-time Fourier transforms.

use bytemuck::{Pod, Zeroable};

use super::lower::{Lowering, limit};
use super::program::Launch;
use crate::error::Error;
use crate::ops::signal::{Stft, Window};

/// `MAX_FACTORS` of signal.cu: sizes are below 2²⁰, half of them below 2¹⁹.
const MAX_FACTORS: usize = 20;
/// `SHARED_VALUES` of signal.cu.
const SHARED_VALUES: usize = 2048;
/// Blocks of a launch: each has its own part of the workspace where frames are large.
const BLOCKS: usize = 512;

/// `Stft` of signal.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Parameters {
    size: u32,
    hop: u32,
    frames: u32,
    samples: u32,
    batch: u32,
    stages: u32,
    factors: [u32; MAX_FACTORS],
}

impl Parameters {
    fn new(stft: &Stft, x: &[usize]) -> Self {
        let mut parameters = Self {
            size: stft.size,
            hop: stft.hop,
            frames: 1 + (x[1] as u32 - stft.size) / stft.hop,
            samples: x[1] as u32,
            batch: x[0] as u32,
            stages: 0,
            factors: [0; MAX_FACTORS],
        };
        for factor in factors(stft.size / 2) {
            parameters.factors[parameters.stages as usize] = factor;
            parameters.stages += 1;
        }
        parameters
    }

    fn count(&self) -> usize {
        self.batch as usize * self.frames as usize
    }

    /// Bytes of buffers for `blocks` blocks.
    fn scratch_bytes(&self, blocks: usize) -> u64 {
        match self.size as usize {
            0..=SHARED_VALUES => 0,
            size => (blocks * size * 8) as u64,
        }
    }
}

/// Prime factors, fours in place of pairs of twos.
fn factors(mut n: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut factor = 4;
    while n > 1 {
        if n.is_multiple_of(factor) {
            found.push(factor);
            n /= factor;
        } else {
            factor = match factor {
                4 => 2,
                2 => 3,
                odd if odd * odd > n => n,
                odd => odd + 2,
            };
        }
    }
    found
}

/// The window's `size` weights, then `size` roots e^(−2πik/size) as pairs.
pub(super) fn table(stft: &Stft) -> Vec<f32> {
    let size = stft.size as usize;
    let angle = |n: usize| std::f64::consts::TAU * n as f64 / size as f64;
    let window = (0..size).map(|n| match stft.window {
        Window::Hann => 0.5 - 0.5 * angle(n).cos(),
        Window::Hamming => 0.54 - 0.46 * angle(n).cos(),
        Window::Rectangular => 1.0,
    });
    let roots = (0..size).flat_map(|k| [angle(k).cos(), -angle(k).sin()]);
    window.chain(roots).map(|value| value as f32).collect()
}

/// Bytes of [`table`].
pub(super) fn table_bytes(stft: &Stft) -> u64 {
    u64::from(stft.size) * 12
}

/// What is made of a power in the same kernel: factor · power + offset, or its logarithm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epilogue {
    pub(super) factor: f32,
    pub(super) offset: f32,
    pub(super) log: bool,
}

/// x `[batch, samples]` to its power.
pub(super) fn power(
    lowering: &mut Lowering<'_>,
    stft: &Stft,
    x: &[usize],
    epilogue: Epilogue,
    from: u64,
    out: u64,
) {
    let parameters = Parameters::new(stft, x);
    let blocks = parameters.count().min(BLOCKS);
    let scratch = lowering.workspace(parameters.scratch_bytes(blocks));
    let table = lowering.at.tables.get(stft).copied().unwrap_or(0);
    let launch = Launch::each("stft_power", blocks)
        .with(from)
        .with(table)
        .with(out);
    let launch = launch.with(scratch).with(parameters);
    let launch = launch.with(epilogue.factor).with(epilogue.offset);
    lowering.launch(launch.with(i32::from(epilogue.log)));
}

/// The gradient of x, of its shape. Errors: `graph.limit`.
pub(super) fn gradient(
    lowering: &mut Lowering<'_>,
    stft: &Stft,
    x: &[usize],
    from: u64,
    dy: u64,
    out: u64,
) -> Result<(), Error> {
    let parameters = Parameters::new(stft, x);
    // Every frame's samples apart, before they are added up.
    limit(parameters.count() as u64 * u64::from(stft.size))?;
    let blocks = parameters.count().min(BLOCKS);
    let frames_bytes = (parameters.count() * stft.size as usize * 4) as u64;
    let frames_bytes = frames_bytes.next_multiple_of(256);
    let frames = lowering.workspace(frames_bytes + parameters.scratch_bytes(blocks));
    let table = lowering.at.tables.get(stft).copied().unwrap_or(0);
    let launch = Launch::each("stft_power_gradient", blocks)
        .with(from)
        .with(table)
        .with(dy);
    let launch = launch.with(frames).with(frames + frames_bytes);
    lowering.launch(launch.with(parameters));
    let n = x.iter().product::<usize>();
    let launch = Launch::threads("overlap_add", n).with(frames).with(out);
    lowering.launch(launch.with(parameters).count(n));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_multiply_to_the_number() {
        for n in (1..2000).chain([1 << 19, 524_287, 3 * 174_761]) {
            let found = factors(n);
            assert_eq!(found.iter().product::<u32>(), n, "{found:?}");
            assert!(found.len() <= MAX_FACTORS);
        }
        assert_eq!(factors(128), [4, 4, 4, 2]);
    }
}
