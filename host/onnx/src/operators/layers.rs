//! Layers of networks.

use serde_json::json;

use super::{Results, one};
use crate::error::refuse;
use crate::graph::Item;
use crate::import::Node;

pub(super) const NAMES: &[&str] = &[
    "BatchNormalization",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "MatMul",
    "RMSNormalization",
];

fn gemm(n: &mut Node<'_>) -> Results {
    let (mut a, mut b, c) = (n.x(0)?, n.x(1)?, n.optional(2)?);
    if n.i("transA", 0) != 0 {
        a = n.graph.permute(a, &[1, 0])?;
    }
    if n.i("transB", 0) != 0 {
        b = n.graph.permute(b, &[1, 0])?;
    }
    let mut y = n.graph.binary("matmul", a, b)?;
    let (alpha, beta) = (n.f("alpha", 1.0), n.f("beta", 1.0));
    if alpha != 1.0 {
        y = n.graph.affine(y, alpha, 0.0)?;
    }
    if let Some(c) = c {
        let c = if beta == 1.0 {
            c
        } else {
            n.graph.affine(c, beta, 0.0)?
        };
        y = n.graph.binary("add", y, c)?;
    }
    one(y)
}

fn matmul(n: &mut Node<'_>) -> Results {
    let (mut a, mut b) = (n.x(0)?, n.x(1)?);
    let (left, right) = (n.graph.sizes(a)?, n.graph.sizes(b)?);
    if let [size] = left[..] {
        a = n.graph.reshape(a, &[1, size])?;
    }
    if let [size] = right[..] {
        b = n.graph.reshape(b, &[size, 1])?;
    }
    let y = n.graph.binary("matmul", a, b)?;
    let mut shape = n.graph.sizes(y)?;
    let rank = shape.len();
    if right.len() == 1 {
        shape.remove(rank - 1);
    }
    if left.len() == 1 {
        shape.remove(rank - 2);
    }
    one(n.graph.reshape(y, &shape)?)
}

/// A whole-image pool, which leaves axes of size 1.
fn global(n: &mut Node<'_>, op: &str) -> Results {
    let x = n.x(0)?;
    let axes: Vec<usize> = (2..n.graph.sizes(x)?.len()).collect();
    one(n.graph.reduce(op, x, &axes, true)?)
}

/// Normalisation over the axes from one on, scaled.
fn layer_norm(n: &mut Node<'_>, centre: bool) -> Results {
    let (x, scale, bias) = (n.x(0)?, n.x(1)?, n.optional(2)?);
    let sizes = n.graph.sizes(x)?;
    let axis = n.axis(n.i("axis", -1), sizes.len())?;
    let epsilon = n.f("epsilon", 1e-5);
    let axes: Vec<usize> = (axis..sizes.len()).collect();
    let mean = n.graph.reduce("mean", x, &axes, true)?;
    let centred = if centre {
        n.graph.binary("sub", x, mean)?
    } else {
        x
    };
    let square = n.graph.binary("mul", centred, centred)?;
    let variance = n.graph.reduce("mean", square, &axes, true)?;
    let variance = n.graph.affine(variance, 1.0, epsilon)?;
    let reciprocal = n.graph.unary("rsqrt", variance)?;
    let row = &sizes[axis..];
    let fused = n.graph.sizes(scale)? == row && (!centre || bias.is_some());
    let y = match bias {
        Some(bias) if fused && n.graph.sizes(bias)? == row => {
            n.graph
                .call("layer-norm", &[x, scale, bias], json!([epsilon]))?
        }
        None if fused => n.graph.call("rms-norm", &[x, scale], json!([epsilon]))?,
        bias => {
            let normal = n.graph.binary("mul", centred, reciprocal)?;
            let scaled = n.graph.binary("mul", normal, scale)?;
            match bias {
                Some(bias) => n.graph.binary("add", scaled, bias)?,
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
    let channels = n.graph.fixed_axis(x, 1)?;
    let groups = if instance {
        channels
    } else {
        n.i("num_groups", 1).max(1) as u64
    };
    // In older operator sets there is a number for each group.
    for vector in [&mut scale, &mut bias] {
        if n.graph.sizes(*vector)? != [channels] {
            let each = channels / groups;
            let column = n.graph.reshape(*vector, &[groups, 1])?;
            let all = n.graph.call("expand", &[column], json!([[groups, each]]))?;
            *vector = n.graph.reshape(all, &[channels])?;
        }
    }
    let attributes = json!([groups, n.f("epsilon", 1e-5)]);
    one(n.graph.call("group-norm", &[x, scale, bias], attributes)?)
}

/// x / (bias + alpha/size · Σ x² over neighbouring channels)^beta (Krizhevsky et al. 2012).
fn local_response(n: &mut Node<'_>) -> Results {
    let x = n.x(0)?;
    let rank = n.graph.sizes(x)?.len();
    let channels = n.graph.fixed_axis(x, 1)?;
    let size = n.i("size", 1).clamp(1, 256) as u64;
    let square = n.graph.binary("mul", x, x)?;
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    (before[1], after[1]) = ((size - 1) / 2, size / 2);
    let all = n
        .graph
        .call("pad", &[square], json!([before, after, 0.0]))?;
    let mut sum = n.graph.part(all, 1, (0, channels))?;
    for i in 1..size {
        let part = n.graph.part(all, 1, (i, i + channels))?;
        sum = n.graph.binary("add", sum, part)?;
    }
    let factor = n.f("alpha", 1e-4) / size as f64;
    let scale = n.graph.affine(sum, factor, n.f("bias", 1.0))?;
    let scale = n.graph.call("pow", &[scale], json!([-n.f("beta", 0.75)]))?;
    one(n.graph.binary("mul", x, scale)?)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    let name = n.operator().to_owned();
    match &*name {
        "Gemm" => gemm(n),
        "MatMul" => matmul(n),
        "GlobalAveragePool" => global(n, "mean"),
        "GlobalMaxPool" => global(n, "amax"),
        "BatchNormalization" => {
            if n.i("training_mode", 0) != 0 {
                return refuse("only inference is imported");
            }
            let operands = [n.x(0)?, n.x(1)?, n.x(2)?, n.x(3)?, n.x(4)?];
            one(n
                .graph
                .call("batch-norm-eval", &operands, json!([n.f("epsilon", 1e-5)]))?)
        }
        "InstanceNormalization" => group_norm(n, true),
        "GroupNormalization" => group_norm(n, false),
        "LayerNormalization" => layer_norm(n, true),
        "RMSNormalization" => layer_norm(n, false),
        "LRN" => local_response(n),
        _ => Ok(None),
    }
}
