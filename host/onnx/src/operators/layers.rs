//! Layers of networks.

use compute::{DType, HostTensor, Value};
use serde_json::{Value as Json, json};

use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::graph::Item;
use crate::import::Node;

pub(super) const NAMES: &[&str] = &[
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LpPool",
    "MatMul",
    "MaxPool",
    "RMSNormalization",
    "Resize",
    "RotaryEmbedding",
    "Upsample",
];

/// A window along one axis.
#[derive(Debug, Clone, Copy)]
struct Window {
    size: u64,
    kernel: u64,
    stride: u64,
    dilation: u64,
    /// Before and after.
    pads: (u64, u64),
    results: u64,
}

impl Window {
    fn reach(&self) -> u64 {
        self.dilation * (self.kernel - 1) + 1
    }

    /// Elements after the padded tensor that the last window takes.
    fn beyond(&self) -> u64 {
        let end = (self.results - 1) * self.stride + self.reach();
        end.saturating_sub(self.size + self.pads.0 + self.pads.1)
    }
}

/// The windows along the axes of an image of these sizes.
fn windows(n: &Node<'_>, sizes: &[u64], kernel: &[u64]) -> Result<Vec<Window>, Refusal> {
    let rank = sizes.len();
    let of = |name: &str, default: u64, count: usize| -> Result<Vec<u64>, Refusal> {
        let list = n.ints(name).unwrap_or_else(|| vec![default as i64; count]);
        let list: Option<Vec<u64>> = list.iter().map(|&n| u64::try_from(n).ok()).collect();
        match list.filter(|list| list.len() == count && list.iter().all(|&n| n < 1 << 20)) {
            Some(list) => Ok(list),
            None => refuse(format!("{name} do not fit {rank} axes")),
        }
    };
    let (strides, dilations) = (of("strides", 1, rank)?, of("dilations", 1, rank)?);
    let pads = of("pads", 0, 2 * rank)?;
    let (ceil, auto) = (n.i("ceil_mode", 0) != 0, n.s("auto_pad", "NOTSET"));
    if kernel.len() != rank || [&strides, &dilations].iter().any(|list| list.contains(&0)) {
        return refuse("its windows do not fit the image");
    }
    let window = |axis: usize| {
        let mut w = Window {
            size: sizes[axis],
            kernel: kernel[axis],
            stride: strides[axis],
            dilation: dilations[axis],
            pads: (pads[axis], pads[rank + axis]),
            results: 1,
        };
        match &*auto {
            "SAME_UPPER" | "SAME_LOWER" => {
                w.results = w.size.div_ceil(w.stride);
                let total = ((w.results - 1) * w.stride + w.reach()).saturating_sub(w.size);
                let (less, more) = (total / 2, total.div_ceil(2));
                w.pads = if auto == "SAME_UPPER" {
                    (less, more)
                } else {
                    (more, less)
                };
            }
            other => {
                if other == "VALID" {
                    w.pads = (0, 0);
                }
                let padded = w.size + w.pads.0 + w.pads.1;
                let Some(room) = padded.checked_sub(w.reach()) else {
                    return refuse("a window is larger than the image");
                };
                w.results = room / w.stride + 1;
                // One more that is not whole, if it starts within the image.
                let more = ceil && room % w.stride > 0;
                if more && w.results * w.stride < w.size + w.pads.0 {
                    w.results += 1;
                }
            }
        }
        Ok(w)
    };
    (0..rank).map(window).collect()
}

/// x with its last axes padded as windows need, to the last element that one takes.
fn padded(n: &mut Node<'_>, x: Value, windows: &[Window], fill: f64) -> Result<Value, Refusal> {
    let ends = |w: &Window| (w.pads.0, w.pads.1 + w.beyond());
    if windows.iter().all(|w| ends(w) == (0, 0)) {
        return Ok(x);
    }
    let lead = n.g.sizes(x)?.len() - windows.len();
    let (mut before, mut after) = (vec![0; lead], vec![0; lead]);
    for window in windows {
        before.push(ends(window).0);
        after.push(ends(window).1);
    }
    n.g.call("pad", &[x], json!([before, after, fill]))
}

/// The elements of every window one by one, put together by an operator.
fn fold(n: &mut Node<'_>, x: Value, windows: &[Window], op: &str) -> Result<Value, Refusal> {
    let sizes = n.g.sizes(x)?;
    let lead = sizes.len() - windows.len();
    let count: u64 = windows.iter().map(|w| w.kernel).product();
    if count > 1024 {
        return refuse(format!("a window of {count} elements"));
    }
    let mut total: Option<Value> = None;
    for place in 0..count {
        let mut rest = place;
        let mut starts = vec![0; lead];
        let (mut ends, mut steps) = (vec![compute::builder::END; lead], vec![1; lead]);
        for w in windows.iter().rev() {
            let start = rest % w.kernel * w.dilation;
            rest /= w.kernel;
            starts.insert(lead, start);
            ends.insert(lead, start + (w.results - 1) * w.stride + 1);
            steps.insert(lead, w.stride);
        }
        let part = n.g.call("slice", &[x], json!([starts, ends, steps]))?;
        total = Some(match total {
            Some(total) => n.g.binary(op, total, part)?,
            None => part,
        });
    }
    total.map_or_else(|| refuse("a window is empty"), Ok)
}

/// Sums, or the largest elements, of the windows of x `[batch, channels, …]`.
fn pooled(n: &mut Node<'_>, x: Value, w: &[Window], maximum: bool) -> Result<Value, Refusal> {
    let fill = if maximum { f64::from(f32::MIN) } else { 0.0 };
    let x = padded(n, x, w, fill)?;
    let plain = w.iter().all(|w| w.dilation == 1) && w.len() <= 2;
    if !plain {
        return fold(n, x, w, if maximum { "maximum" } else { "add" });
    }
    let sizes = n.g.sizes(x)?;
    // An image of one row where there is one axis.
    let image = match sizes[..] {
        [batch, channels, length] => vec![batch, channels, 1, length],
        _ => sizes.clone(),
    };
    let pair = |f: fn(&Window) -> u64| match w {
        [one] => [1, f(one)],
        [first, second, ..] => [f(first), f(second)],
        [] => [1, 1],
    };
    let (kernel, stride) = (pair(|w| w.kernel), pair(|w| w.stride));
    let x = n.g.reshape(x, &image)?;
    let op = if maximum { "max-pool2d" } else { "avg-pool2d" };
    let mut y = n.g.call(op, &[x], json!([kernel, stride, [0, 0]]))?;
    if !maximum {
        y = n.g.affine(y, (kernel[0] * kernel[1]) as f64, 0.0)?;
    }
    let shape: Vec<u64> = sizes[..2]
        .iter()
        .copied()
        .chain(w.iter().map(|w| w.results))
        .collect();
    n.g.reshape(y, &shape)
}

/// What each window's sum is divided by.
fn counts(n: &mut Node<'_>, w: &[Window], with_pads: bool) -> Result<Value, Refusal> {
    let along = |w: &Window| -> Vec<u64> {
        let (low, high) = if with_pads {
            (0, w.pads.0 + w.size + w.pads.1)
        } else {
            (w.pads.0, w.pads.0 + w.size)
        };
        let inside = |start: u64| {
            let at = (0..w.kernel).map(|k| start + k * w.dilation);
            at.filter(|&at| at >= low && at < high).count() as u64
        };
        (0..w.results)
            .map(|i| inside(i * w.stride).max(1))
            .collect()
    };
    if w.iter().map(|w| w.results).product::<u64>() > 1 << 24 {
        return refuse("too many windows");
    }
    let mut counts = vec![1u64];
    for window in w {
        let axis = along(window);
        counts = counts
            .iter()
            .flat_map(|a| axis.iter().map(move |b| a * b))
            .collect();
    }
    let shape: Vec<usize> = w.iter().map(|w| w.results as usize).collect();
    let factors: Vec<f32> = counts.iter().map(|&n| 1.0 / n as f32).collect();
    n.g.constant(&HostTensor::from_f32(&shape, &factors)?)
}

fn pool(n: &mut Node<'_>, name: &str) -> Results {
    let x = n.x(0)?;
    let sizes = n.g.sizes(x)?;
    if sizes.len() < 3 || sizes[2..].contains(&0) {
        return refuse("it takes [batch, channels, …]");
    }
    let kernel = n.ints("kernel_shape").unwrap_or_default();
    let kernel: Vec<u64> = kernel.iter().map(|&k| k.clamp(1, 1 << 20) as u64).collect();
    let w = windows(n, &sizes[2..], &kernel)?;
    let y = match name {
        "MaxPool" => pooled(n, x, &w, true)?,
        "AveragePool" => {
            let sum = pooled(n, x, &w, false)?;
            let factors = counts(n, &w, n.i("count_include_pad", 0) != 0)?;
            n.g.binary("mul", sum, factors)?
        }
        _ => {
            let p = n.i("p", 2) as f64;
            let size = n.g.unary("abs", x)?;
            let power = n.g.call("pow", &[size], json!([p]))?;
            let sum = pooled(n, power, &w, false)?;
            n.g.call("pow", &[sum], json!([1.0 / p]))?
        }
    };
    one(y)
}

/// Sizes `[first, second, length]` with an axis of 1 before the last.
fn as_image(n: &mut Node<'_>, x: Value) -> Result<Value, Refusal> {
    match n.g.sizes(x)?[..] {
        [a, b, length] => n.g.reshape(x, &[a, b, 1, length]),
        [_, _, _, _] => Ok(x),
        _ => refuse("only one and two image axes are supported"),
    }
}

/// Pairs of numbers, (1, n) for one axis.
fn pair(list: impl Iterator<Item = u64>, other: u64) -> Json {
    match list.collect::<Vec<_>>()[..] {
        [one] => json!([other, one]),
        [first, second, ..] => json!([first, second]),
        [] => json!([other, other]),
    }
}

fn conv(n: &mut Node<'_>) -> Results {
    let (x, weight, bias) = (n.x(0)?, n.x(1)?, n.optional(2)?);
    let (sizes, kernel) = (n.g.sizes(x)?, n.g.fixed(weight)?);
    if sizes.len() < 3 || sizes[2..].contains(&0) || kernel.len() != sizes.len() {
        return refuse("it takes [batch, channels, …]");
    }
    let w = windows(n, &sizes[2..], &kernel[2..])?;
    let even = w.iter().all(|w| w.pads.0 == w.pads.1);
    let x = if even { x } else { padded(n, x, &w, 0.0)? };
    let pads = |w: &Window| if even { w.pads.0 } else { 0 };
    let attributes = json!([
        pair(w.iter().map(|w| w.stride), 1),
        pair(w.iter().map(pads), 0),
        pair(w.iter().map(|w| w.dilation), 1),
        n.i("group", 1)
    ]);
    let (image, weight) = (as_image(n, x)?, as_image(n, weight)?);
    let operands: Vec<Value> = [image, weight].into_iter().chain(bias).collect();
    let y = n.g.call("conv2d", &operands, attributes)?;
    let results = w.iter().map(|w| w.results);
    let shape: Vec<u64> = [sizes[0], kernel[0]].into_iter().chain(results).collect();
    one(n.g.reshape(y, &shape)?)
}

fn conv_transpose(n: &mut Node<'_>) -> Results {
    let (x, weight, bias) = (n.x(0)?, n.x(1)?, n.optional(2)?);
    let (sizes, kernel) = (n.g.sizes(x)?, n.g.fixed(weight)?);
    let rank = match (sizes.len(), kernel.len()) {
        (3, 3) => 1,
        (4, 4) => 2,
        _ => return refuse("only one and two image axes are supported"),
    };
    let list = |name: &str, default: i64, count: usize| {
        let list = n.ints(name).unwrap_or_else(|| vec![default; count]);
        if list.len() == count && list.iter().all(|n| (0..1 << 20).contains(n)) {
            return Ok(list);
        }
        refuse(format!("{name} do not fit {rank} axes"))
    };
    let (strides, dilations) = (list("strides", 1, rank)?, list("dilations", 1, rank)?);
    let (extra, pads) = (list("output_padding", 0, rank)?, list("pads", 0, 2 * rank)?);
    let wanted = n.ints("output_shape");
    if wanted.as_ref().is_some_and(|list| list.len() < rank) {
        return refuse("output_shape does not fit");
    }
    let auto = n.s("auto_pad", "NOTSET");
    let groups = n.i("group", 1).clamp(1, 1 << 20);
    // The whole result, without padding, of which a part is taken.
    let (mut starts, mut ends, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for axis in 0..rank {
        let size = sizes[2 + axis] as i64;
        let all = (size - 1) * strides[axis] + dilations[axis] * (kernel[2 + axis] as i64 - 1) + 1;
        let given = match (&wanted, &*auto) {
            (Some(shape), _) => shape.get(shape.len() - rank + axis).copied(),
            (None, "SAME_UPPER" | "SAME_LOWER") => Some(size * strides[axis]),
            _ => None,
        };
        let (before, length) = match given {
            Some(length) => {
                let total = all + extra[axis] - length;
                let less = total.div_euclid(2);
                let before = if auto == "SAME_LOWER" {
                    total - less
                } else {
                    less
                };
                (before.max(0), length)
            }
            None => {
                let length = all + extra[axis] - pads[axis] - pads[rank + axis];
                (pads[axis], length)
            }
        };
        starts.push(before as u64);
        ends.push((before + length) as u64);
        after.push((before + length - all).max(0) as u64);
    }
    let number = |list: &[i64]| list.iter().map(|&n| n as u64).collect::<Vec<_>>();
    let attributes = json!([
        pair(number(&strides).into_iter(), 1),
        [0, 0],
        pair(number(&dilations).into_iter(), 1),
        groups,
        [0, 0]
    ]);
    let (image, weight) = (as_image(n, x)?, as_image(n, weight)?);
    let y = n.g.call("conv-transpose2d", &[image, weight], attributes)?;
    let out = kernel[1] * groups as u64;
    let (mut starts, mut ends, mut after) = (starts, ends, after);
    if rank == 1 {
        starts.insert(0, 0);
        ends.insert(0, 1);
        after.insert(0, 0);
    }
    let y = match after.iter().any(|&n| n > 0) {
        true => {
            let after = [vec![0, 0], after].concat();
            n.g.call("pad", &[y], json!([[0, 0, 0, 0], after, 0.0]))?
        }
        false => y,
    };
    let mut y = n.g.part(y, 2, (starts[0], ends[0]))?;
    y = n.g.part(y, 3, (starts[1], ends[1]))?;
    if let Some(bias) = bias {
        let column = n.g.reshape(bias, &[out, 1, 1])?;
        y = n.g.binary("add", y, column)?;
    }
    let mut shape = n.g.sizes(y)?;
    if rank == 1 {
        shape.remove(2);
    }
    one(n.g.reshape(y, &shape)?)
}

fn gemm(n: &mut Node<'_>) -> Results {
    let (mut a, mut b, c) = (n.x(0)?, n.x(1)?, n.optional(2)?);
    if n.i("transA", 0) != 0 {
        a = n.g.permute(a, &[1, 0])?;
    }
    if n.i("transB", 0) != 0 {
        b = n.g.permute(b, &[1, 0])?;
    }
    let mut y = n.g.binary("matmul", a, b)?;
    let (alpha, beta) = (n.f("alpha", 1.0), n.f("beta", 1.0));
    if alpha != 1.0 {
        y = n.g.affine(y, alpha, 0.0)?;
    }
    if let Some(c) = c {
        let c = if beta == 1.0 {
            c
        } else {
            n.g.affine(c, beta, 0.0)?
        };
        y = n.g.binary("add", y, c)?;
    }
    one(y)
}

fn matmul(n: &mut Node<'_>) -> Results {
    let (mut a, mut b) = (n.x(0)?, n.x(1)?);
    let (left, right) = (n.g.sizes(a)?, n.g.sizes(b)?);
    if let [size] = left[..] {
        a = n.g.reshape(a, &[1, size])?;
    }
    if let [size] = right[..] {
        b = n.g.reshape(b, &[size, 1])?;
    }
    let y = n.g.binary("matmul", a, b)?;
    let mut shape = n.g.sizes(y)?;
    let rank = shape.len();
    if right.len() == 1 {
        shape.remove(rank - 1);
    }
    if left.len() == 1 {
        shape.remove(rank - 2);
    }
    one(n.g.reshape(y, &shape)?)
}

/// A whole-image pool, which leaves axes of size 1.
fn global(n: &mut Node<'_>, op: &str) -> Results {
    let x = n.x(0)?;
    let axes: Vec<usize> = (2..n.g.sizes(x)?.len()).collect();
    one(n.g.reduce(op, x, &axes, true)?)
}

/// Normalisation over the axes from one on, scaled.
fn layer_norm(n: &mut Node<'_>, centre: bool) -> Results {
    let (x, scale, bias) = (n.x(0)?, n.x(1)?, n.optional(2)?);
    let sizes = n.g.sizes(x)?;
    let axis = n.axis(n.i("axis", -1), sizes.len())?;
    let epsilon = n.f("epsilon", 1e-5);
    let axes: Vec<usize> = (axis..sizes.len()).collect();
    let mean = n.g.reduce("mean", x, &axes, true)?;
    let centred = if centre {
        n.g.binary("sub", x, mean)?
    } else {
        x
    };
    let square = n.g.binary("mul", centred, centred)?;
    let variance = n.g.reduce("mean", square, &axes, true)?;
    let variance = n.g.affine(variance, 1.0, epsilon)?;
    let reciprocal = n.g.unary("rsqrt", variance)?;
    let row = &sizes[axis..];
    let fused = n.g.sizes(scale)? == row && (!centre || bias.is_some());
    let y = match bias {
        Some(bias) if fused && n.g.sizes(bias)? == row => {
            n.g.call("layer-norm", &[x, scale, bias], json!([epsilon]))?
        }
        None if fused => n.g.call("rms-norm", &[x, scale], json!([epsilon]))?,
        bias => {
            let normal = n.g.binary("mul", centred, reciprocal)?;
            let scaled = n.g.binary("mul", normal, scale)?;
            match bias {
                Some(bias) => n.g.binary("add", scaled, bias)?,
                None => scaled,
            }
        }
    };
    let results = [y, mean, reciprocal].map(Item::Computed).to_vec();
    Ok(Some(if centre {
        results
    } else {
        results[..1].to_vec()
    }))
}

fn group_norm(n: &mut Node<'_>, instance: bool) -> Results {
    let (x, mut scale, mut bias) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let channels = n.g.fixed_axis(x, 1)?;
    let groups = if instance {
        channels
    } else {
        n.i("num_groups", 1).max(1) as u64
    };
    // In older operator sets there is a number for each group.
    for vector in [&mut scale, &mut bias] {
        if n.g.sizes(*vector)? != [channels] {
            let each = channels / groups;
            let column = n.g.reshape(*vector, &[groups, 1])?;
            let all = n.g.call("expand", &[column], json!([[groups, each]]))?;
            *vector = n.g.reshape(all, &[channels])?;
        }
    }
    let attributes = json!([groups, n.f("epsilon", 1e-5)]);
    one(n.g.call("group-norm", &[x, scale, bias], attributes)?)
}

/// x / (bias + alpha/size · Σ x² over neighbouring channels)^beta (Krizhevsky et al. 2012).
fn local_response(n: &mut Node<'_>) -> Results {
    let x = n.x(0)?;
    let rank = n.g.sizes(x)?.len();
    let channels = n.g.fixed_axis(x, 1)?;
    let size = n.i("size", 1).clamp(1, 256) as u64;
    let square = n.g.binary("mul", x, x)?;
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    (before[1], after[1]) = ((size - 1) / 2, size / 2);
    let all = n.g.call("pad", &[square], json!([before, after, 0.0]))?;
    let mut sum = n.g.part(all, 1, (0, channels))?;
    for i in 1..size {
        let part = n.g.part(all, 1, (i, i + channels))?;
        sum = n.g.binary("add", sum, part)?;
    }
    let factor = n.f("alpha", 1e-4) / size as f64;
    let scale = n.g.affine(sum, factor, n.f("bias", 1.0))?;
    let scale = n.g.call("pow", &[scale], json!([-n.f("beta", 0.75)]))?;
    one(n.g.binary("mul", x, scale)?)
}

/// `[batch, length, heads·size]` as `[batch, heads, length, size]`.
fn heads(n: &mut Node<'_>, x: Value, count: u64) -> Result<Value, Refusal> {
    match n.g.sizes(x)?[..] {
        [batch, length, width] if count > 0 => {
            let x = n.g.reshape(x, &[batch, length, count, width / count])?;
            n.g.permute(x, &[0, 2, 1, 3])
        }
        [_, _, _, _] => Ok(x),
        _ => refuse("it takes three or four axes"),
    }
}

/// Each head several times, one after the other.
fn repeated(n: &mut Node<'_>, x: Value, count: u64) -> Result<Value, Refusal> {
    let [batch, heads, length, size] = n.g.sizes(x)?[..] else {
        return refuse("it takes four axes");
    };
    if count <= 1 {
        return Ok(x);
    }
    let x = n.g.reshape(x, &[batch, heads, 1, length, size])?;
    let x =
        n.g.call("expand", &[x], json!([[batch, heads, count, length, size]]))?;
    n.g.reshape(x, &[batch, heads * count, length, size])
}

fn iota(n: &mut Node<'_>, count: u64, shape: &[u64]) -> Result<Value, Refusal> {
    let numbers: Vec<i64> = (0..count as i64).collect();
    let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
    n.g.constant(&HostTensor::from_i64(&shape, &numbers)?)
}

fn attention(n: &mut Node<'_>) -> Results {
    let (q, k, v) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let flat = n.g.sizes(q)?.len() == 3;
    let (q_heads, kv_heads) = (n.i("q_num_heads", 0) as u64, n.i("kv_num_heads", 0) as u64);
    let q = heads(n, q, q_heads)?;
    let (mut k, mut v) = (heads(n, k, kv_heads)?, heads(n, v, kv_heads)?);
    let mut past = 0;
    if let (Some(keys), Some(values)) = (n.optional(4)?, n.optional(5)?) {
        past = n.g.fixed_axis(keys, 2)?;
        k = n.g.concat(&[keys, k], 2)?;
        v = n.g.concat(&[values, v], 2)?;
    }
    let present = [k, v];
    let (own, other) = (n.g.fixed_axis(q, 1)?, n.g.fixed_axis(k, 1)?);
    let (k, v) = (repeated(n, k, own / other)?, repeated(n, v, own / other)?);
    let features = n.g.fixed_axis(q, 3)? as f64;
    let root = n.f("scale", 1.0 / features.sqrt()).sqrt();
    let (q, k) = (n.g.affine(q, root, 0.0)?, n.g.affine(k, root, 0.0)?);
    let turned = n.g.permute(k, &[0, 1, 3, 2])?;
    let raw = n.g.binary("matmul", q, turned)?;
    let (queries, keys) = (n.g.fixed_axis(q, 2)?, n.g.fixed_axis(k, 2)?);
    let hidden = f64::from(f32::MIN) / 4.0;
    let least = n.g.scalar(hidden)?;
    // Before masks, which a cap would let through.
    let softcap = n.f("softcap", 0.0);
    let capped = if softcap > 0.0 {
        let x = n.g.affine(raw, 1.0 / softcap, 0.0)?;
        let x = n.g.unary("tanh", x)?;
        n.g.affine(x, softcap, 0.0)?
    } else {
        raw
    };
    let mut scores = capped;
    if let Some(mut mask) = n.optional(3)? {
        let shape = n.g.fixed(mask)?;
        let short = keys.saturating_sub(shape.last().copied().unwrap_or(keys));
        if short > 0 {
            let (before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
            after[shape.len() - 1] = short;
            let fill = if n.g.dtype(mask)? == DType::Bool {
                0.0
            } else {
                hidden
            };
            mask = n.g.call("pad", &[mask], json!([before, after, fill]))?;
        }
        scores = if n.g.dtype(mask)? == DType::Bool {
            n.g.call("select", &[mask, scores, least], Json::Null)?
        } else {
            n.g.binary("add", scores, mask)?
        };
    }
    let lengths = match n.optional(6)? {
        Some(lengths) => {
            let count = n.g.fixed(lengths)?.iter().product();
            Some(n.g.reshape(lengths, &[count, 1, 1, 1])?)
        }
        None => None,
    };
    let columns = iota(n, keys, &[1, keys])?;
    let rows = iota(n, queries, &[queries, 1])?;
    let offset = match lengths {
        Some(lengths) if past == 0 => {
            let queries = n.g.integer(queries as i64)?;
            n.g.binary("sub", lengths, queries)?
        }
        _ => n.g.integer(past as i64)?,
    };
    let at = n.g.binary("add", rows, offset)?;
    let (left, right) = (n.i("left_window_size", -1), n.i("right_window_size", -1));
    let mut seen = Vec::new();
    if n.i("is_causal", 0) != 0 {
        seen.push(n.g.binary("less-or-equal", columns, at)?);
    }
    if left >= 0 {
        let left = n.g.integer(left)?;
        let from = n.g.binary("sub", at, left)?;
        seen.push(n.g.binary("greater-or-equal", columns, from)?);
    }
    if right >= 0 {
        let right = n.g.integer(right)?;
        let to = n.g.binary("add", at, right)?;
        seen.push(n.g.binary("less-or-equal", columns, to)?);
    }
    if let Some(lengths) = lengths {
        seen.push(n.g.binary("less", columns, lengths)?);
    }
    for seen in seen {
        scores = n.g.call("select", &[seen, scores, least], Json::Null)?;
    }
    // A row of which nothing is seen gives zeros.
    let scores = n.g.binary("maximum", scores, least)?;
    let limit = n.g.scalar(hidden / 2.0)?;
    let none = n.g.binary("less", scores, limit)?;
    let weights = n.g.call("softmax", &[scores], json!([3]))?;
    let zero = n.g.scalar(0.0)?;
    let weights = n.g.call("select", &[none, zero, weights], Json::Null)?;
    let y = n.g.binary("matmul", weights, v)?;
    let told = match n.i("qk_matmul_output_mode", 0) {
        0 | 1 => capped,
        2 => {
            let infinite = n.g.scalar(f64::NEG_INFINITY)?;
            n.g.call("select", &[none, infinite, scores], Json::Null)?
        }
        _ => weights,
    };
    let y = match (flat, &n.g.sizes(y)?[..]) {
        (true, &[batch, heads, length, size]) => {
            let y = n.g.permute(y, &[0, 2, 1, 3])?;
            n.g.reshape(y, &[batch, length, heads * size])?
        }
        _ => y,
    };
    let results = [y, present[0], present[1], told];
    Ok(Some(results.map(Item::Computed).to_vec()))
}

fn rotary(n: &mut Node<'_>) -> Results {
    let (x, mut cos, mut sin, by) = (n.x(0)?, n.x(1)?, n.x(2)?, n.optional(3)?);
    let shape = n.g.sizes(x)?;
    let flat = shape.len() == 3;
    let x = match shape[..] {
        [batch, length, width] => {
            let count = n.i("num_heads", 0).max(1) as u64;
            n.g.reshape(x, &[batch, length, count, width / count])?
        }
        _ => n.g.permute(x, &[0, 2, 1, 3])?,
    };
    let sizes: [u64; 4] = match n.g.sizes(x)?.try_into() {
        Ok(sizes) => sizes,
        Err(_) => return refuse("it takes three or four axes"),
    };
    let width = match n.i("rotary_embedding_dim", 0) {
        0 => sizes[3],
        width if (2..=sizes[3] as i64).contains(&width) => width as u64,
        _ => return refuse("rotary_embedding_dim does not fit"),
    };
    for cache in [&mut cos, &mut sin] {
        if let Some(by) = by {
            *cache = n.g.call("take", &[*cache, by], json!([0]))?;
        }
        *cache = match n.g.sizes(*cache)?[..] {
            [batch, length, half] => n.g.reshape(*cache, &[batch, length, 1, half])?,
            _ => return refuse("its caches do not fit"),
        };
    }
    let turned = n.g.part(x, 3, (0, width))?;
    let rest = match width < sizes[3] {
        true => Some(n.g.part(x, 3, (width, sizes[3]))?),
        false => None,
    };
    let interleaved = n.i("interleaved", 0) != 0;
    let pairs = [sizes[0], sizes[1], sizes[2], width / 2, 2];
    let halves = if interleaved {
        let pairs = n.g.reshape(turned, &pairs)?;
        let mut halves = Vec::new();
        for i in 0..2 {
            let half = n.g.part(pairs, 4, (i, i + 1))?;
            halves.push(n.g.reshape(half, &pairs_without_last(&sizes, width))?);
        }
        halves
    } else {
        vec![
            n.g.part(turned, 3, (0, width / 2))?,
            n.g.part(turned, 3, (width / 2, width))?,
        ]
    };
    let product = |n: &mut Node<'_>, a, b| n.g.binary("mul", a, b);
    let (a, b) = (product(n, cos, halves[0])?, product(n, sin, halves[1])?);
    let real = n.g.binary("sub", a, b)?;
    let (a, b) = (product(n, sin, halves[0])?, product(n, cos, halves[1])?);
    let imaginary = n.g.binary("add", a, b)?;
    let mut y = if interleaved {
        let one_more = [&pairs[..4], &[1]].concat();
        let (real, imaginary) = (
            n.g.reshape(real, &one_more)?,
            n.g.reshape(imaginary, &one_more)?,
        );
        let both = n.g.concat(&[real, imaginary], 4)?;
        n.g.reshape(both, &[sizes[0], sizes[1], sizes[2], width])?
    } else {
        n.g.concat(&[real, imaginary], 3)?
    };
    if let Some(rest) = rest {
        y = n.g.concat(&[y, rest], 3)?;
    }
    one(match flat {
        true => n.g.reshape(y, &shape)?,
        false => n.g.permute(y, &[0, 2, 1, 3])?,
    })
}

fn pairs_without_last(sizes: &[u64], width: u64) -> [u64; 4] {
    [sizes[0], sizes[1], sizes[2], width / 2]
}

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
    let sizes = n.g.sizes(x)?;
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
        let matrix = n.g.constant(&HostTensor::from_f32(&shape, &matrix)?)?;
        let matrix = n.g.permute(matrix, &[1, 0])?;
        let y = n.g.permute(x, &order)?;
        let y = if rank == 1 {
            n.g.reshape(y, &[1, size])?
        } else {
            y
        };
        let y = n.g.binary("matmul", y, matrix)?;
        let y = if rank == 1 {
            n.g.reshape(y, &[results])?
        } else {
            y
        };
        x = n.g.permute(y, &order)?;
    }
    one(x)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    let name = n.operator().to_owned();
    match &*name {
        "Conv" => conv(n),
        "ConvTranspose" => conv_transpose(n),
        "Gemm" => gemm(n),
        "MatMul" => matmul(n),
        "MaxPool" | "AveragePool" | "LpPool" => pool(n, &name),
        "GlobalAveragePool" => global(n, "mean"),
        "GlobalMaxPool" => global(n, "amax"),
        "BatchNormalization" => {
            if n.i("training_mode", 0) != 0 {
                return refuse("only inference is imported");
            }
            let operands = [n.x(0)?, n.x(1)?, n.x(2)?, n.x(3)?, n.x(4)?];
            one(n
                .g
                .call("batch-norm-eval", &operands, json!([n.f("epsilon", 1e-5)]))?)
        }
        "InstanceNormalization" => group_norm(n, true),
        "GroupNormalization" => group_norm(n, false),
        "LayerNormalization" => layer_norm(n, true),
        "RMSNormalization" => layer_norm(n, false),
        "LRN" => local_response(n),
        "Attention" => attention(n),
        "RotaryEmbedding" => rotary(n),
        "Resize" | "Upsample" => resize(n),
        _ => Ok(None),
    }
}
