//! The operators, each defined once: what it takes, what it gives, its gradient.
//!
//! A family is a file here and, with its kernels, a file of the same name in `cpu/`. Gradients are
//! operators too, so that differentiating a graph gives a graph.

pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod movement;
pub(crate) mod norm;
pub(crate) mod optimizer;
pub(crate) mod pool;
pub(crate) mod reduce;
pub(crate) mod signal;
pub(crate) mod softmax;

use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Leaf, Node, Value};
use crate::shape::Shape;

/// The operators that a builder offers, by the contract's names.
pub const NAMES: &[&str] = &[
    "abs",
    "adam",
    "adamw",
    "add",
    "affine",
    "amax",
    "argmax",
    "avg-pool2d",
    "batch-norm-eval",
    "batch-norm-train",
    "cast",
    "clamp",
    "conv2d",
    "cos",
    "cross-entropy",
    "div",
    "equal",
    "erf",
    "exp",
    "expand",
    "gelu",
    "leaky-relu",
    "linear",
    "log",
    "log-softmax",
    "matmul",
    "max-pool2d",
    "maximum",
    "mean",
    "minimum",
    "mul",
    "neg",
    "permute",
    "pow",
    "relu",
    "reshape",
    "rsqrt",
    "sgd",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "sqrt",
    "stft-power",
    "sub",
    "sum",
    "tanh",
];

/// What a node computes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Leaf(Leaf),
    Unary(elementwise::Unary),
    UnaryGradient(elementwise::Unary),
    Binary(elementwise::Binary),
    /// (a, b, dy): dy where a wins, half of it where a = b. `maximum` tells which wins.
    ExtremumGradient {
        maximum: bool,
    },
    Equal,
    Cast,
    /// x divided by a product of sizes, which may hold the batch.
    DivideBy(crate::shape::Dim),
    Reshape,
    Permute(Vec<usize>),
    Expand,
    Reduce {
        kind: reduce::Reduction,
        axes: Vec<usize>,
        keep: bool,
    },
    /// (x, y, dy) with y and dy kept to x's rank: dy shared among the elements equal to y.
    AmaxGradient,
    Argmax {
        axis: usize,
    },
    /// Row `index` of `[rows, n]`.
    Row {
        index: usize,
    },
    /// (a, b) or (a, b, bias `[columns]`).
    Matmul {
        transpose_a: bool,
        transpose_b: bool,
    },
    Conv2d(conv::Conv2d),
    /// (dy, weight) to the gradient of x.
    Conv2dInputGradient(conv::Conv2d),
    /// (x, dy) to the gradient of the weight.
    Conv2dWeightGradient(conv::Conv2d),
    Pool2d(pool::Pool2d),
    /// (x, dy) to the gradient of x.
    Pool2dGradient(pool::Pool2d),
    /// x to `[3, channels]`: mean, 1/√(variance + ε), biased variance.
    BatchStatistics {
        epsilon: f64,
    },
    /// (mean, variance) to the same.
    FixedStatistics {
        epsilon: f64,
    },
    /// (x, scale, bias, statistics).
    BatchNorm,
    /// (x, dy, statistics) to `[2, channels]`: the gradients of scale and bias.
    BatchNormParameterGradient,
    /// (dy, scale, statistics, x, parameter gradient) to the gradient of x through the statistics.
    BatchNormTrainGradient,
    /// (dy, scale, statistics).
    BatchNormEvalGradient,
    /// (running mean, running variance, statistics, x): moves the running values. No result.
    UpdateRunning {
        momentum: f64,
    },
    Softmax {
        axis: usize,
        log: bool,
    },
    /// (y, dy).
    SoftmaxGradient {
        axis: usize,
        log: bool,
    },
    CrossEntropy {
        smoothing: f64,
    },
    /// (logits, labels, dy).
    CrossEntropyGradient {
        smoothing: f64,
    },
    StftPower(signal::Stft),
    /// (x, dy).
    StftPowerGradient(signal::Stft),
    /// (parameter, gradient, state…): updates them. No result.
    Optimize(optimizer::Optimizer),
}

impl Op {
    /// Whether the node changes variables instead of giving a result.
    pub(crate) fn is_update(&self) -> bool {
        matches!(self, Self::UpdateRunning { .. } | Self::Optimize(_))
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Leaf(Leaf::Input(name)) => format!("input {name}"),
            Self::Leaf(Leaf::Variable(v)) => format!("{:?} {}", v.role, v.name).to_lowercase(),
            Self::Leaf(Leaf::Constant(bytes)) => format!("constant of {} bytes", bytes.len()),
            other => format!("{other:?}"),
        }
    }
}

/// Dtype and shape that an operator gives, before it becomes a node.
pub(crate) type Typed = (DType, Shape);

/// Refuses anything but float32.
pub(crate) fn float(name: &str, node: &Node) -> Result<(), Error> {
    if node.dtype == DType::F32 {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "{name} takes float32, not {}",
        node.dtype
    )))
}

/// Normalises axes: all of them where none are named. Errors: `graph.attribute`.
pub(crate) fn axes(name: &str, shape: &Shape, axes: &[u32]) -> Result<Vec<usize>, Error> {
    if axes.is_empty() {
        return Ok((0..shape.rank()).collect());
    }
    let mut list: Vec<usize> = axes.iter().map(|&a| a as usize).collect();
    list.sort_unstable();
    let repeated = list.windows(2).any(|w| w[0] == w[1]);
    if repeated || list.last().is_some_and(|&a| a >= shape.rank()) {
        return Err(Error::attribute(format!(
            "{name}: axes {axes:?} do not name axes of {shape}"
        )));
    }
    Ok(list)
}

/// The gradients of a node's inputs, given that of its result; none where an input has none.
/// Errors: `graph.gradient` for an operator without a rule.
pub(crate) fn gradient(b: &mut Builder, y: Value, dy: Value) -> Result<Vec<Option<Value>>, Error> {
    let node = b.node(y).clone();
    let x = &node.inputs;
    match &node.op {
        Op::Leaf(_) | Op::Equal | Op::Argmax { .. } => Ok(vec![None; x.len()]),
        Op::Unary(kind) => elementwise::unary_gradient(b, *kind, x[0], dy),
        Op::Binary(kind) => elementwise::binary_gradient(b, *kind, x[0], x[1], dy),
        Op::Cast => Ok(vec![(b.node(x[0]).dtype == DType::F32).then_some(dy)]),
        // d(x/n) = dx/n
        Op::DivideBy(n) => Ok(vec![Some(b.divide_by(dy, *n)?)]),
        Op::Reshape => Ok(vec![Some(b.reshape_like(dy, x[0])?)]),
        Op::Permute(order) => movement::permute_gradient(b, order, dy),
        Op::Expand => Ok(vec![Some(b.reduce_like(dy, x[0])?)]),
        Op::Reduce { kind, axes, .. } => reduce::gradient(b, *kind, axes, x[0], y, dy),
        Op::Matmul {
            transpose_a,
            transpose_b,
        } => matmul::gradient(b, (*transpose_a, *transpose_b), x, dy),
        Op::Conv2d(conv) => conv::gradient(b, conv, x, dy),
        Op::Pool2d(pool) => {
            let (dtype, shape) = (node.dtype, b.node(x[0]).shape.clone());
            Ok(vec![Some(b.push(
                Op::Pool2dGradient(*pool),
                &[x[0], dy],
                (dtype, shape),
            )?)])
        }
        Op::BatchNorm => norm::gradient(b, x, dy),
        Op::Softmax { axis, log } => {
            let op = Op::SoftmaxGradient {
                axis: *axis,
                log: *log,
            };
            Ok(vec![Some(b.push(
                op,
                &[y, dy],
                (node.dtype, node.shape),
            )?)])
        }
        Op::CrossEntropy { smoothing } => {
            let shape = b.node(x[0]).shape.clone();
            let op = Op::CrossEntropyGradient {
                smoothing: *smoothing,
            };
            let d = b.push(op, &[x[0], x[1], dy], (DType::F32, shape))?;
            Ok(vec![Some(d), None])
        }
        Op::StftPower(stft) => {
            let shape = b.node(x[0]).shape.clone();
            let d = b.push(
                Op::StftPowerGradient(*stft),
                &[x[0], dy],
                (DType::F32, shape),
            )?;
            Ok(vec![Some(d)])
        }
        other => Err(Error::new(
            "graph.gradient",
            format!("{} cannot be differentiated", other.describe()),
        )),
    }
}
