//! Operators that take elements by indices, or put them there.

use compute::{DType, HostTensor, Value};
use serde_json::{Value as Json, json};

use super::shapes::{known, rank};
use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::graph::Item;
use crate::import::Node;

pub(super) const NAMES: &[&str] = &[
    "Gather",
    "GatherElements",
    "GatherND",
    "OneHot",
    "Scatter",
    "ScatterElements",
    "ScatterND",
];

/// Indices that may count from the end as indices from the start.
fn counted(n: &mut Node<'_>, by: Value, size: u64) -> Result<Value, Refusal> {
    let by = n.graph.cast(by, DType::I64)?;
    let (zero, size) = (n.graph.integer(0)?, n.graph.integer(size as i64)?);
    let below = n.graph.binary("less", by, zero)?;
    let moved = n.graph.binary("add", by, size)?;
    n.graph.call("select", &[below, moved, by], Json::Null)
}

fn gather(n: &mut Node<'_>, op: &str) -> Results {
    let rank = rank(n, 0)?;
    let axis = n.axis(n.i("axis", 0), rank)?;
    // Parts of shapes stay known: they may hold the batch.
    if let (Item::Known(tensor), Ok(by)) = (n.item(0)?.clone(), n.graph.known(n.item(1)?))
        && let (Some(values), Some(at)) = (tensor.to_i64(), by.to_i64())
        && rank == 1
        && op == "take"
    {
        let size = values.len() as i64;
        let pick = |&i: &i64| {
            values
                .get((if i < 0 { i + size } else { i }) as usize)
                .copied()
        };
        let Some(picked) = at.iter().map(pick).collect::<Option<Vec<i64>>>() else {
            return refuse("an index is out of range");
        };
        return known(HostTensor::from_i64(by.shape(), &picked)?);
    }
    let (x, by) = (n.x(0)?, n.x(1)?);
    let size = n.graph.fixed_axis(x, axis)?;
    let by = counted(n, by, size)?;
    let sizes = n.graph.sizes(x)?;
    if op == "gather"
        && n.graph
            .sizes(by)?
            .iter()
            .zip(&sizes)
            .enumerate()
            .any(|(i, (a, b))| i != axis && a != b)
    {
        return refuse("indices that cover only a part of other axes are not supported");
    }
    one(n.graph.call(op, &[x, by], json!([axis]))?)
}

/// A row-major index of each tuple of indices, over the first axes of `sizes`.
fn flat(n: &mut Node<'_>, by: Value, sizes: &[u64]) -> Result<Value, Refusal> {
    let shape = n.graph.fixed(by)?;
    let Some((&count, lead)) = shape.split_last() else {
        return refuse("its indices are no list");
    };
    let last = lead.len();
    let mut total: Option<Value> = None;
    for (i, &size) in sizes.iter().take(count as usize).enumerate() {
        let part = n.graph.part(by, last, (i as u64, i as u64 + 1))?;
        let part = counted(n, part, size)?;
        total = Some(match total {
            None => part,
            Some(total) => {
                let factor = n.graph.integer(size as i64)?;
                let scaled = n.graph.binary("mul", total, factor)?;
                n.graph.binary("add", scaled, part)?
            }
        });
    }
    let Some(total) = total else {
        return refuse("its indices are empty");
    };
    n.graph.reshape(total, lead)
}

/// The axes that a tuple of indices names, and the others.
fn named(sizes: &[u64], by: &[u64]) -> Result<(Vec<u64>, Vec<u64>), Refusal> {
    let depth = by.last().copied().unwrap_or(0) as usize;
    if depth == 0 || depth > sizes.len() {
        return refuse("its indices do not fit");
    }
    let (first, rest) = sizes.split_at(depth);
    Ok((first.to_vec(), rest.to_vec()))
}

fn gather_nd(n: &mut Node<'_>) -> Results {
    let (x, by) = (n.x(0)?, n.x(1)?);
    if n.i("batch_dims", 0) != 0 {
        return refuse("batch_dims are not supported");
    }
    let (first, rest) = named(&n.graph.fixed(x)?, &n.graph.fixed(by)?)?;
    let by = flat(n, by, &first)?;
    let x = n
        .graph
        .reshape(x, &[&[first.iter().product()], &rest[..]].concat())?;
    one(n.graph.call("take", &[x, by], json!([0]))?)
}

/// x where nothing was written, and the updates elsewhere: sums of updates, and of how many there
/// were. Only sums are defined where an index occurs twice.
fn written(
    n: &mut Node<'_>,
    (x, by, updates): (Value, Value, Value),
    axis: usize,
    reduction: &str,
) -> Result<Value, Refusal> {
    let dtype = n.graph.dtype(x)?;
    let (x, updates) = (
        n.graph.cast(x, DType::F32)?,
        n.graph.cast(updates, DType::F32)?,
    );
    let y = match reduction {
        "add" => n
            .graph
            .call("scatter-add", &[x, by, updates], json!([axis]))?,
        "none" => {
            let none = n.graph.affine(x, 0.0, 0.0)?;
            let ones = n.graph.affine(updates, 0.0, 1.0)?;
            let sums = n
                .graph
                .call("scatter-add", &[none, by, updates], json!([axis]))?;
            let hits = n
                .graph
                .call("scatter-add", &[none, by, ones], json!([axis]))?;
            let zero = n.graph.scalar(0.0)?;
            let hit = n.graph.binary("greater", hits, zero)?;
            n.graph.call("select", &[hit, sums, x], Json::Null)?
        }
        other => return refuse(format!("the reduction {other} is not supported")),
    };
    n.graph.cast(y, dtype)
}

fn scatter(n: &mut Node<'_>) -> Results {
    let (x, by, updates) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let sizes = n.graph.fixed(x)?;
    let axis = n.axis(n.i("axis", 0), sizes.len())?;
    let by = counted(n, by, sizes[axis])?;
    let mut own = n.graph.fixed(by)?;
    if let Some(size) = own.get_mut(axis) {
        *size = sizes[axis];
    }
    if own != sizes {
        return refuse("indices that cover only a part of other axes are not supported");
    }
    let reduction = n.s("reduction", "none");
    one(written(n, (x, by, updates), axis, &reduction)?)
}

fn scatter_nd(n: &mut Node<'_>) -> Results {
    let (x, by, updates) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let sizes = n.graph.fixed(x)?;
    let (first, rest) = named(&sizes, &n.graph.fixed(by)?)?;
    let (rows, row): (u64, u64) = (first.iter().product(), rest.iter().product());
    let by = flat(n, by, &first)?;
    let count: u64 = n.graph.fixed(by)?.iter().product();
    let by = n.graph.reshape(by, &[count, 1])?;
    let by = n.graph.call("expand", &[by], json!([[count, row]]))?;
    let x = n.graph.reshape(x, &[rows, row])?;
    let updates = n.graph.reshape(updates, &[count, row])?;
    let reduction = n.s("reduction", "none");
    let y = written(n, (x, by, updates), 0, &reduction)?;
    one(n.graph.reshape(y, &sizes)?)
}

fn one_hot(n: &mut Node<'_>) -> Results {
    let (by, depth, values) = (n.x(0)?, n.numbers(1)?, n.x(2)?);
    let Some(classes) = depth.and_then(|d| d.first().copied()).filter(|&d| d >= 1.0) else {
        return refuse("its depth is no number");
    };
    let by = n.graph.cast(by, DType::I64)?;
    let by = counted(n, by, classes as u64)?;
    let rank = n.graph.sizes(by)?.len();
    let axis = n.axis(n.i("axis", -1), rank + 1)?;
    let hot = n.graph.call("one-hot", &[by], json!([classes as u64]))?;
    let hot = n.graph.cast(hot, DType::Bool)?;
    let (off, on) = (
        n.graph.part(values, 0, (0, 1))?,
        n.graph.part(values, 0, (1, 2))?,
    );
    let y = n.graph.call("select", &[hot, on, off], Json::Null)?;
    let mut order: Vec<usize> = (0..rank).collect();
    order.insert(axis, rank);
    one(n.graph.permute(y, &order)?)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    match n.operator() {
        "Gather" => gather(n, "take"),
        "GatherElements" => gather(n, "gather"),
        "GatherND" => gather_nd(n),
        "ScatterElements" | "Scatter" => scatter(n),
        "ScatterND" => scatter_nd(n),
        "OneHot" => one_hot(n),
        _ => Ok(None),
    }
}
