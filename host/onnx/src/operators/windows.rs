//! Operators over windows of an image: convolutions and pools.

use compute::{HostTensor, Value};
use serde_json::{Value as Json, json};

use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::import::Node;

pub(super) const NAMES: &[&str] = &["AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"];

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
    let lead = n.graph.sizes(x)?.len() - windows.len();
    let (mut before, mut after) = (vec![0; lead], vec![0; lead]);
    for window in windows {
        before.push(ends(window).0);
        after.push(ends(window).1);
    }
    n.graph.call("pad", &[x], json!([before, after, fill]))
}

/// The elements of every window one by one, put together by an operator.
fn fold(n: &mut Node<'_>, x: Value, windows: &[Window], op: &str) -> Result<Value, Refusal> {
    let sizes = n.graph.sizes(x)?;
    let lead = sizes.len() - windows.len();
    let count = windows
        .iter()
        .try_fold(1, |count: u64, w| count.checked_mul(w.kernel));
    let Some(count) = count.filter(|&count| count <= 1024) else {
        return refuse("a window of more than 1024 elements");
    };
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
        let part = n.graph.call("slice", &[x], json!([starts, ends, steps]))?;
        total = Some(match total {
            Some(total) => n.graph.binary(op, total, part)?,
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
    let sizes = n.graph.sizes(x)?;
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
    let x = n.graph.reshape(x, &image)?;
    let op = if maximum { "max-pool2d" } else { "avg-pool2d" };
    let mut y = n.graph.call(op, &[x], json!([kernel, stride, [0, 0]]))?;
    if !maximum {
        y = n.graph.affine(y, (kernel[0] * kernel[1]) as f64, 0.0)?;
    }
    let shape: Vec<u64> = sizes[..2]
        .iter()
        .copied()
        .chain(w.iter().map(|w| w.results))
        .collect();
    n.graph.reshape(y, &shape)
}

/// What each window's sum is divided by.
fn counts(n: &mut Node<'_>, w: &[Window], with_pads: bool) -> Result<Value, Refusal> {
    let along = |w: &Window| -> Vec<u64> {
        let (low, high) = if with_pads {
            (0, w.pads.0 + w.size + w.pads.1)
        } else {
            (w.pads.0, w.pads.0 + w.size)
        };
        // Elements start, start + dilation, … of a window from `low` to before `high`.
        let inside = |start: u64| {
            let before = |end: u64| end.saturating_sub(start).div_ceil(w.dilation).min(w.kernel);
            before(high) - before(low)
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
    n.graph.constant(&HostTensor::from_f32(&shape, &factors)?)
}

fn pool(n: &mut Node<'_>, name: &str) -> Results {
    let x = n.x(0)?;
    let sizes = n.graph.sizes(x)?;
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
            n.graph.binary("mul", sum, factors)?
        }
        _ => {
            let p = n.i("p", 2) as f64;
            let size = n.graph.unary("abs", x)?;
            let power = n.graph.call("pow", &[size], json!([p]))?;
            let sum = pooled(n, power, &w, false)?;
            n.graph.call("pow", &[sum], json!([1.0 / p]))?
        }
    };
    one(y)
}

/// Sizes `[first, second, length]` with an axis of 1 before the last.
fn as_image(n: &mut Node<'_>, x: Value) -> Result<Value, Refusal> {
    match n.graph.sizes(x)?[..] {
        [a, b, length] => n.graph.reshape(x, &[a, b, 1, length]),
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
    let (sizes, kernel) = (n.graph.sizes(x)?, n.graph.fixed(weight)?);
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
    let y = n.graph.call("conv2d", &operands, attributes)?;
    let results = w.iter().map(|w| w.results);
    let shape: Vec<u64> = [sizes[0], kernel[0]].into_iter().chain(results).collect();
    one(n.graph.reshape(y, &shape)?)
}

fn conv_transpose(n: &mut Node<'_>) -> Results {
    let (x, weight, bias) = (n.x(0)?, n.x(1)?, n.optional(2)?);
    let (sizes, kernel) = (n.graph.sizes(x)?, n.graph.fixed(weight)?);
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
                if !(0..1 << 48).contains(&length) {
                    return refuse("output_shape does not fit");
                }
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
    let y = n
        .graph
        .call("conv-transpose2d", &[image, weight], attributes)?;
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
            n.graph
                .call("pad", &[y], json!([[0, 0, 0, 0], after, 0.0]))?
        }
        false => y,
    };
    let mut y = n.graph.part(y, 2, (starts[0], ends[0]))?;
    y = n.graph.part(y, 3, (starts[1], ends[1]))?;
    if let Some(bias) = bias {
        let column = n.graph.reshape(bias, &[out, 1, 1])?;
        y = n.graph.binary("add", y, column)?;
    }
    let mut shape = n.graph.sizes(y)?;
    if rank == 1 {
        shape.remove(2);
    }
    one(n.graph.reshape(y, &shape)?)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    let name = n.operator().to_owned();
    match &*name {
        "Conv" => conv(n),
        "ConvTranspose" => conv_transpose(n),
        "MaxPool" | "AveragePool" | "LpPool" => pool(n, &name),
        _ => Ok(None),
    }
}
