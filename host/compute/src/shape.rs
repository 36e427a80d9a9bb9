//! Shapes with a symbolic batch.

use std::fmt;

use crate::error::Error;

/// The most axes a tensor may have.
pub const MAX_RANK: usize = 8;
/// The most elements a tensor may have.
pub const MAX_ELEMENTS: u64 = 1 << 40;

/// One size of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    /// So many.
    Fixed(u64),
    /// So many times the batch size, which is known when a plan runs.
    Batch(u64),
}

impl Dim {
    /// The size at a batch size.
    pub fn at(self, batch: u64) -> u64 {
        match self {
            Self::Fixed(n) => n,
            Self::Batch(k) => k.saturating_mul(batch),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Batch(1) => f.write_str("batch"),
            Self::Batch(k) => write!(f, "{k}·batch"),
        }
    }
}

/// Sizes, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// A shape of fixed sizes.
    pub fn fixed(sizes: &[u64]) -> Self {
        Self(sizes.iter().map(|&n| Dim::Fixed(n)).collect())
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Refuses sizes of 0, more than [`MAX_RANK`] axes, or more than [`MAX_ELEMENTS`] elements at a batch of one.
    pub fn check(&self) -> Result<(), Error> {
        if self.rank() > MAX_RANK {
            return Err(Error::limit(format!(
                "a tensor has at most {MAX_RANK} axes, this one {}",
                self.rank()
            )));
        }
        if self.0.iter().any(|d| d.at(1) == 0) {
            return Err(Error::shape(format!(
                "every size of {self} must be at least 1"
            )));
        }
        self.elements(1).map(|_| ())
    }

    /// The number of elements at a batch size. Errors: `graph.limit` above [`MAX_ELEMENTS`].
    pub fn elements(&self, batch: u64) -> Result<u64, Error> {
        self.0
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(d.at(batch)))
            .filter(|&n| n <= MAX_ELEMENTS)
            .ok_or_else(|| {
                Error::limit(format!(
                    "a tensor of shape {self} at batch {batch} has more than {MAX_ELEMENTS} elements"
                ))
            })
    }

    /// The sizes at a batch size.
    pub fn at(&self, batch: usize) -> Vec<usize> {
        let size = |d: &Dim| usize::try_from(d.at(batch as u64)).unwrap_or(usize::MAX);
        self.0.iter().map(size).collect()
    }

    /// The product of sizes; none where two of them are batches.
    pub(crate) fn product(dims: &[Dim]) -> Option<Dim> {
        dims.iter().try_fold(Dim::Fixed(1), |a, &b| match (a, b) {
            (Dim::Fixed(m), Dim::Fixed(n)) => Some(Dim::Fixed(m.checked_mul(n)?)),
            (Dim::Fixed(m), Dim::Batch(n)) | (Dim::Batch(m), Dim::Fixed(n)) => {
                Some(Dim::Batch(m.checked_mul(n)?))
            }
            (Dim::Batch(_), Dim::Batch(_)) => None,
        })
    }

    /// The common shape of two operands after NumPy's broadcasting; none where they do not fit.
    pub(crate) fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let dim = |s: &Self, i: usize| {
            (i + s.rank())
                .checked_sub(rank)
                .map_or(Dim::Fixed(1), |i| s.0[i])
        };
        (0..rank)
            .map(|i| match (dim(self, i), dim(other, i)) {
                (a, b) if a == b => Some(a),
                (a, Dim::Fixed(1)) => Some(a),
                (Dim::Fixed(1), b) => Some(b),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy_and_keeps_the_batch() {
        let a = Shape(vec![Dim::Batch(1), Dim::Fixed(1), Dim::Fixed(7)]);
        let b = Shape::fixed(&[6, 1]);
        let c = Shape(vec![Dim::Batch(1), Dim::Fixed(6), Dim::Fixed(7)]);
        assert_eq!(a.broadcast(&b), Some(c));
        assert_eq!(a.broadcast(&Shape::fixed(&[2, 1, 7])), None);
    }

    #[test]
    fn a_shape_of_too_many_elements_is_refused_without_overflow() {
        let e = Shape::fixed(&[u64::MAX, u64::MAX]).check().unwrap_err();
        assert_eq!(e.code(), "graph.limit");
        assert_eq!(
            Shape::fixed(&[1; 9]).check().unwrap_err().code(),
            "graph.limit"
        );
    }

    #[test]
    fn a_product_carries_one_batch_and_refuses_two() {
        assert_eq!(
            Shape::product(&[Dim::Batch(2), Dim::Fixed(3)]),
            Some(Dim::Batch(6))
        );
        assert_eq!(Shape::product(&[Dim::Batch(1), Dim::Batch(1)]), None);
    }
}
