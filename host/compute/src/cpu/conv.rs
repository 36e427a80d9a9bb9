//! Convolution as a product with a matrix of patches, image by image (Chellapilla, Puri and Simard
//! 2006). A batch is divided into lanes, each with a workspace of its own.

use super::chunks::Workers;
use super::matmul::{Matrix, gemm};
use crate::ops::conv::Geometry;

/// Sizes of one group of channels.
struct Group {
    count: usize,
    /// Elements of an image's channels in a group, and of its results.
    image: usize,
    result: usize,
    /// Channels of results.
    out: usize,
    /// Elements of a group's weights.
    weight: usize,
    /// Elements of the patch matrix.
    matrix: usize,
}

impl Group {
    fn new(g: &Geometry) -> Self {
        let count = g.attributes.groups as usize;
        let out = g.out / count;
        Self {
            count,
            image: g.channels / count * g.height * g.width,
            result: out * g.pixels(),
            out,
            weight: out * g.patch(),
            matrix: if g.is_pointwise() {
                0
            } else {
                g.patch() * g.pixels()
            },
        }
    }
}

/// Calls `work` with the number, the part of `out` (`size` elements) and the patch matrix of every
/// lane, side by side on the workers.
fn lanes(
    workers: Workers<'_>,
    out: &mut [f32],
    size: usize,
    matrices: &mut [f32],
    matrix: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
) {
    let mut lanes: Vec<(&mut [f32], &mut [f32])> = Vec::new();
    let mut matrices = matrices;
    for out in out.chunks_mut(size) {
        let (own, rest) = std::mem::take(&mut matrices).split_at_mut(matrix);
        matrices = rest;
        lanes.push((out, own));
    }
    let lanes: Vec<_> = lanes.into_iter().enumerate().collect();
    workers.each(lanes, |(lane, (out, matrix))| work(lane, out, matrix));
}

/// The columns of a window that fall into the image: for `columns` results, those from the first
/// whose input index `column·stride + offset − padding` is at least 0 to the last below `width`.
fn valid(
    columns: usize,
    stride: usize,
    offset: usize,
    padding: usize,
    width: usize,
) -> (usize, usize) {
    let first = padding.saturating_sub(offset).div_ceil(stride).min(columns);
    let end = (width + padding)
        .saturating_sub(offset)
        .div_ceil(stride)
        .clamp(first, columns);
    (first, end)
}

/// Calls `row` for every row of results of every row of the patch matrix: where the row starts in
/// the matrix; the image's row, where it falls into the image; the first and end columns that do,
/// and the column of the image that the first falls on.
fn patches(g: &Geometry, mut row: impl FnMut(usize, Option<usize>, (usize, usize), usize)) {
    let c = &g.attributes;
    let pair = |(a, b): (u32, u32)| (a as usize, b as usize);
    let (stride, padding, dilation) = (pair(c.stride), pair(c.padding), pair(c.dilation));
    let channels = g.channels / c.groups as usize;
    let mut at = 0;
    for channel in 0..channels {
        for i in 0..g.kernel.0 {
            for j in 0..g.kernel.1 {
                let offset = j * dilation.1;
                let (first, end) = valid(g.columns, stride.1, offset, padding.1, g.width);
                let column = (first * stride.1 + offset).saturating_sub(padding.1);
                for y in 0..g.rows {
                    let line = (y * stride.0 + i * dilation.0)
                        .checked_sub(padding.0)
                        .filter(|&line| line < g.height)
                        .map(|line| (channel * g.height + line) * g.width);
                    row(at, line, (first, end), column);
                    at += g.columns;
                }
            }
        }
    }
}

/// The patch matrix `[patch, pixels]` of a group's image.
fn gather(g: &Geometry, image: &[f32], matrix: &mut [f32]) {
    let stride = g.attributes.stride.1 as usize;
    patches(g, |at, line, (first, end), column| {
        let row = &mut matrix[at..at + g.columns];
        let Some(line) = line.filter(|_| first < end) else {
            row.fill(0.0);
            return;
        };
        row[..first].fill(0.0);
        row[end..].fill(0.0);
        let source = &image[line + column..line + g.width];
        if stride == 1 {
            row[first..end].copy_from_slice(&source[..end - first]);
        } else {
            let source = source.iter().step_by(stride);
            row[first..end]
                .iter_mut()
                .zip(source)
                .for_each(|(y, &x)| *y = x);
        }
    });
}

/// Adds a patch matrix back to the image it would come from.
fn scatter(g: &Geometry, matrix: &[f32], image: &mut [f32]) {
    let stride = g.attributes.stride.1 as usize;
    patches(g, |at, line, (first, end), column| {
        let Some(line) = line.filter(|_| first < end) else {
            return;
        };
        let row = &matrix[at + first..at + end];
        let target = image[line + column..line + g.width]
            .iter_mut()
            .step_by(stride);
        target.zip(row).for_each(|(y, &x)| *y += x);
    });
}

/// out `[batch, out, rows, columns]` of x and weight.
pub(crate) fn forward(
    workers: Workers<'_>,
    g: &Geometry,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
    workspace: &mut [f32],
) {
    let group = Group::new(g);
    let (image, result) = (group.image * group.count, group.result * group.count);
    let images = g.batch.div_ceil(g.lanes());
    lanes(
        workers,
        out,
        images * result,
        workspace,
        group.matrix,
        |lane, out, matrix| {
            for (n, out) in out.chunks_exact_mut(result).enumerate() {
                if workers.cancelled() {
                    return;
                }
                if let Some(bias) = bias {
                    let planes = out.chunks_exact_mut(g.pixels());
                    planes.zip(bias).for_each(|(plane, &bias)| plane.fill(bias));
                }
                let x = &x[(lane * images + n) * image..];
                for (k, out) in out.chunks_exact_mut(group.result).enumerate() {
                    let x = &x[k * group.image..][..group.image];
                    let weight = Matrix::new(&weight[k * group.weight..], group.out, g.patch());
                    let columns = if g.is_pointwise() {
                        x
                    } else {
                        gather(g, x, matrix);
                        &*matrix
                    };
                    let columns = Matrix::new(columns, g.patch(), g.pixels());
                    gemm(workers.alone(), weight, columns, out, bias.is_some());
                }
            }
        },
    );
}

/// dx = the patches' gradients weightᵀ·dy, added back to the image.
pub(crate) fn input_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    workspace: &mut [f32],
) {
    let group = Group::new(g);
    let (image, result) = (group.image * group.count, group.result * group.count);
    let images = g.batch.div_ceil(g.lanes());
    lanes(
        workers,
        dx,
        images * image,
        workspace,
        group.matrix,
        |lane, dx, matrix| {
            for (n, dx) in dx.chunks_exact_mut(image).enumerate() {
                if workers.cancelled() {
                    return;
                }
                let dy = &dy[(lane * images + n) * result..];
                for (k, dx) in dx.chunks_exact_mut(group.image).enumerate() {
                    let dy = Matrix::new(&dy[k * group.result..], group.out, g.pixels());
                    let weight = Matrix::new(&weight[k * group.weight..], group.out, g.patch());
                    if g.is_pointwise() {
                        gemm(workers.alone(), weight.transposed(), dy, dx, false);
                    } else {
                        gemm(workers.alone(), weight.transposed(), dy, matrix, false);
                        dx.fill(0.0);
                        scatter(g, matrix, dx);
                    }
                }
            }
        },
    );
}

/// dw = Σ dy·patchesᵀ over the batch: a sum a lane, added in the lanes' order.
pub(crate) fn weight_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    workspace: &mut [f32],
) {
    let group = Group::new(g);
    let (image, result) = (group.image * group.count, group.result * group.count);
    let images = g.batch.div_ceil(g.lanes());
    let used = g.batch.div_ceil(images) * dw.len();
    let (sums, matrices) = workspace.split_at_mut(dw.len() * g.lanes());
    let sums = &mut sums[..used];
    lanes(
        workers,
        sums,
        dw.len(),
        matrices,
        group.matrix,
        |lane, sum, matrix| {
            for n in lane * images..((lane + 1) * images).min(g.batch) {
                if workers.cancelled() {
                    return;
                }
                let (x, dy) = (&x[n * image..], &dy[n * result..]);
                for (k, sum) in sum.chunks_exact_mut(group.weight).enumerate() {
                    let x = &x[k * group.image..][..group.image];
                    let dy = Matrix::new(&dy[k * group.result..], group.out, g.pixels());
                    let columns = if g.is_pointwise() {
                        x
                    } else {
                        gather(g, x, matrix);
                        &*matrix
                    };
                    let columns = Matrix::new(columns, g.patch(), g.pixels());
                    gemm(
                        workers.alone(),
                        dy,
                        columns.transposed(),
                        sum,
                        n > lane * images,
                    );
                }
            }
        },
    );
    dw.fill(0.0);
    for sum in sums.chunks_exact(dw.len()) {
        dw.iter_mut().zip(sum).for_each(|(y, &x)| *y += x);
    }
}
