//! Samples parted among replicas, and what these give put together.

use std::ops::Range;

use rayon::prelude::*;

use crate::dtype::DType;
use crate::error::Error;
use crate::tensor::HostTensor;

/// Elements of an average that one thread adds up at once.
const CHUNK: usize = 1 << 14;

/// The samples of each replica, in order, as evenly as can be; none of those that have none.
pub(super) fn rows(batch: usize, replicas: usize) -> Vec<Range<usize>> {
    let (each, more) = (batch / replicas, batch % replicas);
    let mut start = 0;
    let sizes = (0..replicas).map(|replica| each + usize::from(replica < more));
    let ranges = sizes.map(|size| {
        start += size;
        start - size..start
    });
    ranges.filter(|rows| !rows.is_empty()).collect()
}

/// Some samples of an input.
pub(super) fn slice(
    tensor: &HostTensor,
    rows: &Range<usize>,
    batch: usize,
) -> Result<HostTensor, Error> {
    let row = tensor.bytes().len() / batch.max(1);
    let bytes = tensor.bytes()[rows.start * row..rows.end * row].to_vec();
    let mut shape = tensor.shape().to_vec();
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    HostTensor::new(tensor.dtype(), shape, bytes)
}

/// There is nothing to gather. The error is `model.output`.
pub(super) fn nothing() -> Error {
    Error::new("model.output", "no device has computed the output")
}

/// Tensors one after the other along an axis.
pub(super) fn concatenated(parts: &[HostTensor], axis: usize) -> Result<HostTensor, Error> {
    let [first, ..] = parts else {
        return Err(nothing());
    };
    let mut shape = first.shape().to_vec();
    let outer: usize = shape[..axis].iter().product();
    shape[axis] = parts.iter().map(|part| part.shape()[axis]).sum();
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.bytes().len()).sum());
    for line in 0..outer {
        for part in parts {
            let length = part.bytes().len() / outer;
            bytes.extend_from_slice(&part.bytes()[line * length..(line + 1) * length]);
        }
    }
    HostTensor::new(first.dtype(), shape, bytes)
}

/// The average of float32 tensors of one shape, by the samples of each.
pub(super) fn averaged(parts: &[&HostTensor], samples: &[usize]) -> Result<HostTensor, Error> {
    let [first, ..] = parts else {
        return Err(nothing());
    };
    let all: usize = samples.iter().sum();
    let weights: Vec<f64> = samples.iter().map(|&own| own as f64 / all as f64).collect();
    let mut bytes = vec![0; first.bytes().len()];
    let chunks = bytes.par_chunks_mut(4 * CHUNK).enumerate();
    chunks.for_each(|(number, chunk)| {
        let start = number * 4 * CHUNK;
        let mut sums = vec![0.0_f64; chunk.len() / 4];
        for (part, weight) in parts.iter().zip(&weights) {
            let values = part.bytes()[start..start + chunk.len()].as_chunks::<4>().0;
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += weight * f64::from(f32::from_le_bytes(*value));
            }
        }
        for (value, sum) in chunk.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            *value = (sum as f32).to_le_bytes();
        }
    });
    HostTensor::new(DType::F32, first.shape().to_vec(), bytes)
}
