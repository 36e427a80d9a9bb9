//! Sizes of convolutions, and how the processor computes them. All of it follows from shapes alone,
//! so that a plan knows the memory and results do not depend on the number of threads.

use super::conv::{Conv2d, windows};

/// Work that takes a workspace of its own is divided into this many lanes at most, side by side.
pub(crate) const LANES: usize = 16;

/// Terms of a product that are gathered at once, and columns: a block stays in the second cache.
pub(crate) const DEPTH: usize = 256;
/// See `DEPTH`.
pub(crate) const COLUMNS: usize = 256;

/// Terms and columns of a block of windows, of which a product has `depth` for each element of a
/// `plane` of results.
pub(crate) fn block(depth: usize, plane: usize) -> (usize, usize) {
    (depth.min(DEPTH), COLUMNS.min(plane.next_multiple_of(STRIP)))
}

/// At least the rows of a panel and the columns of a strip of any processor's tiles.
const PANEL: usize = 16;
/// See `PANEL`.
pub(crate) const STRIP: usize = 32;

/// Channels of results whose tiles are computed at once, at most.
pub(crate) const TILE_ROWS: usize = 48;

/// What of a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The result.
    Forward,
    /// The gradient of x.
    Input,
    /// The gradient of the weights.
    Weight,
}

/// How a pass is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Images of one pixel: a matrix product.
    Pixel,
    /// Weights of one channel each.
    Depthwise,
    /// Winograd's form, by tiles of 4 × 4 results.
    Winograd,
    /// Scalar products of the weights, as they are, with few windows.
    Dots,
    /// A product with windows gathered by blocks.
    Windows,
}

/// Sizes of a convolution at a given batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) out: usize,
    pub(crate) kernel: (usize, usize),
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) attributes: Conv2d,
}

fn pair((a, b): (u32, u32)) -> (usize, usize) {
    (a as usize, b as usize)
}

impl Geometry {
    /// From the shapes of x and weight, which the builder has checked; none otherwise.
    pub(crate) fn new(attributes: &Conv2d, x: &[usize], weight: &[usize]) -> Option<Self> {
        let (&[batch, channels, height, width], &[out, _, kernel_height, kernel_width]) =
            (x, weight)
        else {
            return None;
        };
        let c = attributes;
        let count = |size: usize, kernel: usize, stride, padding, dilation| {
            usize::try_from(windows(
                size as u64,
                kernel as u64,
                stride,
                padding,
                dilation,
            )?)
            .ok()
        };
        Some(Self {
            batch,
            channels,
            height,
            width,
            out,
            kernel: (kernel_height, kernel_width),
            rows: count(height, kernel_height, c.stride.0, c.padding.0, c.dilation.0)?,
            columns: count(width, kernel_width, c.stride.1, c.padding.1, c.dilation.1)?,
            attributes: *attributes,
        })
    }

    /// Groups of channels.
    pub(crate) fn groups(&self) -> usize {
        self.attributes.groups as usize
    }

    /// Rows of a group's patch matrix: channels of the group × window.
    pub(crate) fn patch(&self) -> usize {
        self.channels / self.groups() * self.kernel.0 * self.kernel.1
    }

    /// Pixels of a result.
    pub(crate) fn pixels(&self) -> usize {
        self.rows * self.columns
    }

    /// (vertical, horizontal) distance between windows.
    pub(crate) fn stride(&self) -> (usize, usize) {
        pair(self.attributes.stride)
    }

    /// Zeros on either side.
    pub(crate) fn padding(&self) -> (usize, usize) {
        pair(self.attributes.padding)
    }

    /// Distance between the elements of a window.
    pub(crate) fn dilation(&self) -> (usize, usize) {
        pair(self.attributes.dilation)
    }

    /// The convolution of the results' gradient that gives x's, with the weights in reverse; none
    /// where the stride is not 1 or x has more zeros around than windows reach.
    pub(crate) fn reverse(&self) -> Option<Self> {
        let around = |kernel: usize, dilation: usize, padding: u32| {
            let reach = u32::try_from((kernel - 1).checked_mul(dilation)?).ok()?;
            reach.checked_sub(padding)
        };
        let (dilation, padding) = (self.dilation(), self.attributes.padding);
        let padding = (
            around(self.kernel.0, dilation.0, padding.0)?,
            around(self.kernel.1, dilation.1, padding.1)?,
        );
        (self.stride() == (1, 1)).then_some(Self {
            channels: self.out,
            height: self.rows,
            width: self.columns,
            out: self.channels,
            rows: self.height,
            columns: self.width,
            attributes: Conv2d {
                padding,
                ..self.attributes
            },
            ..*self
        })
    }

    /// How a pass is computed.
    pub(crate) fn method(&self, pass: Pass) -> Method {
        let c = &self.attributes;
        let pixel = (self.height, self.width) == (1, 1) && self.pixels() == 1;
        if pixel && self.kernel == (1, 1) && c.padding == (0, 0) && c.groups == 1 {
            Method::Pixel
        } else if self.groups() == self.channels && self.out == self.channels {
            Method::Depthwise
        } else if pass == Pass::Forward
            && self.patch() >= 64
            && self.batch.saturating_mul(self.pixels()) <= 64
        {
            Method::Dots
        } else if self.is_tiled(pass) {
            Method::Winograd
        } else {
            Method::Windows
        }
    }

    /// Whether windows are of 3 × 3 with stride 1, and tiles of 4 × 4 results save products enough.
    fn is_tiled(&self, pass: Pass) -> bool {
        let c = &self.attributes;
        let plain = (c.stride, c.dilation, c.groups) == ((1, 1), (1, 1), 1);
        if self.kernel != (3, 3) || !plain || self.channels.min(self.out) < 16 {
            return false;
        }
        let reverse = if pass == Pass::Input {
            self.reverse()
        } else {
            Some(*self)
        };
        reverse.is_some_and(|g| {
            let (high, wide) = g.tiles();
            let tiles = high.saturating_mul(wide);
            tiles.saturating_mul(g.batch) >= 12 && tiles.saturating_mul(6) <= g.pixels()
        })
    }

    /// Rows and columns of tiles of 4 × 4 results.
    pub(crate) fn tiles(&self) -> (usize, usize) {
        (self.rows.div_ceil(4), self.columns.div_ceil(4))
    }

    /// Images and rows of tiles that are computed at once: one of the two is all or one.
    pub(crate) fn tile_unit(&self) -> (usize, usize) {
        let (high, wide) = self.tiles();
        let most = if self.channels <= 96 { 32 } else { 64 };
        if high * wide > most {
            (1, (most / wide).clamp(1, high))
        } else {
            ((most / (high * wide)).min(self.batch), high)
        }
    }

    /// Units of tiles.
    pub(crate) fn tile_units(&self) -> usize {
        let (images, rows) = self.tile_unit();
        self.batch.div_ceil(images) * self.tiles().0.div_ceil(rows)
    }

    /// Tiles of a unit, in whole strips.
    fn unit_tiles(&self) -> usize {
        let (images, rows) = self.tile_unit();
        (images * rows * self.tiles().1).next_multiple_of(STRIP)
    }

    /// Elements of a unit's transformed windows.
    pub(crate) fn windows_size(&self) -> usize {
        36 * self.channels * self.unit_tiles()
    }

    /// Elements of the products of a block of a unit's channels.
    pub(crate) fn products_size(&self) -> usize {
        36 * TILE_ROWS * self.unit_tiles()
    }

    /// Tiles that the weights' gradient transforms at once.
    pub(crate) fn gradient_tiles(&self) -> usize {
        let (high, wide) = self.tiles();
        let all = self.batch * high * wide;
        let most = ((1 << 17) / (self.channels + self.out)).clamp(64, 512);
        (most / STRIP * STRIP).min(all.next_multiple_of(STRIP))
    }

    /// Elements of workspace of Winograd's form.
    fn tiled_workspace(&self, pass: Pass) -> Option<usize> {
        let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if pass == Pass::Weight {
            let blocks = product(&[36, self.channels + self.out, self.gradient_tiles()])?;
            return product(&[36, self.channels, self.out])?.checked_add(blocks);
        }
        let weights = product(&[36, self.out + PANEL, self.channels])?;
        let lanes = if self.tile_units() >= 4 {
            LANES * (self.windows_size() + self.products_size())
        } else {
            self.windows_size() + LANES * self.products_size()
        };
        weights.checked_add(lanes)
    }

    /// Elements of a plane in an order in which a window's elements lie next to those of the next
    /// window: zeros around, columns by their remainder of the stride.
    pub(crate) fn padded_plane(&self) -> Option<usize> {
        let rows = self.height.checked_add(2 * self.padding().0)?;
        let columns = self.width.checked_add(2 * self.padding().1)?;
        let stride = self.stride().1;
        rows.checked_mul(columns.div_ceil(stride).checked_mul(stride)?)?
            .checked_add(STRIP)
    }

    /// Elements of workspace of a pass.
    pub(crate) fn workspace(&self, pass: Pass) -> Option<usize> {
        let groups = self.groups();
        let (per_group, patch) = (self.out / groups, self.patch());
        let window = self.kernel.0 * self.kernel.1;
        let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        // Packed weights, and in each lane a block of windows and of results.
        let windows = |from: usize, to: usize, plane: usize, gradient: bool| {
            let depth = product(&[from, window])?;
            let packed = product(&[groups, to.checked_add(PANEL)?, depth])?;
            let (terms, columns) = block(depth, plane);
            let results = if gradient { to } else { 0 };
            packed.checked_add(product(&[LANES, terms.checked_add(results)?, columns])?)
        };
        match (self.method(pass), pass) {
            (Method::Pixel, _) => Some(0),
            (Method::Depthwise, _) => {
                let reverse = self.reverse().map_or(Some(0), |g| g.padded_plane())?;
                self.padded_plane()?.max(reverse).checked_mul(LANES)
            }
            (Method::Dots, _) => product(&[self.batch, groups, self.pixels(), patch]),
            (Method::Winograd, Pass::Input) => self.reverse()?.tiled_workspace(pass),
            (Method::Winograd, _) => self.tiled_workspace(pass),
            (Method::Windows, Pass::Forward) => {
                windows(self.channels / groups, per_group, self.pixels(), false)
            }
            (Method::Windows, Pass::Input) => {
                let plane = product(&[self.height, self.width])?;
                windows(per_group, self.channels / groups, plane, true)
            }
            (Method::Windows, Pass::Weight) => {
                let sums = product(&[self.out, patch])?;
                let joined = product(&[self.batch, self.out, self.joined_pixels()])?;
                let gathered = WEIGHT_ROWS.min(patch) * self.weight_columns();
                sums.checked_add(joined)?.checked_add(LANES * gathered)
            }
        }
    }

    /// Pixels of an image's results that the weights' gradient copies to where the images' lie side
    /// by side: all where they are few.
    pub(crate) fn joined_pixels(&self) -> usize {
        if self.pixels() < WEIGHT_COLUMNS && self.batch > 1 {
            self.pixels()
        } else {
            0
        }
    }

    /// Columns of windows that the weights' gradient gathers at once.
    pub(crate) fn weight_columns(&self) -> usize {
        let all = self.batch.saturating_mul(self.pixels());
        let whole = if self.joined_pixels() > 0 {
            (WEIGHT_COLUMNS / self.pixels()).max(1) * self.pixels()
        } else {
            WEIGHT_COLUMNS.min(self.pixels())
        };
        whole.min(all)
    }
}

/// Rows and columns of windows that the weights' gradient gathers at once.
pub(crate) const WEIGHT_ROWS: usize = 48;
const WEIGHT_COLUMNS: usize = 784;
