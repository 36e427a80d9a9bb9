//! A graph under construction: leaves, and operands and attributes chosen by bytes.

use compute::builder::Conv2d;
use compute::{Builder, DType, Dim, Error, Value};

use crate::bytes::Bytes;

/// A graph under construction.
pub(crate) struct Script<'a> {
    pub(crate) bytes: Bytes<'a>,
    pub(crate) b: Builder,
    pub(crate) values: Vec<Value>,
    parameters: Vec<Value>,
    names: usize,
}

impl<'a> Script<'a> {
    /// Bytes that [`Script::leaves`] reads.
    pub(crate) const LEAF_BYTES: usize = 5;

    pub(crate) fn new(bytes: Bytes<'a>) -> Self {
        Self {
            bytes,
            b: Builder::new(),
            values: Vec::new(),
            parameters: Vec::new(),
            names: 0,
        }
    }

    /// Inputs and parameters that operators are likely to take.
    pub(crate) fn leaves(&mut self) {
        let [a, b, c, d] = [(); 4].map(|()| 1 + self.bytes.byte() as u64 % 6);
        let batch = self.bytes.byte() & 1 == 1;
        let first = if batch { Dim::Batch(1) } else { Dim::Fixed(a) };
        let fixed = |sizes: &[u64]| sizes.iter().map(|&n| Dim::Fixed(n)).collect::<Vec<_>>();
        let with_first = |sizes: &[u64]| [vec![first], fixed(sizes)].concat();
        let leaves = [
            self.input(DType::F32, &with_first(&[b, c, d])),
            self.input(DType::F32, &with_first(&[b])),
            self.input(DType::F32, &fixed(&[a, b])),
            self.input(DType::I64, &[first]),
            self.input(DType::Bool, &fixed(&[a, b])),
            self.input(DType::U8, &with_first(&[b])),
        ];
        self.values
            .extend(leaves.into_iter().filter_map(Result::ok));
        self.parameter(&[a, b]);
    }

    pub(crate) fn name(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    pub(crate) fn input(&mut self, dtype: DType, dims: &[Dim]) -> Result<Value, Error> {
        let name = self.name();
        self.b.input(&name, dtype, dims)
    }

    pub(crate) fn parameter(&mut self, shape: &[u64]) -> Option<Value> {
        const INITIALIZERS: [&str; 4] = ["normal:0:1", "ones", "torch-uniform", "zeros"];
        let name = self.name();
        let initializer = INITIALIZERS[self.names % 4];
        let value = self.b.parameter(&name, shape, initializer, 7).ok()?;
        self.parameters.push(value);
        self.values.push(value);
        Some(value)
    }

    /// A recent value, seldom any number.
    pub(crate) fn value(&mut self) -> Value {
        let byte = usize::from(self.bytes.byte());
        match byte {
            255 => Value(u32::MAX),
            254 => Value(self.b.nodes() as u32),
            _ => {
                let back = byte % self.values.len().clamp(1, 8);
                let at = self.values.len().saturating_sub(1 + back);
                self.values.get(at).copied().unwrap_or(Value(0))
            }
        }
    }

    /// A float32 value, where one is near.
    pub(crate) fn float(&mut self) -> Value {
        let first = self.value();
        if self.bytes.seldom() {
            return first;
        }
        let is_float = |v: &&Value| {
            self.b
                .typed(**v)
                .is_ok_and(|(dtype, _)| dtype == DType::F32)
        };
        let skip = first.0 as usize % 3;
        let found = self.values.iter().rev().filter(is_float).nth(skip);
        found.copied().unwrap_or(first)
    }

    pub(crate) fn of(&mut self, dtype: DType) -> Value {
        let is = |v: &&Value| self.b.typed(**v).is_ok_and(|(own, _)| own == dtype);
        let found = self.values.iter().rev().find(is).copied();
        let other = self.value();
        found.unwrap_or(other)
    }

    /// The sizes of a value, the batch as 1.
    pub(crate) fn shape(&self, x: Value) -> Vec<u64> {
        let typed = self.b.typed(x);
        typed.map_or_else(
            |_| vec![1],
            |(_, shape)| shape.0.iter().map(|d| d.at(1)).collect(),
        )
    }

    pub(crate) fn dims(&self, x: Value) -> Vec<Dim> {
        self.b
            .typed(x)
            .map_or_else(|_| Vec::new(), |(_, shape)| shape.0.clone())
    }

    pub(crate) fn rank(&self, x: Value) -> usize {
        self.shape(x).len()
    }

    /// A new parameter of this shape, seldom another value.
    pub(crate) fn like(&mut self, shape: &[u64]) -> Value {
        if self.bytes.seldom() {
            return self.value();
        }
        match self.parameter(shape) {
            Some(value) => value,
            None => self.value(),
        }
    }

    pub(crate) fn vector(&mut self, x: Value, axis: usize) -> Value {
        let size = self.shape(x).get(axis).copied().unwrap_or(1);
        self.like(&[size])
    }

    pub(crate) fn last(&mut self, x: Value) -> u64 {
        self.shape(x).last().copied().unwrap_or(1)
    }

    pub(crate) fn sizes(&mut self) -> Vec<u64> {
        self.bytes.list(4, Bytes::size)
    }

    pub(crate) fn any_dims(&mut self) -> Vec<Dim> {
        self.bytes.list(4, |bytes| match bytes.byte() {
            byte @ 0..32 => Dim::Batch(u64::from(byte % 3)),
            32 => Dim::Batch(u64::MAX),
            _ => Dim::Fixed(bytes.size()),
        })
    }

    pub(crate) fn axes(&mut self, x: Value) -> Vec<u32> {
        let rank = self.rank(x);
        self.bytes.list(rank, |bytes| bytes.axis(rank))
    }

    /// So many numbers as x has axes, seldom another number of them.
    pub(crate) fn by_axis<T>(
        &mut self,
        x: Value,
        item: impl Fn(&mut Bytes<'_>, u64) -> T,
    ) -> Vec<T> {
        let mut shape = self.shape(x);
        if self.bytes.seldom() {
            shape.pop();
        }
        shape
            .into_iter()
            .map(|size| item(&mut self.bytes, size))
            .collect()
    }

    /// An operand that broadcasts with x, seldom any.
    pub(crate) fn other(&mut self, x: Value) -> Value {
        let byte = self.bytes.byte();
        let shape = self.shape(x);
        match byte {
            0..64 => x,
            64..128 => self.like(&shape),
            128..192 => {
                let part: Vec<u64> = shape
                    .iter()
                    .map(|&n| if n % 2 == 0 { n } else { 1 })
                    .collect();
                self.like(&part[part.len() / 2..])
            }
            _ => self.value(),
        }
    }

    /// An image `[batch, channels, height, width]`, seldom something else.
    pub(crate) fn image(&mut self) -> Value {
        let x = self.float();
        if self.bytes.seldom() || self.rank(x) == 4 {
            return x;
        }
        let is_image = |v: &&Value| {
            self.b
                .typed(**v)
                .is_ok_and(|(dtype, shape)| dtype == DType::F32 && shape.rank() == 4)
        };
        self.values
            .iter()
            .rev()
            .find(is_image)
            .copied()
            .unwrap_or(x)
    }

    /// Attributes of a convolution: mostly small ones.
    pub(crate) fn convolution(&mut self) -> Conv2d {
        if self.bytes.flag() {
            return Conv2d::default();
        }
        let bytes = &mut self.bytes;
        let padding = bytes.pair();
        Conv2d {
            stride: bytes.pair(),
            padding: (padding.0 - padding.0.min(1), padding.1),
            dilation: bytes.pair(),
            groups: if bytes.flag() { 1 } else { bytes.small() },
        }
    }

    /// A convolution's weights: `[out, in / groups, …kernel]`, or the first two the other way round.
    pub(crate) fn kernel(
        &mut self,
        x: Value,
        groups: u32,
        sizes: usize,
        transposed: bool,
    ) -> Value {
        let channels = self.shape(x).get(1).copied().unwrap_or(1);
        let groups = u64::from(groups.max(1));
        let own = channels.div_ceil(groups);
        let mut shape = if transposed {
            vec![channels, self.bytes.size()]
        } else {
            vec![groups.saturating_mul(1 + self.bytes.byte() as u64 % 3), own]
        };
        for _ in 0..sizes {
            shape.push(1 + self.bytes.byte() as u64 % 4);
        }
        self.like(&shape)
    }

    pub(crate) fn chosen(&mut self) -> (Vec<Value>, Vec<Value>) {
        let parameters = self.parameters.clone();
        let count = self.bytes.below(3);
        let mut chosen: Vec<Value> = parameters.into_iter().rev().take(count).collect();
        if self.bytes.seldom() {
            chosen.push(self.value());
        }
        let other = |script: &mut Self, &p: &Value| {
            let shape = script.shape(p);
            script.like(&shape)
        };
        let gradients = chosen.iter().map(|p| other(self, p)).collect();
        (chosen, gradients)
    }

    /// A loss of the last values, its gradients, a step, and outputs.
    pub(crate) fn finish(&mut self) {
        let loss = self.float();
        let train = self.bytes.flag();
        let summed = self.b.sum(loss, &[], false);
        if let (true, Ok(loss)) = (train, summed) {
            let mut of: Vec<Value> = self.parameters.iter().rev().take(8).copied().collect();
            of.push(self.float());
            if let Ok(gradients) = self.b.gradients(loss, &of) {
                let count = gradients.len() - 1;
                let _ = self
                    .b
                    .sgd(&of[..count], &gradients[..count], 0.9, true, 0.1);
                self.values.extend(gradients);
            }
        }
        let values: Vec<Value> = self.values.iter().rev().take(12).copied().collect();
        for value in values {
            let name = self.name();
            let _ = self.b.output(&name, value);
        }
    }
}
