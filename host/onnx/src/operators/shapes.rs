//! Operators that work on shapes, and constants.

use compute::{DType, HostTensor};
use serde_json::json;

use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::graph::Item;
use crate::import::Node;
use crate::tensor::{self, integers};

pub(super) const NAMES: &[&str] = &[
    "Constant",
    "ConstantOfShape",
    "Flatten",
    "Range",
    "Reshape",
    "Shape",
    "Size",
    "Squeeze",
    "Unsqueeze",
];

pub(super) fn known(tensor: HostTensor) -> Results {
    Ok(Some(vec![Item::Known(tensor)]))
}

pub(super) fn list(values: &[i64]) -> Results {
    known(integers(values)?)
}

/// Sizes that may not be negative.
pub(super) fn sizes(values: &[i64]) -> Result<Vec<u64>, Refusal> {
    let sizes = values.iter().map(|&n| u64::try_from(n).ok());
    match sizes.collect() {
        Some(sizes) => Ok(sizes),
        None => refuse(format!("{values:?} are not sizes")),
    }
}

/// The number of elements of sizes, or as many as there can be.
pub(super) fn product<'a>(sizes: impl IntoIterator<Item = &'a u64>) -> u64 {
    sizes.into_iter().fold(1, |n, &size| n.saturating_mul(size))
}

/// Sizes as they are known of an item; a size of 0 is one of an empty tensor.
pub(super) fn shape_of(n: &mut Node<'_>, i: usize) -> Result<Vec<u64>, Refusal> {
    match n.item(i)?.clone() {
        Item::Known(tensor) => Ok(tensor.shape().iter().map(|&n| n as u64).collect()),
        Item::Computed(value) => n.graph.sizes(value),
    }
}

pub(super) fn rank(n: &mut Node<'_>, i: usize) -> Result<usize, Refusal> {
    Ok(shape_of(n, i)?.len())
}

fn constant(n: &Node<'_>) -> Results {
    if let Some(value) = n.attribute("value").and_then(|a| a.t.as_ref()) {
        return match tensor::read(value) {
            Ok(tensor) => known(tensor),
            Err(why) => refuse(why.to_string()),
        };
    }
    if let Some(a) = n.attribute("value_int") {
        return known(HostTensor::from_i64(&[], &[a.i])?);
    }
    if let Some(a) = n.attribute("value_ints") {
        return list(&a.ints);
    }
    if let Some(a) = n.attribute("value_float") {
        return known(HostTensor::from_f32(&[], &[a.f])?);
    }
    if let Some(a) = n.attribute("value_floats") {
        return known(HostTensor::from_f32(&[a.floats.len()], &a.floats)?);
    }
    refuse("its value is of a kind that is not supported")
}

fn reshape(n: &mut Node<'_>) -> Results {
    let Some(target) = n.listed("shape", 1)? else {
        return refuse("it has no target");
    };
    let own = shape_of(n, 0)?;
    let copies = n.i("allowzero", 0) == 0;
    let mut wanted = Vec::with_capacity(target.len());
    for (axis, &size) in target.iter().enumerate() {
        wanted.push(match (size, own.get(axis)) {
            (0, Some(&own)) if copies => Some(own),
            (-1, _) => None,
            (size, _) => Some(sizes(&[size])?[0]),
        });
    }
    // A tensor that is known stays so, and may be empty.
    if let Item::Known(tensor) = n.item(0)?.clone() {
        let count = product(&own);
        let rest = product(wanted.iter().flatten());
        let shape = wanted
            .iter()
            .map(|&size| size.unwrap_or(count / rest.max(1)) as usize);
        let moved = HostTensor::new(tensor.dtype(), shape.collect(), tensor.bytes().to_vec());
        return known(moved?);
    }
    let batch = |list: &[u64]| list.iter().filter(|&&n| n == 0).count();
    let known = |list: &[u64]| product(list.iter().filter(|&&n| n > 0));
    let given: Vec<u64> = wanted.iter().flatten().copied().collect();
    let rest = match (batch(&own), batch(&given)) {
        // The batch has to be what is left.
        (1, 0) => 0,
        _ => known(&own) / known(&given).max(1),
    };
    let x = n.x(0)?;
    let target: Vec<u64> = wanted
        .into_iter()
        .map(|size| size.unwrap_or(rest))
        .collect();
    one(n.graph.reshape(x, &target)?)
}

/// Removes or adds axes of size 1.
fn squeeze(n: &mut Node<'_>, adds: bool) -> Results {
    let own = shape_of(n, 0)?;
    let axes = n.listed("axes", 1)?;
    let shape: Vec<u64> = if adds {
        let Some(axes) = axes else {
            return refuse("it has no axes");
        };
        let rank = own.len() + axes.len();
        let axes = n.axes(&axes, rank)?;
        let mut rest = own.iter();
        (0..rank)
            .map(|axis| match axes.contains(&axis) {
                true => 1,
                false => rest.next().copied().unwrap_or(1),
            })
            .collect()
    } else {
        let axes = match axes {
            Some(axes) => n.axes(&axes, own.len())?,
            None => (0..own.len()).filter(|&axis| own[axis] == 1).collect(),
        };
        let kept = own
            .iter()
            .enumerate()
            .filter(|(axis, _)| !axes.contains(axis));
        kept.map(|(_, &size)| size).collect()
    };
    if let Item::Known(tensor) = n.item(0)?.clone() {
        let shape = shape.iter().map(|&n| n as usize).collect();
        return known(HostTensor::new(
            tensor.dtype(),
            shape,
            tensor.bytes().to_vec(),
        )?);
    }
    let x = n.x(0)?;
    one(n.graph.reshape(x, &shape)?)
}

fn range(n: &Node<'_>) -> Results {
    let mut ends = Vec::new();
    for i in 0..3 {
        let number = n.numbers(i)?.and_then(|list| list.first().copied());
        match number {
            Some(number) => ends.push(number),
            None => return refuse("its ends are no numbers"),
        }
    }
    let count = ((ends[1] - ends[0]) / ends[2]).ceil().max(0.0);
    if count > 1e6 {
        return refuse(format!("a range of {count} numbers"));
    }
    let count = count as usize;
    let at = |i: usize| ends[0] + i as f64 * ends[2];
    if n.graph.known(n.item(0)?)?.dtype() == DType::F32 {
        let values: Vec<f32> = (0..count).map(|i| at(i) as f32).collect();
        return known(HostTensor::from_f32(&[count], &values)?);
    }
    list(&(0..count).map(|i| at(i) as i64).collect::<Vec<_>>())
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    match n.operator() {
        "Constant" => constant(n),
        "ConstantOfShape" => {
            let shape = sizes(&n.integers(0)?.unwrap_or_default())?;
            let value = match n.attribute("value").and_then(|a| a.t.as_ref()) {
                Some(value) => tensor::read(value).or_else(|why| refuse(why.to_string()))?,
                None => HostTensor::from_f32(&[1], &[0.0])?,
            };
            if value.shape().iter().product::<usize>() != 1 {
                return refuse("its value is not one element");
            }
            if shape.contains(&0) {
                let shape = shape.iter().map(|&n| n as usize).collect();
                return known(HostTensor::new(value.dtype(), shape, Vec::new())?);
            }
            let count = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
            let count = count.unwrap_or(u64::MAX);
            if count <= 1024 {
                let shape = shape.iter().map(|&n| n as usize).collect();
                let bytes = value.bytes().repeat(count as usize);
                return known(HostTensor::new(value.dtype(), shape, bytes)?);
            }
            let x = n.graph.constant(&value)?;
            let x = n.graph.reshape(x, &[])?;
            one(n.graph.call("expand", &[x], json!([shape]))?)
        }
        "Shape" => {
            let shape = shape_of(n, 0)?;
            let rank = shape.len() as i64;
            let at = |i: i64| (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize;
            let (start, end) = (at(n.i("start", 0)), at(n.i("end", rank)));
            let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            list(shape.get(start..end).unwrap_or_default())
        }
        "Size" => {
            let shape = shape_of(n, 0)?;
            let x = n.item(0)?;
            if shape.contains(&0) && matches!(x, Item::Computed(_)) {
                return refuse("the number of elements depends on the batch");
            }
            let count = shape.iter().product::<u64>() as i64;
            known(HostTensor::from_i64(&[], &[count])?)
        }
        "Reshape" => reshape(n),
        "Flatten" => {
            let x = n.x(0)?;
            let sizes = n.graph.sizes(x)?;
            let axis = n.i("axis", 1);
            let axis = if axis == sizes.len() as i64 {
                sizes.len()
            } else {
                n.axis(axis, sizes.len())?
            };
            let (lead, rest) = sizes.split_at(axis);
            let product = |list: &[u64]| -> u64 {
                // With the batch among several sizes, it has to be what is left.
                list.iter().filter(|&&n| n > 0).product()
            };
            let batch = lead.contains(&0);
            if batch && lead.len() > 1 && product(lead) > 1 {
                return refuse("the batch is merged with other sizes");
            }
            let first = if batch { 0 } else { product(lead) };
            one(n.graph.reshape(x, &[first, product(rest)])?)
        }
        "Squeeze" => squeeze(n, false),
        "Unsqueeze" => squeeze(n, true),
        "Range" => range(n),
        _ => Ok(None),
    }
}
