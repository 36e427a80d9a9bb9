//! The operators, each defined once: what it takes, what it gives, its gradient.
//!
//! A family is a file here and, with its kernels, a file of the same name in `cpu/`. Gradients are
//! operators too, so that differentiating a graph gives a graph.

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod fused;
pub(crate) mod geometry;
pub(crate) mod index;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod movement;
pub(crate) mod norm;
pub(crate) mod optimizer;
pub(crate) mod pool;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod resample;
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
    "acos",
    "acosh",
    "adam",
    "adamw",
    "adaptive-avg-pool2d",
    "add",
    "affine",
    "amax",
    "amin",
    "argmax",
    "argmin",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "attention",
    "average",
    "avg-pool2d",
    "batch-norm-eval",
    "batch-norm-train",
    "bce-with-logits",
    "cast",
    "ceil",
    "clamp",
    "clip-gradients",
    "concat",
    "conv-transpose2d",
    "conv1d",
    "conv2d",
    "cos",
    "cosh",
    "cross-entropy",
    "cumsum",
    "div",
    "drop-path",
    "dropout",
    "elu",
    "embedding",
    "equal",
    "erf",
    "exp",
    "expand",
    "flip",
    "floor",
    "gather",
    "gelu",
    "greater",
    "greater-or-equal",
    "group-norm",
    "hard-sigmoid",
    "hard-swish",
    "kl-divergence",
    "l2-normalize",
    "layer-norm",
    "leaky-relu",
    "less",
    "less-or-equal",
    "linear",
    "log",
    "log-softmax",
    "logical-and",
    "logical-not",
    "logical-or",
    "matmul",
    "max-pool2d",
    "maximum",
    "mean",
    "minimum",
    "mse-loss",
    "mul",
    "neg",
    "not-equal",
    "one-hot",
    "pad",
    "permute",
    "pow",
    "random-normal",
    "random-uniform",
    "relu",
    "reshape",
    "resize2d",
    "rms-norm",
    "roll",
    "round",
    "rsqrt",
    "scatter-add",
    "select",
    "sgd",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinh",
    "slice",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "stft-power",
    "sub",
    "sum",
    "take",
    "tan",
    "tanh",
    "top-k",
    "variance",
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
    Compare(elementwise::Comparison),
    Logic(elementwise::Logic),
    /// (condition, a, b).
    Select,
    /// The operators of a program as one.
    Fused(fused::Program),
    /// What a program computes, reduced.
    FusedReduce(fused::Reduced),
    Cast,
    /// x divided by a product of sizes, which may hold the batch.
    DivideBy(crate::shape::Dim),
    Reshape,
    Permute(Vec<usize>),
    Expand,
    /// Elements of a window; an index past the end of an axis starts over.
    Slice(movement::Window),
    /// x at the window of a tensor of `fill`.
    Place {
        window: movement::Window,
        fill: f64,
    },
    Concat {
        axis: usize,
    },
    /// (x, indices).
    Gather {
        axis: usize,
    },
    /// (updates, indices) to zeros with each update added at its index.
    ScatterAdd {
        axis: usize,
    },
    /// (x, indices).
    Take {
        axis: usize,
    },
    /// (dy, indices) to the gradient of x.
    TakeGradient {
        axis: usize,
    },
    /// (x, first `[results]`, weights `[results, taps]`), the last two constants.
    Resample {
        axis: usize,
    },
    Reduce {
        kind: reduce::Reduction,
        axes: Vec<usize>,
        keep: bool,
    },
    /// (x, y, dy) with y and dy kept to x's rank: dy shared among the elements equal to y.
    ExtremeGradient,
    Argmax {
        axis: usize,
        smallest: bool,
    },
    TopK {
        axis: usize,
        smallest: bool,
    },
    Cumsum {
        axis: usize,
        reverse: bool,
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
    /// (scale, bias, statistics) to `[2, channels]`: what x is multiplied by, then what is added.
    BatchNormCoefficients,
    /// (x, dy, statistics) to `[2, channels]`: the gradients of scale and bias.
    BatchNormParameterGradient,
    /// (dy, scale, statistics, x, parameter gradient) to the gradient of x through the statistics.
    BatchNormTrainGradient,
    /// (dy, scale, statistics).
    BatchNormEvalGradient,
    /// (running mean, running variance, statistics): moves the running values. No result. The
    /// statistics are of `count` elements a channel.
    UpdateRunning {
        momentum: f64,
        count: crate::shape::Dim,
    },
    /// (x), (x, scale) or (x, scale, bias): rows of the last axis.
    LayerNorm(norm::LayerNorm),
    /// (x, dy) or (x, dy, scale).
    LayerNormGradient(norm::LayerNorm),
    /// (x, dy) to `[2, size]`: the gradients of scale and bias.
    LayerNormParameterGradient(norm::LayerNorm),
    Dropout(random::Dropout),
    /// No operand: numbers in 0 to 1.
    Random {
        seed: u64,
    },
    /// (q, k, v) or (q, k, v, bias) to `[…, queries, values + 1]`: the result, and in the last column
    /// ln Σ exp of the scores, of which there is no gradient.
    Attention(attention::Attention),
    /// (q, k, v, y, dy) or (q, k, v, y, dy, bias) with the operator's result y to the gradients of q, k
    /// and v, one after the other for each head.
    AttentionGradient(attention::Attention),
    /// (q, k, v, y, dy, bias) to `[…, queries, keys]`: the gradient of the scores, added up over what
    /// the bias's leading axes are broadcast to.
    AttentionBiasGradient(attention::Attention),
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
            Self::Fused(program) => program.describe(),
            Self::FusedReduce(reduced) => reduced.describe(),
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
    if node.dtype != DType::F32 {
        return Ok(vec![None; x.len()]);
    }
    match &node.op {
        Op::Leaf(_) | Op::Random { .. } => Ok(vec![None; x.len()]),
        Op::Select => elementwise::select_gradient(b, x, dy),
        Op::Slice(window) => movement::slice_gradient(b, window, x[0], dy),
        Op::Place { window, .. } => movement::place_gradient(b, window, x[0], dy),
        Op::Concat { axis } => movement::concat_gradient(b, *axis, x, dy),
        Op::Gather { axis } => index::gather_gradient(b, *axis, x, dy),
        Op::ScatterAdd { axis } => index::scatter_gradient(b, *axis, x, dy),
        Op::Take { axis } => index::take_gradient(b, *axis, x, dy),
        Op::Resample { axis } => resample::gradient(b, *axis, x, dy),
        Op::Cumsum { axis, reverse } => reduce::cumulative_gradient(b, (*axis, *reverse), dy),
        Op::LayerNorm(attributes) => norm::layer_gradient(b, *attributes, x, dy),
        Op::Dropout(dropout) => random::gradient(b, *dropout, dy),
        Op::Conv2dInputGradient(conv) => conv::transpose_gradient(b, conv, x, dy),
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
        Op::Attention(attributes) => attention::gradient(b, *attributes, x, (y, dy)),
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
