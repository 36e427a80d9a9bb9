//! Losses.

use compute::{DType, Value};
use serde_json::{Value as Json, json};

use super::Results;
use crate::error::{Refusal, refuse};
use crate::graph::Item;
use crate::import::Node;

pub(super) const NAMES: &[&str] = &["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"];

/// −weight\[label\]·log p\[label\] of logarithms `[batch, classes, …]`, reduced.
fn likelihood(n: &mut Node<'_>, log: Value, labels: Value) -> Result<Value, Refusal> {
    let shape = n.g.sizes(log)?;
    let mut column = n.g.sizes(labels)?;
    if column.is_empty() {
        return refuse("labels are [batch, …]");
    }
    column.insert(1, 1);
    let mut labels = n.g.cast(labels, DType::I64)?;
    let mut counted = None;
    if let Some(ignored) = n.attribute("ignore_index").map(|a| a.i) {
        let ignored = n.g.integer(ignored)?;
        let kept = n.g.binary("not-equal", labels, ignored)?;
        let zero = n.g.integer(0)?;
        labels = n.g.call("select", &[kept, labels, zero], Json::Null)?;
        counted = Some(n.g.cast(kept, DType::F32)?);
    }
    let by = n.g.reshape(labels, &column)?;
    let picked = n.g.call("gather", &[log, by], json!([1]))?;
    let labels_shape = [&shape[..1], &shape[2..]].concat();
    let picked = n.g.reshape(picked, &labels_shape)?;
    let mut loss = n.g.unary("neg", picked)?;
    let mut weights = counted;
    if let Some(classes) = n.optional(2)? {
        let own = n.g.call("take", &[classes, labels], json!([0]))?;
        weights = Some(match counted {
            Some(counted) => n.g.binary("mul", own, counted)?,
            None => own,
        });
    }
    if let Some(weights) = weights {
        // An ignored label's loss counts for nothing, even where it is infinite.
        let zero = n.g.scalar(0.0)?;
        let none = n.g.binary("equal", weights, zero)?;
        let scaled = n.g.binary("mul", loss, weights)?;
        loss = n.g.call("select", &[none, zero, scaled], Json::Null)?;
    }
    Ok(match (&*n.s("reduction", "mean"), weights) {
        ("none", _) => loss,
        ("sum", _) => n.g.reduce("sum", loss, &[], false)?,
        (_, None) => n.g.reduce("mean", loss, &[], false)?,
        (_, Some(weights)) => {
            let (sum, all) = (
                n.g.reduce("sum", loss, &[], false)?,
                n.g.reduce("sum", weights, &[], false)?,
            );
            n.g.binary("div", sum, all)?
        }
    })
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    let (x, labels) = (n.x(0)?, n.x(1)?);
    if n.g.sizes(x)?.len() < 2 {
        return refuse("it takes [batch, classes, …]");
    }
    if n.operator() == "NegativeLogLikelihoodLoss" {
        let loss = likelihood(n, x, labels)?;
        return Ok(Some(vec![Item::Computed(loss)]));
    }
    let log = n.g.call("log-softmax", &[x], json!([1]))?;
    let loss = likelihood(n, log, labels)?;
    Ok(Some([loss, log].map(Item::Computed).to_vec()))
}
