//! Reductions, and operators along an axis.

use compute::{DType, Value};
use serde_json::json;

use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::graph::Item;
use crate::import::Node;

pub(super) const NAMES: &[&str] = &[
    "ArgMax",
    "ArgMin",
    "CumSum",
    "Hardmax",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
    "TopK",
];

fn reduced(n: &mut Node<'_>, name: &str) -> Result<Value, Refusal> {
    let x = n.x(0)?;
    let rank = n.graph.sizes(x)?.len();
    let axes = n.listed("axes", 1)?.unwrap_or_default();
    let keep = n.i("keepdims", 1) != 0;
    if axes.is_empty() && n.i("noop_with_empty_axes", 0) != 0 {
        return match name {
            "ReduceL1" | "ReduceL2" => n.graph.unary("abs", x),
            "ReduceSumSquare" => n.graph.binary("mul", x, x),
            "ReduceLogSum" => n.graph.unary("log", x),
            _ => Ok(x),
        };
    }
    let axes = match axes.is_empty() {
        true => (0..rank).collect(),
        false => n.axes(&axes, rank)?,
    };
    let dtype = n.graph.dtype(x)?;
    let x = n.graph.cast(x, DType::F32)?;
    let y = match name {
        "ReduceMax" => n.graph.reduce("amax", x, &axes, keep)?,
        "ReduceMin" => n.graph.reduce("amin", x, &axes, keep)?,
        "ReduceMean" => n.graph.reduce("mean", x, &axes, keep)?,
        "ReduceSum" => n.graph.reduce("sum", x, &axes, keep)?,
        "ReduceL1" => {
            let size = n.graph.unary("abs", x)?;
            n.graph.reduce("sum", size, &axes, keep)?
        }
        "ReduceL2" | "ReduceSumSquare" => {
            let square = n.graph.binary("mul", x, x)?;
            let sum = n.graph.reduce("sum", square, &axes, keep)?;
            match name {
                "ReduceL2" => n.graph.unary("sqrt", sum)?,
                _ => sum,
            }
        }
        "ReduceLogSum" => {
            let sum = n.graph.reduce("sum", x, &axes, keep)?;
            n.graph.unary("log", sum)?
        }
        "ReduceLogSumExp" => {
            let largest = n.graph.reduce("amax", x, &axes, true)?;
            let shifted = n.graph.binary("sub", x, largest)?;
            let exp = n.graph.unary("exp", shifted)?;
            let sum = n.graph.reduce("sum", exp, &axes, true)?;
            let log = n.graph.unary("log", sum)?;
            let y = n.graph.binary("add", log, largest)?;
            n.graph.reduce("sum", y, &axes, keep)?
        }
        _ => {
            // A product, element by element along each axis.
            let mut y = x;
            for &axis in &axes {
                let count = n.graph.fixed_axis(y, axis)?;
                if count > 256 {
                    return refuse(format!("a product of {count} elements"));
                }
                let mut total = n.graph.part(y, axis, (0, 1))?;
                for i in 1..count {
                    let part = n.graph.part(y, axis, (i, i + 1))?;
                    total = n.graph.binary("mul", total, part)?;
                }
                y = total;
            }
            n.graph.reduce("sum", y, &axes, keep)?
        }
    };
    n.graph.cast(y, dtype)
}

/// Softmax along an axis, or in older operator sets over all from it on.
fn softmax(n: &mut Node<'_>, op: &str) -> Result<Value, Refusal> {
    let x = n.x(0)?;
    let sizes = n.graph.sizes(x)?;
    let newer = n.opset >= 13;
    let axis = n.axis(n.i("axis", if newer { -1 } else { 1 }), sizes.len().max(1))?;
    if newer || axis + 1 == sizes.len() {
        return n.graph.call(op, &[x], json!([axis]));
    }
    let mut flat = sizes[..axis].to_vec();
    flat.push(sizes[axis..].iter().product());
    let y = n.graph.reshape(x, &flat)?;
    let y = n.graph.call(op, &[y], json!([axis]))?;
    n.graph.reshape(y, &sizes)
}

fn position(n: &mut Node<'_>, op: &str) -> Result<Value, Refusal> {
    let mut x = n.x(0)?;
    let mut shape = n.graph.sizes(x)?;
    let axis = n.axis(n.i("axis", 0), shape.len())?;
    let size = n.graph.fixed_axis(x, axis)?;
    let last = n.i("select_last_index", 0) != 0;
    if last {
        x = n.graph.call("flip", &[x], json!([[axis]]))?;
    }
    let mut y = n.graph.call(op, &[x], json!([axis]))?;
    if last {
        let end = n.graph.integer(size as i64 - 1)?;
        y = n.graph.binary("sub", end, y)?;
    }
    if n.i("keepdims", 1) == 0 {
        return Ok(y);
    }
    shape[axis] = 1;
    n.graph.reshape(y, &shape)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    let name = n.operator().to_owned();
    if name.starts_with("Reduce") {
        return one(reduced(n, &name)?);
    }
    let y = match &*name {
        "Softmax" => softmax(n, "softmax")?,
        "LogSoftmax" => softmax(n, "log-softmax")?,
        "ArgMax" => position(n, "argmax")?,
        "ArgMin" => position(n, "argmin")?,
        "Hardmax" => {
            let x = n.x(0)?;
            let sizes = n.graph.sizes(x)?;
            let axis = n.axis(n.i("axis", if n.opset >= 13 { -1 } else { 1 }), sizes.len())?;
            let size = n.graph.fixed_axis(x, axis)?;
            let at = n.graph.call("argmax", &[x], json!([axis]))?;
            let hot = n.graph.call("one-hot", &[at], json!([size]))?;
            let mut order: Vec<usize> = (0..sizes.len() - 1).collect();
            order.insert(axis, sizes.len() - 1);
            let hot = n.graph.permute(hot, &order)?;
            n.graph.cast(hot, DType::F32)?
        }
        "TopK" => {
            let x = n.x(0)?;
            let shape = n.graph.sizes(x)?;
            let axis = n.axis(n.i("axis", -1), shape.len())?;
            let count = match n.listed("k", 1)? {
                Some(list) => list.first().copied(),
                None => n.attribute("k").map(|a| a.i),
            };
            let Some(count) = count.filter(|&k| k > 0) else {
                return refuse("its number is unknown");
            };
            let smallest = n.i("largest", 1) == 0;
            let dtype = n.graph.dtype(x)?;
            let floats = n.graph.cast(x, DType::F32)?;
            let by = n
                .graph
                .call("top-k", &[floats], json!([count, axis, smallest]))?;
            let values = n.graph.call("gather", &[floats, by], json!([axis]))?;
            let values = n.graph.cast(values, dtype)?;
            return Ok(Some(vec![Item::Computed(values), Item::Computed(by)]));
        }
        "CumSum" => {
            let mut x = n.x(0)?;
            let rank = n.graph.sizes(x)?.len();
            let axis = n.integers(1)?.and_then(|a| a.first().copied()).unwrap_or(0);
            let axis = n.axis(axis, rank)?;
            let reverse = n.i("reverse", 0) != 0;
            let dtype = n.graph.dtype(x)?;
            x = n.graph.cast(x, DType::F32)?;
            if n.i("exclusive", 0) != 0 {
                // Everything one place further, 0 first.
                let size = n.graph.fixed_axis(x, axis)?;
                let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
                let range = if reverse { (1, size) } else { (0, size - 1) };
                if size == 1 {
                    x = n.graph.affine(x, 0.0, 0.0)?;
                } else {
                    x = n.graph.part(x, axis, range)?;
                    (if reverse { &mut after } else { &mut before })[axis] = 1;
                    x = n.graph.call("pad", &[x], json!([before, after, 0.0]))?;
                }
            }
            let y = n.graph.call("cumsum", &[x], json!([axis, reverse]))?;
            n.graph.cast(y, dtype)?
        }
        "LpNormalization" => {
            let x = n.x(0)?;
            let rank = n.graph.sizes(x)?.len();
            let axis = n.axis(n.i("axis", -1), rank)?;
            let norm = if n.i("p", 2) == 1 {
                let size = n.graph.unary("abs", x)?;
                n.graph.reduce("sum", size, &[axis], true)?
            } else {
                let square = n.graph.binary("mul", x, x)?;
                let sum = n.graph.reduce("sum", square, &[axis], true)?;
                n.graph.unary("sqrt", sum)?
            };
            // A row of zeros stays one.
            let zero = n.graph.scalar(0.0)?;
            let none = n.graph.binary("equal", norm, zero)?;
            let unit = n.graph.scalar(1.0)?;
            let norm = n.graph.call("select", &[none, unit, norm], json!([]))?;
            n.graph.binary("div", x, norm)?
        }
        "MeanVarianceNormalization" => {
            let x = n.x(0)?;
            let rank = n.graph.sizes(x)?.len();
            let axes = n.ints("axes").unwrap_or_else(|| vec![0, 2, 3]);
            let axes = n.axes(&axes, rank)?;
            let mean = n.graph.reduce("mean", x, &axes, true)?;
            let centred = n.graph.binary("sub", x, mean)?;
            let square = n.graph.binary("mul", centred, centred)?;
            let variance = n.graph.reduce("mean", square, &axes, true)?;
            let deviation = n.graph.unary("sqrt", variance)?;
            let deviation = n.graph.affine(deviation, 1.0, 1e-9)?;
            n.graph.binary("div", centred, deviation)?
        }
        _ => return Ok(None),
    };
    one(y)
}
