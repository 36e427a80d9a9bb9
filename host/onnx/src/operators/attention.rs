//! Attention and what it is given.

use compute::{DType, HostTensor, Value};
use serde_json::{Value as Json, json};

use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::graph::Item;
use crate::import::Node;

pub(super) const NAMES: &[&str] = &["Attention", "RotaryEmbedding"];

/// `[batch, length, heads·size]` as `[batch, heads, length, size]`.
fn heads(n: &mut Node<'_>, x: Value, count: u64) -> Result<Value, Refusal> {
    match n.graph.sizes(x)?[..] {
        [batch, length, width] if count > 0 => {
            let x = n.graph.reshape(x, &[batch, length, count, width / count])?;
            n.graph.permute(x, &[0, 2, 1, 3])
        }
        [_, _, _, _] => Ok(x),
        _ => refuse("it takes three or four axes"),
    }
}

/// Each head several times, one after the other.
fn repeated(n: &mut Node<'_>, x: Value, count: u64) -> Result<Value, Refusal> {
    let [batch, heads, length, size] = n.graph.sizes(x)?[..] else {
        return refuse("it takes four axes");
    };
    if count <= 1 {
        return Ok(x);
    }
    let x = n.graph.reshape(x, &[batch, heads, 1, length, size])?;
    let x = n
        .graph
        .call("expand", &[x], json!([[batch, heads, count, length, size]]))?;
    n.graph.reshape(x, &[batch, heads * count, length, size])
}

/// The longest sequence.
const MOST_PLACES: u64 = 1 << 20;

fn iota(n: &mut Node<'_>, count: u64, shape: &[u64]) -> Result<Value, Refusal> {
    if count > MOST_PLACES {
        return refuse(format!(
            "a sequence of {count}; at most {MOST_PLACES} are supported"
        ));
    }
    let numbers: Vec<i64> = (0..count as i64).collect();
    let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
    n.graph.constant(&HostTensor::from_i64(&shape, &numbers)?)
}

fn attention(n: &mut Node<'_>) -> Results {
    let (q, k, v) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let flat = n.graph.sizes(q)?.len() == 3;
    let (q_heads, kv_heads) = (n.i("q_num_heads", 0) as u64, n.i("kv_num_heads", 0) as u64);
    let q = heads(n, q, q_heads)?;
    let (mut k, mut v) = (heads(n, k, kv_heads)?, heads(n, v, kv_heads)?);
    let mut past = 0;
    if let (Some(keys), Some(values)) = (n.optional(4)?, n.optional(5)?) {
        past = n.graph.fixed_axis(keys, 2)?;
        k = n.graph.concat(&[keys, k], 2)?;
        v = n.graph.concat(&[values, v], 2)?;
    }
    let present = [k, v];
    let (own, other) = (n.graph.fixed_axis(q, 1)?, n.graph.fixed_axis(k, 1)?);
    let (k, v) = (repeated(n, k, own / other)?, repeated(n, v, own / other)?);
    let features = n.graph.fixed_axis(q, 3)? as f64;
    let root = n.f("scale", 1.0 / features.sqrt()).sqrt();
    let (q, k) = (n.graph.affine(q, root, 0.0)?, n.graph.affine(k, root, 0.0)?);
    let turned = n.graph.permute(k, &[0, 1, 3, 2])?;
    let raw = n.graph.binary("matmul", q, turned)?;
    let (queries, keys) = (n.graph.fixed_axis(q, 2)?, n.graph.fixed_axis(k, 2)?);
    let hidden = f64::from(f32::MIN) / 4.0;
    let least = n.graph.scalar(hidden)?;
    // Before masks, which a cap would let through.
    let softcap = n.f("softcap", 0.0);
    let capped = if softcap > 0.0 {
        let x = n.graph.affine(raw, 1.0 / softcap, 0.0)?;
        let x = n.graph.unary("tanh", x)?;
        n.graph.affine(x, softcap, 0.0)?
    } else {
        raw
    };
    let mut scores = capped;
    if let Some(mut mask) = n.optional(3)? {
        let shape = n.graph.fixed(mask)?;
        let short = keys.saturating_sub(shape.last().copied().unwrap_or(keys));
        if short > 0 {
            let (before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
            after[shape.len() - 1] = short;
            let fill = if n.graph.dtype(mask)? == DType::Bool {
                0.0
            } else {
                hidden
            };
            mask = n.graph.call("pad", &[mask], json!([before, after, fill]))?;
        }
        scores = if n.graph.dtype(mask)? == DType::Bool {
            n.graph.call("select", &[mask, scores, least], Json::Null)?
        } else {
            n.graph.binary("add", scores, mask)?
        };
    }
    let lengths = match n.optional(6)? {
        Some(lengths) => {
            let count = n.graph.fixed(lengths)?.iter().product();
            Some(n.graph.reshape(lengths, &[count, 1, 1, 1])?)
        }
        None => None,
    };
    let columns = iota(n, keys, &[1, keys])?;
    let rows = iota(n, queries, &[queries, 1])?;
    let offset = match lengths {
        Some(lengths) if past == 0 => {
            let queries = n.graph.integer(queries as i64)?;
            n.graph.binary("sub", lengths, queries)?
        }
        _ => n.graph.integer(past as i64)?,
    };
    let at = n.graph.binary("add", rows, offset)?;
    let (left, right) = (n.i("left_window_size", -1), n.i("right_window_size", -1));
    let mut seen = Vec::new();
    if n.i("is_causal", 0) != 0 {
        seen.push(n.graph.binary("less-or-equal", columns, at)?);
    }
    if left >= 0 {
        let left = n.graph.integer(left)?;
        let from = n.graph.binary("sub", at, left)?;
        seen.push(n.graph.binary("greater-or-equal", columns, from)?);
    }
    if right >= 0 {
        let right = n.graph.integer(right)?;
        let to = n.graph.binary("add", at, right)?;
        seen.push(n.graph.binary("less-or-equal", columns, to)?);
    }
    if let Some(lengths) = lengths {
        seen.push(n.graph.binary("less", columns, lengths)?);
    }
    for seen in seen {
        scores = n.graph.call("select", &[seen, scores, least], Json::Null)?;
    }
    // A row of which nothing is seen gives zeros.
    let scores = n.graph.binary("maximum", scores, least)?;
    let limit = n.graph.scalar(hidden / 2.0)?;
    let none = n.graph.binary("less", scores, limit)?;
    let weights = n.graph.call("softmax", &[scores], json!([3]))?;
    let zero = n.graph.scalar(0.0)?;
    let weights = n.graph.call("select", &[none, zero, weights], Json::Null)?;
    let y = n.graph.binary("matmul", weights, v)?;
    let told = match n.i("qk_matmul_output_mode", 0) {
        0 | 1 => capped,
        2 => {
            let infinite = n.graph.scalar(f64::NEG_INFINITY)?;
            n.graph
                .call("select", &[none, infinite, scores], Json::Null)?
        }
        _ => weights,
    };
    let y = match (flat, &n.graph.sizes(y)?[..]) {
        (true, &[batch, heads, length, size]) => {
            let y = n.graph.permute(y, &[0, 2, 1, 3])?;
            n.graph.reshape(y, &[batch, length, heads * size])?
        }
        _ => y,
    };
    let results = [y, present[0], present[1], told];
    Ok(Some(results.map(Item::Computed).to_vec()))
}

fn rotary(n: &mut Node<'_>) -> Results {
    let (x, mut cos, mut sin, by) = (n.x(0)?, n.x(1)?, n.x(2)?, n.optional(3)?);
    let shape = n.graph.sizes(x)?;
    let flat = shape.len() == 3;
    let x = match shape[..] {
        [batch, length, width] => {
            let count = n.i("num_heads", 0).max(1) as u64;
            n.graph.reshape(x, &[batch, length, count, width / count])?
        }
        _ => n.graph.permute(x, &[0, 2, 1, 3])?,
    };
    let sizes: [u64; 4] = match n.graph.sizes(x)?.try_into() {
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
            *cache = n.graph.call("take", &[*cache, by], json!([0]))?;
        }
        *cache = match n.graph.sizes(*cache)?[..] {
            [batch, length, half] => n.graph.reshape(*cache, &[batch, length, 1, half])?,
            _ => return refuse("its caches do not fit"),
        };
    }
    let turned = n.graph.part(x, 3, (0, width))?;
    let rest = match width < sizes[3] {
        true => Some(n.graph.part(x, 3, (width, sizes[3]))?),
        false => None,
    };
    let interleaved = n.i("interleaved", 0) != 0;
    let pairs = [sizes[0], sizes[1], sizes[2], width / 2, 2];
    let halves = if interleaved {
        let pairs = n.graph.reshape(turned, &pairs)?;
        let mut halves = Vec::new();
        for i in 0..2 {
            let half = n.graph.part(pairs, 4, (i, i + 1))?;
            halves.push(n.graph.reshape(half, &pairs_without_last(&sizes, width))?);
        }
        halves
    } else {
        vec![
            n.graph.part(turned, 3, (0, width / 2))?,
            n.graph.part(turned, 3, (width / 2, width))?,
        ]
    };
    let product = |n: &mut Node<'_>, a, b| n.graph.binary("mul", a, b);
    let (a, b) = (product(n, cos, halves[0])?, product(n, sin, halves[1])?);
    let real = n.graph.binary("sub", a, b)?;
    let (a, b) = (product(n, sin, halves[0])?, product(n, cos, halves[1])?);
    let imaginary = n.graph.binary("add", a, b)?;
    let mut y = if interleaved {
        let one_more = [&pairs[..4], &[1]].concat();
        let (real, imaginary) = (
            n.graph.reshape(real, &one_more)?,
            n.graph.reshape(imaginary, &one_more)?,
        );
        let both = n.graph.concat(&[real, imaginary], 4)?;
        n.graph
            .reshape(both, &[sizes[0], sizes[1], sizes[2], width])?
    } else {
        n.graph.concat(&[real, imaginary], 3)?
    };
    if let Some(rest) = rest {
        y = n.graph.concat(&[y, rest], 3)?;
    }
    one(match flat {
        true => n.graph.reshape(y, &shape)?,
        false => n.graph.permute(y, &[0, 2, 1, 3])?,
    })
}

fn pairs_without_last(sizes: &[u64], width: u64) -> [u64; 4] {
    [sizes[0], sizes[1], sizes[2], width / 2]
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    match n.operator() {
        "Attention" => attention(n),
        "RotaryEmbedding" => rotary(n),
        _ => Ok(None),
    }
}
