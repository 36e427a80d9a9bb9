//! Matrix products.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::Shape;

/// Shape of a·b over the last two axes, either operand transposed in them.
pub(crate) fn matmul(a: &Node, b: &Node, (ta, tb): (bool, bool)) -> Result<Typed, Error> {
    float("matmul", a)?;
    float("matmul", b)?;
    let refuse = || {
        Error::shape(format!(
            "matmul: shapes {} and {} do not fit",
            a.shape, b.shape
        ))
    };
    let split = |s: &Shape, t: bool| {
        let n = s.rank().checked_sub(2)?;
        let (rows, columns) = if t {
            (s.0[n + 1], s.0[n])
        } else {
            (s.0[n], s.0[n + 1])
        };
        Some((Shape(s.0[..n].to_vec()), rows, columns))
    };
    let (lead_a, m, k) = split(&a.shape, ta).ok_or_else(refuse)?;
    let (lead_b, k2, n) = split(&b.shape, tb).ok_or_else(refuse)?;
    if k != k2 {
        return Err(refuse());
    }
    let mut shape = lead_a.broadcast(&lead_b).ok_or_else(refuse)?;
    shape.0.extend([m, n]);
    Ok((a.dtype, shape))
}

/// y = a·b: da = dy·bᵀ, db = aᵀ·dy, summed over broadcast leading axes.
pub(crate) fn gradient(
    g: &mut Builder,
    (ta, tb): (bool, bool),
    a: Value,
    b: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let da = if ta {
        g.product(b, dy, (tb, true))?
    } else {
        g.product(dy, b, (false, !tb))?
    };
    let db = if tb {
        g.product(dy, a, (true, ta))?
    } else {
        g.product(a, dy, (!ta, false))?
    };
    Ok(vec![
        Some(g.reduce_like(da, a)?),
        Some(g.reduce_like(db, b)?),
    ])
}

impl Builder {
    pub(crate) fn product(
        &mut self,
        a: Value,
        b: Value,
        transpose: (bool, bool),
    ) -> Result<Value, Error> {
        let typed = matmul(self.operand(a)?, self.operand(b)?, transpose)?;
        let (transpose_a, transpose_b) = transpose;
        self.push(
            Op::Matmul {
                transpose_a,
                transpose_b,
            },
            &[a, b],
            typed,
        )
    }
}
