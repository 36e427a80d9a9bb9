//! Walking tensors by index: broadcasting, permuting and reducing are strides.

/// Strides, in elements, of a row-major tensor.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Strides with which a tensor of `shape` shows as one of `target`: 0 along broadcast axes.
pub(crate) fn broadcast(shape: &[usize], target: &[usize]) -> Vec<usize> {
    let own = strides(shape);
    let lead = target.len() - shape.len();
    (0..target.len())
        .map(|i| match i.checked_sub(lead) {
            Some(j) if shape[j] != 1 => own[j],
            _ => 0,
        })
        .collect()
}

/// `N` operands walked together in row-major order of the sizes, neighbouring axes merged where the
/// strides of all operands allow it.
#[derive(Debug)]
pub(crate) struct Walk<const N: usize> {
    /// Of the merged axes, the last of which runs fastest.
    pub(crate) sizes: Vec<usize>,
    /// Of each operand along them.
    pub(crate) strides: Vec<[usize; N]>,
}

impl<const N: usize> Walk<N> {
    pub(crate) fn new(shape: &[usize], operands: [&[usize]; N]) -> Self {
        let mut walk = Self {
            sizes: Vec::new(),
            strides: Vec::new(),
        };
        for (axis, &size) in shape.iter().enumerate().filter(|&(_, &size)| size != 1) {
            let stride = operands.map(|strides| strides[axis]);
            match (walk.sizes.last_mut(), walk.strides.last_mut()) {
                (Some(last), Some(outer)) if (0..N).all(|i| outer[i] == stride[i] * size) => {
                    *last *= size;
                    *outer = stride;
                }
                _ => {
                    walk.sizes.push(size);
                    walk.strides.push(stride);
                }
            }
        }
        if walk.sizes.is_empty() {
            walk.sizes.push(1);
            walk.strides.push([0; N]);
        }
        walk
    }

    /// The stride of each operand along the innermost axis.
    pub(crate) fn inner(&self) -> [usize; N] {
        self.strides[self.strides.len() - 1]
    }

    /// Calls `run` with every run of elements of `start..end` along the innermost axis: where it
    /// starts in each operand, and its length.
    pub(crate) fn runs(&self, start: usize, end: usize, mut run: impl FnMut([usize; N], usize)) {
        let (outer, last) = (self.sizes.len() - 1, self.sizes[self.sizes.len() - 1]);
        let inner = self.inner();
        // The position along every axis but the innermost, and the operands' offsets there.
        let mut position = vec![0; outer];
        let mut offsets = [0; N];
        let mut row = start / last;
        for axis in (0..outer).rev() {
            position[axis] = row % self.sizes[axis];
            row /= self.sizes[axis];
            for (offset, stride) in offsets.iter_mut().zip(self.strides[axis]) {
                *offset += position[axis] * stride;
            }
        }
        let (mut at, mut column) = (start, start % last);
        while at < end {
            let length = (last - column).min(end - at);
            run(
                std::array::from_fn(|i| offsets[i] + column * inner[i]),
                length,
            );
            at += length;
            column = 0;
            for axis in (0..outer).rev() {
                position[axis] += 1;
                for (offset, stride) in offsets.iter_mut().zip(self.strides[axis]) {
                    *offset += stride;
                }
                if position[axis] < self.sizes[axis] {
                    break;
                }
                position[axis] = 0;
                for (offset, stride) in offsets.iter_mut().zip(self.strides[axis]) {
                    *offset -= stride * self.sizes[axis];
                }
            }
        }
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.sizes.iter().product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_visit_elements_in_order_from_any_start() {
        let shape = [2, 3, 4];
        // Operand 0 permuted, operand 1 broadcast along the middle axis.
        let (a, b) = ([1, 8, 2], broadcast(&[2, 1, 4], &shape));
        let walk = Walk::new(&shape, [&a, &b]);
        let expected: Vec<[usize; 2]> = (0..24)
            .map(|i| {
                let index = [i / 12, i / 4 % 3, i % 4];
                [0, 1].map(|n| (0..3).map(|k| index[k] * [&a[..], &b][n][k]).sum())
            })
            .collect();
        for start in 0..24 {
            let mut seen = Vec::new();
            walk.runs(start, 24, |at, length| {
                seen.extend((0..length).map(|j| [0, 1].map(|n| at[n] + j * walk.inner()[n])));
            });
            assert_eq!(seen, expected[start..]);
        }
    }

    #[test]
    fn axes_that_are_contiguous_in_all_operands_are_one() {
        let s = strides(&[2, 3, 4]);
        assert_eq!(Walk::new(&[2, 3, 4], [&s, &s]).sizes, [24]);
        assert_eq!(Walk::new(&[1, 1], [&[1, 1]]).len(), 1);
    }
}
