//! Convolution as a product of packed weights with windows that are gathered, block by block, from
//! the image. The gradient of x is the same: of stride s, the results at each of s·s phases are a
//! convolution of dy by stride 1 with the weights that reach them.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::chunks::Workers;
use super::conv::{Finish, deal};
use super::tile::{self, Dense, Packed, Rows, load, store};
use crate::ops::geometry::{COLUMNS, DEPTH, Geometry, STRIP, block};

/// An element of a window: its number in the weights, and where it lies from the window's place.
#[derive(Debug, Clone, Copy)]
struct Tap {
    weight: usize,
    offset: (isize, isize),
}

/// Windows on a grid of places, whose results lie on a grid of the result.
#[derive(Debug)]
pub(super) struct Grid {
    taps: Vec<Tap>,
    /// Distance between windows in the source.
    step: (usize, usize),
    size: (usize, usize),
    /// The first result, and the distance between results.
    origin: (usize, usize),
    spread: (usize, usize),
}

impl Grid {
    /// The windows of a convolution.
    pub(super) fn forward(g: &Geometry) -> Self {
        let offset =
            |i: usize, dilation: usize, padding: usize| (i * dilation) as isize - padding as isize;
        let (dilation, padding) = (g.dilation(), g.padding());
        let tap = |weight: usize| {
            let (i, j) = (weight / g.kernel.1, weight % g.kernel.1);
            Tap {
                weight,
                offset: (
                    offset(i, dilation.0, padding.0),
                    offset(j, dilation.1, padding.1),
                ),
            }
        };
        Self {
            taps: (0..g.kernel.0 * g.kernel.1).map(tap).collect(),
            step: g.stride(),
            size: (g.rows, g.columns),
            origin: (0, 0),
            spread: (1, 1),
        }
    }

    /// The windows of dy that make up dx, by phase.
    fn backward(g: &Geometry) -> Vec<Self> {
        let (stride, padding, dilation) = (g.stride(), g.padding(), g.dilation());
        // Result y takes dy at (y + padding − i·dilation) / stride, where that is whole.
        let offset = |phase: usize, i: usize, stride: usize, padding: usize, dilation: usize| {
            let at = (phase + padding) as isize - (i * dilation) as isize;
            (at.rem_euclid(stride as isize) == 0).then(|| at.div_euclid(stride as isize))
        };
        let mut grids = Vec::new();
        for a in 0..stride.0.min(g.height) {
            for b in 0..stride.1.min(g.width) {
                let tap = |weight: usize| {
                    let (i, j) = (weight / g.kernel.1, weight % g.kernel.1);
                    let vertical = offset(a, i, stride.0, padding.0, dilation.0)?;
                    let horizontal = offset(b, j, stride.1, padding.1, dilation.1)?;
                    Some(Tap {
                        weight,
                        offset: (vertical, horizontal),
                    })
                };
                grids.push(Self {
                    taps: (0..g.kernel.0 * g.kernel.1).filter_map(tap).collect(),
                    step: (1, 1),
                    size: (
                        (g.height - a).div_ceil(stride.0),
                        (g.width - b).div_ceil(stride.1),
                    ),
                    origin: (a, b),
                    spread: stride,
                });
            }
        }
        grids
    }

    fn places(&self) -> usize {
        self.size.0 * self.size.1
    }

    /// Whether a row of windows' elements is a plane as it lies in memory.
    pub(super) fn is_plane(&self, (height, width): (usize, usize)) -> bool {
        self.taps.len() == 1
            && self.taps[0].offset == (0, 0)
            && self.step == (1, 1)
            && self.size == (height, width)
    }

    /// One element of each of the windows at `places`, zeros where it lies outside of the plane.
    #[inline(always)]
    fn line<S: Simd>(
        &self,
        tap: usize,
        (plane, (height, width)): (&[f32], (usize, usize)),
        places: Range<usize>,
        line: &mut [f32],
    ) {
        let (vertical, horizontal) = self.taps[tap].offset;
        let step = self.step.1;
        // The first place whose column is at least 0, and the first whose is past the end.
        let reach = |bound: isize| ((bound - horizontal).max(0) as usize).div_ceil(step);
        let (first, end) = (reach(0), reach(width as isize));
        let (mut row, mut column) = (places.start / self.size.1, places.start % self.size.1);
        let mut rest = &mut line[..places.len()];
        while !rest.is_empty() {
            let count = rest.len().min(self.size.1 - column);
            let (part, after) = rest.split_at_mut(count);
            let source = (row * self.step.0) as isize + vertical;
            if source < 0 || source >= height as isize {
                part.fill(0.0);
            } else {
                let start = first.clamp(column, column + count);
                let stop = end.clamp(start, column + count);
                part[..start - column].fill(0.0);
                part[stop - column..].fill(0.0);
                let part = &mut part[start - column..stop - column];
                if !part.is_empty() {
                    let from = (start * step) as isize + horizontal;
                    let source = &plane[source as usize * width + from as usize..];
                    copy::<S>(part, source, step);
                }
            }
            (row, column) = (row + 1, 0);
            rest = after;
        }
    }
}

/// Every `step`-th element of a source.
#[inline(always)]
fn copy<S: Simd>(out: &mut [f32], source: &[f32], step: usize) {
    let count = out.len();
    match step {
        1 if count >= S::F32_LANES => {
            for start in (0..count).step_by(S::F32_LANES) {
                let start = start.min(count - S::F32_LANES);
                store::<S>(out, start, load::<S>(source, start));
            }
        }
        2 => {
            let Some((last, most)) = out.split_last_mut() else {
                return;
            };
            *last = source[2 * most.len()];
            for (y, pair) in most.iter_mut().zip(source.as_chunks::<2>().0) {
                *y = pair[0];
            }
        }
        _ => {
            for (y, &x) in out.iter_mut().zip(source.iter().step_by(step)) {
                *y = x;
            }
        }
    }
}

/// Rows of the patch matrix: some terms of the windows at `places`, `stride` elements from one to
/// the next.
pub(super) struct Lines<'a> {
    pub(super) grid: &'a Grid,
    /// Planes, channel by channel, and their sizes.
    pub(super) source: &'a [f32],
    pub(super) size: (usize, usize),
    pub(super) terms: Range<usize>,
    pub(super) places: Range<usize>,
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
}

impl WithSimd for Lines<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (taps, plane) = (self.grid.taps.len(), self.size.0 * self.size.1);
        for (term, out) in self.terms.zip(self.out.chunks_mut(self.stride)) {
            let plane = &self.source[term / taps * plane..][..plane];
            let source = (plane, self.size);
            self.grid
                .line::<S>(term % taps, source, self.places.clone(), out);
        }
    }
}

/// Strips `[columns / strip, terms, strip]` of some terms of the windows at `places`.
struct Strips<'a> {
    grid: &'a Grid,
    source: &'a [f32],
    size: (usize, usize),
    terms: Range<usize>,
    places: Range<usize>,
    strip: usize,
    out: &'a mut [f32],
}

impl WithSimd for Strips<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (taps, plane) = (self.grid.taps.len(), self.size.0 * self.size.1);
        let (count, strip) = (self.terms.len(), self.strip);
        let (whole, rest) = (self.places.len() / strip, self.places.len() % strip);
        let is_plane = self.grid.is_plane(self.size);
        let mut buffer = [0.0; COLUMNS];
        for (k, term) in self.terms.enumerate() {
            let plane = &self.source[term / taps * plane..][..plane];
            let line = if is_plane {
                &plane[self.places.clone()]
            } else {
                let source = (plane, self.size);
                self.grid
                    .line::<S>(term % taps, source, self.places.clone(), &mut buffer);
                &buffer[..self.places.len()]
            };
            for number in 0..whole {
                let out = &mut self.out[(number * count + k) * strip..][..strip];
                let line = &line[number * strip..][..strip];
                for start in (0..strip).step_by(S::F32_LANES) {
                    store::<S>(out, start, load::<S>(line, start));
                }
            }
            if rest > 0 {
                let out = &mut self.out[(whole * count + k) * strip..][..strip];
                out[..rest].copy_from_slice(&line[whole * strip..]);
                out[rest..].fill(0.0);
            }
        }
    }
}

/// A product of weights with windows: the source's channels of a group and its planes, the result's,
/// and the grids that make up a result.
struct Windows<'a> {
    workers: Workers<'a>,
    groups: usize,
    batch: usize,
    from: (usize, (usize, usize)),
    to: (usize, (usize, usize)),
    grids: Vec<Grid>,
}

/// Results that are computed at once: of an image and group, so many rows of a panel each from the
/// first, at `places` of the result.
struct Unit<'a> {
    image: usize,
    group: usize,
    first_row: usize,
    places: Range<usize>,
    rows: Vec<&'a mut [f32]>,
}

/// Divides `count` steps into `parts` of nearly the same number.
fn parts(count: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = parts.clamp(1, count.max(1));
    (0..parts).map(move |i| count * i / parts..count * (i + 1) / parts)
}

/// Units of work at least, where a batch is small: enough for the threads there may be.
const UNITS: usize = 8;

impl Windows<'_> {
    /// Whether results lie side by side, so that a unit need not be of whole planes.
    fn is_dense(&self) -> bool {
        self.grids.len() == 1 && self.grids[0].spread == (1, 1)
    }

    fn depth(&self, grid: &Grid) -> usize {
        self.from.0 * grid.taps.len()
    }

    /// Divides the result.
    fn units<'o>(&self, panel: usize, out: &'o mut [f32]) -> Vec<Unit<'o>> {
        let (rows, plane) = (self.to.0, self.to.1.0 * self.to.1.1);
        let fewest = UNITS.div_ceil((self.batch * self.groups).max(1));
        let (row_parts, place_parts) = if self.is_dense() {
            (1, fewest.max(plane.div_ceil(COLUMNS)))
        } else {
            (fewest, 1)
        };
        let mut units = Vec::new();
        for (index, out) in out.chunks_exact_mut(rows * plane).enumerate() {
            let mut planes = out.chunks_exact_mut(plane);
            for panels in parts(rows.div_ceil(panel), row_parts) {
                let (first_row, end) = (panels.start * panel, rows.min(panels.end * panel));
                let from = units.len();
                let strips = plane.div_ceil(STRIP);
                units.extend(parts(strips, place_parts).map(|strips| Unit {
                    image: index / self.groups,
                    group: index % self.groups,
                    first_row,
                    places: strips.start * STRIP..plane.min(strips.end * STRIP),
                    rows: Vec::with_capacity(end - first_row),
                }));
                for mut rest in planes.by_ref().take(end - first_row) {
                    for unit in &mut units[from..] {
                        let (part, after) = rest.split_at_mut(unit.places.len());
                        unit.rows.push(part);
                        rest = after;
                    }
                }
            }
        }
        units
    }

    /// Results at `places` of a grid.
    fn product<R: Rows + ?Sized>(
        &self,
        grid: &Grid,
        (panels, rows): (&[f32], usize),
        source: &[f32],
        places: Range<usize>,
        (out, accumulate): (&mut R, bool),
        buffer: &mut [f32],
    ) {
        let (panel, strip) = tile::shape();
        let depth = self.depth(grid);
        for first in (0..depth).step_by(DEPTH) {
            let terms = first..depth.min(first + DEPTH);
            Arch::new().dispatch(Strips {
                grid,
                source,
                size: self.from.1,
                terms: terms.clone(),
                places: places.clone(),
                strip,
                out: &mut *buffer,
            });
            let a = Packed {
                data: &panels[first * panel..],
                stride: depth * panel,
            };
            let b = Packed {
                data: buffer,
                stride: terms.len() * strip,
            };
            let size = (rows, terms.len(), places.len());
            tile::outer(a, b, size, out, accumulate || first > 0);
        }
    }

    /// Computes the result; `weight` gives a group's weight of a row, channel and element of a window.
    fn run(
        &self,
        weight: impl Fn(usize, usize, usize, usize) -> f32 + Sync,
        (source, bias): (&[f32], Option<&[f32]>),
        out: &mut [f32],
        workspace: &mut [f32],
        finish: Finish<'_>,
    ) {
        let (panel, _) = tile::shape();
        let (rows, plane) = (self.to.0, self.to.1.0 * self.to.1.1);
        let image = self.from.0 * self.from.1.0 * self.from.1.1;
        let panels = rows.div_ceil(panel);
        let sizes: Vec<usize> = self
            .grids
            .iter()
            .map(|grid| self.depth(grid) * panel)
            .collect();
        let packed = sizes.iter().sum::<usize>() * panels * self.groups;
        let (packed, workspace) = workspace.split_at_mut(packed);
        let mut rest = &mut *packed;
        for (grid, &size) in self.grids.iter().zip(&sizes) {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size * panels * self.groups);
            rest = after;
            self.workers.chunks(part, size, |number, out| {
                let (group, first) = (number / panels, number % panels * panel);
                let taps = grid.taps.len();
                let size = (panel.min(rows - first), self.depth(grid));
                let value = |row, term: usize| {
                    let tap = grid.taps[term % taps].weight;
                    weight(group, first + row, term / taps, tap)
                };
                tile::pack(panel, size, value, out);
            });
        }
        let packed = &*packed;
        let deepest = self.grids.iter().map(|grid| self.depth(grid)).max();
        let (terms, columns) = block(deepest.unwrap_or(0), plane);
        let size = columns * (terms + if self.is_dense() { 0 } else { rows });
        let units = self.units(panel, out);
        deal(
            self.workers,
            units,
            (workspace, size),
            |mut unit, buffer| {
                let (buffer, results) = buffer.split_at_mut(terms * columns);
                let number = unit.image * self.groups + unit.group;
                let source = &source[number * image..][..image];
                let channel = unit.group * rows + unit.first_row;
                if let Some(bias) = bias {
                    let bias = &bias[channel..];
                    unit.rows
                        .iter_mut()
                        .zip(bias)
                        .for_each(|(row, &bias)| row.fill(bias));
                }
                let count = unit.rows.len();
                let mut start = 0;
                for (grid, &size) in self.grids.iter().zip(&sizes) {
                    let first = unit.group * panels + unit.first_row / panel;
                    let part = (&packed[start + first * size..], count);
                    start += size * panels * self.groups;
                    if self.is_dense() {
                        let out = (&mut *unit.rows, bias.is_some());
                        self.product(grid, part, source, unit.places.clone(), out, buffer);
                    } else if grid.taps.is_empty() {
                        grid.write(&mut unit.rows, self.to.1.1, 0..grid.places(), |_, _| 0.0);
                    } else {
                        for first in (0..grid.places()).step_by(columns) {
                            let places = first..grid.places().min(first + columns);
                            let mut out = Dense {
                                data: results,
                                stride: columns,
                            };
                            let out = (&mut out, false);
                            self.product(grid, part, source, places.clone(), out, buffer);
                            grid.write(&mut unit.rows, self.to.1.1, places, |row, place| {
                                results[row * columns + place - first]
                            });
                        }
                    }
                }
                for (row, part) in unit.rows.into_iter().enumerate() {
                    let index = (number * rows + unit.first_row + row) * plane;
                    finish(index + unit.places.start, part);
                }
            },
        );
    }
}

impl Grid {
    /// Writes the results of some places to the planes, rows of `width` elements.
    fn write(
        &self,
        planes: &mut [&mut [f32]],
        width: usize,
        places: Range<usize>,
        value: impl Fn(usize, usize) -> f32,
    ) {
        for (row, plane) in planes.iter_mut().enumerate() {
            let mut place = places.start;
            while place < places.end {
                let (line, column) = (place / self.size.1, place % self.size.1);
                let count = (self.size.1 - column).min(places.end - place);
                let start = (self.origin.0 + line * self.spread.0) * width
                    + self.origin.1
                    + column * self.spread.1;
                let out = plane[start..].iter_mut().step_by(self.spread.1).take(count);
                out.enumerate()
                    .for_each(|(i, y)| *y = value(row, place + i));
                place += count;
            }
        }
    }
}

/// out = the windows of x by weight.
pub(super) fn forward(
    workers: Workers<'_>,
    g: &Geometry,
    (x, weight, bias): (&[f32], &[f32], Option<&[f32]>),
    out: &mut [f32],
    workspace: &mut [f32],
    finish: Finish<'_>,
) {
    let (groups, window, patch) = (g.groups(), g.kernel.0 * g.kernel.1, g.patch());
    let (from, to) = (g.channels / groups, g.out / groups);
    let windows = Windows {
        workers,
        groups,
        batch: g.batch,
        from: (from, (g.height, g.width)),
        to: (to, (g.rows, g.columns)),
        grids: vec![Grid::forward(g)],
    };
    let value = |group: usize, row: usize, channel: usize, tap: usize| {
        weight[(group * to + row) * patch + channel * window + tap]
    };
    windows.run(value, (x, bias), out, workspace, finish);
}

/// dx = the windows of dy by weight, phase by phase.
pub(super) fn input_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    (dy, weight): (&[f32], &[f32]),
    dx: &mut [f32],
    workspace: &mut [f32],
) {
    let (groups, window, patch) = (g.groups(), g.kernel.0 * g.kernel.1, g.patch());
    let (from, to) = (g.out / groups, g.channels / groups);
    let windows = Windows {
        workers,
        groups,
        batch: g.batch,
        from: (from, (g.rows, g.columns)),
        to: (to, (g.height, g.width)),
        grids: Grid::backward(g),
    };
    let value = |group: usize, row: usize, channel: usize, tap: usize| {
        weight[(group * from + channel) * patch + row * window + tap]
    };
    windows.run(value, (dy, None), dx, workspace, &|_, _| {});
}

/// Rows of weights that `dots` takes at once.
const ROWS: usize = 16;

/// out = scalar products of the weights as they lie with windows `[batch, group, pixel, patch]`,
/// for few windows, where packing the weights would cost as much as the product.
pub(super) fn dots(
    workers: Workers<'_>,
    g: &Geometry,
    (x, weight, bias): (&[f32], &[f32], Option<&[f32]>),
    out: &mut [f32],
    workspace: &mut [f32],
    finish: Finish<'_>,
) {
    let (groups, pixels, patch) = (g.groups(), g.pixels(), g.patch());
    let (from, to) = (g.channels / groups, g.out / groups);
    let (plane, grid) = (g.height * g.width, Grid::forward(g));
    let windows = &mut workspace[..g.batch * groups * pixels * patch];
    workers.chunks(windows, pixels * patch, |number, windows| {
        let image = &x[number * from * plane..][..from * plane];
        let mut line = [0.0; 64];
        for term in 0..patch {
            Arch::new().dispatch(Lines {
                grid: &grid,
                source: image,
                size: (g.height, g.width),
                terms: term..term + 1,
                places: 0..pixels,
                out: &mut line,
                stride: 64,
            });
            let column = windows[term..].iter_mut().step_by(patch);
            column.zip(&line).for_each(|(y, &x)| *y = x);
        }
    });
    let windows = &*windows;
    let mut units = Vec::new();
    for (number, out) in out.chunks_exact_mut(to * pixels).enumerate() {
        let parts = out.chunks_mut(ROWS * pixels).enumerate();
        units.extend(parts.map(|(i, out)| (number, i * ROWS, out)));
    }
    workers.each(units, |(number, first, out)| {
        let rows = out.len() / pixels;
        let channel = number % groups * to + first;
        if let Some(bias) = bias {
            let planes = out.chunks_exact_mut(pixels);
            planes
                .zip(&bias[channel..])
                .for_each(|(out, &bias)| out.fill(bias));
        }
        let (weight, windows) = (
            &weight[channel * patch..],
            &windows[number * pixels * patch..],
        );
        for start in (0..patch).step_by(2 * DEPTH) {
            let size = (rows, (patch - start).min(2 * DEPTH), pixels);
            let accumulate = start > 0 || bias.is_some();
            let (a, b) = ((&weight[start..], patch), (&windows[start..], patch));
            tile::inner(a, b, size, (out, pixels), accumulate);
        }
        finish((number * to + first) * pixels, out);
    });
}
