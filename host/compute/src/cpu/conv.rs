//! Convolution: each pass by the method that its geometry asks for.

use super::chunks::Workers;
use super::gemm::{Matrix, gemm};
use super::{conv_depthwise, conv_weight, conv_windows, conv_winograd};
use crate::ops::geometry::{Geometry, LANES, Method, Pass};

/// What is done to each piece of a result while it is in the cache: the index of its first element,
/// and its elements.
pub(crate) type Finish<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// Divides units of work among lanes, each with `size` elements of the workspace.
pub(super) fn deal<T: Send>(
    workers: Workers<'_>,
    units: Vec<T>,
    (workspace, size): (&mut [f32], usize),
    work: impl Fn(T, &mut [f32]) + Sync + Send,
) {
    let lanes = units
        .len()
        .min(LANES)
        .min(workspace.len() / size.max(1))
        .max(1);
    let (each, more) = (units.len() / lanes, units.len() % lanes);
    let mut units = units.into_iter();
    let lanes = workspace.chunks_exact_mut(size.max(1)).take(lanes);
    let lanes = lanes.enumerate().map(|(lane, buffer)| {
        let count = each + usize::from(lane < more);
        (units.by_ref().take(count).collect::<Vec<T>>(), buffer)
    });
    workers.each(lanes.collect(), |(units, buffer)| {
        for unit in units {
            if workers.cancelled() {
                return;
            }
            work(unit, buffer);
        }
    });
}

/// out `[batch, out, rows, columns]` of x and weight; `finish` is called with every part of it.
pub(crate) fn forward(
    workers: Workers<'_>,
    g: &Geometry,
    (x, weight, bias): (&[f32], &[f32], Option<&[f32]>),
    out: &mut [f32],
    workspace: &mut [f32],
    finish: Finish<'_>,
) {
    match g.method(Pass::Forward) {
        Method::Pixel => {
            for (out, bias) in out.chunks_exact_mut(g.out).zip(std::iter::repeat(bias)) {
                if let Some(bias) = bias {
                    out.copy_from_slice(bias);
                }
            }
            let x = Matrix::new(x, g.batch, g.channels);
            let weight = Matrix::new(weight, g.out, g.channels).transposed();
            gemm(workers, x, weight, out, bias.is_some());
            finish(0, out);
        }
        Method::Depthwise => {
            conv_depthwise::forward(workers, g, (x, weight, bias), out, workspace, finish);
        }
        Method::Dots => {
            conv_windows::dots(workers, g, (x, weight, bias), out, workspace, finish);
        }
        Method::Winograd => {
            conv_winograd::forward(workers, g, (x, weight, bias), out, workspace, finish);
        }
        Method::Windows => {
            conv_windows::forward(workers, g, (x, weight, bias), out, workspace, finish);
        }
    }
}

/// dx of dy and weight.
pub(crate) fn input_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    (dy, weight): (&[f32], &[f32]),
    dx: &mut [f32],
    workspace: &mut [f32],
) {
    match g.method(Pass::Input) {
        Method::Pixel => {
            let dy = Matrix::new(dy, g.batch, g.out);
            let weight = Matrix::new(weight, g.out, g.channels);
            gemm(workers, dy, weight, dx, false);
        }
        Method::Depthwise => {
            conv_depthwise::input_gradient(workers, g, (dy, weight), dx, workspace);
        }
        Method::Winograd => {
            if let Some(reverse) = g.reverse() {
                conv_winograd::input_gradient(workers, &reverse, (dy, weight), dx, workspace);
            }
        }
        Method::Dots | Method::Windows => {
            conv_windows::input_gradient(workers, g, (dy, weight), dx, workspace);
        }
    }
}

/// dw of x and dy, summed over the batch.
pub(crate) fn weight_gradient(
    workers: Workers<'_>,
    g: &Geometry,
    (x, dy): (&[f32], &[f32]),
    dw: &mut [f32],
    workspace: &mut [f32],
) {
    match g.method(Pass::Weight) {
        Method::Pixel => {
            let x = Matrix::new(x, g.batch, g.channels);
            let dy = Matrix::new(dy, g.batch, g.out).transposed();
            gemm(workers, dy, x, dw, false);
        }
        Method::Depthwise => {
            conv_depthwise::weight_gradient(workers, g, (x, dy), dw, workspace);
        }
        Method::Winograd => {
            conv_winograd::weight_gradient(workers, g, (x, dy), dw, workspace);
        }
        Method::Dots | Method::Windows => {
            conv_weight::weight_gradient(workers, g, (x, dy), dw, workspace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv::Conv2d;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        (0..count).map(number).collect()
    }

    /// Calls `each` with the index of a result, of the element of x and of the weight that it takes.
    fn terms(g: &Geometry, mut each: impl FnMut(usize, usize, usize)) {
        let (groups, window) = (g.groups(), g.kernel.0 * g.kernel.1);
        let (from, to) = (g.channels / groups, g.out / groups);
        let (stride, padding, dilation) = (g.stride(), g.padding(), g.dilation());
        for y in 0..g.batch * g.out * g.pixels() {
            let (n, k) = (y / g.pixels() / g.out, y / g.pixels() % g.out);
            let (row, column) = (y % g.pixels() / g.columns, y % g.columns);
            for c in 0..from {
                for tap in 0..window {
                    let (i, j) = (tap / g.kernel.1, tap % g.kernel.1);
                    let i = (row * stride.0 + i * dilation.0).checked_sub(padding.0);
                    let j = (column * stride.1 + j * dilation.1).checked_sub(padding.1);
                    if let (Some(i), Some(j)) = (i, j)
                        && i < g.height
                        && j < g.width
                    {
                        let channel = n * g.channels + k / to * from + c;
                        let x = (channel * g.height + i) * g.width + j;
                        each(y, x, (k * from + c) * window + tap);
                    }
                }
            }
        }
    }

    fn close(name: &str, g: &Geometry, y: &[f32], expected: &[f64]) {
        let square = |x: f64| x * x;
        let error: f64 = y
            .iter()
            .zip(expected)
            .map(|(&y, e)| square(f64::from(y) - e))
            .sum();
        let norm: f64 = expected.iter().map(|&e| square(e)).sum();
        let relative = (error / norm.max(1e-30)).sqrt();
        assert!(relative < 1e-5, "{name} of {g:?}: error {relative}");
    }

    /// All passes against their definition, each on a poisoned workspace of the planned size, and
    /// with the same bits on two threads.
    fn check(g: &Geometry) {
        let window = g.kernel.0 * g.kernel.1;
        let count = g.batch * g.channels * g.height * g.width;
        let (x, bias) = (numbers(count, 1), numbers(g.out, 2));
        let weight = numbers(g.out * g.channels / g.groups() * window, 3);
        let dy = numbers(g.batch * g.out * g.pixels(), 4);
        let mut y = vec![0.0; dy.len()];
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        for (i, y) in y.iter_mut().enumerate() {
            *y = f64::from(bias[i / g.pixels() % g.out]);
        }
        let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
        terms(g, |i, from, by| {
            y[i] += product(x[from], weight[by]);
            dx[from] += product(dy[i], weight[by]);
            dw[by] += product(dy[i], x[from]);
        });
        let never = AtomicBool::new(false);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .unwrap();
        let run = |pass: Pass, size: usize, many: bool| {
            let mut workspace = vec![f32::NAN; g.workspace(pass).unwrap()];
            let mut out = vec![f32::NAN; size];
            let workers = Workers::new(many, &never);
            pool.install(|| match pass {
                Pass::Forward => {
                    // Exact, and wrong where an element is finished twice or never.
                    let factor = |index: usize| if index.is_multiple_of(3) { -2.0 } else { 4.0 };
                    let finish = |first: usize, part: &mut [f32]| {
                        let numbers = part.iter_mut().enumerate();
                        numbers.for_each(|(i, y)| *y *= factor(first + i));
                    };
                    let operands = (&*x, &*weight, Some(&*bias));
                    forward(workers, g, operands, &mut out, &mut workspace, &finish);
                    let numbers = out.iter_mut().enumerate();
                    numbers.for_each(|(i, y)| *y /= factor(i));
                }
                Pass::Input => {
                    input_gradient(workers, g, (&dy, &weight), &mut out, &mut workspace);
                }
                Pass::Weight => {
                    weight_gradient(workers, g, (&x, &dy), &mut out, &mut workspace);
                }
            });
            out
        };
        for (name, pass, expected) in [
            ("result", Pass::Forward, &y),
            ("dx", Pass::Input, &dx),
            ("dw", Pass::Weight, &dw),
        ] {
            let (alone, many) = (
                run(pass, expected.len(), false),
                run(pass, expected.len(), true),
            );
            assert!(alone == many, "{name} of {g:?} differs on two threads");
            close(name, g, &alone, expected);
        }
    }

    fn geometry(
        batch: usize,
        (channels, out): (usize, usize),
        size: (usize, usize),
        kernel: (usize, usize),
        attributes: Conv2d,
    ) -> Option<Geometry> {
        let weight = [
            out,
            channels / attributes.groups as usize,
            kernel.0,
            kernel.1,
        ];
        Geometry::new(&attributes, &[batch, channels, size.0, size.1], &weight)
    }

    #[test]
    fn every_method_gives_the_definition_on_layers_of_models() {
        let square = |stride: u32, padding: u32, groups: usize| Conv2d {
            stride: (stride, stride),
            padding: (padding, padding),
            dilation: (1, 1),
            groups: groups as u32,
        };
        for (batch, channels, side, out, kernel, stride, groups) in [
            (1, 3, 61, 16, 7, 2, 1),
            (2, 24, 28, 20, 3, 1, 1),
            (5, 20, 7, 24, 3, 1, 1),
            (1, 16, 40, 17, 3, 2, 1),
            (1, 40, 7, 33, 3, 1, 1),
            (3, 40, 7, 33, 1, 1, 1),
            (3, 16, 33, 18, 1, 2, 1),
            (4, 70, 1, 30, 1, 1, 1),
            (2, 19, 23, 19, 5, 1, 19),
            (2, 19, 23, 19, 3, 2, 19),
            (2, 18, 9, 12, 3, 1, 3),
        ] {
            let attributes = square(stride, kernel as u32 / 2, groups);
            let kernel = (kernel, kernel);
            let g = geometry(batch, (channels, out), (side, side), kernel, attributes);
            check(&g.unwrap());
        }
    }

    proptest! {
        #[test]
        fn every_method_gives_the_definition(
            batch in 1usize..6,
            groups in 1usize..4,
            (from, to) in prop_oneof![Just((1, 1)), (1usize..24, 1usize..24)],
            size in (1usize..24, 1usize..24),
            kernel in (1usize..6, 1usize..6),
            stride in (1u32..4, 1u32..4),
            padding in (0u32..4, 0u32..4),
            dilation in (1u32..3, 1u32..3),
        ) {
            let attributes = Conv2d { stride, padding, dilation, groups: groups as u32 };
            let channels = (from * groups, to * groups);
            if let Some(g) = geometry(batch, channels, size, kernel, attributes) {
                check(&g);
            }
        }
    }
}
