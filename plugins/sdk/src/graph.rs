//! The graph under construction and handles of its values.

use std::cell::{Cell, RefCell};
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::rc::Rc;

use crate::error::Result;
use crate::host::graph::Builder;
use crate::host::types::Dtype;
use crate::pipeline::Optimizer;

/// Whether layers behave as in training (batch norm uses the batch's own statistics) or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Statistics of the batch; running statistics are updated.
    Train,
    /// Running statistics.
    Evaluate,
}

struct Inner {
    builder: Builder,
    mode: Mode,
    seed: u64,
    parameters: RefCell<Vec<(String, u32)>>,
    recompute: Cell<bool>,
}

/// A graph under construction. Graphs of one session share parameters by name, so the graph to
/// train and the graph to evaluate are the same function called with two modes.
#[derive(Clone)]
pub struct Graph(Rc<Inner>);

impl Graph {
    /// An empty graph; parameters are initialised from `seed`.
    pub fn new(mode: Mode, seed: u64) -> Self {
        let builder = Builder::new();
        Self(Rc::new(Inner {
            builder,
            mode,
            seed,
            parameters: RefCell::default(),
            recompute: Cell::new(false),
        }))
    }

    /// The host's builder, for what has no method here.
    pub fn builder(&self) -> &Builder {
        &self.0.builder
    }

    /// The graph's seed, for random numbers of the layer of this number.
    fn seed(&self, layer: u64) -> u64 {
        self.0.seed.rotate_left(32) ^ layer
    }

    /// How layers behave in this graph.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// The handle of a value that [`Graph::builder`] returned.
    pub fn tensor(&self, id: u32) -> Tensor {
        Tensor {
            graph: self.clone(),
            id,
        }
    }

    /// A tensor fed at every run; size 0 stands for the batch.
    pub fn input(&self, name: &str, element: Dtype, shape: &[u32]) -> Result<Tensor> {
        Ok(self.tensor(self.0.builder.input(name, element, shape)?))
    }

    /// A trained float32 tensor; `initializer` as in the contract, such as `torch-uniform`.
    pub fn parameter(&self, name: &str, shape: &[u32], initializer: &str) -> Result<Tensor> {
        let id = self
            .0
            .builder
            .parameter(name, shape, initializer, self.0.seed)?;
        self.0.parameters.borrow_mut().push((name.to_owned(), id));
        Ok(self.tensor(id))
    }

    /// A float32 tensor that is kept and saved but not trained.
    pub fn buffer(&self, name: &str, shape: &[u32], initializer: &str) -> Result<Tensor> {
        Ok(self.tensor(self.0.builder.buffer(name, shape, initializer)?))
    }

    /// A float32 constant, row-major.
    pub fn constant(&self, shape: &[u32], values: &[f32]) -> Result<Tensor> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Ok(self.tensor(self.0.builder.constant(Dtype::Float32, shape, &bytes)?))
    }

    /// The parameters so far, with their names.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let parameters = self.0.parameters.borrow();
        let named = parameters
            .iter()
            .map(|(name, id)| (name.clone(), self.tensor(*id)));
        named.collect()
    }

    /// Whether the blocks to come (see [`Graph::block`]) are computed again for their gradients
    /// instead of being kept: less memory, more time, the same results.
    pub fn recompute_blocks(&self, recompute: bool) {
        self.0.recompute.set(recompute);
    }

    /// Builds a block of a model: the piece that is computed again where
    /// [`Graph::recompute_blocks`] says so. A block within a block is a part of it.
    pub fn block<T>(&self, build: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.0.recompute.replace(false) {
            return build();
        }
        self.0.builder.begin_recompute()?;
        let built = build()?;
        self.0.builder.end_recompute()?;
        self.0.recompute.set(true);
        Ok(built)
    }

    /// The gradient of `loss` for every parameter, in the order of [`Graph::parameters`].
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let parameters: Vec<u32> = self
            .0
            .parameters
            .borrow()
            .iter()
            .map(|(_, id)| *id)
            .collect();
        let gradients = self.0.builder.gradients(loss.id, &parameters)?;
        Ok(gradients.into_iter().map(|id| self.tensor(id)).collect())
    }

    /// Adds the gradients of `loss` and a step of `optimizer` for every parameter of the graph.
    pub fn minimize(&self, loss: &Tensor, optimizer: &Optimizer) -> Result<()> {
        let parameters: Vec<u32> = self
            .0
            .parameters
            .borrow()
            .iter()
            .map(|(_, id)| *id)
            .collect();
        let gradients = self.0.builder.gradients(loss.id, &parameters)?;
        let builder = &self.0.builder;
        match *optimizer {
            Optimizer::Sgd {
                momentum,
                nesterov,
                weight_decay,
            } => builder.sgd(&parameters, &gradients, momentum, nesterov, weight_decay),
            Optimizer::Adam { weight_decay } => {
                builder.adam(&parameters, &gradients, 0.9, 0.999, 1e-8, weight_decay)
            }
            Optimizer::AdamW { weight_decay } => {
                builder.adamw(&parameters, &gradients, 0.9, 0.999, 1e-8, weight_decay)
            }
        }
    }

    /// Keeps a value to be read after a run.
    pub fn output(&self, name: &str, x: &Tensor) -> Result<()> {
        self.0.builder.output(name, x.id)
    }
}

/// A value of a [`Graph`]. The host checks shapes and dtypes at every call; operators are those of
/// PyTorch of the same name.
#[derive(Clone)]
pub struct Tensor {
    graph: Graph,
    id: u32,
}

/// Methods of one operand and no attributes.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* pub fn $name(&self) -> Result<Tensor> {
            Ok(self.graph.tensor(self.graph.builder().$name(self.id)?))
        })*
    };
}

/// Methods of two operands, which broadcast.
macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* pub fn $name(&self, other: &Tensor) -> Result<Tensor> {
            Ok(self.graph.tensor(self.graph.builder().$name(self.id, other.id)?))
        })*
    };
}

/// Reductions over axes; no axes means all, `keep` leaves them with size 1.
macro_rules! reduction {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* pub fn $name(&self, axes: &[u32], keep: bool) -> Result<Tensor> {
            Ok(self.graph.tensor(self.graph.builder().$name(self.id, axes, keep)?))
        })*
    };
}

impl Tensor {
    /// What a call of the host's builder returns, as a tensor of the same graph.
    fn apply(&self, call: impl FnOnce(&Builder) -> Result<u32>) -> Result<Tensor> {
        Ok(self.graph.tensor(call(self.graph.builder())?))
    }

    /// The graph it belongs to.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The host's number of the value.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The shape, 0 for the batch.
    pub fn shape(&self) -> Result<Vec<u32>> {
        self.graph.builder().shape(self.id)
    }

    /// The size of an axis.
    pub fn size(&self, axis: usize) -> Result<u32> {
        let shape = self.shape()?;
        shape.get(axis).copied().ok_or_else(|| {
            crate::error(
                "graph.shape",
                format!(
                    "axis {axis} of a tensor of shape {shape:?}: it has {} axes",
                    shape.len()
                ),
            )
        })
    }

    binary! {
        /// The larger operand.
        maximum
        /// The smaller operand.
        minimum
        /// 1 where equal, else 0, as boolean.
        equal
        /// 1 where different, else 0, as boolean.
        not_equal
        /// 1 where less, else 0, as boolean.
        less
        /// 1 where less or equal, else 0, as boolean.
        less_or_equal
        /// 1 where greater, else 0, as boolean.
        greater
        /// 1 where greater or equal, else 0, as boolean.
        greater_or_equal
        /// Whether both booleans hold.
        logical_and
        /// Whether one of two booleans holds.
        logical_or
        /// Mean square difference.
        mse_loss
        /// Mean binary cross-entropy of logits against targets in 0 to 1.
        bce_with_logits
        /// Kullback and Leibler's divergence of targets from predicted logarithms.
        kl_divergence
        /// Matrix product over the last two axes.
        matmul
    }

    unary! {
        /// Absolute value.
        abs
        /// eˣ.
        exp
        /// Natural logarithm.
        log
        /// Square root.
        sqrt
        /// 1/√x.
        rsqrt
        /// Sine (radians).
        sin
        /// Cosine (radians).
        cos
        /// Tangent (radians).
        tan
        /// Arc sine.
        asin
        /// Arc cosine.
        acos
        /// Arc tangent.
        atan
        /// Hyperbolic sine.
        sinh
        /// Hyperbolic cosine.
        cosh
        /// Inverse hyperbolic sine.
        asinh
        /// Inverse hyperbolic cosine.
        acosh
        /// Inverse hyperbolic tangent.
        atanh
        /// Error function.
        erf
        /// −1, 0 or 1.
        sign
        /// The largest integer that is not above.
        floor
        /// The smallest integer that is not below.
        ceil
        /// The nearest integer, the even one of two.
        round
        /// log(1 + eˣ).
        softplus
        /// x/6 + ½ limited to 0 to 1.
        hard_sigmoid
        /// x · hard-sigmoid(x).
        hard_swish
        /// Whether a boolean does not hold.
        logical_not
        /// max(x, 0).
        relu
        /// x · σ(x).
        silu
        /// Logistic function.
        sigmoid
        /// Hyperbolic tangent.
        tanh
    }

    reduction! {
        /// Sum.
        sum
        /// Mean.
        mean
        /// Largest element.
        amax
        /// Smallest element.
        amin
    }

    /// x · factor + offset.
    pub fn affine(&self, factor: f64, offset: f64) -> Result<Tensor> {
        self.apply(|builder| builder.affine(self.id, factor, offset))
    }

    /// xᵖ.
    pub fn pow(&self, exponent: f64) -> Result<Tensor> {
        self.apply(|builder| builder.pow(self.id, exponent))
    }

    /// x limited to [low, high].
    pub fn clamp(&self, low: f64, high: f64) -> Result<Tensor> {
        self.apply(|builder| builder.clamp(self.id, low, high))
    }

    /// x where x > 0, else slope · x.
    pub fn leaky_relu(&self, slope: f64) -> Result<Tensor> {
        self.apply(|builder| builder.leaky_relu(self.id, slope))
    }

    /// x · Φ(x).
    pub fn gelu(&self) -> Result<Tensor> {
        self.apply(|builder| builder.gelu(self.id, false))
    }

    /// x · Φ(x) in its tanh form.
    pub fn gelu_tanh(&self) -> Result<Tensor> {
        self.apply(|builder| builder.gelu(self.id, true))
    }

    /// The same numbers as another dtype.
    pub fn cast(&self, element: Dtype) -> Result<Tensor> {
        self.apply(|builder| builder.cast(self.id, element))
    }

    /// The same elements in another shape; 0 for the batch, `u32::MAX` for "the rest".
    pub fn reshape(&self, shape: &[u32]) -> Result<Tensor> {
        self.apply(|builder| builder.reshape(self.id, shape))
    }

    /// `[batch, …]` as `[batch, features]`.
    pub fn flatten(&self) -> Result<Tensor> {
        self.reshape(&[0, u32::MAX])
    }

    /// Axes in another order.
    pub fn permute(&self, axes: &[u32]) -> Result<Tensor> {
        self.apply(|builder| builder.permute(self.id, axes))
    }

    /// Sizes of 1 repeated up to `shape`.
    pub fn expand(&self, shape: &[u32]) -> Result<Tensor> {
        self.apply(|builder| builder.expand(self.id, shape))
    }

    /// a where this boolean holds, else b; all broadcast.
    pub fn select(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.apply(|builder| builder.select(self.id, a.id, b.id))
    }

    /// x where x > 0, else alpha · (eˣ − 1).
    pub fn elu(&self, alpha: f64) -> Result<Tensor> {
        self.apply(|builder| builder.elu(self.id, alpha))
    }

    /// Elements `start` up to, without it, `end` of an axis.
    pub fn slice(&self, axis: usize, start: u32, end: u32) -> Result<Tensor> {
        self.size(axis)?;
        let rank = self.shape()?.len();
        let at_axis = |value: u32, other: u32| -> Vec<u32> {
            (0..rank)
                .map(|i| if i == axis { value } else { other })
                .collect()
        };
        let (starts, ends) = (at_axis(start, 0), at_axis(end, u32::MAX));
        self.apply(|builder| builder.slice(self.id, &starts, &ends, &vec![1; rank]))
    }

    /// Neighbouring parts of so many elements along an axis.
    pub fn split(&self, sizes: &[u32], axis: u32) -> Result<Vec<Tensor>> {
        let parts = self.graph.builder().split(self.id, sizes, axis)?;
        Ok(parts.into_iter().map(|id| self.graph.tensor(id)).collect())
    }

    /// This and others one after the other along an axis.
    pub fn concat(&self, others: &[&Tensor], axis: u32) -> Result<Tensor> {
        let ids: Vec<u32> = [self].iter().chain(others).map(|x| x.id).collect();
        self.apply(|builder| builder.concat(&ids, axis))
    }

    /// x within `value`, so many elements before and after along every axis.
    pub fn pad(&self, before: &[u32], after: &[u32], value: f64) -> Result<Tensor> {
        self.apply(|builder| builder.pad(self.id, before, after, value))
    }

    /// Axes in the opposite direction.
    pub fn flip(&self, axes: &[u32]) -> Result<Tensor> {
        self.apply(|builder| builder.flip(self.id, axes))
    }

    /// Elements moved by so many places along axes, around the ends.
    pub fn roll(&self, shifts: &[i32], axes: &[u32]) -> Result<Tensor> {
        self.apply(|builder| builder.roll(self.id, shifts, axes))
    }

    /// Along an axis, the element that each index (int64) names.
    pub fn gather(&self, indices: &Tensor, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.gather(self.id, indices.id, axis))
    }

    /// This with each update added, along an axis, at the element that its index names.
    pub fn scatter_add(&self, indices: &Tensor, updates: &Tensor, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.scatter_add(self.id, indices.id, updates.id, axis))
    }

    /// The parts along an axis that indices (int64) name.
    pub fn take(&self, indices: &Tensor, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.take(self.id, indices.id, axis))
    }

    /// 1 (int64) along a new last axis where this index is, else 0.
    pub fn one_hot(&self, classes: u32) -> Result<Tensor> {
        self.apply(|builder| builder.one_hot(self.id, classes))
    }

    /// Mean square distance from the mean over axes.
    pub fn variance(&self, axes: &[u32], keep: bool, unbiased: bool) -> Result<Tensor> {
        self.apply(|builder| builder.variance(self.id, axes, keep, unbiased))
    }

    /// The `count` largest elements along an axis, and their indices (int64).
    pub fn top_k(&self, count: u32, axis: u32) -> Result<(Tensor, Tensor)> {
        let indices = self.apply(|builder| builder.top_k(self.id, count, axis, false))?;
        Ok((self.gather(&indices, axis)?, indices))
    }

    /// Sums of all elements up to each along an axis.
    pub fn cumsum(&self, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.cumsum(self.id, axis, false))
    }

    /// Index (int64) of the smallest element along an axis, which is removed.
    pub fn argmin(&self, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.argmin(self.id, axis))
    }

    /// Means of windows of x `[batch, channels, height, width]` chosen so that `size` remain.
    pub fn adaptive_avg_pool2d(&self, size: (u32, u32)) -> Result<Tensor> {
        self.apply(|builder| builder.adaptive_avg_pool2d(self.id, size))
    }

    /// The image x `[batch, channels, height, width]` with other sizes; `interpolation`:
    /// `nearest`, `linear` or `linear-corners`.
    pub fn resize2d(&self, size: (u32, u32), interpolation: &str) -> Result<Tensor> {
        self.apply(|builder| builder.resize2d(self.id, size, interpolation))
    }

    /// x divided by the square root of its sum of squares along axes.
    pub fn l2_normalize(&self, axes: &[u32], epsilon: f64) -> Result<Tensor> {
        self.apply(|builder| builder.l2_normalize(self.id, axes, epsilon))
    }

    /// x · weightᵀ + bias: weight `[out, in]`, bias `[out]`.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let bias = bias.map(|bias| bias.id);
        self.apply(|builder| builder.linear(self.id, weight.id, bias))
    }

    /// softmax(scale·q·kᵀ + bias)·v with this as q `[…, queries, features]`.
    pub fn attention_scaled(
        &self,
        k: &Tensor,
        v: &Tensor,
        bias: Option<&Tensor>,
        scale: f64,
    ) -> Result<Tensor> {
        let bias = bias.map(|bias| bias.id);
        self.apply(|builder| builder.attention(self.id, k.id, v.id, bias, false, Some(scale)))
    }

    /// softmax(q·kᵀ/√features + bias)·v with this as q `[…, queries, features]`, where `causal`
    /// only over keys that are not after the query.
    pub fn attention(
        &self,
        k: &Tensor,
        v: &Tensor,
        bias: Option<&Tensor>,
        causal: bool,
    ) -> Result<Tensor> {
        let bias = bias.map(|bias| bias.id);
        self.apply(|builder| builder.attention(self.id, k.id, v.id, bias, causal, None))
    }

    /// In training, elements set to 0 with this probability, the others scaled up; otherwise
    /// unchanged. Layers of one graph have different `layer` numbers.
    pub fn dropout(&self, probability: f64, layer: u64) -> Result<Tensor> {
        match self.graph.mode() {
            Mode::Evaluate => Ok(self.clone()),
            Mode::Train => {
                self.apply(|builder| builder.dropout(self.id, probability, self.graph.seed(layer)))
            }
        }
    }

    /// In training, samples set to 0 with this probability, the others scaled up; otherwise
    /// unchanged. Layers of one graph have different `layer` numbers.
    pub fn drop_path(&self, probability: f64, layer: u64) -> Result<Tensor> {
        match self.graph.mode() {
            Mode::Evaluate => Ok(self.clone()),
            Mode::Train => self
                .apply(|builder| builder.drop_path(self.id, probability, self.graph.seed(layer))),
        }
    }

    /// Index (int64) of the largest element along an axis, which is removed.
    pub fn argmax(&self, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.argmax(self.id, axis))
    }

    /// Largest element of windows of `window` × `window`, moved by `window`; x `[batch, channels,
    /// height, width]`.
    pub fn max_pool2d(&self, window: u32) -> Result<Tensor> {
        let (window, none) = ((window, window), (0, 0));
        self.apply(|builder| builder.max_pool2d(self.id, window, window, none))
    }

    /// Largest element of windows of `window` × `window`, moved by `stride`, −∞ added around.
    pub fn max_pool2d_strided(&self, window: u32, stride: u32, padding: u32) -> Result<Tensor> {
        let [window, stride, padding] = [window, stride, padding].map(|n| (n, n));
        self.apply(|builder| builder.max_pool2d(self.id, window, stride, padding))
    }

    /// Mean of windows of `window` × `window`, moved by `window`; x `[batch, channels, height,
    /// width]`.
    pub fn avg_pool2d(&self, window: u32) -> Result<Tensor> {
        let (window, none) = ((window, window), (0, 0));
        self.apply(|builder| builder.avg_pool2d(self.id, window, window, none))
    }

    /// Exponentials along an axis, scaled to sum 1.
    pub fn softmax(&self, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.softmax(self.id, axis))
    }

    /// Logarithm of the softmax.
    pub fn log_softmax(&self, axis: u32) -> Result<Tensor> {
        self.apply(|builder| builder.log_softmax(self.id, axis))
    }

    /// Mean cross-entropy of logits `[batch, classes]` against class indices `[batch]` (int64).
    pub fn cross_entropy(&self, labels: &Tensor, label_smoothing: f64) -> Result<Tensor> {
        self.apply(|builder| builder.cross_entropy(self.id, labels.id, label_smoothing))
    }

    /// Power spectrum of x `[batch, samples]`: `[batch, size/2 + 1, 1 + (samples − size)/hop]`, with
    /// a periodic Hann window.
    pub fn stft_power(&self, size: u32, hop: u32) -> Result<Tensor> {
        self.apply(|builder| builder.stft_power(self.id, size, hop, "hann"))
    }

    /// Fraction of rows of logits `[batch, classes]` whose largest element is at the label.
    pub fn correct(&self, labels: &Tensor) -> Result<Tensor> {
        self.argmax(1)?
            .equal(labels)?
            .cast(Dtype::Float32)?
            .mean(&[], false)
    }
}

/// `&a + &b` and the like, each with `?`.
macro_rules! operator {
    ($($trait:ident $method:ident)*) => {
        $(impl $trait for &Tensor {
            type Output = Result<Tensor>;
            fn $method(self, other: &Tensor) -> Result<Tensor> {
                Ok(self.graph.tensor(self.graph.builder().$method(self.id, other.id)?))
            }
        })*
    };
}

operator! { Add add  Sub sub  Mul mul  Div div }

impl Neg for &Tensor {
    type Output = Result<Tensor>;
    fn neg(self) -> Result<Tensor> {
        Ok(self.graph.tensor(self.graph.builder().neg(self.id)?))
    }
}
