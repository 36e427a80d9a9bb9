//! What a plan becomes on a GPU: a list of commands with every address and size in them.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::driver::BLOCK;
use super::{blas, dnn};
use crate::ops::movement;
use crate::shape::MAX_RANK;
use crate::walk::{Walk, strides};

/// Blocks of a kernel whose threads loop over elements: enough to fill any GPU, and the same on
/// each, so that results do not depend on the GPU.
const MOST_BLOCKS: u32 = 4096;

/// One thing for the GPU to do.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Launch(Launch),
    Copy { to: u64, from: u64, bytes: u64 },
    Product(blas::Shape, blas::Operands),
    Convolution(Convolution),
}

/// A convolution: by cuDNN and what then follows, or by our own kernels.
#[derive(Debug, Clone)]
pub(super) struct Convolution {
    pub(super) shape: dnn::Shape,
    pub(super) operands: dnn::Operands,
    /// Before cuDNN: what it does not take as it is stored.
    pub(super) before: Vec<Launch>,
    /// After cuDNN, which adds no bias and gives what it computes with.
    pub(super) after: Vec<Launch>,
    pub(super) own: Vec<Launch>,
}

/// A kernel, its grid and its arguments.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) kernel: &'static str,
    pub(super) blocks: [u32; 3],
    /// Each argument as words, so that it is aligned for any type.
    pub(super) arguments: Vec<Vec<u64>>,
}

impl Launch {
    /// A launch of `blocks` blocks.
    pub(super) fn blocks(kernel: &'static str, blocks: [usize; 3]) -> Self {
        let clamp = |count: usize, most: u32| u32::try_from(count).unwrap_or(most).clamp(1, most);
        Self {
            kernel,
            blocks: [
                clamp(blocks[0], 1 << 30),
                clamp(blocks[1], 65_535),
                clamp(blocks[2], 65_535),
            ],
            arguments: Vec::new(),
        }
    }

    /// A launch of at least so many threads, up to a bound above which threads loop.
    pub(super) fn threads(kernel: &'static str, threads: usize) -> Self {
        let blocks = threads.div_ceil(BLOCK as usize).min(MOST_BLOCKS as usize);
        Self::blocks(kernel, [blocks, 1, 1])
    }

    /// A launch of a block for each of `count` pieces of work, up to a bound above which they loop.
    pub(super) fn each(kernel: &'static str, count: usize) -> Self {
        Self::blocks(kernel, [count.min(MOST_BLOCKS as usize), 1, 1])
    }

    /// Adds an argument.
    pub(super) fn with<T: NoUninit>(mut self, argument: T) -> Self {
        let bytes = bytemuck::bytes_of(&argument);
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        self.arguments.push(words);
        self
    }

    /// Adds a number of elements.
    pub(super) fn count(self, count: usize) -> Self {
        self.with(count as u32)
    }
}

/// `Strided` of device.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Strided {
    rank: u32,
    sizes: [u32; MAX_RANK],
    strides: [u32; MAX_RANK],
}

impl Strided {
    /// Axes with their strides.
    pub(super) fn new(sizes: &[usize], strides: &[usize]) -> Self {
        let walk = Walk::new(sizes, [strides]);
        let mut layout = Self::zeroed();
        layout.rank = walk.sizes.len() as u32;
        for (axis, (size, [stride])) in walk.sizes.iter().zip(&walk.strides).enumerate() {
            layout.sizes[axis] = *size as u32;
            layout.strides[axis] = *stride as u32;
        }
        layout
    }

    /// The stride of the fastest axis.
    pub(super) fn inner(&self) -> u32 {
        self.strides[self.rank as usize - 1]
    }
}

/// `Pair` of device.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Pair {
    rank: u32,
    sizes: [u32; MAX_RANK],
    a: [u32; MAX_RANK],
    b: [u32; MAX_RANK],
}

impl Pair {
    /// Two operands shown along the same axes.
    pub(super) fn new(sizes: &[usize], a: &[usize], b: &[usize]) -> Self {
        let walk = Walk::new(sizes, [a, b]);
        let mut layout = Self::zeroed();
        layout.rank = walk.sizes.len() as u32;
        for (axis, (size, [a, b])) in walk.sizes.iter().zip(&walk.strides).enumerate() {
            layout.sizes[axis] = *size as u32;
            layout.a[axis] = *a as u32;
            layout.b[axis] = *b as u32;
        }
        layout
    }
}

/// `Window` of movement.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Window {
    rank: u32,
    sizes: [u32; MAX_RANK],
    strides: [u32; MAX_RANK],
    result: [u32; MAX_RANK],
    starts: [i32; MAX_RANK],
    steps: [i32; MAX_RANK],
}

impl Window {
    /// Of a tensor of `x`'s sizes and a result.
    pub(super) fn new(window: &movement::Window, x: &[usize], result: &[usize]) -> Self {
        let mut layout = Self::zeroed();
        layout.rank = x.len() as u32;
        let own = strides(x);
        for axis in 0..x.len() {
            layout.sizes[axis] = x[axis] as u32;
            layout.strides[axis] = own[axis] as u32;
            layout.result[axis] = result[axis] as u32;
            layout.starts[axis] = window.starts[axis] as i32;
            layout.steps[axis] = window.steps[axis] as i32;
        }
        layout
    }
}

/// `Check` of index.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Check {
    /// The address of the error word.
    pub(super) error: u64,
    pub(super) node: u32,
    /// What indices lie below.
    pub(super) size: u32,
}

/// `Target` of optimizer.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Target {
    pub(super) parameter: u64,
    pub(super) gradient: u64,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) elements: u32,
    pub(super) unused: u32,
}

/// `ErrorWord` of device.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ErrorWord {
    pub(super) node: u32,
    pub(super) classes: u32,
    pub(super) label: i64,
}
