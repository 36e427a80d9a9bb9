//! Building a graph value by value. The methods are those of the plugin contract's `builder`.

use std::collections::HashSet;

use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Leaf, Node, Role, Value, Variable};
use crate::initializer::Initializer;
pub use crate::ops::conv::Conv2d;
use crate::ops::elementwise::{self, Binary, Unary};
pub use crate::ops::movement::Target;
use crate::ops::optimizer::Optimizer;
use crate::ops::pool::Pool2d;
use crate::ops::reduce::Reduction;
use crate::ops::signal::Stft;
pub use crate::ops::signal::Window;
use crate::ops::{
    self, Op, Typed, conv, loss, matmul, movement, norm, pool, reduce, signal, softmax,
};
use crate::passes::gradient;
use crate::shape::{Dim, Shape};

/// The most nodes of a graph.
pub const MAX_NODES: usize = 65_536;
/// The most bytes that a graph's constants hold together.
pub const MAX_CONSTANT_BYTES: usize = 64 << 20;
/// The longest name of an input, parameter or output, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// Collects operators into a graph, checking dtypes and shapes at every call.
///
/// Every method refuses a value that is not of this graph with `graph.value`, shapes that do not
/// fit with `graph.shape`, dtypes with `graph.dtype`, attributes with `graph.attribute`, and what
/// is too large with `graph.limit`.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    names: HashSet<String>,
    outputs: HashSet<String>,
    optimized: HashSet<Value>,
    constant_bytes: usize,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The graph as it stands.
    pub fn graph(&self) -> Graph {
        self.graph.clone()
    }

    /// The dtype and shape of a value.
    pub fn typed(&self, x: Value) -> Result<(DType, &Shape), Error> {
        self.operand(x).map(|n| (n.dtype, &n.shape))
    }

    pub(crate) fn node(&self, x: Value) -> &Node {
        self.graph.node(x)
    }

    pub(crate) fn operand(&self, x: Value) -> Result<&Node, Error> {
        self.graph.nodes.get(x.index()).ok_or_else(|| {
            Error::new(
                "graph.value",
                format!("{} is not a value of this graph", x.0),
            )
            .at(x)
        })
    }

    /// The number of nodes so far.
    pub fn nodes(&self) -> usize {
        self.graph.nodes.len()
    }

    pub(crate) fn push(
        &mut self,
        op: Op,
        inputs: &[Value],
        (dtype, shape): Typed,
    ) -> Result<Value, Error> {
        let value = Value(self.nodes() as u32);
        if self.nodes() >= MAX_NODES {
            return Err(Error::limit(format!("a graph has at most {MAX_NODES} nodes")).at(value));
        }
        shape.check().map_err(|e| e.at(value))?;
        self.graph.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            dtype,
            shape,
        });
        Ok(value)
    }

    fn claim(names: &mut HashSet<String>, name: &str) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::new("graph.name", why));
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return refuse(format!(
                "a name has 1 to {MAX_NAME_BYTES} bytes and no control characters"
            ));
        }
        if !names.insert(name.to_owned()) {
            return refuse(format!("the name `{name}` is taken"));
        }
        Ok(())
    }

    fn at_next<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|e| {
            if e.node().is_none() {
                e.at(Value(self.nodes() as u32))
            } else {
                e
            }
        })
    }

    // Leaves

    /// A tensor fed at every run; only its first size may be the batch.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> Result<Value, Error> {
        let batch_inside = shape.iter().skip(1).any(|d| matches!(d, Dim::Batch(_)));
        if batch_inside || matches!(shape.first(), Some(Dim::Batch(k)) if *k != 1) {
            return self.at_next(Err(Error::shape(
                "input: only the first size may be the batch",
            )));
        }
        if !matches!(dtype, DType::F32 | DType::I64 | DType::Bool) {
            return self.at_next(Err(Error::dtype(format!(
                "input: {dtype} is not computed with; use float32, int64 or boolean"
            ))));
        }
        Self::claim(&mut self.names, name)?;
        self.push(
            Op::Leaf(Leaf::Input(name.to_owned())),
            &[],
            (dtype, Shape(shape.to_vec())),
        )
    }

    /// A trained tensor; see [`Initializer::parse`].
    pub fn parameter(
        &mut self,
        name: &str,
        shape: &[u64],
        initializer: &str,
        seed: u64,
    ) -> Result<Value, Error> {
        self.variable(name, shape, initializer, seed, Role::Parameter)
    }

    /// A tensor that is saved but not trained.
    pub fn buffer(&mut self, name: &str, shape: &[u64], initializer: &str) -> Result<Value, Error> {
        self.variable(name, shape, initializer, 0, Role::Buffer)
    }

    fn variable(
        &mut self,
        name: &str,
        shape: &[u64],
        initializer: &str,
        seed: u64,
        role: Role,
    ) -> Result<Value, Error> {
        let shape = Shape::fixed(shape);
        let initializer = self.at_next(Initializer::parse(initializer, &shape))?;
        Self::claim(&mut self.names, name)?;
        let variable = Variable {
            name: name.to_owned(),
            role,
            initializer,
            seed,
        };
        self.push(Op::Leaf(Leaf::Variable(variable)), &[], (DType::F32, shape))
    }

    /// A constant of little-endian elements.
    pub fn constant(&mut self, dtype: DType, shape: &[u64], data: &[u8]) -> Result<Value, Error> {
        if !matches!(dtype, DType::F32 | DType::I64 | DType::Bool) {
            return self.at_next(Err(Error::dtype(format!(
                "constant: {dtype} is not computed with; use float32, int64 or boolean"
            ))));
        }
        let shape = Shape::fixed(shape);
        let expected = shape.elements(1)?.saturating_mul(dtype.size_bytes() as u64);
        if expected != data.len() as u64 {
            return self.at_next(Err(Error::shape(format!(
                "constant: {dtype} {shape} takes {expected} bytes, not {}",
                data.len()
            ))));
        }
        self.constant_bytes += data.len();
        if self.constant_bytes > MAX_CONSTANT_BYTES {
            return Err(Error::limit(format!(
                "constants hold at most {MAX_CONSTANT_BYTES} bytes"
            )));
        }
        self.push(Op::Leaf(Leaf::Constant(data.to_vec())), &[], (dtype, shape))
    }

    // Element-wise

    fn unary(&mut self, name: &str, kind: Unary, x: Value) -> Result<Value, Error> {
        let node = self.operand(x)?;
        ops::float(name, node).map_err(|e| e.at(x))?;
        let typed = (node.dtype, node.shape.clone());
        self.push(Op::Unary(kind), &[x], typed)
    }

    fn binary(&mut self, kind: Binary, a: Value, b: Value) -> Result<Value, Error> {
        let typed = elementwise::binary(kind, self.operand(a)?, self.operand(b)?);
        let typed = self.at_next(typed)?;
        self.push(Op::Binary(kind), &[a, b], typed)
    }

    /// a + b.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.binary(Binary::Add, a, b)
    }

    /// a − b.
    pub fn sub(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.binary(Binary::Sub, a, b)
    }

    /// a · b.
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.binary(Binary::Mul, a, b)
    }

    /// a / b.
    pub fn div(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.binary(Binary::Div, a, b)
    }

    /// The larger operand.
    pub fn maximum(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.binary(Binary::Maximum, a, b)
    }

    /// The smaller operand.
    pub fn minimum(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.binary(Binary::Minimum, a, b)
    }

    /// Whether elements are equal.
    pub fn equal(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        let typed = self.at_next(elementwise::equal(self.operand(a)?, self.operand(b)?))?;
        self.push(Op::Equal, &[a, b], typed)
    }

    /// x · factor + offset.
    pub fn affine(&mut self, x: Value, factor: f64, offset: f64) -> Result<Value, Error> {
        self.unary("affine", Unary::Affine { factor, offset }, x)
    }

    /// −x.
    pub fn neg(&mut self, x: Value) -> Result<Value, Error> {
        self.unary(
            "neg",
            Unary::Affine {
                factor: -1.0,
                offset: 0.0,
            },
            x,
        )
    }

    /// |x|.
    pub fn abs(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("abs", Unary::Abs, x)
    }

    /// eˣ.
    pub fn exp(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("exp", Unary::Exp, x)
    }

    /// Natural logarithm.
    pub fn log(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("log", Unary::Log, x)
    }

    /// √x.
    pub fn sqrt(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("sqrt", Unary::Sqrt, x)
    }

    /// 1/√x.
    pub fn rsqrt(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("rsqrt", Unary::Rsqrt, x)
    }

    /// sin x.
    pub fn sin(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("sin", Unary::Sin, x)
    }

    /// cos x.
    pub fn cos(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("cos", Unary::Cos, x)
    }

    /// The error function.
    pub fn erf(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("erf", Unary::Erf, x)
    }

    /// xᵖ.
    pub fn pow(&mut self, x: Value, exponent: f64) -> Result<Value, Error> {
        self.unary("pow", Unary::Pow { exponent }, x)
    }

    /// x limited to [low, high].
    pub fn clamp(&mut self, x: Value, low: f64, high: f64) -> Result<Value, Error> {
        if low.is_nan() || high.is_nan() || low > high {
            return self.at_next(Err(Error::attribute(format!(
                "clamp: {low} to {high} is not a range"
            ))));
        }
        self.unary("clamp", Unary::Clamp { low, high }, x)
    }

    /// max(x, 0).
    pub fn relu(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("relu", Unary::Relu, x)
    }

    /// x where x > 0, else slope · x.
    pub fn leaky_relu(&mut self, x: Value, slope: f64) -> Result<Value, Error> {
        self.unary("leaky-relu", Unary::LeakyRelu { slope }, x)
    }

    /// x · Φ(x), or its tanh form.
    pub fn gelu(&mut self, x: Value, approximate: bool) -> Result<Value, Error> {
        self.unary(
            "gelu",
            if approximate {
                Unary::GeluTanh
            } else {
                Unary::Gelu
            },
            x,
        )
    }

    /// x · σ(x).
    pub fn silu(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("silu", Unary::Silu, x)
    }

    /// 1 / (1 + e⁻ˣ).
    pub fn sigmoid(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("sigmoid", Unary::Sigmoid, x)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: Value) -> Result<Value, Error> {
        self.unary("tanh", Unary::Tanh, x)
    }

    /// The same numbers as float32, int64 or boolean.
    pub fn cast(&mut self, x: Value, dtype: DType) -> Result<Value, Error> {
        let shape = self.operand(x)?.shape.clone();
        if !matches!(dtype, DType::F32 | DType::I64 | DType::Bool) {
            return self.at_next(Err(Error::dtype(format!(
                "cast: {dtype} is not computed with; use float32, int64 or boolean"
            ))));
        }
        self.push(Op::Cast, &[x], (dtype, shape))
    }

    // Movement

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: Value, target: &[Target]) -> Result<Value, Error> {
        let typed = self.at_next(movement::reshape(self.operand(x)?, target))?;
        self.push(Op::Reshape, &[x], typed)
    }

    /// Axes in another order.
    pub fn permute(&mut self, x: Value, axes: &[u32]) -> Result<Value, Error> {
        let (order, typed) = self.at_next(movement::permute(self.operand(x)?, axes))?;
        self.push(Op::Permute(order), &[x], typed)
    }

    /// Sizes of 1 repeated up to `shape`.
    pub fn expand(&mut self, x: Value, shape: &[Dim]) -> Result<Value, Error> {
        let typed = self.at_next(movement::expand(self.operand(x)?, &Shape(shape.to_vec())))?;
        self.push(Op::Expand, &[x], typed)
    }

    // Reductions

    /// Sum over axes, all where none are named.
    pub fn sum(&mut self, x: Value, axes: &[u32], keep: bool) -> Result<Value, Error> {
        let reduced = reduce::reduce("sum", self.operand(x)?, axes, keep);
        let (axes, typed) = self.at_next(reduced)?;
        self.push(
            Op::Reduce {
                kind: Reduction::Sum,
                axes,
                keep,
            },
            &[x],
            typed,
        )
    }

    /// Mean over axes, all where none are named.
    pub fn mean(&mut self, x: Value, axes: &[u32], keep: bool) -> Result<Value, Error> {
        let node = self.operand(x)?;
        let list = self.at_next(ops::axes("mean", &node.shape, axes))?;
        let sizes: Vec<Dim> = list.iter().map(|&a| node.shape.0[a]).collect();
        let count = Shape::product(&sizes);
        let sum = self.sum(x, axes, keep)?;
        match count {
            Some(count) => self.divide_by(sum, count),
            None => Err(Error::shape("mean: the batch may occur only once").at(sum)),
        }
    }

    /// Largest over axes, all where none are named.
    pub fn amax(&mut self, x: Value, axes: &[u32], keep: bool) -> Result<Value, Error> {
        let reduced = reduce::reduce("amax", self.operand(x)?, axes, keep);
        let (axes, typed) = self.at_next(reduced)?;
        self.push(
            Op::Reduce {
                kind: Reduction::Max,
                axes,
                keep,
            },
            &[x],
            typed,
        )
    }

    /// Index of the first largest element along an axis.
    pub fn argmax(&mut self, x: Value, axis: u32) -> Result<Value, Error> {
        let (axis, typed) = self.at_next(reduce::argmax(self.operand(x)?, axis))?;
        self.push(Op::Argmax { axis }, &[x], typed)
    }

    // Layers

    /// Matrix product over the last two axes.
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value, Error> {
        self.at_next(matmul::matmul(
            self.operand(a)?,
            self.operand(b)?,
            (false, false),
        ))?;
        self.product(a, b, (false, false), None)
    }

    /// x · weightᵀ + bias.
    pub fn linear(&mut self, x: Value, weight: Value, bias: Option<Value>) -> Result<Value, Error> {
        let (xn, wn) = (self.operand(x)?, self.operand(weight)?);
        let refuse = || {
            Error::shape(format!(
                "linear: x {} and weight {} do not fit",
                xn.shape, wn.shape
            ))
        };
        let [Dim::Fixed(outputs), Dim::Fixed(inputs)] = wn.shape.0[..] else {
            return self.at_next(Err(refuse()));
        };
        let Some((&Dim::Fixed(last), lead)) = xn.shape.0.split_last() else {
            return self.at_next(Err(refuse()));
        };
        if last != inputs {
            return self.at_next(Err(refuse()));
        }
        let mut result = lead.to_vec();
        result.push(Dim::Fixed(outputs));
        if let Some(bias) = bias {
            let node = self.operand(bias)?;
            self.at_next(crate::ops::float("linear", node))?;
            if node.shape != Shape::fixed(&[outputs]) {
                let why = format!("linear: bias {} is not [{outputs}]", node.shape);
                return self.at_next(Err(Error::shape(why)));
            }
        }
        let flat = self.reshape(x, &[Target::Rest, Target::Size(Dim::Fixed(inputs))])?;
        let y = self.product(flat, weight, (false, true), bias)?;
        self.reshape_to(y, &Shape(result))
    }

    /// Cross-correlation of `[batch, in, height, width]` with `[out, in/groups, height, width]`.
    pub fn conv2d(
        &mut self,
        x: Value,
        weight: Value,
        bias: Option<Value>,
        attributes: Conv2d,
    ) -> Result<Value, Error> {
        let bias_node = bias.map(|b| self.operand(b)).transpose()?;
        let typed = conv::conv2d(
            &attributes,
            self.operand(x)?,
            self.operand(weight)?,
            bias_node,
        );
        let typed = self.at_next(typed)?;
        let inputs: Vec<Value> = [x, weight].into_iter().chain(bias).collect();
        self.push(Op::Conv2d(attributes), &inputs, typed)
    }

    /// Largest element of each window.
    pub fn max_pool2d(
        &mut self,
        x: Value,
        window: (u32, u32),
        stride: (u32, u32),
        padding: (u32, u32),
    ) -> Result<Value, Error> {
        self.pool2d(
            x,
            Pool2d {
                maximum: true,
                window,
                stride,
                padding,
            },
        )
    }

    /// Mean of each window, padding counted as zeros.
    pub fn avg_pool2d(
        &mut self,
        x: Value,
        window: (u32, u32),
        stride: (u32, u32),
        padding: (u32, u32),
    ) -> Result<Value, Error> {
        self.pool2d(
            x,
            Pool2d {
                maximum: false,
                window,
                stride,
                padding,
            },
        )
    }

    fn pool2d(&mut self, x: Value, pool: Pool2d) -> Result<Value, Error> {
        let typed = self.at_next(pool::pool2d(&pool, self.operand(x)?))?;
        self.push(Op::Pool2d(pool), &[x], typed)
    }

    /// Batch normalisation with the batch's statistics; moves the running ones when the plan has
    /// an optimizer step.
    #[expect(clippy::too_many_arguments, reason = "the contract's operands")]
    pub fn batch_norm_train(
        &mut self,
        x: Value,
        scale: Value,
        bias: Value,
        running_mean: Value,
        running_variance: Value,
        momentum: f64,
        epsilon: f64,
    ) -> Result<Value, Error> {
        let name = "batch-norm-train";
        let vectors = [scale, bias, running_mean, running_variance];
        let nodes = vectors
            .iter()
            .map(|&v| self.operand(v))
            .collect::<Result<Vec<_>, _>>()?;
        let channels = self.at_next(norm::check(name, self.operand(x)?, &nodes))?;
        self.at_next(norm::check_epsilon(name, epsilon))?;
        if !(0.0..=1.0).contains(&momentum) {
            return self.at_next(Err(Error::attribute(format!(
                "{name}: momentum lies between 0 and 1"
            ))));
        }
        for running in [running_mean, running_variance] {
            let buffer = matches!(&self.node(running).op, Op::Leaf(Leaf::Variable(v)) if v.role == Role::Buffer);
            if !buffer {
                return Err(Error::attribute(format!(
                    "{name}: running statistics must be buffers"
                ))
                .at(running));
            }
        }
        if running_mean == running_variance {
            let why = format!("{name}: the running mean and variance are one buffer");
            return Err(Error::attribute(why).at(running_variance));
        }
        let typed = (DType::F32, self.node(x).shape.clone());
        let statistics = self.push(
            Op::BatchStatistics { epsilon },
            &[x],
            norm::statistics(channels),
        )?;
        let update = [running_mean, running_variance, statistics, x];
        self.push(
            Op::UpdateRunning { momentum },
            &update,
            (DType::F32, Shape::default()),
        )?;
        self.push(Op::BatchNorm, &[x, scale, bias, statistics], typed)
    }

    /// Batch normalisation with given mean and variance, which get no gradient.
    pub fn batch_norm_eval(
        &mut self,
        x: Value,
        scale: Value,
        bias: Value,
        mean: Value,
        variance: Value,
        epsilon: f64,
    ) -> Result<Value, Error> {
        let name = "batch-norm-eval";
        let vectors = [scale, bias, mean, variance];
        let nodes = vectors
            .iter()
            .map(|&v| self.operand(v))
            .collect::<Result<Vec<_>, _>>()?;
        let channels = self.at_next(norm::check(name, self.operand(x)?, &nodes))?;
        self.at_next(norm::check_epsilon(name, epsilon))?;
        let typed = (DType::F32, self.node(x).shape.clone());
        let op = Op::FixedStatistics { epsilon };
        let statistics = self.push(op, &[mean, variance], norm::statistics(channels))?;
        self.push(Op::BatchNorm, &[x, scale, bias, statistics], typed)
    }

    /// Exponentials along an axis, scaled to sum 1.
    pub fn softmax(&mut self, x: Value, axis: u32) -> Result<Value, Error> {
        let (axis, typed) = self.at_next(softmax::softmax("softmax", self.operand(x)?, axis))?;
        self.push(Op::Softmax { axis, log: false }, &[x], typed)
    }

    /// Logarithm of the softmax.
    pub fn log_softmax(&mut self, x: Value, axis: u32) -> Result<Value, Error> {
        let (axis, typed) =
            self.at_next(softmax::softmax("log-softmax", self.operand(x)?, axis))?;
        self.push(Op::Softmax { axis, log: true }, &[x], typed)
    }

    /// Mean cross-entropy of logits against class indices.
    pub fn cross_entropy(
        &mut self,
        logits: Value,
        labels: Value,
        smoothing: f64,
    ) -> Result<Value, Error> {
        let typed = loss::cross_entropy(self.operand(logits)?, self.operand(labels)?, smoothing);
        let typed = self.at_next(typed)?;
        self.push(Op::CrossEntropy { smoothing }, &[logits, labels], typed)
    }

    /// Power spectrum `[batch, size/2 + 1, frames]` of `[batch, samples]`.
    pub fn stft_power(
        &mut self,
        x: Value,
        size: u32,
        hop: u32,
        window: Window,
    ) -> Result<Value, Error> {
        let stft = Stft { size, hop, window };
        let typed = self.at_next(signal::stft_power(&stft, self.operand(x)?))?;
        self.push(Op::StftPower(stft), &[x], typed)
    }

    // Training

    /// The gradients of a scalar with respect to values. Errors: `graph.gradient`.
    pub fn gradients(&mut self, loss: Value, of: &[Value]) -> Result<Vec<Value>, Error> {
        gradient::gradients(self, loss, of)
    }

    /// A step of stochastic gradient descent. Errors: `graph.optimizer`.
    pub fn sgd(
        &mut self,
        parameters: &[Value],
        gradients: &[Value],
        momentum: f64,
        nesterov: bool,
        decay: f64,
    ) -> Result<(), Error> {
        self.optimize(
            parameters,
            gradients,
            Optimizer::Sgd {
                momentum,
                nesterov,
                decay,
            },
        )
    }

    /// A step of Adam. Errors: `graph.optimizer`.
    pub fn adam(
        &mut self,
        parameters: &[Value],
        gradients: &[Value],
        (beta1, beta2): (f64, f64),
        epsilon: f64,
        decay: f64,
    ) -> Result<(), Error> {
        let rule = Optimizer::Adam {
            beta1,
            beta2,
            epsilon,
            decay,
            decoupled: false,
        };
        self.optimize(parameters, gradients, rule)
    }

    /// A step of AdamW. Errors: `graph.optimizer`.
    pub fn adamw(
        &mut self,
        parameters: &[Value],
        gradients: &[Value],
        (beta1, beta2): (f64, f64),
        epsilon: f64,
        decay: f64,
    ) -> Result<(), Error> {
        let rule = Optimizer::Adam {
            beta1,
            beta2,
            epsilon,
            decay,
            decoupled: true,
        };
        self.optimize(parameters, gradients, rule)
    }

    fn optimize(
        &mut self,
        parameters: &[Value],
        gradients: &[Value],
        rule: Optimizer,
    ) -> Result<(), Error> {
        self.at_next(rule.check())?;
        let refuse = |at: Value, why: String| Err(Error::new("graph.optimizer", why).at(at));
        if parameters.len() != gradients.len() {
            let why = format!(
                "{} parameters have {} gradients",
                parameters.len(),
                gradients.len()
            );
            return refuse(Value(self.nodes() as u32), why);
        }
        for (&parameter, &gradient) in parameters.iter().zip(gradients) {
            let name = match &self.operand(parameter)?.op {
                Op::Leaf(Leaf::Variable(v)) if v.role == Role::Parameter => v.name.clone(),
                _ => {
                    return refuse(
                        parameter,
                        format!("value {} is not a parameter", parameter.0),
                    );
                }
            };
            let shape = self.node(parameter).shape.clone();
            let given = self.operand(gradient)?;
            if given.shape != shape || given.dtype != DType::F32 {
                let why = format!(
                    "the gradient {} of `{name}` is not float32 {shape}",
                    given.shape
                );
                return refuse(gradient, why);
            }
            if !self.optimized.insert(parameter) {
                return refuse(parameter, format!("`{name}` is updated twice"));
            }
            let mut inputs = vec![parameter, gradient];
            for state in rule.states() {
                let variable = Variable {
                    name: format!("{name}:{state}"),
                    role: Role::OptimizerState,
                    initializer: Initializer::Constant(0.0),
                    seed: 0,
                };
                Self::claim(&mut self.names, &variable.name)?;
                let leaf = Op::Leaf(Leaf::Variable(variable));
                inputs.push(self.push(leaf, &[], (DType::F32, shape.clone()))?);
            }
            self.push(Op::Optimize(rule), &inputs, (DType::F32, Shape::default()))?;
        }
        Ok(())
    }

    // Results

    /// Keeps a value to be read after a run. Errors: `graph.name`.
    pub fn output(&mut self, name: &str, x: Value) -> Result<(), Error> {
        if self.operand(x)?.op.is_update() {
            return Err(Error::new("graph.value", "an update has no result").at(x));
        }
        Self::claim(&mut self.outputs, name)?;
        self.graph.outputs.push((name.to_owned(), x));
        Ok(())
    }

    // What gradients are made of

    pub(crate) fn divide_by(&mut self, x: Value, count: Dim) -> Result<Value, Error> {
        let typed = (DType::F32, self.operand(x)?.shape.clone());
        self.push(Op::DivideBy(count), &[x], typed)
    }

    pub(crate) fn reshape_to(&mut self, x: Value, shape: &Shape) -> Result<Value, Error> {
        if self.node(x).shape == *shape {
            return Ok(x);
        }
        let target: Vec<Target> = shape.0.iter().map(|&d| Target::Size(d)).collect();
        self.reshape(x, &target)
    }

    pub(crate) fn reshape_like(&mut self, x: Value, like: Value) -> Result<Value, Error> {
        let shape = self.node(like).shape.clone();
        self.reshape_to(x, &shape)
    }

    pub(crate) fn expand_to(&mut self, x: Value, shape: &Shape) -> Result<Value, Error> {
        if self.node(x).shape == *shape {
            return Ok(x);
        }
        self.expand(x, &shape.0)
    }

    /// Sums over the axes along which `like` was broadcast to x's shape.
    pub(crate) fn reduce_like(&mut self, x: Value, like: Value) -> Result<Value, Error> {
        let (from, to) = (self.node(x).shape.clone(), self.node(like).shape.clone());
        if from == to {
            return Ok(x);
        }
        let lead = from.rank() - to.rank();
        let axes: Vec<u32> = (0..from.rank())
            .filter(|&i| i < lead || from.0[i] != to.0[i - lead])
            .map(|i| i as u32)
            .collect();
        let sum = if axes.is_empty() {
            x
        } else {
            self.sum(x, &axes, true)?
        };
        self.reshape_to(sum, &to)
    }
}
