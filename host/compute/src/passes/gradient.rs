//! Reverse-mode differentiation: appends the nodes that compute gradients.

use std::collections::BTreeMap;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Value;
use crate::ops;

/// The gradients of the scalar `loss` with respect to each of `of`, zeros where the loss does not
/// depend on it. Errors: `graph.gradient`.
pub(crate) fn gradients(b: &mut Builder, loss: Value, of: &[Value]) -> Result<Vec<Value>, Error> {
    let node = b.operand(loss)?;
    if node.dtype != DType::F32 || node.shape.rank() > 0 {
        let why = format!(
            "only a float32 scalar is differentiated, not {} {}",
            node.dtype, node.shape
        );
        return Err(Error::new("graph.gradient", why).at(loss));
    }
    for &x in of {
        b.operand(x)?;
    }
    let needed = depends_on(b, loss, of);
    let mut gradients: BTreeMap<Value, Value> = BTreeMap::new();
    if needed[loss.index()] {
        gradients.insert(loss, b.scalar(1.0)?);
    }
    for i in (0..=loss.0).rev() {
        let y = Value(i);
        let Some(&dy) = gradients.get(&y) else {
            continue;
        };
        let inputs = b.node(y).inputs.clone();
        if !inputs.iter().any(|x| needed[x.index()]) {
            continue;
        }
        let contributions = ops::gradient(b, y, dy).map_err(|e| e.at(y))?;
        for (x, dx) in inputs.into_iter().zip(contributions) {
            let Some(dx) = dx.filter(|_| needed[x.index()]) else {
                continue;
            };
            let total = match gradients.get(&x) {
                Some(&sum) => b.add(sum, dx)?,
                None => dx,
            };
            gradients.insert(x, total);
        }
    }
    of.iter()
        .map(|x| match gradients.get(x) {
            Some(&dx) => Ok(dx),
            None => {
                let zero = b.scalar(0.0)?;
                let shape = b.node(*x).shape.clone();
                b.expand_to(zero, &shape)
            }
        })
        .collect()
}

/// Which values up to `loss` depend on one of `of`.
fn depends_on(b: &Builder, loss: Value, of: &[Value]) -> Vec<bool> {
    let mut needed = vec![false; b.nodes()];
    for &x in of {
        needed[x.index()] = true;
    }
    for i in 0..=loss.index() {
        let inputs = &b.node(Value(i as u32)).inputs;
        needed[i] = needed[i] || inputs.iter().any(|x| needed[x.index()]);
    }
    needed
}
