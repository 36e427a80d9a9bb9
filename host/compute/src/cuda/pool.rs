//! Pooling.

use bytemuck::{Pod, Zeroable};

use super::lower::Lowering;
use super::program::Launch;
use crate::ops::pool::Pool2d;

/// `Pool` of pool.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Pool {
    image: [u32; 2],
    result: [u32; 2],
    window: [u32; 2],
    stride: [u32; 2],
    padding: [u32; 2],
}

impl Lowering<'_> {
    /// Pools `image` to `result`, or takes the gradient back; `n` is the number of elements made.
    pub(super) fn pool2d(
        &mut self,
        kernel: &'static str,
        pool: &Pool2d,
        image: &[usize],
        result: &[usize],
        addresses: &[u64],
        n: usize,
    ) {
        let sizes = Pool {
            image: [image[2] as u32, image[3] as u32],
            result: [result[2] as u32, result[3] as u32],
            window: [pool.window.0, pool.window.1],
            stride: [pool.stride.0, pool.stride.1],
            padding: [pool.padding.0, pool.padding.1],
        };
        let launch = Launch::threads(kernel, n).with(i32::from(pool.maximum));
        let launch = addresses
            .iter()
            .fold(launch, |launch, &address| launch.with(address));
        self.launch(launch.with(sizes).count(n));
    }
}
