//! Tensors in host memory, as they enter and leave a session.

use crate::dtype::DType;
use crate::error::Error;

/// A tensor in host memory: row-major, little-endian.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl HostTensor {
    /// A tensor of `bytes`. Errors: `tensor.length` where they are not as many as the shape says.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self, Error> {
        let expected = shape
            .iter()
            .try_fold(dtype.size_bytes(), |n, &d| n.checked_mul(d));
        if expected != Some(bytes.len()) {
            return Err(Error::new(
                "tensor.length",
                format!(
                    "{} bytes are not a {dtype} tensor of shape {shape:?}",
                    bytes.len()
                ),
            ));
        }
        Ok(Self {
            dtype,
            shape,
            bytes,
        })
    }

    /// A float32 tensor.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Self, Error> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(DType::F32, shape.to_vec(), bytes)
    }

    /// An int64 tensor.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Result<Self, Error> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(DType::I64, shape.to_vec(), bytes)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements of a float32 tensor.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let chunks = self.bytes.chunks_exact(4);
        (self.dtype == DType::F32).then(|| {
            chunks
                .filter_map(|c| c.try_into().ok().map(f32::from_le_bytes))
                .collect()
        })
    }

    /// The elements of an int64 tensor.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let chunks = self.bytes.chunks_exact(8);
        (self.dtype == DType::I64).then(|| {
            chunks
                .filter_map(|c| c.try_into().ok().map(i64::from_le_bytes))
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_refused() {
        let e = HostTensor::new(DType::F32, vec![2, 3], vec![0; 23]).unwrap_err();
        assert_eq!(e.code(), "tensor.length");
        assert!(HostTensor::new(DType::F32, vec![usize::MAX, 8], vec![]).is_err());
    }
}
