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
    let shape = n.graph.sizes(log)?;
    let mut column = n.graph.sizes(labels)?;
    if column.is_empty() {
        return refuse("labels are [batch, …]");
    }
    column.insert(1, 1);
    let mut labels = n.graph.cast(labels, DType::I64)?;
    let mut counted = None;
    if let Some(ignored) = n.attribute("ignore_index").map(|a| a.i) {
        let ignored = n.graph.integer(ignored)?;
        let kept = n.graph.binary("not-equal", labels, ignored)?;
        let zero = n.graph.integer(0)?;
        labels = n.graph.call("select", &[kept, labels, zero], Json::Null)?;
        counted = Some(n.graph.cast(kept, DType::F32)?);
    }
    let by = n.graph.reshape(labels, &column)?;
    let picked = n.graph.call("gather", &[log, by], json!([1]))?;
    let labels_shape = [&shape[..1], &shape[2..]].concat();
    let picked = n.graph.reshape(picked, &labels_shape)?;
    let mut loss = n.graph.unary("neg", picked)?;
    let mut weights = counted;
    if let Some(classes) = n.optional(2)? {
        let own = n.graph.call("take", &[classes, labels], json!([0]))?;
        weights = Some(match counted {
            Some(counted) => n.graph.binary("mul", own, counted)?,
            None => own,
        });
    }
    if let Some(weights) = weights {
        // An ignored label's loss counts for nothing, even where it is infinite.
        let zero = n.graph.scalar(0.0)?;
        let none = n.graph.binary("equal", weights, zero)?;
        let scaled = n.graph.binary("mul", loss, weights)?;
        loss = n.graph.call("select", &[none, zero, scaled], Json::Null)?;
    }
    Ok(match (&*n.s("reduction", "mean"), weights) {
        ("none", _) => loss,
        ("sum", _) => n.graph.reduce("sum", loss, &[], false)?,
        (_, None) => n.graph.reduce("mean", loss, &[], false)?,
        (_, Some(weights)) => {
            let (sum, all) = (
                n.graph.reduce("sum", loss, &[], false)?,
                n.graph.reduce("sum", weights, &[], false)?,
            );
            n.graph.binary("div", sum, all)?
        }
    })
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    let (x, labels) = (n.x(0)?, n.x(1)?);
    if n.graph.sizes(x)?.len() < 2 {
        return refuse("it takes [batch, classes, …]");
    }
    if n.operator() == "NegativeLogLikelihoodLoss" {
        let loss = likelihood(n, x, labels)?;
        return Ok(Some(vec![Item::Computed(loss)]));
    }
    let log = n.graph.call("log-softmax", &[x], json!([1]))?;
    let loss = likelihood(n, log, labels)?;
    Ok(Some([loss, log].map(Item::Computed).to_vec()))
}
