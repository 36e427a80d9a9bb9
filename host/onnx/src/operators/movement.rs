//! Operators that move elements.

use compute::{DType, HostTensor, Value};
use serde_json::{Value as Json, json};

use super::shapes::{known, list, product, shape_of, sizes};
use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::graph::{Item, number};
use crate::import::Node;
use crate::tensor;

pub(super) const NAMES: &[&str] = &[
    "CenterCropPad",
    "Concat",
    "DepthToSpace",
    "Expand",
    "EyeLike",
    "Pad",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Tile",
    "Transpose",
    "Trilu",
];

fn slice(n: &mut Node<'_>) -> Results {
    let own = shape_of(n, 0)?;
    let (Some(starts), Some(ends)) = (n.listed("starts", 1)?, n.listed("ends", 2)?) else {
        return refuse("it has no starts and ends");
    };
    let every: Vec<i64> = (0..starts.len() as i64).collect();
    let axes = n.listed("axes", 3)?.unwrap_or(every);
    let axes = n.axes(&axes, own.len())?;
    let steps = n.integers(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return refuse("starts, ends, axes and steps differ in number");
    }
    let mut x = match n.item(0)?.clone() {
        Item::Known(tensor) if tensor.shape().iter().product::<usize>() == 0 => {
            return known(tensor);
        }
        item => n.graph.value(&item)?,
    };
    let mut sizes = own;
    for (i, &axis) in axes.iter().enumerate() {
        let size = sizes[axis] as i64;
        let (start, end, step) = (starts[i], ends[i], steps[i]);
        if (start, step) == (0, 1) && end >= i64::from(i32::MAX) {
            continue;
        }
        if size == 0 {
            return refuse("the batch cannot be divided");
        }
        let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (first, last, back) = match step {
            0 => return refuse("a step is 0"),
            1.. => (
                from_end(start).clamp(0, size),
                from_end(end).clamp(0, size),
                false,
            ),
            // Elements start, start + step, … above end, seen from the other end.
            _ => {
                let (start, end) = (
                    from_end(start).clamp(-1, size - 1),
                    from_end(end).clamp(-1, size - 1),
                );
                (size - 1 - start, size - 1 - end, true)
            }
        };
        if first >= last {
            // Only shapes are ever empty.
            let mut shape: Vec<usize> = sizes.iter().map(|&n| n as usize).collect();
            shape[axis] = 0;
            let dtype = n.graph.dtype(x)?;
            return known(HostTensor::new(dtype, shape, Vec::new())?);
        }
        if back {
            x = n.graph.call("flip", &[x], json!([[axis]]))?;
        }
        let mut attributes = [
            vec![0; sizes.len()],
            vec![compute::builder::END; sizes.len()],
            vec![1; sizes.len()],
        ];
        attributes[0][axis] = first as u64;
        attributes[1][axis] = last as u64;
        attributes[2][axis] = step.unsigned_abs().min(i32::MAX as u64);
        x = n.graph.call("slice", &[x], json!(attributes))?;
        sizes[axis] = ((last - first) as u64).div_ceil(step.unsigned_abs());
    }
    one(x)
}

fn split(n: &mut Node<'_>) -> Results {
    let x = n.x(0)?;
    let own = n.graph.sizes(x)?;
    let axis = n.axis(n.i("axis", 0), own.len())?;
    let sizes: Vec<u64> = match n.listed("split", 1)? {
        Some(list) => sizes(&list)?,
        None => {
            let count = n.i("num_outputs", n.proto.output.len() as i64).max(1) as u64;
            if count > own[axis] {
                return refuse(format!("{count} parts of {}", own[axis]));
            }
            let each = own[axis].div_ceil(count);
            let start = |i: u64| (i * each).min(own[axis]);
            (0..count).map(|i| start(i + 1) - start(i)).collect()
        }
    };
    let sum = sizes
        .iter()
        .fold(0, |sum: u64, &size| sum.saturating_add(size));
    if sum != own[axis] {
        return refuse(format!("{sizes:?} are not parts of {}", own[axis]));
    }
    let (mut parts, mut start) = (Vec::new(), 0);
    for size in sizes {
        let mut shape: Vec<usize> = own.iter().map(|&n| n as usize).collect();
        shape[axis] = 0;
        parts.push(match size {
            0 => Item::Known(HostTensor::new(n.graph.dtype(x)?, shape, Vec::new())?),
            _ => Item::Computed(n.graph.part(x, axis, (start, start + size))?),
        });
        start += size;
    }
    Ok(Some(parts))
}

/// Elements before and after along an axis, from the tensor itself.
fn pad_axis(
    n: &mut Node<'_>,
    x: Value,
    axis: usize,
    (before, after): (u64, u64),
    mode: &str,
) -> Result<Value, Refusal> {
    let size = n.graph.fixed(x)?[axis];
    let mut parts = Vec::new();
    for (count, front) in [(before, true), (after, false)] {
        if count == 0 {
            continue;
        }
        let side = match mode {
            "edge" => {
                let at = if front { 0 } else { size - 1 };
                let edge = n.graph.part(x, axis, (at, at + 1))?;
                let mut shape = n.graph.sizes(x)?;
                shape[axis] = count;
                n.graph.call("expand", &[edge], json!([shape]))?
            }
            "reflect" if count < size => {
                let range = if front {
                    (1, 1 + count)
                } else {
                    (size - 1 - count, size - 1)
                };
                let part = n.graph.part(x, axis, range)?;
                n.graph.call("flip", &[part], json!([[axis]]))?
            }
            "wrap" if count <= size => {
                let range = if front {
                    (size - count, size)
                } else {
                    (0, count)
                };
                n.graph.part(x, axis, range)?
            }
            _ => return refuse(format!("{count} elements of mode {mode} to {size}")),
        };
        parts.push((front, side));
    }
    let front = parts
        .iter()
        .filter(|(front, _)| *front)
        .map(|(_, side)| *side);
    let back = parts
        .iter()
        .filter(|(front, _)| !front)
        .map(|(_, side)| *side);
    let all: Vec<Value> = front.chain([x]).chain(back).collect();
    n.graph.concat(&all, axis)
}

fn pad(n: &mut Node<'_>) -> Results {
    let mut x = n.x(0)?;
    let rank = n.graph.sizes(x)?.len();
    let Some(pads) = n.listed("pads", 1)? else {
        return refuse("it has no pads");
    };
    let axes = match n.integers(3)? {
        Some(axes) => n.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return refuse("pads and axes differ in number");
    }
    let mode = n.s("mode", "constant");
    let value = match n.numbers(2)? {
        Some(value) => value.first().copied().unwrap_or(0.0),
        None => n.f("value", 0.0),
    };
    let (mut before, mut after) = (vec![0i64; rank], vec![0i64; rank]);
    for (i, &axis) in axes.iter().enumerate() {
        (before[axis], after[axis]) = (pads[i], pads[axes.len() + i]);
    }
    // A negative number takes away.
    for axis in 0..rank {
        let (less, more) = (
            before[axis].min(0).unsigned_abs(),
            after[axis].min(0).unsigned_abs(),
        );
        if less > 0 || more > 0 {
            let size = n.graph.fixed(x)?[axis];
            x = n.graph.part(x, axis, (less, size.saturating_sub(more)))?;
        }
        (before[axis], after[axis]) = (before[axis].max(0), after[axis].max(0));
    }
    let (before, after) = (sizes(&before)?, sizes(&after)?);
    if mode == "constant" {
        return one(n
            .graph
            .call("pad", &[x], json!([before, after, number(value)]))?);
    }
    for axis in 0..rank {
        if before[axis] + after[axis] > 0 {
            x = pad_axis(n, x, axis, (before[axis], after[axis]), &mode)?;
        }
    }
    one(x)
}

fn blocks(n: &mut Node<'_>, to_space: bool) -> Results {
    let x = n.x(0)?;
    let [batch, channels, height, width] = n.graph.sizes(x)?[..] else {
        return refuse("it takes [batch, channels, height, width]");
    };
    let block = n.i("blocksize", 1).clamp(1, 1 << 16) as u64;
    let (sizes, order, shape) = if to_space {
        let each = channels / (block * block);
        let (sizes, order) = match &*n.s("mode", "DCR") {
            "DCR" => (
                [batch, block, block, each, height, width],
                [0, 3, 4, 1, 5, 2],
            ),
            _ => (
                [batch, each, block, block, height, width],
                [0, 1, 4, 2, 5, 3],
            ),
        };
        (sizes, order, [batch, each, height * block, width * block])
    } else {
        let (rows, columns) = (height / block, width / block);
        let order = match &*n.s("mode", "DCR") {
            "DCR" => [0, 3, 5, 1, 2, 4],
            _ => [0, 1, 3, 5, 2, 4],
        };
        let sizes = [batch, channels, rows, block, columns, block];
        let shape = [batch, product(&[channels, block, block]), rows, columns];
        (sizes, order, shape)
    };
    let y = n.graph.reshape(x, &sizes)?;
    let y = n.graph.permute(y, &order)?;
    one(n.graph.reshape(y, &shape)?)
}

fn trilu(n: &mut Node<'_>) -> Results {
    let x = n.x(0)?;
    let sizes = n.graph.sizes(x)?;
    let Some(&[rows, columns]) = sizes.last_chunk() else {
        return refuse("it takes matrices");
    };
    if rows.saturating_mul(columns) > 1 << 24 {
        return refuse("its matrices are too large");
    }
    let offset = n.integers(1)?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = n.i("upper", 1) != 0;
    let keeps = (0..rows as i64).flat_map(|row| {
        (0..columns as i64).map(move |column| {
            let above = column - row;
            u8::from(if upper {
                above >= offset
            } else {
                above <= offset
            })
        })
    });
    let shape = vec![rows as usize, columns as usize];
    let keeps = HostTensor::new(DType::Bool, shape, keeps.collect())?;
    let keeps = n.graph.constant(&keeps)?;
    let zero = n.graph.like(x, 0.0)?;
    one(n.graph.call("select", &[keeps, x, zero], Json::Null)?)
}

fn concat(n: &mut Node<'_>) -> Results {
    let mut parts = Vec::new();
    let mut all_known = Vec::new();
    for i in 0..n.operands() {
        let item = n.item(i)?.clone();
        // Parts of shapes stay known: they may hold the batch.
        if let Item::Known(tensor) = &item {
            if tensor.shape().iter().product::<usize>() == 0 {
                continue;
            }
            if let (Some(values), [_]) = (tensor.to_i64(), tensor.shape()) {
                all_known.extend(values);
            }
        }
        parts.push(item);
    }
    if parts.is_empty() {
        return Ok(Some(vec![n.item(0)?.clone()]));
    }
    let is_list = |item: &Item| matches!(item, Item::Known(t) if t.dtype() == DType::I64 && t.shape().len() == 1);
    if parts.iter().all(is_list) {
        return list(&all_known);
    }
    let values = parts
        .iter()
        .map(|item| n.graph.value(item))
        .collect::<Result<Vec<_>, _>>()?;
    let rank = n.graph.sizes(values[0])?.len();
    let axis = n.axis(n.i("axis", 1), rank)?;
    one(n.graph.concat(&values, axis)?)
}

fn crop_or_pad(n: &mut Node<'_>) -> Results {
    let mut x = n.x(0)?;
    let rank = n.graph.fixed(x)?.len();
    let target = sizes(&n.integers(1)?.unwrap_or_default())?;
    let axes = match n.ints("axes") {
        Some(axes) => n.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    for (&axis, &size) in axes.iter().zip(&target) {
        let own = n.graph.fixed(x)?[axis];
        if size < own {
            let start = (own - size) / 2;
            x = n.graph.part(x, axis, (start, start + size))?;
        } else if size > own {
            let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
            before[axis] = (size - own) / 2;
            after[axis] = size - own - before[axis];
            x = n.graph.call("pad", &[x], json!([before, after, 0.0]))?;
        }
    }
    one(x)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    match n.operator() {
        "Transpose" => {
            let x = n.x(0)?;
            let rank = n.graph.sizes(x)?.len();
            let order = match n.ints("perm") {
                Some(order) => n.axes(&order, rank)?,
                None => (0..rank).rev().collect(),
            };
            one(n.graph.permute(x, &order)?)
        }
        "Concat" => concat(n),
        "Split" => split(n),
        "Slice" => slice(n),
        "Expand" => {
            let x = n.x(0)?;
            let target = sizes(&n.integers(1)?.unwrap_or_default())?;
            let own = n.graph.sizes(x)?;
            let rank = own.len().max(target.len());
            let of = |list: &[u64], i: usize| match (i + list.len()).checked_sub(rank) {
                Some(i) => list[i],
                None => 1,
            };
            let shape: Vec<u64> = (0..rank)
                .map(|i| match (of(&own, i), of(&target, i)) {
                    (own, 1) => own,
                    (_, target) => target,
                })
                .collect();
            if shape == own {
                return one(x);
            }
            one(n.graph.call("expand", &[x], json!([shape]))?)
        }
        "Tile" => {
            let mut x = n.x(0)?;
            let repeats = sizes(&n.integers(1)?.unwrap_or_default())?;
            for (axis, &count) in repeats.iter().enumerate() {
                if count == 0 || count > 256 {
                    return refuse(format!("{count} repetitions"));
                }
                x = n.graph.concat(&vec![x; count as usize], axis)?;
            }
            one(x)
        }
        "Pad" => pad(n),
        "DepthToSpace" => blocks(n, true),
        "SpaceToDepth" => blocks(n, false),
        "Trilu" => trilu(n),
        "EyeLike" => {
            let shape = shape_of(n, 0)?;
            let &[rows, columns] = &shape[..] else {
                return refuse("it takes a matrix");
            };
            if rows.saturating_mul(columns) > 1 << 24 {
                return refuse("its matrix is too large");
            }
            let offset = n.i("k", 0);
            let hits = (0..rows as i64).flat_map(|row| {
                (0..columns as i64).map(move |column| u8::from(column - row == offset))
            });
            let shape = vec![rows as usize, columns as usize];
            let eye = HostTensor::new(DType::Bool, shape, hits.collect())?;
            let eye = n.graph.constant(&eye)?;
            let to = match n.attribute("dtype") {
                Some(a) => tensor::dtype(a.i as i32).map(tensor::computed),
                None => {
                    let x = n.x(0)?;
                    Some(n.graph.dtype(x)?)
                }
            };
            match to {
                Some(to) => one(n.graph.cast(eye, to)?),
                None => refuse("its type is not supported"),
            }
        }
        "CenterCropPad" => crop_or_pad(n),
        _ => Ok(None),
    }
}
