//! Pooling over windows.

use super::conv::{image, windows};
use super::{Op, Typed};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::{Dim, Shape};

/// Attributes; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool2d {
    pub(crate) maximum: bool,
    pub(crate) window: (u32, u32),
    pub(crate) stride: (u32, u32),
    pub(crate) padding: (u32, u32),
}

pub(crate) fn pool2d(pool: &Pool2d, x: &Node) -> Result<Typed, Error> {
    let name = if pool.maximum {
        "max-pool2d"
    } else {
        "avg-pool2d"
    };
    let (n, channels, height, width) = image(name, x)?;
    let Pool2d {
        window,
        stride,
        padding,
        ..
    } = *pool;
    if [window.0, window.1, stride.0, stride.1].contains(&0) {
        return Err(Error::attribute(format!(
            "{name}: window and stride must be at least 1"
        )));
    }
    if padding.0 > window.0 / 2 || padding.1 > window.1 / 2 {
        return Err(Error::attribute(format!(
            "{name}: padding {padding:?} is more than half the window {window:?}"
        )));
    }
    let rows = windows(height, u64::from(window.0), stride.0, padding.0, 1);
    let columns = windows(width, u64::from(window.1), stride.1, padding.1, 1);
    let (Some(rows), Some(columns)) = (rows, columns) else {
        return Err(Error::shape(format!(
            "{name}: window {window:?} does not fit into the padded image {}",
            x.shape
        )));
    };
    let shape = vec![
        n,
        Dim::Fixed(channels),
        Dim::Fixed(rows),
        Dim::Fixed(columns),
    ];
    Ok((DType::F32, Shape(shape)))
}

impl Builder {
    /// Largest element of each window.
    pub fn max_pool2d(
        &mut self,
        x: Value,
        window: (u32, u32),
        stride: (u32, u32),
        padding: (u32, u32),
    ) -> Result<Value, Error> {
        self.pool2d(
            x,
            Pool2d {
                maximum: true,
                window,
                stride,
                padding,
            },
        )
    }

    /// Mean of each window, padding counted as zeros.
    pub fn avg_pool2d(
        &mut self,
        x: Value,
        window: (u32, u32),
        stride: (u32, u32),
        padding: (u32, u32),
    ) -> Result<Value, Error> {
        self.pool2d(
            x,
            Pool2d {
                maximum: false,
                window,
                stride,
                padding,
            },
        )
    }

    fn pool2d(&mut self, x: Value, pool: Pool2d) -> Result<Value, Error> {
        let typed = self.at_next(pool2d(&pool, self.operand(x)?))?;
        self.push(Op::Pool2d(pool), &[x], typed)
    }
}
