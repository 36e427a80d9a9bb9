//! Convolution of each channel with weights of its own. A plane is copied with zeros around, columns
//! by their remainder of the stride, so that an element of a window lies next to that of the next
//! window: vectors of results are sums of vectors of the copy.

use pulp::{Arch, Simd, WithSimd};

use super::chunks::Workers;
use super::conv::{Finish, deal};
use super::tile::{self, load, store};
use crate::ops::geometry::Geometry;

/// Vectors of results that are summed side by side.
const BLOCK: usize = 8;

/// Elements of a window that are summed side by side.
const TAPS: usize = 9;

/// Where a vector of results takes its first element in the copy, where it goes, and its elements.
#[derive(Debug, Clone, Copy)]
struct Vector {
    source: usize,
    result: usize,
    length: usize,
}

struct Layout<'a> {
    g: &'a Geometry,
    /// Elements of a row of the copy.
    row: usize,
    /// Where each element of a window lies from its window's place.
    taps: Vec<usize>,
    vectors: Vec<Vector>,
}

impl<'a> Layout<'a> {
    fn new(g: &'a Geometry, lanes: usize) -> Self {
        let (stride, padding, dilation) = (g.stride(), g.padding(), g.dilation());
        let part = (g.width + 2 * padding.1).div_ceil(stride.1);
        let row = part * stride.1;
        let tap = |weight: usize| {
            let (i, j) = (weight / g.kernel.1, weight % g.kernel.1);
            let column = j * dilation.1;
            i * dilation.0 * row + column % stride.1 * part + column / stride.1
        };
        let mut vectors = Vec::new();
        for y in 0..g.rows {
            for x in (0..g.columns).step_by(lanes) {
                vectors.push(Vector {
                    source: y * stride.0 * row + x,
                    result: y * g.columns + x,
                    length: lanes.min(g.columns - x),
                });
            }
        }
        Self {
            g,
            row,
            taps: (0..g.kernel.0 * g.kernel.1).map(tap).collect(),
            vectors,
        }
    }

    /// Calls `each` with an image's row and the copy's, and the places in them of the columns of
    /// each remainder of the stride: first of the image's, first and number of the copy's.
    #[inline(always)]
    fn rows(&self, mut each: impl FnMut(usize, usize, (usize, usize, usize))) {
        let g = self.g;
        let (padding, stride) = (g.padding(), g.stride().1);
        let part = self.row / stride;
        for y in 0..g.height {
            let start = (y + padding.0) * self.row;
            for remainder in 0..stride.min(g.width) {
                let column = padding.1 + remainder;
                let at = start + column % stride * part + column / stride;
                let count = (g.width - remainder).div_ceil(stride);
                each(y * g.width, at, (remainder, at, count));
            }
        }
    }

    /// Copies a plane into the middle of zeros, rows in order: what a vector has more than a row
    /// is zeros around it, or overwritten by the next.
    #[inline(always)]
    fn spread<S: Simd>(&self, simd: S, plane: &[f32], copy: &mut [f32]) {
        let stride = self.g.stride().1;
        self.rows(|row, _, (first, at, count)| {
            let source = &plane[row + first..];
            if stride == 1 {
                for start in (0..count).step_by(S::F32_LANES) {
                    let length = S::F32_LANES.min(count - start);
                    let part = simd.partial_load_f32s(&source[start..start + length]);
                    store::<S>(copy, at + start, part);
                }
            } else {
                let source = source.iter().step_by(stride);
                let copy = &mut copy[at..at + count];
                copy.iter_mut().zip(source).for_each(|(y, &x)| *y = x);
            }
        });
    }

    /// The plane of a copy.
    #[inline(always)]
    fn collect(&self, copy: &[f32], plane: &mut [f32]) {
        let stride = self.g.stride().1;
        self.rows(|row, _, (first, at, count)| {
            let copy = &copy[at..at + count];
            let out = plane[row + first..].iter_mut().step_by(stride);
            out.zip(copy).for_each(|(y, &x)| *y = x);
        });
    }
}

/// A vector's results.
#[inline(always)]
fn results<S: Simd>(simd: S, data: &[f32], vector: Vector) -> S::f32s {
    let data = &data[vector.result..][..vector.length];
    if vector.length == S::F32_LANES {
        load::<S>(data, 0)
    } else {
        simd.partial_load_f32s(data)
    }
}

/// The results of a plane.
struct Results<'a> {
    layout: &'a Layout<'a>,
    x: &'a [f32],
    weight: &'a [f32],
    bias: f32,
    copy: &'a mut [f32],
    out: &'a mut [f32],
}

impl WithSimd for Results<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.layout.spread(simd, self.x, self.copy);
        for block in self.layout.vectors.chunks(BLOCK) {
            let at: [Vector; BLOCK] = std::array::from_fn(|i| block[i.min(block.len() - 1)]);
            let mut sums = [simd.splat_f32s(self.bias); BLOCK];
            for (&tap, &weight) in self.layout.taps.iter().zip(self.weight) {
                let weight = simd.splat_f32s(weight);
                for (sum, at) in sums.iter_mut().zip(at) {
                    let x = load::<S>(self.copy, at.source + tap);
                    *sum = simd.mul_add_e_f32s(weight, x, *sum);
                }
            }
            // In order, so that what a vector has more is overwritten by the next row.
            for (sum, at) in sums.into_iter().zip(block) {
                if at.result + S::F32_LANES <= self.out.len() {
                    store::<S>(self.out, at.result, sum);
                } else {
                    simd.partial_store_f32s(&mut self.out[at.result..][..at.length], sum);
                }
            }
        }
    }
}

/// A plane of dx: each result's gradient goes where its window lies.
struct Spread<'a> {
    layout: &'a Layout<'a>,
    dy: &'a [f32],
    weight: &'a [f32],
    copy: &'a mut [f32],
    dx: &'a mut [f32],
}

impl WithSimd for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.copy.fill(0.0);
        for (&tap, &weight) in self.layout.taps.iter().zip(self.weight) {
            let weight = simd.splat_f32s(weight);
            for &vector in &self.layout.vectors {
                let dy = results(simd, self.dy, vector);
                let at = &mut self.copy[vector.source + tap..][..S::F32_LANES];
                let at = &mut S::as_mut_simd_f32s(at).0[0];
                *at = simd.mul_add_e_f32s(weight, dy, *at);
            }
        }
        self.layout.collect(self.copy, self.dx);
    }
}

/// The gradient of a channel's weights over the batch.
struct Sums<'a> {
    layout: &'a Layout<'a>,
    channel: usize,
    x: &'a [f32],
    dy: &'a [f32],
    copy: &'a mut [f32],
    dw: &'a mut [f32],
}

impl WithSimd for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (layout, g) = (self.layout, self.layout.g);
        let (plane, pixels) = (g.height * g.width, g.pixels());
        let groups = layout.taps.len().div_ceil(TAPS);
        let mut sums = vec![[simd.splat_f32s(0.0); TAPS]; groups];
        for n in 0..g.batch {
            let number = n * g.channels + self.channel;
            layout.spread(simd, &self.x[number * plane..][..plane], self.copy);
            let dy = &self.dy[number * pixels..][..pixels];
            for (taps, sums) in layout.taps.chunks(TAPS).zip(&mut sums) {
                let taps: [usize; TAPS] = std::array::from_fn(|i| taps[i.min(taps.len() - 1)]);
                let mut own = *sums;
                for &vector in &layout.vectors {
                    let dy = results(simd, dy, vector);
                    for (sum, tap) in own.iter_mut().zip(taps) {
                        let x = load::<S>(self.copy, vector.source + tap);
                        *sum = simd.mul_add_e_f32s(dy, x, *sum);
                    }
                }
                *sums = own;
            }
        }
        for (dw, sum) in self.dw.iter_mut().zip(sums.as_flattened()) {
            *dw = simd.reduce_sum_f32s(*sum);
        }
    }
}

/// Calls `work` with the number of each plane of `out`, the plane, and zeros for a copy.
fn planes(
    workers: Workers<'_>,
    g: &Geometry,
    (out, size): (&mut [f32], usize),
    workspace: &mut [f32],
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
) {
    let copy = g.padded_plane().unwrap_or(0);
    workspace.fill(0.0);
    let units = out.chunks_exact_mut(size).enumerate().collect();
    deal(workers, units, (workspace, copy), |(number, out), copy| {
        work(number, out, copy)
    });
}

/// out = the windows of each plane by its channel's weight.
pub(super) fn forward(
    workers: Workers<'_>,
    g: &Geometry,
    (x, weight, bias): (&[f32], &[f32], Option<&[f32]>),
    out: &mut [f32],
    workspace: &mut [f32],
    finish: Finish<'_>,
) {
    let (layout, plane, size) = (
        Layout::new(g, tile::lanes()),
        g.height * g.width,
        g.pixels(),
    );
    let window = layout.taps.len();
    planes(
        workers,
        g,
        (&mut *out, size),
        workspace,
        |number, out, copy| {
            let channel = number % g.channels;
            Arch::new().dispatch(Results {
                layout: &layout,
                x: &x[number * plane..][..plane],
                weight: &weight[channel * window..][..window],
                bias: bias.map_or(0.0, |bias| bias[channel]),
                copy,
                out: &mut *out,
            });
            finish(number * size, out);
        },
    );
}

/// dx of dy: of stride 1 a convolution with the weights in reverse.
pub(super) fn input_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    (dy, weight): (&[f32], &[f32]),
    dx: &mut [f32],
    workspace: &mut [f32],
) {
    if let Some(reverse) = g.reverse() {
        let window = g.kernel.0 * g.kernel.1;
        let weight: Vec<f32> = weight
            .chunks_exact(window)
            .flat_map(|weight| weight.iter().rev().copied())
            .collect();
        return forward(
            workers,
            &reverse,
            (dy, &weight, None),
            dx,
            workspace,
            &|_, _| {},
        );
    }
    let (layout, pixels) = (Layout::new(g, tile::lanes()), g.pixels());
    let (window, plane) = (layout.taps.len(), g.height * g.width);
    planes(workers, g, (dx, plane), workspace, |number, dx, copy| {
        let channel = number % g.channels;
        Arch::new().dispatch(Spread {
            layout: &layout,
            dy: &dy[number * pixels..][..pixels],
            weight: &weight[channel * window..][..window],
            copy,
            dx,
        });
    });
}

/// dw of x and dy.
pub(super) fn weight_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    (x, dy): (&[f32], &[f32]),
    dw: &mut [f32],
    workspace: &mut [f32],
) {
    let layout = Layout::new(g, tile::lanes());
    planes(
        workers,
        g,
        (dw, layout.taps.len()),
        workspace,
        |channel, dw, copy| {
            Arch::new().dispatch(Sums {
                layout: &layout,
                channel,
                x,
                dy,
                copy,
                dw,
            });
        },
    );
}
