//! The graph under construction and handles of its values.

use std::cell::RefCell;
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
    parameters: RefCell<Vec<u32>>,
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
        }))
    }

    /// The host's builder, for what has no method here.
    pub fn builder(&self) -> &Builder {
        &self.0.builder
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
        self.0.parameters.borrow_mut().push(id);
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

    /// Adds the gradients of `loss` and a step of `optimizer` for every parameter of the graph.
    pub fn minimize(&self, loss: &Tensor, optimizer: &Optimizer) -> Result<()> {
        let parameters = self.0.parameters.borrow();
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
        /// Error function.
        erf
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
    }

    /// x · factor + offset.
    pub fn affine(&self, factor: f64, offset: f64) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().affine(self.id, factor, offset)?))
    }

    /// xᵖ.
    pub fn pow(&self, exponent: f64) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().pow(self.id, exponent)?))
    }

    /// x limited to [low, high].
    pub fn clamp(&self, low: f64, high: f64) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().clamp(self.id, low, high)?))
    }

    /// x where x > 0, else slope · x.
    pub fn leaky_relu(&self, slope: f64) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().leaky_relu(self.id, slope)?))
    }

    /// x · Φ(x).
    pub fn gelu(&self) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().gelu(self.id, false)?))
    }

    /// The same numbers as another dtype.
    pub fn cast(&self, element: Dtype) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().cast(self.id, element)?))
    }

    /// The same elements in another shape; 0 for the batch, `u32::MAX` for "the rest".
    pub fn reshape(&self, shape: &[u32]) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().reshape(self.id, shape)?))
    }

    /// `[batch, …]` as `[batch, features]`.
    pub fn flatten(&self) -> Result<Tensor> {
        self.reshape(&[0, u32::MAX])
    }

    /// Axes in another order.
    pub fn permute(&self, axes: &[u32]) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().permute(self.id, axes)?))
    }

    /// Sizes of 1 repeated up to `shape`.
    pub fn expand(&self, shape: &[u32]) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().expand(self.id, shape)?))
    }

    /// Index (int64) of the largest element along an axis, which is removed.
    pub fn argmax(&self, axis: u32) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().argmax(self.id, axis)?))
    }

    /// Largest element of windows of `window` × `window`, moved by `window`; x `[batch, channels,
    /// height, width]`.
    pub fn max_pool2d(&self, window: u32) -> Result<Tensor> {
        let (window, none) = ((window, window), (0, 0));
        Ok(self.graph.tensor(
            self.graph
                .builder()
                .max_pool2d(self.id, window, window, none)?,
        ))
    }

    /// Mean of windows of `window` × `window`, moved by `window`; x `[batch, channels, height,
    /// width]`.
    pub fn avg_pool2d(&self, window: u32) -> Result<Tensor> {
        let (window, none) = ((window, window), (0, 0));
        Ok(self.graph.tensor(
            self.graph
                .builder()
                .avg_pool2d(self.id, window, window, none)?,
        ))
    }

    /// Exponentials along an axis, scaled to sum 1.
    pub fn softmax(&self, axis: u32) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().softmax(self.id, axis)?))
    }

    /// Logarithm of the softmax.
    pub fn log_softmax(&self, axis: u32) -> Result<Tensor> {
        Ok(self
            .graph
            .tensor(self.graph.builder().log_softmax(self.id, axis)?))
    }

    /// Mean cross-entropy of logits `[batch, classes]` against class indices `[batch]` (int64).
    pub fn cross_entropy(&self, labels: &Tensor, label_smoothing: f64) -> Result<Tensor> {
        let builder = self.graph.builder();
        Ok(self
            .graph
            .tensor(builder.cross_entropy(self.id, labels.id, label_smoothing)?))
    }

    /// Power spectrum of x `[batch, samples]`: `[batch, size/2 + 1, 1 + (samples − size)/hop]`, with
    /// a periodic Hann window.
    pub fn stft_power(&self, size: u32, hop: u32) -> Result<Tensor> {
        Ok(self.graph.tensor(
            self.graph
                .builder()
                .stft_power(self.id, size, hop, "hann")?,
        ))
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
