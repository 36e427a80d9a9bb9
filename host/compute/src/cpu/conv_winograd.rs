//! Convolution by 3 × 3 windows of stride 1 in Winograd's form F(4×4, 3×3) (Lavin and Gray 2016): a
//! tile of 4 × 4 results takes 36 products instead of 144.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over both axes of small squares, which have to be unrolled"
)]

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::chunks::Workers;
use super::conv::{Finish, deal};
use super::conv_transform::{self as transform, Line};
use super::tile::{self, Dense, Packed, load, store};
use crate::ops::geometry::{Geometry, TILE_ROWS};

/// Elements of a transformed window.
const POINTS: usize = 36;

/// Images of a channel each, by their sizes, and where tiles begin in them: `padding` before.
#[derive(Clone, Copy)]
struct Images<'a> {
    data: &'a [f32],
    channels: usize,
    size: (usize, usize),
    padding: (usize, usize),
}

/// The tiles of results, counted by image, row and column.
#[derive(Clone, Copy)]
struct Tiles {
    high: usize,
    wide: usize,
}

impl Tiles {
    fn new(g: &Geometry) -> Self {
        let (high, wide) = g.tiles();
        Self { high, wide }
    }

    /// Image, row and column of a tile.
    #[inline(always)]
    fn at(self, tile: usize) -> (usize, usize, usize) {
        let (row, column) = (tile / self.wide, tile % self.wide);
        (row / self.high, row % self.high, column)
    }

    /// Element (i, j) of each tile's window of SIDE × SIDE in a channel, a tile a lane, by way of
    /// `windows`; what lanes without a tile hold is left as it was.
    #[inline(always)]
    fn gather<S: Simd, const SIDE: usize>(
        self,
        simd: S,
        images: Images<'_>,
        channel: usize,
        tiles: Range<usize>,
        windows: &mut [[[f32; 16]; SIDE]; SIDE],
    ) -> [[S::f32s; SIDE]; SIDE] {
        let (height, width) = images.size;
        let plane = height * width;
        for (lane, tile) in tiles.enumerate() {
            let (image, row, column) = self.at(tile);
            let data = &images.data[(image * images.channels + channel) * plane..][..plane];
            let lane = lane % 16;
            // Wraps to large numbers where a window begins before the image.
            let top = (4 * row).wrapping_sub(images.padding.0);
            let left = (4 * column).wrapping_sub(images.padding.1);
            let inside = |at: usize, size: usize| at < size && size - at >= SIDE;
            if inside(top, height) && inside(left, width) {
                for (i, windows) in windows.iter_mut().enumerate() {
                    let line = &data[(top + i) * width + left..][..SIDE];
                    for j in 0..SIDE {
                        windows[j][lane] = line[j];
                    }
                }
            } else {
                for (i, windows) in windows.iter_mut().enumerate() {
                    let row = top.wrapping_add(i);
                    for (j, window) in windows.iter_mut().enumerate() {
                        let column = left.wrapping_add(j);
                        let inside = row < height && column < width;
                        window[lane] = if inside {
                            data[row * width + column]
                        } else {
                            0.0
                        };
                    }
                }
            }
        }
        let mut result = [[simd.splat_f32s(0.0); SIDE]; SIDE];
        for i in 0..SIDE {
            for j in 0..SIDE {
                result[i][j] = load::<S>(&windows[i][j], 0);
            }
        }
        result
    }
}

/// Weights of a panel of results, `[point, channel, panel]`.
struct Weights<'a, W> {
    /// The weight of a result's channel, a channel and an element of the window.
    weight: &'a W,
    rows: Range<usize>,
    channels: usize,
    panel: usize,
    out: &'a mut [f32],
}

impl<W: Fn(usize, usize, usize) -> f32> WithSimd for Weights<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (lanes, panel) = (S::F32_LANES, self.panel);
        for channel in 0..self.channels {
            for first in (0..panel).step_by(lanes) {
                let mut windows = [[[0.0f32; 16]; 3]; 3];
                let rows = self.rows.clone().skip(first).take(lanes);
                for (lane, row) in rows.enumerate() {
                    for tap in 0..9 {
                        windows[tap / 3][tap % 3][lane] = (self.weight)(row, channel, tap);
                    }
                }
                let mut vectors = [[simd.splat_f32s(0.0); 3]; 3];
                for tap in 0..9 {
                    vectors[tap / 3][tap % 3] = load::<S>(&windows[tap / 3][tap % 3], 0);
                }
                let points = transform::Weights(simd).both(simd, &vectors);
                for (point, &value) in points.as_flattened().iter().enumerate() {
                    let at = (point * self.channels + channel) * panel + first;
                    // What a vector has more than the panel is overwritten by the next channel.
                    if first + lanes <= panel || channel + 1 < self.channels {
                        store::<S>(self.out, at, value);
                    } else {
                        simd.partial_store_f32s(&mut self.out[at..at + panel - first], value);
                    }
                }
            }
        }
    }
}

/// Transformed windows of a strip of tiles, `[point, channel, strip]`.
struct Windows<'a> {
    tiles: Tiles,
    images: Images<'a>,
    strip: Range<usize>,
    width: usize,
    out: &'a mut [f32],
}

impl WithSimd for Windows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (lanes, channels) = (S::F32_LANES, self.images.channels);
        let mut buffer = [[[0.0; 16]; 6]; 6];
        for channel in 0..channels {
            for first in (0..self.strip.len()).step_by(lanes) {
                let start = self.strip.start + first;
                let tiles = start..self.strip.end.min(start + lanes);
                let windows =
                    self.tiles
                        .gather::<S, 6>(simd, self.images, channel, tiles, &mut buffer);
                let points = transform::Window(simd).both(simd, &windows);
                for (point, &value) in points.as_flattened().iter().enumerate() {
                    let at = (point * channels + channel) * self.width + first;
                    store::<S>(self.out, at, value);
                }
            }
        }
    }
}

/// Results of a channel from its products `[point, …, tile]`.
struct Results<'a, 'o> {
    tiles: Tiles,
    range: Range<usize>,
    /// The row of tiles that a plane's part begins with, and a row's elements.
    first_row: usize,
    columns: usize,
    products: &'a [f32],
    /// Elements from a point to the next.
    stride: usize,
    bias: f32,
    /// The part of the channel's plane of each image from the first.
    planes: &'a mut [&'o mut [f32]],
}

impl WithSimd for Results<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let bias = simd.splat_f32s(self.bias);
        let first_image = self.range.start / (self.tiles.high * self.tiles.wide);
        for start in self.range.clone().step_by(lanes) {
            let at = start - self.range.start;
            let mut points = [[bias; 6]; 6];
            for point in 0..POINTS {
                let value = load::<S>(self.products, point * self.stride + at);
                points[point / 6][point % 6] = value;
            }
            let results = transform::Results(simd).both(simd, &points);
            let mut values = [[[0.0f32; 16]; 4]; 4];
            for i in 0..4 {
                for j in 0..4 {
                    store::<S>(&mut values[i][j], 0, simd.add_f32s(results[i][j], bias));
                }
            }
            for (lane, tile) in (start..self.range.end.min(start + lanes)).enumerate() {
                let (image, row, column) = self.tiles.at(tile);
                let plane = &mut *self.planes[image - first_image];
                let from = 4 * (row - self.first_row) * self.columns;
                let lines = plane[from..].chunks_exact_mut(self.columns).take(4);
                for (line, values) in lines.zip(&values) {
                    for (y, values) in line[4 * column..].iter_mut().zip(values) {
                        *y = values[lane % 16];
                    }
                }
            }
        }
    }
}

/// Results that are computed at once: the tiles of some rows of an image, or of some whole images.
struct Unit<'o> {
    tiles: Range<usize>,
    /// The first image, and the first row of tiles.
    image: usize,
    row: usize,
    /// The parts of planes `[block of channels, channel, image]`.
    blocks: Vec<Vec<&'o mut [f32]>>,
}

/// Divides results among units, and a unit's channels among blocks of `rows`.
fn units<'o>(g: &Geometry, rows: usize, out: &'o mut [f32]) -> Vec<Unit<'o>> {
    let (high, wide) = g.tiles();
    let (images, tile_rows) = g.tile_unit();
    let mut units: Vec<Unit<'o>> = Vec::new();
    let blocks = g.out.div_ceil(rows);
    for first in (0..g.batch).step_by(images) {
        let count = images.min(g.batch - first);
        for row in (0..high).step_by(tile_rows) {
            let end = high.min(row + tile_rows);
            let start = (first * high + row) * wide;
            let length = if count > 1 { count * high } else { end - row };
            units.push(Unit {
                tiles: start..start + length * wide,
                image: first,
                row,
                blocks: (0..blocks).map(|_| Vec::new()).collect(),
            });
        }
    }
    let parts = high.div_ceil(tile_rows);
    let size = 4 * tile_rows * g.columns;
    // Planes come image by image; blocks hold them channel by channel.
    let mut planes: Vec<Vec<&'o mut [f32]>> =
        (0..g.out * units.len()).map(|_| Vec::new()).collect();
    for (number, plane) in out.chunks_exact_mut(g.pixels()).enumerate() {
        let (image, channel) = (number / g.out, number % g.out);
        for (part, piece) in plane.chunks_mut(size).enumerate() {
            planes[(image / images * parts + part) * g.out + channel].push(piece);
        }
    }
    for (number, pieces) in planes.into_iter().enumerate() {
        let (unit, channel) = (number / g.out, number % g.out);
        units[unit].blocks[channel / rows].extend(pieces);
    }
    units
}

/// Convolves; `weight` gives the weight of a result's channel, a channel and a window's element.
fn product(
    workers: Workers<'_>,
    g: &Geometry,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    (x, bias): (&[f32], Option<&[f32]>),
    out: &mut [f32],
    workspace: &mut [f32],
    finish: Finish<'_>,
) {
    let (panel, strip) = tile::shape();
    let tiles = Tiles::new(g);
    let channels = g.channels;
    let panel_size = POINTS * channels * panel;
    let (packed, workspace) = workspace.split_at_mut(g.out.div_ceil(panel) * panel_size);
    workers.chunks(packed, panel_size, |number, out| {
        let first = number * panel;
        Arch::new().dispatch(Weights {
            weight: &weight,
            rows: first..g.out.min(first + panel),
            channels,
            panel,
            out,
        });
    });
    let packed = &*packed;
    let images = Images {
        data: x,
        channels,
        size: (g.height, g.width),
        padding: g.padding(),
    };
    let rows = TILE_ROWS / panel * panel;
    let units = units(g, rows, out);
    let (windows_size, products_size) = (g.windows_size(), g.products_size());
    // Few units are computed one after the other, each by all threads.
    let side_by_side = g.tile_units() >= 4;
    let inner = if side_by_side {
        workers.alone()
    } else {
        workers
    };
    let run = |unit: Unit<'_>, windows: &mut [f32], products: &mut [f32]| {
        let strip_size = POINTS * channels * strip;
        let count = unit.tiles.len();
        let strips = &mut windows[..count.div_ceil(strip) * strip_size];
        inner.chunks(strips, strip_size, |number, out| {
            let first = unit.tiles.start + number * strip;
            Arch::new().dispatch(Windows {
                tiles,
                images,
                strip: first..unit.tiles.end.min(first + strip),
                width: strip,
                out,
            });
        });
        let strips = &*strips;
        let stride = count.next_multiple_of(strip);
        let parts = unit.blocks.into_iter().enumerate().collect();
        deal(
            inner,
            parts,
            (products, products_size),
            |(block, mut planes), products| {
                let first = block * rows;
                let own = rows.min(g.out - first);
                for point in 0..POINTS {
                    let a = Packed {
                        data: &packed[first / panel * panel_size + point * channels * panel..],
                        stride: panel_size,
                    };
                    let b = Packed {
                        data: &strips[point * channels * strip..],
                        stride: strip_size,
                    };
                    let mut out = Dense {
                        data: &mut products[point * own * stride..],
                        stride,
                    };
                    tile::outer(a, b, (own, channels, count), &mut out, false);
                }
                let images = planes.len() / own;
                for (row, planes) in planes.chunks_exact_mut(images).enumerate() {
                    Arch::new().dispatch(Results {
                        tiles,
                        range: unit.tiles.clone(),
                        first_row: unit.row,
                        columns: g.columns,
                        products: &products[row * stride..],
                        stride: own * stride,
                        bias: bias.map_or(0.0, |bias| bias[first + row]),
                        planes,
                    });
                    for (image, plane) in planes.iter_mut().enumerate() {
                        let number = (unit.image + image) * g.out + first + row;
                        finish(number * g.pixels() + 4 * unit.row * g.columns, plane);
                    }
                }
            },
        );
    };
    if side_by_side {
        let size = windows_size + products_size;
        deal(workers, units, (workspace, size), |unit, buffer| {
            let (windows, products) = buffer.split_at_mut(windows_size);
            run(unit, windows, products);
        });
    } else {
        let (windows, products) = workspace.split_at_mut(windows_size);
        units
            .into_iter()
            .for_each(|unit| run(unit, windows, products));
    }
}

/// out of x and weight.
pub(super) fn forward(
    workers: Workers<'_>,
    g: &Geometry,
    (x, weight, bias): (&[f32], &[f32], Option<&[f32]>),
    out: &mut [f32],
    workspace: &mut [f32],
    finish: Finish<'_>,
) {
    let value = |k: usize, c: usize, tap: usize| weight[(k * g.channels + c) * 9 + tap];
    product(workers, g, value, (x, bias), out, workspace, finish);
}

/// dx: the convolution of dy with the weights in reverse, as `Geometry::reverse` gives it.
pub(super) fn input_gradient(
    workers: Workers<'_>,
    reverse: &Geometry,
    (dy, weight): (&[f32], &[f32]),
    dx: &mut [f32],
    workspace: &mut [f32],
) {
    let value = |c: usize, k: usize, tap: usize| weight[(k * reverse.out + c) * 9 + 8 - tap];
    product(
        workers,
        reverse,
        value,
        (dy, None),
        dx,
        workspace,
        &|_, _| {},
    );
}

/// Transformed windows or gradients of a channel, `[point, tile]`.
struct Channel<'a> {
    tiles: Tiles,
    images: Images<'a>,
    channel: usize,
    range: Range<usize>,
    /// Whether the images are of the results' gradient.
    gradient: bool,
    out: &'a mut [f32],
}

impl WithSimd for Channel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (lanes, stride) = (S::F32_LANES, self.out.len() / POINTS);
        let (mut small, mut large) = ([[[0.0; 16]; 4]; 4], [[[0.0; 16]; 6]; 6]);
        for start in self.range.clone().step_by(lanes) {
            let tiles = start..self.range.end.min(start + lanes);
            let (images, channel) = (self.images, self.channel);
            let points = if self.gradient {
                let y = self
                    .tiles
                    .gather::<S, 4>(simd, images, channel, tiles, &mut small);
                transform::Gradient(simd).both(simd, &y)
            } else {
                let d = self
                    .tiles
                    .gather::<S, 6>(simd, images, channel, tiles, &mut large);
                transform::Window(simd).both(simd, &d)
            };
            let at = start - self.range.start;
            for (out, &value) in self.out.chunks_exact_mut(stride).zip(points.as_flattened()) {
                store::<S>(out, at, value);
            }
        }
    }
}

/// The gradient of a result's channel's weights, `[channel, 9]`, from its products' `[point, …]`.
struct Gradient<'a> {
    products: &'a [f32],
    /// Elements from a point to the next.
    stride: usize,
    dw: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        for (number, dw) in self.dw.chunks_mut(9 * lanes).enumerate() {
            let count = dw.len() / 9;
            let mut points = [[simd.splat_f32s(0.0); 6]; 6];
            for point in 0..POINTS {
                let at = point * self.stride + number * lanes;
                let products = &self.products[at..at + count];
                points[point / 6][point % 6] = simd.partial_load_f32s(products);
            }
            let weights = transform::WeightsGradient(simd).both(simd, &points);
            for (tap, &value) in weights.as_flattened().iter().enumerate() {
                let mut values = [0.0f32; 16];
                store::<S>(&mut values, 0, value);
                let out = dw[tap..].iter_mut().step_by(9);
                out.zip(&values).for_each(|(y, &x)| *y = x);
            }
        }
    }
}

/// dw of x and dy.
pub(super) fn weight_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    (x, dy): (&[f32], &[f32]),
    dw: &mut [f32],
    workspace: &mut [f32],
) {
    let tiles = Tiles::new(g);
    let all = g.batch * tiles.high * tiles.wide;
    let block = g.gradient_tiles();
    let (products, workspace) = workspace.split_at_mut(POINTS * g.out * g.channels);
    let (windows, gradients) = workspace.split_at_mut(POINTS * g.channels * block);
    let gradients = &mut gradients[..POINTS * g.out * block];
    let input = Images {
        data: x,
        channels: g.channels,
        size: (g.height, g.width),
        padding: g.padding(),
    };
    let results = Images {
        data: dy,
        channels: g.out,
        size: (g.rows, g.columns),
        padding: (0, 0),
    };
    for first in (0..all).step_by(block) {
        let range = first..all.min(first + block);
        let transform = |out: &mut [f32], images: Images<'_>, gradient: bool| {
            workers.chunks(out, POINTS * block, |channel, out| {
                Arch::new().dispatch(Channel {
                    tiles,
                    images,
                    channel,
                    range: range.clone(),
                    gradient,
                    out,
                });
            });
        };
        transform(windows, input, false);
        transform(gradients, results, true);
        let (windows, gradients) = (&*windows, &*gradients);
        workers.chunks(products, g.out * g.channels, |point, out| {
            let a = (&gradients[point * block..], POINTS * block);
            let b = (&windows[point * block..], POINTS * block);
            let size = (g.out, range.len(), g.channels);
            tile::inner(a, b, size, (out, g.channels), first > 0);
        });
        if workers.cancelled() {
            return;
        }
    }
    let products = &*products;
    workers.chunks(dw, 9 * g.channels, |channel, dw| {
        Arch::new().dispatch(Gradient {
            products: &products[channel * g.channels..],
            stride: g.out * g.channels,
            dw,
        });
    });
}
