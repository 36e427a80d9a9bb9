//! The table of operators: each with a graph of random shapes that uses it.

use crate::builder::{Builder, Conv2d, END, Interpolation, Target, Window};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::Value;
use crate::random::{splitmix64, unit};
use crate::shape::Dim;
use crate::tensor::HostTensor;

type Built = Result<Vec<Value>, Error>;

/// An operator of the contract, and how a graph of it is built: the values to look at.
pub(super) struct Operator {
    pub(super) name: &'static str,
    pub(super) build: fn(&mut Case) -> Built,
}

/// A graph under construction, with the numbers that it is fed.
pub(super) struct Case {
    pub(super) b: Builder,
    pub(super) batch: usize,
    pub(super) feeds: Vec<(String, HostTensor)>,
    /// The float32 inputs and parameters.
    pub(super) differentiable: Vec<(String, Value)>,
    key: u64,
    large: bool,
}

impl Case {
    /// Random by `seed`; `large` tensors are worth dividing among threads.
    pub(super) fn new(seed: u64, large: bool) -> Self {
        let mut case = Self {
            b: Builder::new(),
            batch: 1,
            feeds: Vec::new(),
            differentiable: Vec::new(),
            key: splitmix64(seed),
            large,
        };
        case.batch = case.size();
        case
    }

    fn unit(&mut self) -> f64 {
        self.key = self.key.wrapping_add(1);
        unit(self.key)
    }

    /// A number from `low` up to `high`.
    pub(super) fn number(&mut self, low: usize, high: usize) -> usize {
        low + (self.unit() * (high - low + 1) as f64) as usize
    }

    pub(super) fn flag(&mut self) -> bool {
        self.number(0, 1) == 1
    }

    fn size(&mut self) -> usize {
        if self.large {
            self.number(11, 14)
        } else {
            self.number(1, 4)
        }
    }

    fn sizes<const N: usize>(&mut self) -> [usize; N] {
        std::array::from_fn(|_| self.size())
    }

    fn feed(&mut self, dtype: DType, dims: &[Dim], bytes: Vec<u8>) -> Result<Value, Error> {
        let name = format!("input.{}", self.feeds.len());
        let value = self.b.input(&name, dtype, dims)?;
        let shape = dims.iter().map(|d| d.at(self.batch as u64) as usize);
        let tensor = HostTensor::new(dtype, shape.collect(), bytes)?;
        self.feeds.push((name.clone(), tensor));
        if dtype == DType::F32 {
            self.differentiable.push((name, value));
        }
        Ok(value)
    }

    fn count(&self, dims: &[Dim]) -> usize {
        let sizes = dims.iter().map(|d| d.at(self.batch as u64) as usize);
        sizes.product()
    }

    /// Float32 numbers from `low` to `high`.
    pub(super) fn floats(&mut self, dims: &[Dim], low: f64, high: f64) -> Result<Value, Error> {
        let bytes = (0..self.count(dims)).flat_map(|_| {
            let value = low + (high - low) * self.unit();
            (value as f32).to_le_bytes()
        });
        let bytes = bytes.collect();
        self.feed(DType::F32, dims, bytes)
    }

    /// Float32 numbers of −2 to 2.
    fn float(&mut self, shape: &[usize]) -> Result<Value, Error> {
        self.floats(&fixed(shape), -2.0, 2.0)
    }

    /// The same with the batch first.
    pub(super) fn batched(&mut self, rest: &[usize]) -> Result<Value, Error> {
        self.floats(&with_batch(rest), -2.0, 2.0)
    }

    /// Int64 numbers from `low` up to `high`.
    fn integers(&mut self, dims: &[Dim], low: i64, high: i64) -> Result<Value, Error> {
        let numbers = (0..self.count(dims)).flat_map(|_| {
            let number = low + self.number(0, (high - low) as usize) as i64;
            number.to_le_bytes()
        });
        let bytes = numbers.collect();
        self.feed(DType::I64, dims, bytes)
    }

    fn indices(&mut self, shape: &[usize], below: usize) -> Result<Value, Error> {
        self.integers(&fixed(shape), 0, below as i64 - 1)
    }

    fn truths(&mut self, shape: &[usize]) -> Result<Value, Error> {
        let count = shape.iter().product();
        let bytes = (0..count).map(|_| self.number(0, 1) as u8).collect();
        self.feed(DType::Bool, &fixed(shape), bytes)
    }

    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Value, Error> {
        let sizes: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let value = self.b.parameter(name, &sizes, "normal:0:1", self.key)?;
        self.differentiable.push((name.to_owned(), value));
        Ok(value)
    }

    /// Two shapes that broadcast.
    fn pair(&mut self) -> (Vec<usize>, Vec<usize>) {
        let full: [usize; 3] = self.sizes();
        let mut partly = |lead: usize| -> Vec<usize> {
            let part = full[lead..].iter();
            part.map(|&n| if self.number(0, 3) == 0 { 1 } else { n })
                .collect()
        };
        let (a, b) = (partly(0), partly(1));
        if self.flag() { (a, b) } else { (b, a) }
    }

    fn rank(&mut self) -> Vec<usize> {
        let rank = self.number(1, 4);
        (0..rank).map(|_| self.size()).collect()
    }

    fn axis(&mut self, rank: usize) -> usize {
        self.number(0, rank - 1)
    }

    fn axes(&mut self, rank: usize) -> Vec<u32> {
        let axes: Vec<u32> = (0..rank as u32).filter(|_| self.flag()).collect();
        axes
    }

    fn seed(&mut self) -> u64 {
        self.key = self.key.wrapping_add(1);
        self.key
    }
}

fn fixed(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::Fixed(n as u64)).collect()
}

fn with_batch(rest: &[usize]) -> Vec<Dim> {
    [vec![Dim::Batch(1)], fixed(rest)].concat()
}

fn wide(list: &[usize]) -> Vec<u64> {
    list.iter().map(|&n| n as u64).collect()
}

fn unary(
    c: &mut Case,
    (low, high): (f64, f64),
    f: impl Fn(&mut Builder, Value) -> Result<Value, Error>,
) -> Built {
    let shape = c.rank();
    let x = c.floats(&fixed(&shape), low, high)?;
    Ok(vec![f(&mut c.b, x)?])
}

fn binary(c: &mut Case, f: impl Fn(&mut Builder, Value, Value) -> Result<Value, Error>) -> Built {
    let (a, b) = c.pair();
    let (x, y) = (c.float(&a)?, c.float(&b)?);
    Ok(vec![f(&mut c.b, x, y)?])
}

/// The same of float32 and of int64 operands.
fn arithmetic(
    c: &mut Case,
    f: impl Fn(&mut Builder, Value, Value) -> Result<Value, Error>,
) -> Built {
    let mut built = binary(c, &f)?;
    let (a, b) = c.pair();
    let (x, y) = (
        c.integers(&fixed(&a), -9, 9)?,
        c.integers(&fixed(&b), -3, 3)?,
    );
    built.push(f(&mut c.b, x, y)?);
    Ok(built)
}

/// A comparison of every dtype, with equal elements among them.
fn comparison(
    c: &mut Case,
    f: impl Fn(&mut Builder, Value, Value) -> Result<Value, Error>,
) -> Built {
    let (a, b) = c.pair();
    let (x, y) = (
        c.integers(&fixed(&a), -2, 2)?,
        c.integers(&fixed(&b), -2, 2)?,
    );
    let of_integers = f(&mut c.b, x, y)?;
    let (x, y) = (c.b.cast(x, DType::F32)?, c.b.cast(y, DType::F32)?);
    let of_floats = f(&mut c.b, x, y)?;
    let (x, y) = (c.b.cast(x, DType::Bool)?, c.b.cast(y, DType::Bool)?);
    Ok(vec![of_integers, of_floats, f(&mut c.b, x, y)?])
}

fn reduction(
    c: &mut Case,
    f: impl Fn(&mut Builder, Value, &[u32], bool) -> Result<Value, Error>,
) -> Built {
    let shape = c.rank();
    let x = c.float(&shape)?;
    let (axes, keep) = (c.axes(shape.len()), c.flag());
    Ok(vec![f(&mut c.b, x, &axes, keep)?])
}

fn along(c: &mut Case, f: impl Fn(&mut Builder, Value, u32) -> Result<Value, Error>) -> Built {
    let shape = c.rank();
    let x = c.float(&shape)?;
    let axis = c.axis(shape.len()) as u32;
    Ok(vec![f(&mut c.b, x, axis)?])
}

/// A convolution's attributes, an image side that fits, and the kernel's side.
fn window(c: &mut Case) -> ((u32, u32, u32), usize, usize) {
    let (stride, padding, dilation) = (c.number(1, 2), c.number(0, 2), c.number(1, 2));
    let kernel = c.number(1, 3);
    let side = dilation * (kernel - 1) + c.size();
    (
        (stride as u32, padding as u32, dilation as u32),
        side,
        kernel,
    )
}

fn convolution(c: &mut Case) -> (Conv2d, [usize; 2], [usize; 2]) {
    let (vertical, height, kernel_height) = window(c);
    let (horizontal, width, kernel_width) = window(c);
    let attributes = Conv2d {
        stride: (vertical.0, horizontal.0),
        padding: (vertical.1, horizontal.1),
        dilation: (vertical.2, horizontal.2),
        groups: c.number(1, 3) as u32,
    };
    (attributes, [height, width], [kernel_height, kernel_width])
}

fn pool(c: &mut Case, maximum: bool) -> Built {
    let (kernel, stride) = (c.number(1, 3), c.number(1, 2) as u32);
    let padding = c.number(0, kernel / 2) as u32;
    let [channels, height, width] = c.sizes();
    let x = c.batched(&[channels, height + kernel, width + kernel])?;
    let window = (kernel as u32, kernel as u32);
    let (stride, padding) = ((stride, stride), (padding, padding));
    Ok(vec![if maximum {
        c.b.max_pool2d(x, window, stride, padding)?
    } else {
        c.b.avg_pool2d(x, window, stride, padding)?
    }])
}

/// An optimizer's step of two parameters.
fn optimizer(
    c: &mut Case,
    f: impl Fn(&mut Builder, &[Value], &[Value]) -> Result<(), Error>,
) -> Built {
    let shape = c.rank();
    let parameters = [c.parameter("p", &shape)?, c.parameter("q", &shape)?];
    let (g, h) = (c.float(&shape)?, c.float(&shape)?);
    f(&mut c.b, &parameters, &[g, h])?;
    Ok(Vec::new())
}

/// Two tensors of one shape, the second between 0 and 1.
fn targets(c: &mut Case, f: impl Fn(&mut Builder, Value, Value) -> Result<Value, Error>) -> Built {
    let rest: [usize; 2] = c.sizes();
    let dims = with_batch(&rest);
    let (x, target) = (c.floats(&dims, -2.0, 2.0)?, c.floats(&dims, 0.1, 1.0)?);
    Ok(vec![f(&mut c.b, x, target)?])
}

macro_rules! table {
    ($($name:literal: |$c:ident| $build:expr;)*) => {
        /// Every operator, by the contract's name.
        pub(super) const TABLE: &[Operator] = &[$(Operator {
            name: $name,
            build: |$c: &mut Case| $build,
        }),*];
    };
}

const WIDE: (f64, f64) = (-4.0, 4.0);
const POSITIVE: (f64, f64) = (0.2, 4.0);
const INSIDE: (f64, f64) = (-0.9, 0.9);

table! {
    "abs": |c| unary(c, WIDE, Builder::abs);
    "acos": |c| unary(c, INSIDE, Builder::acos);
    "acosh": |c| unary(c, (1.1, 4.0), Builder::acosh);
    "adam": |c| optimizer(c, |b, p, g| b.adam(p, g, (0.8, 0.95), 1e-8, 0.1));
    "adamw": |c| optimizer(c, |b, p, g| b.adamw(p, g, (0.9, 0.999), 1e-6, 0.1));
    "adaptive-avg-pool2d": |c| {
        let shape: [usize; 3] = c.sizes();
        let x = c.batched(&shape)?;
        let [rows, columns] = c.sizes();
        Ok(vec![c.b.adaptive_avg_pool2d(x, (rows as u64, columns as u64))?])
    };
    "add": |c| arithmetic(c, Builder::add);
    "affine": |c| unary(c, WIDE, |b, x| b.affine(x, -1.5, 0.7));
    "amax": |c| reduction(c, Builder::amax);
    "amin": |c| reduction(c, Builder::amin);
    "argmax": |c| along(c, Builder::argmax);
    "argmin": |c| along(c, Builder::argmin);
    "asin": |c| unary(c, INSIDE, Builder::asin);
    "asinh": |c| unary(c, WIDE, Builder::asinh);
    "atan": |c| unary(c, WIDE, Builder::atan);
    "atanh": |c| unary(c, INSIDE, Builder::atanh);
    "attention": |c| {
        let [heads, queries, keys, features, out] = c.sizes();
        let q = c.batched(&[heads, queries, features])?;
        let k = c.batched(&[heads, keys, features])?;
        let v = c.batched(&[heads, keys, out])?;
        let bias = match c.number(0, 4) {
            0 => Some(c.float(&[heads, 1, keys])?),
            1 => Some(c.float(&[queries, keys])?),
            2 => Some(c.float(&[queries, 1])?),
            3 => Some(c.batched(&[1, queries, keys])?),
            _ => None,
        };
        let (causal, scale) = (c.flag(), c.flag().then_some(0.7));
        Ok(vec![c.b.attention((q, k, v), bias, causal, scale)?])
    };
    "average": |c| optimizer(c, |b, p, g| {
        b.sgd(p, g, 0.0, false, 0.0)?;
        b.average(p, 0.6).map(|_| ())
    });
    "avg-pool2d": |c| pool(c, false);
    "batch-norm-eval": |c| {
        let [channels, length] = c.sizes();
        let x = c.batched(&[channels, length])?;
        let (scale, bias) = (c.float(&[channels])?, c.float(&[channels])?);
        let mean = c.b.constant(DType::F32, &[channels as u64], &0.3f32.to_le_bytes().repeat(channels))?;
        let variance = c.b.constant(DType::F32, &[channels as u64], &1.7f32.to_le_bytes().repeat(channels))?;
        Ok(vec![c.b.batch_norm_eval(x, scale, bias, mean, variance, 1e-3)?])
    };
    "batch-norm-train": |c| {
        let [channels, length] = c.sizes();
        // Numbers enough for a variance.
        let x = c.batched(&[channels, length + 2, 2])?;
        let (scale, bias) = (c.parameter("scale", &[channels])?, c.float(&[channels])?);
        let mean = c.b.buffer("mean", &[channels as u64], "zeros")?;
        let variance = c.b.buffer("variance", &[channels as u64], "ones")?;
        let y = c.b.batch_norm_train(x, scale, bias, mean, variance, 0.3, 1e-3)?;
        // Running values move where a plan trains.
        c.b.sgd(&[scale], &[bias], 0.0, false, 0.0)?;
        Ok(vec![y])
    };
    "bce-with-logits": |c| targets(c, Builder::bce_with_logits);
    "cast": |c| {
        let shape = c.rank();
        let x = c.floats(&fixed(&shape), -9.0, 9.0)?;
        let integers = c.b.cast(x, DType::I64)?;
        let truths = c.b.cast(integers, DType::Bool)?;
        let back = c.b.cast(integers, DType::F32)?;
        let numbers = c.b.cast(truths, DType::F32)?;
        let bytes = (0..6).map(|_| c.number(0, 255) as u8).collect();
        let bytes = c.feed(DType::U8, &fixed(&[2, 3]), bytes)?;
        let mut results = vec![integers, truths, back, numbers];
        for dtype in [DType::F32, DType::I64, DType::Bool] {
            results.push(c.b.cast(bytes, dtype)?);
        }
        Ok(results)
    };
    "ceil": |c| unary(c, WIDE, Builder::ceil);
    "clamp": |c| unary(c, WIDE, |b, x| b.clamp(x, -1.0, 2.0));
    "clip-gradients": |c| {
        let shape = c.rank();
        let (g, h) = (c.float(&shape)?, c.float(&[3])?);
        c.b.clip_gradients(&[g, h], 1.5)
    };
    "concat": |c| {
        let mut shape = c.rank();
        let axis = c.axis(shape.len());
        let mut parts = Vec::new();
        for _ in 0..c.number(1, 3) {
            shape[axis] = c.size();
            parts.push(c.float(&shape)?);
        }
        let floats = c.b.concat(&parts, axis as u32)?;
        let integers = parts.iter().map(|&x| c.b.cast(x, DType::I64)).collect::<Built>()?;
        let integers = c.b.concat(&integers, axis as u32)?;
        let truths = parts.iter().map(|&x| c.b.cast(x, DType::Bool)).collect::<Built>()?;
        Ok(vec![floats, integers, c.b.concat(&truths, axis as u32)?])
    };
    "conv-transpose2d": |c| {
        let (attributes, [height, width], kernel) = convolution(c);
        let (groups, [from, out]) = (attributes.groups as usize, c.sizes());
        // Enough for the padding to be taken off.
        let x = c.batched(&[from * groups, height + 4, width + 4])?;
        let weight = c.float(&[from * groups, out, kernel[0], kernel[1]])?;
        let bias = if c.flag() { Some(c.float(&[out * groups])?) } else { None };
        let extra = (attributes.stride.0 - 1, 0);
        Ok(vec![c.b.conv_transpose2d(x, weight, bias, attributes, extra)?])
    };
    "conv1d": |c| {
        let ((stride, padding, dilation), length, kernel) = window(c);
        let [from, out] = c.sizes();
        let groups = c.number(1, 2);
        let x = c.batched(&[from * groups, length])?;
        let weight = c.float(&[out * groups, from, kernel])?;
        let bias = c.float(&[out * groups])?;
        let attributes = (stride, padding, dilation, groups as u32);
        Ok(vec![c.b.conv1d(x, weight, Some(bias), attributes)?])
    };
    "conv2d": |c| {
        let (attributes, [height, width], kernel) = convolution(c);
        let (groups, [from, out]) = (attributes.groups as usize, c.sizes());
        // Some with channels enough for kernels that work by tiles.
        let (from, out) = if c.number(0, 2) == 0 { (from + 8, out + 8) } else { (from, out) };
        let x = c.batched(&[from * groups, height, width])?;
        let weight = c.float(&[out * groups, from, kernel[0], kernel[1]])?;
        let bias = if c.flag() { Some(c.float(&[out * groups])?) } else { None };
        Ok(vec![c.b.conv2d(x, weight, bias, attributes)?])
    };
    "cos": |c| unary(c, WIDE, Builder::cos);
    "cosh": |c| unary(c, WIDE, Builder::cosh);
    "cross-entropy": |c| {
        let classes = c.size();
        let logits = c.batched(&[classes])?;
        let labels = c.integers(&[Dim::Batch(1)], 0, classes as i64 - 1)?;
        let smoothing = if c.flag() { 0.2 } else { 0.0 };
        Ok(vec![c.b.cross_entropy(logits, labels, smoothing)?])
    };
    "cumsum": |c| {
        let reverse = c.flag();
        along(c, |b, x, axis| b.cumsum(x, axis, reverse))
    };
    "div": |c| {
        let (a, b) = c.pair();
        let (x, y) = (c.float(&a)?, c.floats(&fixed(&b), 0.5, 2.0)?);
        let floats = c.b.div(x, y)?;
        let (x, y) = (c.integers(&fixed(&a), -9, 9)?, c.integers(&fixed(&b), -3, 3)?);
        Ok(vec![floats, c.b.div(x, y)?])
    };
    "drop-path": |c| {
        let (shape, seed): ([usize; 2], u64) = (c.sizes(), c.seed());
        let x = c.batched(&shape)?;
        Ok(vec![c.b.drop_path(x, 0.4, seed)?])
    };
    "dropout": |c| {
        let seed = c.seed();
        unary(c, WIDE, |b, x| b.dropout(x, 0.4, seed))
    };
    "elu": |c| unary(c, WIDE, |b, x| b.elu(x, 1.3));
    "embedding": |c| {
        let [rows, features, length] = c.sizes();
        let table = c.parameter("table", &[rows, features])?;
        let by = c.integers(&with_batch(&[length]), 0, rows as i64 - 1)?;
        Ok(vec![c.b.embedding(table, by)?])
    };
    "equal": |c| comparison(c, Builder::equal);
    "erf": |c| unary(c, (-2.0, 2.0), Builder::erf);
    "exp": |c| unary(c, (-2.0, 2.0), Builder::exp);
    "expand": |c| {
        let (shape, _) = c.pair();
        let x = c.float(&shape)?;
        let lead = c.size();
        let target: Vec<usize> = [lead]
            .into_iter()
            .chain(shape.iter().map(|&n| if n == 1 { c.number(1, 3) } else { n }))
            .collect();
        let floats = c.b.expand(x, &fixed(&target))?;
        let integers = c.b.cast(x, DType::I64)?;
        let truths = c.b.cast(x, DType::Bool)?;
        let integers = c.b.expand(integers, &fixed(&target))?;
        Ok(vec![floats, integers, c.b.expand(truths, &fixed(&target))?])
    };
    "flip": |c| {
        let shape = c.rank();
        let x = c.float(&shape)?;
        let axes = c.axes(shape.len());
        Ok(vec![c.b.flip(x, &axes)?])
    };
    "floor": |c| unary(c, WIDE, Builder::floor);
    "gather": |c| {
        let mut shape = c.rank();
        let (x, axis) = (c.float(&shape)?, c.axis(shape.len()));
        let below = shape[axis];
        shape[axis] = c.size();
        let by = c.indices(&shape, below)?;
        let floats = c.b.gather(x, by, axis as u32)?;
        let integers = c.b.cast(x, DType::I64)?;
        let integers = c.b.gather(integers, by, axis as u32)?;
        let truths = c.b.cast(x, DType::Bool)?;
        Ok(vec![floats, integers, c.b.gather(truths, by, axis as u32)?])
    };
    "gelu": |c| {
        let approximate = c.flag();
        unary(c, (-2.5, 2.5), |b, x| b.gelu(x, approximate))
    };
    "greater": |c| comparison(c, Builder::greater);
    "greater-or-equal": |c| comparison(c, Builder::greater_or_equal);
    "group-norm": |c| {
        let (groups, [each, length]) = (c.number(1, 3), c.sizes());
        let channels = groups * each;
        let x = c.batched(&[channels, length + 2])?;
        let (scale, bias) = (c.float(&[channels])?, c.float(&[channels])?);
        Ok(vec![c.b.group_norm(x, groups as u64, scale, bias, 1e-3)?])
    };
    "hard-sigmoid": |c| unary(c, WIDE, Builder::hard_sigmoid);
    "hard-swish": |c| unary(c, WIDE, Builder::hard_swish);
    "kl-divergence": |c| targets(c, Builder::kl_divergence);
    "l2-normalize": |c| {
        let shape: [usize; 3] = c.sizes();
        let x = c.floats(&fixed(&shape), 0.2, 2.0)?;
        let axis = c.axis(3) as u32;
        Ok(vec![c.b.l2_normalize(x, &[axis], 1e-6)?])
    };
    "layer-norm": |c| {
        let [rows, a, b] = c.sizes();
        let x = c.batched(&[rows, a, b + 2])?;
        let row = if c.flag() { vec![b + 2] } else { vec![a, b + 2] };
        let (scale, bias) = (c.float(&row)?, c.float(&row)?);
        Ok(vec![c.b.layer_norm(x, scale, bias, 1e-3)?])
    };
    "leaky-relu": |c| unary(c, WIDE, |b, x| b.leaky_relu(x, 0.1));
    "less": |c| comparison(c, Builder::less);
    "less-or-equal": |c| comparison(c, Builder::less_or_equal);
    "linear": |c| {
        let [rows, inputs, outputs] = c.sizes();
        let x = c.batched(&[rows, inputs])?;
        let weight = c.parameter("weight", &[outputs, inputs])?;
        let bias = if c.flag() { Some(c.parameter("bias", &[outputs])?) } else { None };
        Ok(vec![c.b.linear(x, weight, bias)?])
    };
    "log": |c| unary(c, POSITIVE, Builder::log);
    "log-softmax": |c| along(c, Builder::log_softmax);
    "logical-and": |c| {
        let (a, b) = c.pair();
        let (x, y) = (c.truths(&a)?, c.truths(&b)?);
        Ok(vec![c.b.logical_and(x, y)?])
    };
    "logical-not": |c| {
        let shape = c.rank();
        let x = c.truths(&shape)?;
        Ok(vec![c.b.logical_not(x)?])
    };
    "logical-or": |c| {
        let (a, b) = c.pair();
        let (x, y) = (c.truths(&a)?, c.truths(&b)?);
        Ok(vec![c.b.logical_or(x, y)?])
    };
    "matmul": |c| {
        let [lead, m, k, n] = c.sizes();
        let (a, b) = if c.flag() {
            (vec![lead, 1, m, k], vec![2, k, n])
        } else {
            (vec![m, k], vec![lead, k, n])
        };
        let (x, y) = (c.float(&a)?, c.float(&b)?);
        Ok(vec![c.b.matmul(x, y)?])
    };
    "max-pool2d": |c| pool(c, true);
    "maximum": |c| arithmetic(c, Builder::maximum);
    "mean": |c| reduction(c, Builder::mean);
    "minimum": |c| arithmetic(c, Builder::minimum);
    "mse-loss": |c| targets(c, Builder::mse_loss);
    "mul": |c| arithmetic(c, Builder::mul);
    "neg": |c| unary(c, WIDE, Builder::neg);
    "not-equal": |c| comparison(c, Builder::not_equal);
    "one-hot": |c| {
        let shape: [usize; 2] = c.sizes();
        let by = c.integers(&fixed(&shape), -1, 4)?;
        Ok(vec![c.b.one_hot(by, 4)?])
    };
    "pad": |c| {
        let shape = c.rank();
        let x = c.float(&shape)?;
        let mut sides = || -> Vec<u64> { shape.iter().map(|_| c.number(0, 2) as u64).collect() };
        let (before, after) = (sides(), sides());
        let floats = c.b.pad(x, &before, &after, 0.5)?;
        let integers = c.b.cast(x, DType::I64)?;
        let integers = c.b.pad(integers, &before, &after, -7.0)?;
        let truths = c.b.cast(x, DType::Bool)?;
        Ok(vec![floats, integers, c.b.pad(truths, &before, &after, 1.0)?])
    };
    "permute": |c| {
        let shape = c.rank();
        let x = c.float(&shape)?;
        let mut order: Vec<u32> = (0..shape.len() as u32).collect();
        for i in (1..order.len()).rev() {
            let j = c.number(0, i);
            order.swap(i, j);
        }
        let floats = c.b.permute(x, &order)?;
        let integers = c.b.cast(x, DType::I64)?;
        Ok(vec![floats, c.b.permute(integers, &order)?])
    };
    "pow": |c| unary(c, POSITIVE, |b, x| b.pow(x, 1.7));
    "random-normal": |c| {
        let (shape, seed): ([usize; 2], u64) = (c.sizes(), c.seed());
        Ok(vec![c.b.random_normal(&with_batch(&shape), seed)?])
    };
    "random-uniform": |c| {
        let (shape, seed): ([usize; 2], u64) = (c.sizes(), c.seed());
        Ok(vec![c.b.random_uniform(&with_batch(&shape), seed)?])
    };
    "relu": |c| unary(c, WIDE, Builder::relu);
    "reshape": |c| {
        let [a, b, d] = c.sizes();
        let x = c.batched(&[a, b, d])?;
        let target = [Dim::Batch(1), Dim::Fixed(d as u64)].map(Target::Size);
        Ok(vec![c.b.reshape(x, &[target[0], Target::Rest, target[1]])?])
    };
    "resize2d": |c| {
        let shape: [usize; 3] = c.sizes();
        let x = c.batched(&shape)?;
        let [rows, columns] = c.sizes();
        let kinds = [Interpolation::Nearest, Interpolation::Linear, Interpolation::LinearCorners];
        let kind = kinds[c.number(0, 2)];
        Ok(vec![c.b.resize2d(x, (rows as u64 + 1, columns as u64), kind)?])
    };
    "rms-norm": |c| {
        let [rows, size] = c.sizes();
        let x = c.batched(&[rows, size])?;
        let scale = c.float(&[size])?;
        Ok(vec![c.b.rms_norm(x, scale, 1e-3)?])
    };
    "roll": |c| {
        let shape: [usize; 3] = c.sizes();
        let x = c.float(&shape)?;
        let shifts = [c.number(0, 9) as i32 - 4, c.number(0, 9) as i32 - 4];
        Ok(vec![c.b.roll(x, &shifts, &[0, 2])?])
    };
    "round": |c| unary(c, WIDE, Builder::round);
    "rsqrt": |c| unary(c, POSITIVE, Builder::rsqrt);
    "scatter-add": |c| {
        let mut shape = c.rank();
        let (x, axis) = (c.float(&shape)?, c.axis(shape.len()));
        let below = shape[axis];
        shape[axis] = c.size();
        let (by, updates) = (c.indices(&shape, below)?, c.float(&shape)?);
        Ok(vec![c.b.scatter_add(x, by, updates, axis as u32)?])
    };
    "select": |c| {
        let (a, b) = c.pair();
        let condition = c.truths(&b[b.len() - 1..])?;
        let (x, y) = (c.float(&a)?, c.float(&b)?);
        let floats = c.b.select(condition, x, y)?;
        let (i, j) = (c.b.cast(x, DType::I64)?, c.b.cast(y, DType::I64)?);
        let integers = c.b.select(condition, i, j)?;
        let (i, j) = (c.b.cast(i, DType::Bool)?, c.b.cast(j, DType::Bool)?);
        Ok(vec![floats, integers, c.b.select(condition, i, j)?])
    };
    "sgd": |c| {
        let nesterov = c.flag();
        let momentum = if nesterov || c.flag() { 0.9 } else { 0.0 };
        optimizer(c, |b, p, g| b.sgd(p, g, momentum, nesterov, 0.1))
    };
    "sigmoid": |c| unary(c, WIDE, Builder::sigmoid);
    "sign": |c| unary(c, WIDE, Builder::sign);
    "silu": |c| unary(c, WIDE, Builder::silu);
    "sin": |c| unary(c, WIDE, Builder::sin);
    "sinh": |c| unary(c, (-2.0, 2.0), Builder::sinh);
    "slice": |c| {
        let shape: [usize; 3] = c.sizes();
        let x = c.batched(&shape)?;
        let (mut starts, mut ends, mut steps) = (vec![0], vec![END], vec![1]);
        for size in shape {
            let start = c.number(0, size - 1);
            starts.push(start as u64);
            ends.push(c.number(start + 1, size) as u64);
            steps.push(c.number(1, 2) as u64);
        }
        let floats = c.b.slice(x, &starts, &ends, &steps)?;
        let integers = c.b.cast(x, DType::I64)?;
        let integers = c.b.slice(integers, &starts, &ends, &steps)?;
        let truths = c.b.cast(x, DType::Bool)?;
        Ok(vec![floats, integers, c.b.slice(truths, &starts, &ends, &steps)?])
    };
    "softmax": |c| along(c, Builder::softmax);
    "softplus": |c| unary(c, WIDE, Builder::softplus);
    "split": |c| {
        let [a, b, d] = c.sizes();
        let x = c.batched(&[a + b, d])?;
        c.b.split(x, &wide(&[a, b]), 1)
    };
    "sqrt": |c| unary(c, POSITIVE, Builder::sqrt);
    "stft-power": |c| {
        let (size, hop) = (2 * c.number(1, 4) as u32, c.number(1, 3) as u32);
        let samples = size as usize + c.size() * hop as usize;
        let x = c.batched(&[samples])?;
        let kinds = [Window::Hann, Window::Hamming, Window::Rectangular];
        let kind = kinds[c.number(0, 2)];
        Ok(vec![c.b.stft_power(x, size, hop, kind)?])
    };
    "sub": |c| arithmetic(c, Builder::sub);
    "sum": |c| reduction(c, Builder::sum);
    "take": |c| {
        let shape = c.rank();
        let (x, axis) = (c.float(&shape)?, c.axis(shape.len()));
        let by_shape: [usize; 2] = c.sizes();
        let by = c.indices(&by_shape, shape[axis])?;
        let floats = c.b.take(x, by, axis as u32)?;
        let integers = c.b.cast(x, DType::I64)?;
        let integers = c.b.take(integers, by, axis as u32)?;
        let truths = c.b.cast(x, DType::Bool)?;
        Ok(vec![floats, integers, c.b.take(truths, by, axis as u32)?])
    };
    "tan": |c| unary(c, (-1.2, 1.2), Builder::tan);
    "tanh": |c| unary(c, WIDE, Builder::tanh);
    "top-k": |c| {
        let shape = c.rank();
        let (x, axis) = (c.float(&shape)?, c.axis(shape.len()));
        let (count, smallest) = (c.number(1, shape[axis]) as u64, c.flag());
        Ok(vec![c.b.top_k(x, count, axis as u32, smallest)?])
    };
    "variance": |c| {
        let shape: [usize; 3] = c.sizes();
        let x = c.float(&[shape[0] + 1, shape[1], shape[2]])?;
        let (keep, unbiased) = (c.flag(), c.flag());
        Ok(vec![c.b.variance(x, &[0, 2], keep, unbiased)?])
    };
}
