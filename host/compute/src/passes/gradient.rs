//! Reverse-mode differentiation: appends the nodes that compute gradients.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Value;
use crate::ops;

/// The gradients of the scalar `loss` with respect to each of `of`, zeros where the loss does not
/// depend on it. What lies in a block to be computed again is appended once more before its
/// gradients. Errors: `graph.gradient`, `graph.recompute` within a block.
pub(crate) fn gradients(b: &mut Builder, loss: Value, of: &[Value]) -> Result<Vec<Value>, Error> {
    if b.in_block() {
        let why = "gradients are taken of blocks that have ended";
        return b.at_next(Err(Error::new("graph.recompute", why)));
    }
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
    // The block that was appended last, and its values now.
    let mut repeated: (Range<u32>, Vec<Value>) = (0..0, Vec::new());
    for i in (0..=loss.0).rev() {
        let y = Value(i);
        let Some(&dy) = gradients.get(&y) else {
            continue;
        };
        let inputs = b.node(y).inputs.clone();
        if !inputs.iter().any(|x| needed[x.index()]) {
            continue;
        }
        let known = match b.block_of(y) {
            Some(block) => {
                if repeated.0 != block {
                    repeated = (block.clone(), b.repeat(&block)?);
                }
                repeated.1[(i - block.start) as usize]
            }
            None => y,
        };
        let contributions = ops::gradient(b, known, dy).map_err(|e| e.at(y))?;
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
