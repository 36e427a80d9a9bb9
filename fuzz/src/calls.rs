//! Calls of the builder.

use compute::builder::{END, Interpolation, Target, Window};
use compute::{Builder, DType, Dim, Error, Value};

use crate::bytes::Bytes;
use crate::script::Script;

type Results = Result<Vec<Value>, Error>;

impl Script<'_> {
    /// Makes a call; what it gives is there for later ones.
    pub(crate) fn call(&mut self, name: &str) {
        let Ok(results) = self.make(name) else {
            return;
        };
        for &value in &results {
            let Ok((_, shape)) = self.b.typed(value) else {
                panic!("{name} gave no value");
            };
            assert!(shape.check().is_ok(), "{name} gave {shape}");
        }
        self.values.extend(results);
    }

    fn make(&mut self, name: &str) -> Results {
        type Unary = fn(&mut Builder, Value) -> Result<Value, Error>;
        type Binary = fn(&mut Builder, Value, Value) -> Result<Value, Error>;
        let unary: Option<Unary> = match name {
            "abs" => Some(Builder::abs),
            "acos" => Some(Builder::acos),
            "acosh" => Some(Builder::acosh),
            "asin" => Some(Builder::asin),
            "asinh" => Some(Builder::asinh),
            "atan" => Some(Builder::atan),
            "atanh" => Some(Builder::atanh),
            "ceil" => Some(Builder::ceil),
            "cos" => Some(Builder::cos),
            "cosh" => Some(Builder::cosh),
            "erf" => Some(Builder::erf),
            "exp" => Some(Builder::exp),
            "floor" => Some(Builder::floor),
            "hard-sigmoid" => Some(Builder::hard_sigmoid),
            "hard-swish" => Some(Builder::hard_swish),
            "log" => Some(Builder::log),
            "neg" => Some(Builder::neg),
            "relu" => Some(Builder::relu),
            "round" => Some(Builder::round),
            "rsqrt" => Some(Builder::rsqrt),
            "sigmoid" => Some(Builder::sigmoid),
            "sign" => Some(Builder::sign),
            "silu" => Some(Builder::silu),
            "sin" => Some(Builder::sin),
            "sinh" => Some(Builder::sinh),
            "softplus" => Some(Builder::softplus),
            "sqrt" => Some(Builder::sqrt),
            "tan" => Some(Builder::tan),
            "tanh" => Some(Builder::tanh),
            _ => None,
        };
        if let Some(unary) = unary {
            let x = self.float();
            return Ok(vec![unary(&mut self.b, x)?]);
        }
        let binary: Option<Binary> = match name {
            "add" => Some(Builder::add),
            "bce-with-logits" => Some(Builder::bce_with_logits),
            "div" => Some(Builder::div),
            "equal" => Some(Builder::equal),
            "greater" => Some(Builder::greater),
            "greater-or-equal" => Some(Builder::greater_or_equal),
            "kl-divergence" => Some(Builder::kl_divergence),
            "less" => Some(Builder::less),
            "less-or-equal" => Some(Builder::less_or_equal),
            "maximum" => Some(Builder::maximum),
            "minimum" => Some(Builder::minimum),
            "mse-loss" => Some(Builder::mse_loss),
            "mul" => Some(Builder::mul),
            "not-equal" => Some(Builder::not_equal),
            "sub" => Some(Builder::sub),
            _ => None,
        };
        if let Some(binary) = binary {
            let a = self.value();
            let b = self.other(a);
            return Ok(vec![binary(&mut self.b, a, b)?]);
        }
        match name {
            "adam" | "adamw" | "average" | "clip-gradients" | "sgd" => self.training(name),
            "cast" | "concat" | "expand" | "flip" | "pad" | "permute" | "reshape" | "roll"
            | "slice" | "split" => self.movement(name),
            "adaptive-avg-pool2d"
            | "avg-pool2d"
            | "conv-transpose2d"
            | "conv1d"
            | "conv2d"
            | "max-pool2d"
            | "resize2d"
            | "stft-power" => self.window(name),
            _ => self.other_call(name),
        }
    }

    fn training(&mut self, name: &str) -> Results {
        let (parameters, gradients) = self.chosen();
        let bytes = &mut self.bytes;
        let number = |bytes: &mut Bytes<'_>| if bytes.flag() { 0.9 } else { bytes.number() };
        let (first, second) = (number(bytes), number(bytes));
        let (epsilon, decay, flag) = (number(bytes), number(bytes), bytes.flag());
        let (b, p, g) = (&mut self.b, &parameters, &gradients);
        match name {
            "adam" => b.adam(p, g, (first, second), epsilon, decay)?,
            "adamw" => b.adamw(p, g, (first, second), epsilon, decay)?,
            "sgd" => b.sgd(p, g, first, flag, decay)?,
            "average" => return b.average(p, first),
            _ => return b.clip_gradients(g, first),
        }
        Ok(Vec::new())
    }

    fn movement(&mut self, name: &str) -> Results {
        let x = self.value();
        let rank = self.rank(x);
        let y = match name {
            "cast" => {
                let dtypes = [DType::F32, DType::I64, DType::Bool, DType::U8, DType::BF16];
                let dtype = dtypes[self.bytes.below(dtypes.len())];
                self.b.cast(x, dtype)?
            }
            "concat" => {
                let mut parts = vec![x];
                for _ in 0..self.bytes.below(4) {
                    parts.push(self.other(x));
                }
                let axis = self.bytes.axis(rank);
                self.b.concat(&parts, axis)?
            }
            "expand" => {
                let mut dims = self.dims(x);
                for dim in &mut dims {
                    if *dim == Dim::Fixed(1) {
                        *dim = Dim::Fixed(self.bytes.size());
                    }
                }
                let dims = if self.bytes.seldom() {
                    self.any_dims()
                } else {
                    dims
                };
                self.b.expand(x, &dims)?
            }
            "flip" => {
                let axes = self.axes(x);
                self.b.flip(x, &axes)?
            }
            "pad" => {
                let before = self.by_axis(x, |bytes, _| u64::from(bytes.byte() % 3));
                let after = self.by_axis(x, |bytes, _| bytes.size());
                let value = self.bytes.number();
                self.b.pad(x, &before, &after, value)?
            }
            "permute" => {
                let mut axes: Vec<u32> = (0..rank as u32).collect();
                for i in 1..axes.len() {
                    axes.swap(i, self.bytes.below(i + 1));
                }
                let axes = if self.bytes.seldom() {
                    self.axes(x)
                } else {
                    axes
                };
                self.b.permute(x, &axes)?
            }
            "reshape" => {
                let mut target: Vec<Target> = self.dims(x).into_iter().map(Target::Size).collect();
                for _ in 0..self.bytes.below(3) {
                    let at = self.bytes.below(target.len() + 1);
                    match self.bytes.byte() % 4 {
                        0 => target.insert(at, Target::Rest),
                        1 => target.insert(at, Target::Size(Dim::Fixed(1))),
                        2 if at < target.len() => drop(target.remove(at)),
                        _ => target.push(Target::Size(Dim::Fixed(self.bytes.size()))),
                    }
                }
                self.b.reshape(x, &target)?
            }
            "roll" => {
                let axes = self.axes(x);
                let shift = |_: &u32| match self.bytes.byte() {
                    255 => i32::MIN,
                    254 => i32::MAX,
                    byte => i32::from(byte as i8),
                };
                let shifts: Vec<i32> = axes.iter().map(shift).collect();
                self.b.roll(x, &shifts, &axes)?
            }
            "slice" => {
                let starts = self.by_axis(x, |bytes, n| u64::from(bytes.byte()) % n.max(1));
                let ends = self.by_axis(x, |bytes, n| if bytes.flag() { END } else { n });
                let steps = self.by_axis(x, |bytes, _| bytes.size());
                self.b.slice(x, &starts, &ends, &steps)?
            }
            _ => {
                let axis = self.bytes.axis(rank);
                let size = self.shape(x).get(axis as usize).copied().unwrap_or(1);
                let first = u64::from(self.bytes.byte()) % (size + 1);
                let sizes = if self.bytes.seldom() {
                    self.sizes()
                } else {
                    vec![first, size - first]
                };
                return self.b.split(x, &sizes, axis);
            }
        };
        Ok(vec![y])
    }

    fn window(&mut self, name: &str) -> Results {
        let x = self.image();
        let y = match name {
            "adaptive-avg-pool2d" => {
                let sizes = (self.bytes.size(), self.bytes.size());
                self.b.adaptive_avg_pool2d(x, sizes)?
            }
            "resize2d" => {
                let sizes = (self.bytes.size(), self.bytes.size());
                let kinds = [
                    Interpolation::Nearest,
                    Interpolation::Linear,
                    Interpolation::LinearCorners,
                ];
                let kind = kinds[self.bytes.below(3)];
                self.b.resize2d(x, sizes, kind)?
            }
            "avg-pool2d" | "max-pool2d" => {
                let bytes = &mut self.bytes;
                let (window, stride) = (bytes.pair(), bytes.pair());
                let padding = if bytes.flag() { (0, 0) } else { bytes.pair() };
                if name == "max-pool2d" {
                    self.b.max_pool2d(x, window, stride, padding)?
                } else {
                    self.b.avg_pool2d(x, window, stride, padding)?
                }
            }
            "conv1d" => {
                let x = self.float();
                let c = self.convolution();
                let weight = self.kernel(x, c.groups, 1, false);
                let bias = self.bytes.flag().then(|| self.vector(weight, 0));
                let attributes = (c.stride.0, c.padding.0, c.dilation.0, c.groups);
                self.b.conv1d(x, weight, bias, attributes)?
            }
            "conv2d" => {
                let c = self.convolution();
                let weight = self.kernel(x, c.groups, 2, false);
                let bias = self.bytes.flag().then(|| self.vector(weight, 0));
                self.b.conv2d(x, weight, bias, c)?
            }
            "conv-transpose2d" => {
                let c = self.convolution();
                let weight = self.kernel(x, c.groups, 2, true);
                let bias = self.bytes.flag().then(|| self.vector(weight, 1));
                let extra = if self.bytes.flag() {
                    (0, 0)
                } else {
                    self.bytes.pair()
                };
                self.b.conv_transpose2d(x, weight, bias, c, extra)?
            }
            _ => {
                let x = self.float();
                let (size, hop) = (self.bytes.small(), self.bytes.small());
                let size = if self.bytes.flag() { size & !1 } else { size };
                let windows = [Window::Hann, Window::Hamming, Window::Rectangular];
                let window = windows[self.bytes.below(3)];
                self.b.stft_power(x, size, hop, window)?
            }
        };
        Ok(vec![y])
    }

    fn other_call(&mut self, name: &str) -> Results {
        let x = self.float();
        let rank = self.rank(x);
        let y = match name {
            "affine" => {
                let (factor, offset) = (self.bytes.number(), self.bytes.number());
                self.b.affine(x, factor, offset)?
            }
            "clamp" => {
                let (low, high) = (self.bytes.number(), self.bytes.number());
                self.b.clamp(x, low, high)?
            }
            "elu" | "leaky-relu" | "pow" => {
                let number = self.bytes.number();
                match name {
                    "elu" => self.b.elu(x, number)?,
                    "pow" => self.b.pow(x, number)?,
                    _ => self.b.leaky_relu(x, number)?,
                }
            }
            "gelu" => {
                let approximate = self.bytes.flag();
                self.b.gelu(x, approximate)?
            }
            "logical-and" | "logical-or" => {
                let a = self.of(DType::Bool);
                let b = self.other(a);
                if name == "logical-and" {
                    self.b.logical_and(a, b)?
                } else {
                    self.b.logical_or(a, b)?
                }
            }
            "logical-not" => {
                let x = self.of(DType::Bool);
                self.b.logical_not(x)?
            }
            "select" => {
                let condition = self.of(DType::Bool);
                let a = self.value();
                let b = self.other(a);
                self.b.select(condition, a, b)?
            }
            "amax" | "amin" | "mean" | "sum" => {
                let (axes, keep) = (self.axes(x), self.bytes.flag());
                match name {
                    "amax" => self.b.amax(x, &axes, keep)?,
                    "amin" => self.b.amin(x, &axes, keep)?,
                    "mean" => self.b.mean(x, &axes, keep)?,
                    _ => self.b.sum(x, &axes, keep)?,
                }
            }
            "variance" => {
                let (axes, keep, unbiased) = (self.axes(x), self.bytes.flag(), self.bytes.flag());
                self.b.variance(x, &axes, keep, unbiased)?
            }
            "l2-normalize" => {
                let (axes, epsilon) = (self.axes(x), self.bytes.number());
                self.b.l2_normalize(x, &axes, epsilon)?
            }
            "argmax" | "argmin" | "softmax" | "log-softmax" => {
                let axis = self.bytes.axis(rank);
                match name {
                    "argmax" => self.b.argmax(x, axis)?,
                    "argmin" => self.b.argmin(x, axis)?,
                    "softmax" => self.b.softmax(x, axis)?,
                    _ => self.b.log_softmax(x, axis)?,
                }
            }
            "cumsum" => {
                let (axis, reverse) = (self.bytes.axis(rank), self.bytes.flag());
                self.b.cumsum(x, axis, reverse)?
            }
            "top-k" => {
                let (axis, count) = (self.bytes.axis(rank), self.bytes.size());
                let smallest = self.bytes.flag();
                self.b.top_k(x, count, axis, smallest)?
            }
            "gather" | "take" => {
                let (by, axis) = (self.of(DType::I64), self.bytes.axis(rank));
                if name == "gather" {
                    self.b.gather(x, by, axis)?
                } else {
                    self.b.take(x, by, axis)?
                }
            }
            "scatter-add" => {
                let (by, axis) = (self.of(DType::I64), self.bytes.axis(rank));
                let shape = self.shape(by);
                let updates = self.like(&shape);
                self.b.scatter_add(x, by, updates, axis)?
            }
            "embedding" => {
                let by = self.of(DType::I64);
                self.b.embedding(x, by)?
            }
            "one-hot" => {
                let (by, classes) = (self.of(DType::I64), self.bytes.size());
                self.b.one_hot(by, classes)?
            }
            "cross-entropy" => {
                let labels = self.of(DType::I64);
                let smoothing = if self.bytes.flag() {
                    0.1
                } else {
                    self.bytes.number()
                };
                self.b.cross_entropy(x, labels, smoothing)?
            }
            "matmul" => {
                let inner = self.last(x);
                let shape = [inner, self.bytes.size()];
                let other = if self.bytes.flag() {
                    self.value()
                } else {
                    self.like(&shape)
                };
                self.b.matmul(x, other)?
            }
            "linear" => {
                let inner = self.last(x);
                let shape = [self.bytes.size(), inner];
                let weight = self.like(&shape);
                let bias = self.bytes.flag().then(|| self.vector(weight, 0));
                self.b.linear(x, weight, bias)?
            }
            "attention" => {
                let (k, v) = (self.other(x), self.other(x));
                let bias = self.bytes.seldom().then(|| self.other(x));
                let (causal, scaled) = (self.bytes.flag(), self.bytes.flag());
                let scale = scaled.then(|| self.bytes.number());
                self.b.attention((x, k, v), bias, causal, scale)?
            }
            "batch-norm-eval" | "batch-norm-train" => {
                let [scale, bias, mean, variance] = [(); 4].map(|()| self.vector(x, 1));
                let epsilon = if self.bytes.flag() {
                    1e-5
                } else {
                    self.bytes.number()
                };
                if name == "batch-norm-eval" {
                    self.b
                        .batch_norm_eval(x, scale, bias, mean, variance, epsilon)?
                } else {
                    let size = self.shape(x).get(1).copied().unwrap_or(1);
                    let names = [self.name(), self.name()];
                    let [mean, variance] = names.map(|name| self.b.buffer(&name, &[size], "ones"));
                    let momentum = if self.bytes.flag() {
                        0.1
                    } else {
                        self.bytes.number()
                    };
                    self.b
                        .batch_norm_train(x, scale, bias, mean?, variance?, momentum, epsilon)?
                }
            }
            "layer-norm" | "rms-norm" => {
                let axis = rank.saturating_sub(1);
                let (scale, bias) = (self.vector(x, axis), self.vector(x, axis));
                let epsilon = if self.bytes.flag() {
                    1e-5
                } else {
                    self.bytes.number()
                };
                if name == "rms-norm" {
                    self.b.rms_norm(x, scale, epsilon)?
                } else {
                    self.b.layer_norm(x, scale, bias, epsilon)?
                }
            }
            "group-norm" => {
                let (scale, bias) = (self.vector(x, 1), self.vector(x, 1));
                let groups = self.bytes.size();
                let epsilon = if self.bytes.flag() {
                    1e-5
                } else {
                    self.bytes.number()
                };
                self.b.group_norm(x, groups, scale, bias, epsilon)?
            }
            "dropout" | "drop-path" => {
                let probability = if self.bytes.flag() {
                    0.3
                } else {
                    self.bytes.number()
                };
                if name == "dropout" {
                    self.b.dropout(x, probability, 1)?
                } else {
                    self.b.drop_path(x, probability, 1)?
                }
            }
            "random-normal" | "random-uniform" => {
                let dims = self.any_dims();
                if name == "random-normal" {
                    self.b.random_normal(&dims, 3)?
                } else {
                    self.b.random_uniform(&dims, 3)?
                }
            }
            other => panic!("there is no call of `{other}` here"),
        };
        Ok(vec![y])
    }
}
