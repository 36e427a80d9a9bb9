//! The gradient of a convolution's weights: scalar products of the rows of the patch matrix with
//! dy's planes, over the batch. Rows of the patch matrix are divided among the threads, so that each
//! sum is one thread's.

use std::ops::Range;

use pulp::Arch;

use super::chunks::Workers;
use super::conv::deal;
use super::conv_windows::{Grid, Lines};
use super::tile;
use crate::ops::geometry::{Geometry, WEIGHT_ROWS};

/// dw `[out, patch]` = Σ dy·patchesᵀ.
pub(super) fn weight_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    (x, dy): (&[f32], &[f32]),
    dw: &mut [f32],
    workspace: &mut [f32],
) {
    let (groups, pixels, patch) = (g.groups(), g.pixels(), g.patch());
    let (from, to) = (g.channels / groups, g.out / groups);
    let plane = g.height * g.width;
    let (sums, workspace) = workspace.split_at_mut(dw.len());
    let (joined, workspace) = workspace.split_at_mut(g.batch * g.out * g.joined_pixels());
    let joins = g.joined_pixels() > 0;
    if joins {
        workers.chunks(joined, g.batch * pixels, |channel, out| {
            for (n, out) in out.chunks_exact_mut(pixels).enumerate() {
                out.copy_from_slice(&dy[(n * g.out + channel) * pixels..][..pixels]);
            }
        });
    }
    let joined = &*joined;
    let grid = Grid::forward(g);
    let is_plane = grid.is_plane((g.height, g.width));
    let columns = g.weight_columns();
    let rows = patch
        .div_ceil(8)
        .next_multiple_of(4)
        .min(WEIGHT_ROWS)
        .min(patch);
    let mut units = Vec::new();
    for (group, sums) in sums.chunks_exact_mut(to * patch).enumerate() {
        let parts = sums.chunks_mut(rows * to).enumerate();
        units.extend(parts.map(|(i, sums)| (group, i * rows, sums)));
    }
    let size = WEIGHT_ROWS.min(patch) * columns;
    deal(
        workers,
        units,
        (workspace, size),
        |(group, first, sums), buffer| {
            let count = sums.len() / to;
            // Rows of the patch matrix at `places` of an image.
            let gather = |image: usize, places: Range<usize>, out: &mut [f32]| {
                Arch::new().dispatch(Lines {
                    grid: &grid,
                    source: &x[(image * g.channels + group * from) * plane..],
                    size: (g.height, g.width),
                    terms: first..first + count,
                    places,
                    out,
                    stride: columns,
                });
            };
            if joins {
                let all = g.batch * pixels;
                for start in (0..all).step_by(columns) {
                    if workers.cancelled() {
                        return;
                    }
                    let length = columns.min(all - start);
                    for n in 0..length / pixels {
                        gather(start / pixels + n, 0..pixels, &mut buffer[n * pixels..]);
                    }
                    let dy = (&joined[group * to * all + start..], all);
                    let size = (count, length, to);
                    tile::inner((buffer, columns), dy, size, (sums, to), start > 0);
                }
                return;
            }
            for n in 0..g.batch {
                if workers.cancelled() {
                    return;
                }
                for start in (0..pixels).step_by(columns) {
                    let length = columns.min(pixels - start);
                    let source = if is_plane {
                        let channel = n * g.channels + group * from + first;
                        (&x[channel * plane + start..], plane)
                    } else {
                        gather(n, start..start + length, buffer);
                        (&*buffer, columns)
                    };
                    let dy = (&dy[(n * g.out + group * to) * pixels + start..], pixels);
                    let size = (count, length, to);
                    tile::inner(source, dy, size, (sums, to), n + start > 0);
                }
            }
        },
    );
    let sums = &*sums;
    workers.chunks(dw, patch, |row, dw| {
        let (group, row) = (row / to, row % to);
        let sums = sums[group * to * patch + row..].iter().step_by(to);
        dw.iter_mut().zip(sums).for_each(|(y, &x)| *y = x);
    });
}
