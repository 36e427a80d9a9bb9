//! Resampling along an axis: each result is a weighted sum of neighbours.

use super::{Op, axes, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Leaf, Value};
use crate::ops::conv::image;
use crate::shape::Dim;

/// How pixels between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// Pixel ⌊i·size/result⌋.
    Nearest,
    /// Between the two nearest pixel centres.
    Linear,
    /// The same with the corners' centres aligned.
    LinearCorners,
}

impl std::str::FromStr for Interpolation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "nearest" => Ok(Self::Nearest),
            "linear" => Ok(Self::Linear),
            "linear-corners" => Ok(Self::LinearCorners),
            other => Err(Error::attribute(format!(
                "resize2d: `{other}` is not one of nearest, linear, linear-corners"
            ))),
        }
    }
}

/// The most rows or columns of an image that is resampled.
const MOST_SIZE: u64 = 1 << 20;

/// For each result the first element, never before that of the result before, and the weights of
/// those from there on.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    first: Vec<u64>,
    /// As many for each result.
    weights: Vec<f32>,
}

impl Table {
    /// From the weights of each result, which start at `first`; `size` elements are there. None
    /// where they lie outside or are not in order.
    pub fn new(size: u64, results: &[(u64, Vec<f32>)]) -> Option<Self> {
        let taps = results
            .iter()
            .map(|(_, weights)| weights.len())
            .max()?
            .max(1);
        let mut table = Self {
            first: Vec::with_capacity(results.len()),
            weights: Vec::with_capacity(results.len() * taps),
        };
        let mut last = 0;
        for (first, weights) in results {
            let end = first.checked_add(weights.len() as u64)?;
            if end > size || *first < last || weights.is_empty() {
                return None;
            }
            last = *first;
            // Neighbours before fill up what has fewer weights at the end.
            let start = (*first).min(size.checked_sub(taps as u64)?);
            let lead = (first - start) as usize;
            table.first.push(start);
            table.weights.extend(std::iter::repeat_n(0.0, lead));
            table.weights.extend(weights);
            let rest = taps - lead - weights.len();
            table.weights.extend(std::iter::repeat_n(0.0, rest));
        }
        Some(table)
    }

    fn taps(&self) -> usize {
        self.weights.len() / self.first.len()
    }

    /// The same weights seen from the `size` elements.
    fn transposed(&self, size: u64) -> Self {
        let taps = self.taps();
        let mut columns: Vec<Option<(u64, Vec<f32>)>> = vec![None; size as usize];
        for (result, &first) in self.first.iter().enumerate() {
            for (tap, &weight) in self.weights[result * taps..][..taps].iter().enumerate() {
                if weight == 0.0 {
                    continue;
                }
                let (start, weights) =
                    columns[first as usize + tap].get_or_insert((result as u64, Vec::new()));
                let at = result - *start as usize;
                weights.resize(at + 1, 0.0);
                weights[at] = weight;
            }
        }
        let mut last = 0;
        let results: Vec<(u64, Vec<f32>)> = columns
            .into_iter()
            .map(|column| {
                let (start, weights) = column.unwrap_or((last, vec![0.0]));
                last = last.max(start);
                (start, weights)
            })
            .collect();
        Self::new(self.first.len() as u64, &results).unwrap_or_else(|| self.clone())
    }

    fn nearest(size: u64, results: u64) -> Option<Self> {
        let at = |i: u64| (i * size / results, vec![1.0]);
        Self::new(size, &(0..results).map(at).collect::<Vec<_>>())
    }

    /// Results at `at(i)`, in elements from the first one's centre; clamped to the ends.
    fn linear(size: u64, results: u64, at: impl Fn(f64) -> f64) -> Option<Self> {
        let result = |i: u64| {
            let at = at(i as f64).clamp(0.0, (size - 1) as f64);
            let first = (at.floor() as u64).min(size.saturating_sub(2));
            let part = at - first as f64;
            let weights = match size {
                1 => vec![1.0],
                _ => vec![(1.0 - part) as f32, part as f32],
            };
            (first, weights)
        };
        Self::new(size, &(0..results).map(result).collect::<Vec<_>>())
    }

    /// Means of the windows from ⌊i·size/results⌋ up to ⌈(i + 1)·size/results⌉.
    fn means(size: u64, results: u64) -> Option<Self> {
        let window = |i: u64| {
            let (start, end) = (i * size / results, ((i + 1) * size).div_ceil(results));
            let count = end - start;
            (start, vec![1.0 / count as f32; count as usize])
        };
        Self::new(size, &(0..results).map(window).collect::<Vec<_>>())
    }
}

/// The gradient goes back through the transposed weights.
pub(crate) fn gradient(
    b: &mut Builder,
    axis: usize,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let size = b.node(inputs[0]).shape.0[axis].at(1);
    let bytes = |v: Value| match &b.node(v).op {
        Op::Leaf(Leaf::Constant(bytes)) => bytes.clone(),
        _ => Vec::new(),
    };
    let numbers = bytes(inputs[1]);
    let weights = bytes(inputs[2]);
    let table = Table {
        first: numbers
            .as_chunks()
            .0
            .iter()
            .map(|eight| u64::from_le_bytes(*eight))
            .collect(),
        weights: weights
            .as_chunks()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect(),
    };
    let dx = b.resample(dy, axis as u32, &table.transposed(size))?;
    Ok(vec![Some(dx), None, None])
}

impl Builder {
    /// Weighted sums of neighbours along an axis.
    pub fn resample(&mut self, x: Value, axis: u32, table: &Table) -> Result<Value, Error> {
        let node = self.operand(x)?;
        self.at_next(float("resample", node))?;
        let axis = self.at_next(axes("resample", &node.shape, &[axis]))?[0];
        let (results, taps) = (table.first.len() as u64, table.taps());
        let reach = table.first.iter().max().copied().unwrap_or(0) + taps as u64;
        if matches!(node.shape.0[axis], Dim::Batch(_)) || reach > node.shape.0[axis].at(1) {
            let why = format!("resample: axis {axis} of {} is too short", node.shape);
            return self.at_next(Err(Error::shape(why)));
        }
        let mut shape = node.shape.clone();
        shape.0[axis] = Dim::Fixed(results);
        let numbers: Vec<u8> = table.first.iter().flat_map(|n| n.to_le_bytes()).collect();
        let weights: Vec<u8> = table.weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let first = self.constant(DType::I64, &[results], &numbers)?;
        let weights = self.constant(DType::F32, &[results, taps as u64], &weights)?;
        self.push(
            Op::Resample { axis },
            &[x, first, weights],
            (DType::F32, shape),
        )
    }

    /// Resamples the image axes of x `[batch, channels, height, width]` to these sizes.
    fn resample_image(
        &mut self,
        name: &str,
        x: Value,
        sizes: (u64, u64),
        table: impl Fn(u64, u64) -> Option<Table>,
    ) -> Result<Value, Error> {
        let (_, _, height, width) = self.at_next(image(name, self.operand(x)?))?;
        let mut y = x;
        for (axis, from, to) in [(2, height, sizes.0), (3, width, sizes.1)] {
            if from == to {
                continue;
            }
            // Tables have a row for each size, whatever the plugin asks for.
            if let Some(size) = [from, to]
                .into_iter()
                .find(|n| !(1..=MOST_SIZE).contains(n))
            {
                let why = format!("{name}: a size of {size} is not within 1 to {MOST_SIZE}");
                return self.at_next(Err(Error::attribute(why)));
            }
            let table = table(from, to).ok_or_else(|| Error::limit(format!("{name}: too large")));
            let table = self.at_next(table)?;
            y = self.resample(y, axis, &table)?;
        }
        Ok(y)
    }

    /// An image of x `[batch, channels, height, width]` with other sizes.
    pub fn resize2d(
        &mut self,
        x: Value,
        sizes: (u64, u64),
        interpolation: Interpolation,
    ) -> Result<Value, Error> {
        self.resample_image("resize2d", x, sizes, |from, to| {
            let scale = from as f64 / to as f64;
            match interpolation {
                Interpolation::Nearest => Table::nearest(from, to),
                Interpolation::Linear => Table::linear(from, to, |i| (i + 0.5) * scale - 0.5),
                Interpolation::LinearCorners => {
                    let scale = (from - 1) as f64 / (to.max(2) - 1) as f64;
                    Table::linear(from, to, |i| i * scale)
                }
            }
        })
    }

    /// Means of windows of x `[batch, channels, height, width]` chosen so that so many remain.
    pub fn adaptive_avg_pool2d(&mut self, x: Value, sizes: (u64, u64)) -> Result<Value, Error> {
        if sizes == (1, 1) {
            self.at_next(image("adaptive-avg-pool2d", self.operand(x)?))?;
            return self.mean(x, &[2, 3], true);
        }
        self.resample_image("adaptive-avg-pool2d", x, sizes, Table::means)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights as a matrix `[results, size]`.
    fn matrix(table: &Table, size: usize) -> Vec<Vec<f32>> {
        let taps = table.taps();
        let row = |(i, &first): (usize, &u64)| {
            let mut row = vec![0.0; size];
            row[first as usize..first as usize + taps]
                .copy_from_slice(&table.weights[i * taps..][..taps]);
            row
        };
        table.first.iter().enumerate().map(row).collect()
    }

    #[test]
    fn an_image_too_large_for_a_table_is_refused() {
        let mut b = Builder::new();
        let dims = [1, 1, 1 << 36, 1].map(Dim::Fixed);
        let x = b.input("x", DType::F32, &dims).unwrap();
        let refused = b.adaptive_avg_pool2d(x, (2, 1)).unwrap_err();
        assert_eq!(refused.code(), "graph.attribute");
    }

    #[test]
    fn a_transposed_table_is_the_transposed_matrix() {
        for (size, results) in [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1), (7, 20), (20, 7)] {
            for table in [
                Table::nearest(size, results),
                Table::means(size, results),
                Table::linear(size, results, |i| {
                    (i + 0.5) * size as f64 / results as f64 - 0.5
                }),
            ] {
                let table = table.unwrap();
                let there = matrix(&table, size as usize);
                let back = matrix(&table.transposed(size), results as usize);
                for (i, row) in there.iter().enumerate() {
                    for (j, &weight) in row.iter().enumerate() {
                        assert_eq!(weight, back[j][i], "{size} to {results}: {i}, {j}");
                    }
                }
            }
        }
    }
}
