//! Convolution by 3 × 3 windows of stride 1 in Winograd's form F(4×4, 3×3) (Lavin and Gray 2016): a
//! tile of 4 × 4 results takes 36 products instead of 144. The points are 0, ±3/4, ±3/2 and ∞, whose
//! relative error is about 1e-6, half of that of the usual 0, ±1, ±2, ∞.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::chunks::Workers;
use super::conv::{Finish, deal};
use super::tile::{self, Dense, Packed};
use crate::ops::geometry::{Geometry, TILE_ROWS};

/// Elements of a transformed window.
const POINTS: usize = 36;

/// Elements of a window's side at most, for as many tiles as a vector has lanes.
const LINE: usize = 4 * 16 + 2;

/// A transform along both axes of a square.
#[inline(always)]
fn both<V: Copy, const N: usize, const M: usize>(
    square: [[V; N]; N],
    along: impl Fn([V; N]) -> [V; M],
) -> [[V; M]; M] {
    let rows: [[V; M]; N] = square.map(&along);
    let columns: [[V; M]; M] = std::array::from_fn(|j| along(std::array::from_fn(|i| rows[i][j])));
    std::array::from_fn(|i| std::array::from_fn(|j| columns[j][i]))
}

/// The transforms of vectors, a tile a lane.
#[derive(Clone, Copy)]
struct Transform<S>(S);

impl<S: Simd> Transform<S> {
    /// Σ factor·x.
    #[inline(always)]
    fn sum<const N: usize>(self, terms: [(f32, S::f32s); N]) -> S::f32s {
        let mut sum = self.0.splat_f32s(0.0);
        for (i, (factor, x)) in terms.into_iter().enumerate() {
            sum = if i == 0 && factor == 1.0 {
                x
            } else if i == 0 {
                self.0.mul_f32s(self.0.splat_f32s(factor), x)
            } else {
                self.0.mul_add_e_f32s(self.0.splat_f32s(factor), x, sum)
            };
        }
        sum
    }

    /// a + b and a − b.
    #[inline(always)]
    fn pair(self, a: S::f32s, b: S::f32s) -> (S::f32s, S::f32s) {
        (self.0.add_f32s(a, b), self.0.sub_f32s(a, b))
    }

    /// Bᵀ, of a window.
    #[inline(always)]
    fn window(self, d: [S::f32s; 6]) -> [S::f32s; 6] {
        const FIRST: f32 = 81.0 / 64.0;
        const SECOND: f32 = 45.0 / 16.0;
        let even = self.sum([(1.0, d[4]), (-9.0 / 4.0, d[2])]);
        let odd = self.sum([(0.75, d[3]), (-27.0 / 16.0, d[1])]);
        let (a, b) = self.pair(even, odd);
        let even = self.sum([(1.0, d[4]), (-9.0 / 16.0, d[2])]);
        let odd = self.sum([(1.5, d[3]), (-27.0 / 32.0, d[1])]);
        let (c, e) = self.pair(even, odd);
        [
            self.sum([(1.0, d[4]), (FIRST, d[0]), (-SECOND, d[2])]),
            a,
            b,
            c,
            e,
            self.sum([(1.0, d[5]), (FIRST, d[1]), (-SECOND, d[3])]),
        ]
    }

    /// Aᵀ, to a tile of results.
    #[inline(always)]
    fn results(self, m: [S::f32s; 6]) -> [S::f32s; 4] {
        let (s, d) = self.pair(m[1], m[2]);
        let (t, e) = self.pair(m[3], m[4]);
        [
            self.sum([(1.0, m[0]), (1.0, s), (1.0, t)]),
            self.sum([(0.75, d), (1.5, e)]),
            self.sum([(9.0 / 16.0, s), (9.0 / 4.0, t)]),
            self.sum([(1.0, m[5]), (27.0 / 64.0, d), (27.0 / 8.0, e)]),
        ]
    }

    /// A, of a tile of the results' gradient.
    #[inline(always)]
    fn gradient(self, y: [S::f32s; 4]) -> [S::f32s; 6] {
        let even = self.sum([(1.0, y[0]), (9.0 / 16.0, y[2])]);
        let odd = self.sum([(0.75, y[1]), (27.0 / 64.0, y[3])]);
        let (a, b) = self.pair(even, odd);
        let even = self.sum([(1.0, y[0]), (9.0 / 4.0, y[2])]);
        let odd = self.sum([(1.5, y[1]), (27.0 / 8.0, y[3])]);
        let (c, d) = self.pair(even, odd);
        [y[0], a, b, c, d, y[3]]
    }

    /// G, of a window's weights.
    #[inline(always)]
    fn weights(self, g: [S::f32s; 3]) -> [S::f32s; 6] {
        const A: f32 = -128.0 / 243.0;
        const B: f32 = 32.0 / 243.0;
        let (a, b) = self.pair(
            self.sum([(A, g[0]), (A * 9.0 / 16.0, g[2])]),
            self.sum([(A * 0.75, g[1])]),
        );
        let (c, d) = self.pair(
            self.sum([(B, g[0]), (B * 9.0 / 4.0, g[2])]),
            self.sum([(B * 1.5, g[1])]),
        );
        [self.sum([(64.0 / 81.0, g[0])]), a, b, c, d, g[2]]
    }

    /// Gᵀ, to the gradient of a window's weights.
    #[inline(always)]
    fn weights_gradient(self, u: [S::f32s; 6]) -> [S::f32s; 3] {
        const A: f32 = -128.0 / 243.0;
        const B: f32 = 32.0 / 243.0;
        let (s, d) = self.pair(u[1], u[2]);
        let (t, e) = self.pair(u[3], u[4]);
        [
            self.sum([(64.0 / 81.0, u[0]), (A, s), (B, t)]),
            self.sum([(A * 0.75, d), (B * 1.5, e)]),
            self.sum([(1.0, u[5]), (A * 9.0 / 16.0, s), (B * 9.0 / 4.0, t)]),
        ]
    }
}

/// The first vector of a slice.
#[inline(always)]
fn load<S: Simd>(data: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&data[at..at + S::F32_LANES]).0[0]
}

#[inline(always)]
fn store<S: Simd>(data: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut data[at..at + S::F32_LANES]).0[0] = value;
}

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

    /// Calls `each` with every run of tiles of a row: their first number, image, row and column, and
    /// how many they are.
    #[inline(always)]
    fn runs(self, tiles: Range<usize>, mut each: impl FnMut(usize, (usize, usize, usize), usize)) {
        let mut tile = tiles.start;
        while tile < tiles.end {
            let (row, column) = (tile / self.wide, tile % self.wide);
            let count = (self.wide - column).min(tiles.end - tile);
            each(tile, (row / self.high, row % self.high, column), count);
            tile += count;
        }
    }

    /// Element (i, j) of each tile's window of SIDE × SIDE in a channel, a tile a lane, by way of
    /// `windows`; what lanes without a tile hold is left as it was.
    #[inline(always)]
    fn gather<S: Simd, const SIDE: usize>(
        self,
        images: Images<'_>,
        channel: usize,
        tiles: Range<usize>,
        windows: &mut [[[f32; 16]; SIDE]; SIDE],
    ) -> [[S::f32s; SIDE]; SIDE] {
        let lanes = S::F32_LANES;
        let mut line = [0.0; LINE];
        let (height, width) = images.size;
        let plane = height * width;
        let start = tiles.start;
        self.runs(tiles, |tile, (image, row, column), count| {
            let data = &images.data[(image * images.channels + channel) * plane..][..plane];
            let length = 4 * (count - 1) + SIDE;
            let left = (4 * column) as isize - images.padding.1 as isize;
            let before = (-left).clamp(0, length as isize) as usize;
            let end = (width as isize - left).clamp(before as isize, length as isize) as usize;
            for (i, windows) in windows.iter_mut().enumerate() {
                let line = &mut line[..length];
                let row = (4 * row + i).wrapping_sub(images.padding.0);
                if row < height && before < end {
                    let from = (row * width) as isize + left + before as isize;
                    line[..before].fill(0.0);
                    line[before..end].copy_from_slice(&data[from as usize..][..end - before]);
                    line[end..].fill(0.0);
                } else {
                    line.fill(0.0);
                }
                for t in 0..count {
                    let lane = tile - start + t;
                    let part = &line[4 * t..4 * t + SIDE];
                    windows.iter_mut().zip(part).for_each(|(y, &x)| y[lane] = x);
                }
            }
        });
        let vector = |lanes_of: &[f32; 16]| load::<S>(&lanes_of[..lanes], 0);
        std::array::from_fn(|i| std::array::from_fn(|j| vector(&windows[i][j])))
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
                let windows = windows.map(|row| row.map(|w| load::<S>(&w, 0)));
                let points = both(windows, |g| Transform(simd).weights(g));
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
                let windows = self
                    .tiles
                    .gather::<S, 6>(self.images, channel, tiles, &mut buffer);
                let points = both(windows, |d| Transform(simd).window(d));
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
            let points = std::array::from_fn(|i| {
                let point = |j: usize| (i * 6 + j) * self.stride + at;
                std::array::from_fn(|j| load::<S>(self.products, point(j)))
            });
            let results = both(points, |m| Transform(simd).results(m));
            let mut values = [[[0.0f32; 16]; 4]; 4];
            for (values, results) in values.iter_mut().zip(results) {
                for (values, result) in values.iter_mut().zip(results) {
                    store::<S>(values, 0, simd.add_f32s(result, bias));
                }
            }
            let end = self.range.end.min(start + lanes);
            self.tiles
                .runs(start..end, |tile, (image, row, column), count| {
                    let plane = &mut *self.planes[image - first_image];
                    let from = 4 * (row - self.first_row) * self.columns;
                    let lines = plane[from..].chunks_exact_mut(self.columns).take(4);
                    for (line, values) in lines.zip(&values) {
                        for t in 0..count {
                            let lane = tile - start + t;
                            let out = line[4 * (column + t)..].iter_mut();
                            out.zip(values).for_each(|(y, values)| *y = values[lane]);
                        }
                    }
                });
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
                    .gather::<S, 4>(images, channel, tiles, &mut small);
                both(y, |y| Transform(simd).gradient(y))
            } else {
                let d = self
                    .tiles
                    .gather::<S, 6>(images, channel, tiles, &mut large);
                both(d, |d| Transform(simd).window(d))
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
            let points = std::array::from_fn(|i| {
                std::array::from_fn(|j| {
                    let at = (i * 6 + j) * self.stride + number * lanes;
                    simd.partial_load_f32s(&self.products[at..at + count])
                })
            });
            let weights = both(points, |u| Transform(simd).weights_gradient(u));
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
