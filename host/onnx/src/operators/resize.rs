//! Images with other sizes.

use compute::HostTensor;

use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::import::Node;

pub(super) const NAMES: &[&str] = &["Resize", "Upsample"];

/// Weights of the elements along an axis for each result.
fn weights(
    n: &Node<'_>,
    size: u64,
    results: u64,
    scale: f64,
    roi: (f64, f64),
) -> Result<Vec<f32>, Refusal> {
    let (mode, transformation) = (
        n.s("mode", "nearest"),
        n.s(
            "coordinate_transformation_mode",
            match n.operator() {
                "Upsample" => "asymmetric",
                _ => "half_pixel",
            },
        ),
    );
    let (rounding, a) = (
        n.s(
            "nearest_mode",
            match n.operator() {
                "Upsample" => "floor",
                _ => "round_prefer_floor",
            },
        ),
        n.f("cubic_coeff_a", -0.75),
    );
    let antialias = n.i("antialias", 0) != 0;
    let outside = n.i("exclude_outside", 0) != 0;
    let width = size as f64;
    let length = scale * width;
    let cubic = |x: f64| {
        let x = x.abs();
        if x <= 1.0 {
            ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        } else if x < 2.0 {
            ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
        } else {
            0.0
        }
    };
    let mut matrix = vec![0f32; (size * results) as usize];
    for i in 0..results {
        let x = i as f64;
        let at = match &*transformation {
            "half_pixel" => (x + 0.5) / scale - 0.5,
            "pytorch_half_pixel" if length <= 1.0 => -0.5,
            "pytorch_half_pixel" => (x + 0.5) / scale - 0.5,
            "half_pixel_symmetric" => {
                let offset = width / 2.0 * (1.0 - results as f64 / length);
                offset + (x + 0.5) / scale - 0.5
            }
            "asymmetric" => x / scale,
            "align_corners" if length <= 1.0 => 0.0,
            "align_corners" => x * (width - 1.0) / (length - 1.0),
            "tf_crop_and_resize" => {
                let part = roi.1 - roi.0;
                let at = match results {
                    1 => part * (width - 1.0) / 2.0,
                    _ => x * part * (width - 1.0) / (results - 1) as f64,
                };
                let at = at + roi.0 * (width - 1.0);
                if at < 0.0 || at > width - 1.0 {
                    if n.f("extrapolation_value", 0.0) != 0.0 {
                        return refuse("elements outside the region are not supported");
                    }
                    continue;
                }
                at
            }
            other => return refuse(format!("the transformation {other} is not supported")),
        };
        let row = &mut matrix[(i * size) as usize..((i + 1) * size) as usize];
        let (stretch, reach) = match (antialias, &*mode) {
            (true, "linear") => (scale.min(1.0), 1.0 / scale.min(1.0)),
            (true, "cubic") => (scale.min(1.0), 2.0 / scale.min(1.0)),
            (_, "cubic") => (1.0, 2.0),
            _ => (1.0, 1.0),
        };
        if mode == "nearest" {
            let near = match &*rounding {
                "round_prefer_floor" => (at - 0.5).ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                "floor" => at.floor(),
                _ => at.ceil(),
            };
            row[near.clamp(0.0, width - 1.0) as usize] = 1.0;
            continue;
        }
        let (from, to) = ((at - reach).floor() as i64, (at + reach).ceil() as i64);
        let mut all = Vec::new();
        for k in from..=to {
            let distance = (k as f64 - at) * stretch;
            let weight = match &*mode {
                "linear" => (1.0 - distance.abs()).max(0.0),
                "cubic" => cubic(distance),
                other => return refuse(format!("the mode {other} is not supported")),
            };
            let inside = (0..size as i64).contains(&k);
            if inside || !outside {
                all.push((k.clamp(0, size as i64 - 1) as usize, weight));
            }
        }
        let total: f64 = all.iter().map(|(_, weight)| weight).sum();
        for (k, weight) in all {
            row[k] += (weight / total) as f32;
        }
    }
    Ok(matrix)
}

fn resize(n: &mut Node<'_>) -> Results {
    let mut x = n.x(0)?;
    let sizes = n.graph.sizes(x)?;
    let rank = sizes.len();
    let older = n.operands() == 2 || n.operator() == "Upsample";
    let scales = match n.attribute("scales") {
        Some(a) => Some(a.floats.iter().map(|&x| f64::from(x)).collect()),
        None => n.numbers(if older { 1 } else { 2 })?,
    };
    let scales: Option<Vec<f64>> = scales.filter(|scales: &Vec<f64>| !scales.is_empty());
    let wanted = n.integers(3)?;
    let roi = n.numbers(1)?.filter(|_| !older).unwrap_or_default();
    let axes = match n.ints("axes") {
        Some(axes) => n.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    let mut factors = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let size = sizes[axis];
        let scale = scales.as_ref().and_then(|list| list.get(i).copied());
        let target = wanted
            .as_ref()
            .and_then(|list| list.get(i))
            .map(|&n| n as f64);
        if size == 0 && (scale == Some(1.0) || target == Some(0.0)) {
            factors.push((1.0, 0));
            continue;
        }
        if size == 0 {
            return refuse("the batch cannot be resized");
        }
        factors.push(match (scale, target) {
            (Some(scale), _) => (scale, (scale * size as f64).floor() as u64),
            (_, Some(target)) => (target / size as f64, target as u64),
            _ => return refuse("neither scales nor sizes are known"),
        });
    }
    let policy = n.s("keep_aspect_ratio_policy", "stretch");
    if wanted.is_some() && policy != "stretch" {
        let all = factors.iter().map(|(scale, _)| *scale);
        let scale = match &*policy {
            "not_larger" => all.fold(f64::INFINITY, f64::min),
            _ => all.fold(0.0, f64::max),
        };
        for ((factor, results), &axis) in factors.iter_mut().zip(&axes) {
            *factor = scale;
            *results = (scale * sizes[axis] as f64 + 0.5).floor() as u64;
        }
    }
    for (i, (&axis, (scale, results))) in axes.iter().zip(factors).enumerate() {
        let size = sizes[axis];
        let whole = n.s("coordinate_transformation_mode", "") != "tf_crop_and_resize";
        if size == 0 || (results == size && scale == 1.0 && whole) {
            continue;
        }
        if results == 0 || results.saturating_mul(size) > 1 << 22 {
            return refuse(format!("axis {axis} becomes {results}"));
        }
        let part = |at: usize, other: f64| roi.get(at).copied().unwrap_or(other);
        let roi = (part(i, 0.0), part(axes.len() + i, 1.0));
        let matrix = weights(n, size, results, scale, roi)?;
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(axis, rank - 1);
        let shape = [results as usize, size as usize];
        let matrix = n.graph.constant(&HostTensor::from_f32(&shape, &matrix)?)?;
        let matrix = n.graph.permute(matrix, &[1, 0])?;
        let y = n.graph.permute(x, &order)?;
        let y = if rank == 1 {
            n.graph.reshape(y, &[1, size])?
        } else {
            y
        };
        let y = n.graph.binary("matmul", y, matrix)?;
        let y = if rank == 1 {
            n.graph.reshape(y, &[results])?
        } else {
            y
        };
        x = n.graph.permute(y, &order)?;
    }
    one(x)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    match n.operator() {
        "Resize" | "Upsample" => resize(n),
        _ => Ok(None),
    }
}
