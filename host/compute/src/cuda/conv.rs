//! Convolutions: by cuDNN, or as implicit matrix products of our own, in tiles where a group has
//! channels enough to fill one.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::dnn::{self, Direction, Operands};
use super::lower::Lowering;
use super::numbers::add_broadcast;
use super::program::{Convolution, Launch};
use super::reduce::join;
use crate::error::Error;
use crate::ops::conv::Conv2d;
use crate::ops::geometry::Geometry;
use crate::ops::reduce::Reduction;

/// Results of a tile along each side.
const TILE: usize = 64;
/// Groups with fewer rows of results than this are computed without tiles.
const LEAST_ROWS: usize = 8;

/// `Conv` of conv.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Conv {
    batch: u32,
    channels: u32,
    height: u32,
    width: u32,
    out: u32,
    rows: u32,
    columns: u32,
    kernel: [u32; 2],
    stride: [u32; 2],
    padding: [u32; 2],
    dilation: [u32; 2],
    groups: u32,
}

impl Conv {
    fn new(c: &Conv2d, x: &[usize], weight: &[usize]) -> Result<(Self, Geometry), Error> {
        let overflow = || Error::shape("conv2d: sizes overflow");
        let g = Geometry::new(c, x, weight).ok_or_else(overflow)?;
        let conv = Self {
            batch: g.batch as u32,
            channels: g.channels as u32,
            height: g.height as u32,
            width: g.width as u32,
            out: g.out as u32,
            rows: g.rows as u32,
            columns: g.columns as u32,
            kernel: [g.kernel.0 as u32, g.kernel.1 as u32],
            stride: [c.stride.0, c.stride.1],
            padding: [c.padding.0, c.padding.1],
            dilation: [c.dilation.0, c.dilation.1],
            groups: c.groups,
        };
        Ok((conv, g))
    }
}

/// Whether a product of `groups` matrices of `m` rows is computed by tiles: a grid has at most
/// 65,535 blocks along y and z.
fn tileable(m: usize, groups: usize) -> bool {
    (LEAST_ROWS..=65_535 * TILE).contains(&m) && groups <= 65_535
}

fn add<T: NoUninit>(launch: Launch, addresses: &[T]) -> Launch {
    addresses
        .iter()
        .fold(launch, |launch, &address| launch.with(address))
}

/// Our own kernel for a product of `groups` matrices `[m, n]`: by tiles, or a thread a result.
fn product(
    kernels: [&'static str; 2],
    conv: Conv,
    (m, n): (usize, usize),
    addresses: &[u64],
) -> Launch {
    let groups = conv.groups as usize;
    if !tileable(m, groups) {
        let launch = add(Launch::threads(kernels[1], groups * m * n), addresses);
        return launch.with(conv).count(groups * m * n);
    }
    let blocks = [n.div_ceil(TILE), m.div_ceil(TILE), groups];
    add(Launch::blocks(kernels[0], blocks), addresses).with(conv)
}

/// The sizes for cuDNN.
fn described(c: &Conv2d, g: &Geometry, direction: Direction) -> dnn::Shape {
    let number = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
    let pair = |(vertical, horizontal): (u32, u32)| [vertical as i32, horizontal as i32];
    let per_group = g.channels / c.groups as usize;
    dnn::Shape {
        direction,
        x: [g.batch, g.channels, g.height, g.width].map(number),
        weight: [g.out, per_group, g.kernel.0, g.kernel.1].map(number),
        y: [g.batch, g.out, g.rows, g.columns].map(number),
        padding: pair(c.padding),
        stride: pair(c.stride),
        dilation: pair(c.dilation),
        groups: c.groups as i32,
        bfloat16: false,
    }
}

impl Lowering<'_> {
    /// By cuDNN where it is installed; depthwise by our own kernels in any case.
    fn convolve_or_own(&mut self, c: &Conv2d, convolution: Convolution) {
        let depthwise = c.groups > 1 && convolution.shape.weight[1] == 1;
        if depthwise {
            convolution
                .own
                .into_iter()
                .for_each(|launch| self.launch(launch));
        } else {
            self.convolve(convolution);
        }
    }

    /// `addresses`: x, weight, bias (0 for none), y.
    pub(super) fn conv2d(
        &mut self,
        c: &Conv2d,
        x: &[usize],
        weight: &[usize],
        addresses: [u64; 4],
    ) -> Result<(), Error> {
        let (conv, g) = Conv::new(c, x, weight)?;
        let sizes = (g.out / c.groups as usize, g.batch * g.pixels());
        let own = product(["conv2d_tiled", "conv2d_direct"], conv, sizes, &addresses);
        let [x, weight, bias, y] = addresses;
        let n = g.batch * g.out * g.pixels();
        let after = (bias != 0).then(|| {
            let own = [g.batch, g.out, g.rows, g.columns];
            add_broadcast(y, bias, y, &own, &[g.out, 1, 1], n)
        });
        self.convolve_or_own(
            c,
            Convolution {
                shape: described(c, &g, Direction::Forward),
                operands: Operands { x, weight, y },
                before: Vec::new(),
                after: after.into_iter().collect(),
                own: vec![own],
            },
        );
        Ok(())
    }

    /// `addresses`: dy, weight, dx.
    pub(super) fn conv2d_input_gradient(
        &mut self,
        c: &Conv2d,
        x: &[usize],
        weight: &[usize],
        addresses: [u64; 3],
    ) -> Result<(), Error> {
        let (conv, g) = Conv::new(c, x, weight)?;
        let sizes = (g.channels / c.groups as usize, g.batch * g.height * g.width);
        let kernels = [
            "conv2d_input_gradient_tiled",
            "conv2d_input_gradient_direct",
        ];
        let own = product(kernels, conv, sizes, &addresses);
        let [y, weight, x] = addresses;
        self.convolve_or_own(
            c,
            Convolution {
                shape: described(c, &g, Direction::Input),
                operands: Operands { x, weight, y },
                before: Vec::new(),
                after: Vec::new(),
                own: vec![own],
            },
        );
        Ok(())
    }

    /// `addresses`: x, dy, dweight.
    pub(super) fn conv2d_weight_gradient(
        &mut self,
        c: &Conv2d,
        x: &[usize],
        weight: &[usize],
        [x_at, dy, dweight]: [u64; 3],
    ) -> Result<(), Error> {
        let (conv, g) = Conv::new(c, x, weight)?;
        let groups = c.groups as usize;
        let (m, n) = (g.out / groups, g.patch());
        let results = groups * m * n;
        let mut own = Vec::new();
        if tileable(m, groups) {
            let tiles = [n.div_ceil(TILE), m.div_ceil(TILE)];
            let blocks = tiles[0] * tiles[1] * groups;
            let wanted = self.splits(results, blocks, g.batch * g.pixels());
            let splits = wanted.min(65_535 / groups);
            let parts = if splits > 1 {
                self.workspace((results * splits) as u64 * 4)
            } else {
                dweight
            };
            let blocks = [tiles[0], tiles[1], groups * splits];
            let launch = Launch::blocks("conv2d_weight_gradient_tiled", blocks);
            let launch = launch.with(x_at).with(dy).with(parts).with(conv);
            own.push(launch.count(splits).count(results));
            if splits > 1 {
                own.push(join(Reduction::Sum, parts, dweight, results, splits));
            }
        } else {
            let launch = Launch::each("conv2d_weight_gradient_direct", results);
            let launch = launch.with(x_at).with(dy).with(dweight).with(conv);
            own.push(launch.count(results));
        }
        self.convolve_or_own(
            c,
            Convolution {
                shape: described(c, &g, Direction::Weight),
                operands: Operands {
                    x: x_at,
                    weight: dweight,
                    y: dy,
                },
                before: Vec::new(),
                after: Vec::new(),
                own,
            },
        );
        Ok(())
    }
}
