//! Building a graph value by value. The methods are those of the plugin contract's `builder`.

use std::collections::HashSet;
use std::ops::Range;

use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Leaf, Node, Role, Value, Variable};
use crate::initializer::Initializer;
pub use crate::ops::conv::Conv2d;
pub use crate::ops::movement::{END, Target};
use crate::ops::optimizer::Optimizer;
pub use crate::ops::resample::{Interpolation, Table};
pub use crate::ops::signal::Window;
use crate::ops::{Op, Typed};
use crate::passes::gradient;
use crate::shape::{Dim, Shape};

/// The most nodes of a graph.
pub const MAX_NODES: usize = 65_536;
/// The most bytes that a graph's constants hold together.
pub const MAX_CONSTANT_BYTES: usize = 64 << 20;
/// The longest name of an input, parameter or output, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// Collects operators into a graph (the methods that add them stand in `ops`, by family), checking dtypes and shapes at every call.
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
    /// Nodes whose results are computed again for gradients, in order; the last may be open.
    blocks: Vec<Range<u32>>,
    in_block: bool,
    recomputations: u32,
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

    /// See [`Graph::closed`].
    pub fn closed(&self, x: Value) -> Option<Graph> {
        self.graph.closed(x)
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

    /// The bytes that constants hold so far.
    pub fn constant_bytes(&self) -> usize {
        self.constant_bytes
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
            origin: value,
            again: 0,
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

    pub(crate) fn at_next<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|e| {
            if e.node().is_none() {
                e.at(Value(self.nodes() as u32))
            } else {
                e
            }
        })
    }

    // Leaves

    /// A tensor fed at every run; only its first size may be the batch. What is fed as uint8 is cast
    /// before it is computed with.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> Result<Value, Error> {
        let batch_inside = shape.iter().skip(1).any(|d| matches!(d, Dim::Batch(_)));
        if batch_inside || matches!(shape.first(), Some(Dim::Batch(k)) if *k != 1) {
            return self.at_next(Err(Error::shape(
                "input: only the first size may be the batch",
            )));
        }
        if !matches!(dtype, DType::F32 | DType::I64 | DType::Bool | DType::U8) {
            return self.at_next(Err(Error::dtype(format!(
                "input: {dtype} is not computed with; use float32, int64, boolean or uint8"
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
        if self.constant_bytes.saturating_add(data.len()) > MAX_CONSTANT_BYTES {
            return Err(Error::limit(format!(
                "constants hold at most {MAX_CONSTANT_BYTES} bytes"
            )));
        }
        let value = self.push(Op::Leaf(Leaf::Constant(data.to_vec())), &[], (dtype, shape))?;
        self.constant_bytes += data.len();
        Ok(value)
    }

    // Training

    /// Starts a block whose results are not kept for gradients: what they need of it is computed
    /// again, from the values that the block takes from outside (checkpointing, Chen et al. 2016).
    /// Results are the same, bit for bit. Errors: `graph.recompute` within a block.
    pub fn begin_recompute(&mut self) -> Result<(), Error> {
        if self.in_block {
            return self.at_next(Err(Error::new("graph.recompute", "a block is open")));
        }
        self.in_block = true;
        let start = self.nodes() as u32;
        self.blocks.push(start..u32::MAX);
        Ok(())
    }

    /// Ends the block. Errors: `graph.recompute` outside of one.
    pub fn end_recompute(&mut self) -> Result<(), Error> {
        let end = self.nodes() as u32;
        match self.blocks.last_mut().filter(|_| self.in_block) {
            Some(block) => block.end = end,
            None => return self.at_next(Err(Error::new("graph.recompute", "no block is open"))),
        }
        self.in_block = false;
        Ok(())
    }

    /// Whether a block is open.
    pub(crate) fn in_block(&self) -> bool {
        self.in_block
    }

    /// The block that a value was computed in.
    pub(crate) fn block_of(&self, x: Value) -> Option<Range<u32>> {
        let next = self.blocks.partition_point(|block| block.start <= x.0);
        let block = self.blocks[..next].last()?;
        block.contains(&x.0).then(|| block.clone())
    }

    /// Appends the nodes of a block once more, for the value of each of its numbers.
    pub(crate) fn repeat(&mut self, block: &Range<u32>) -> Result<Vec<Value>, Error> {
        self.recomputations += 1;
        let mut values: Vec<Value> = Vec::with_capacity(block.len());
        for number in block.clone() {
            let node = self.node(Value(number)).clone();
            if matches!(node.op, Op::Leaf(_)) || node.op.is_update() {
                values.push(Value(number));
                continue;
            }
            let moved = |x: &Value| match x.0.checked_sub(block.start) {
                Some(at) => values[at as usize],
                None => *x,
            };
            let inputs: Vec<Value> = node.inputs.iter().map(moved).collect();
            let value = self.push(node.op, &inputs, (node.dtype, node.shape))?;
            self.graph.nodes[value.index()].again = self.recomputations;
            values.push(value);
        }
        Ok(values)
    }

    /// The gradients of a scalar with respect to values. Errors: `graph.gradient`.
    pub fn gradients(&mut self, loss: Value, of: &[Value]) -> Result<Vec<Value>, Error> {
        let gradients = gradient::gradients(self, loss, of)?;
        let nodes = self.nodes() as u32;
        let returned = gradients.iter().map(|&gradient| (gradient, nodes));
        self.graph.gradients.extend(returned);
        Ok(gradients)
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
            let (name, shape) = self.own_parameter(parameter)?;
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

    /// Gradients scaled down together where their common norm is above `most`, as PyTorch's
    /// `clip_grad_norm_` does.
    pub fn clip_gradients(&mut self, gradients: &[Value], most: f64) -> Result<Vec<Value>, Error> {
        if !(most.is_finite() && most > 0.0) {
            let why = "clip-gradients: the largest norm must be a number above 0";
            return self.at_next(Err(Error::attribute(why)));
        }
        let mut total = self.scalar(0.0)?;
        for &gradient in gradients {
            let square = self.mul(gradient, gradient)?;
            let sum = self.sum(square, &[], false)?;
            total = self.add(total, sum)?;
        }
        let norm = self.sqrt(total)?;
        let above_zero = self.affine(norm, 1.0, 1e-6)?;
        let largest = self.scalar(most as f32)?;
        let ratio = self.div(largest, above_zero)?;
        let factor = self.clamp(ratio, 0.0, 1.0)?;
        let scaled = gradients.iter().map(|&g| self.mul(g, factor));
        scaled.collect()
    }

    /// A buffer `average.NAME` for each parameter, which follows it at every optimizer step:
    /// decay·average + (1 − decay)·parameter, from the parameter itself at the first step.
    pub fn average(&mut self, parameters: &[Value], decay: f64) -> Result<Vec<Value>, Error> {
        let rule = Optimizer::Average { decay };
        self.at_next(rule.check())?;
        let mut averages = Vec::with_capacity(parameters.len());
        for &parameter in parameters {
            let (name, shape) = self.own_parameter(parameter)?;
            let sizes: Vec<u64> = shape.0.iter().map(|d| d.at(1)).collect();
            let average = self.buffer(&format!("average.{name}"), &sizes, "zeros")?;
            let typed = (DType::F32, Shape::default());
            self.push(Op::Optimize(rule), &[average, parameter], typed)?;
            averages.push(average);
        }
        Ok(averages)
    }

    /// The name and shape of a parameter. Errors: `graph.optimizer` for another value.
    fn own_parameter(&self, value: Value) -> Result<(String, Shape), Error> {
        let node = self.operand(value)?;
        match &node.op {
            Op::Leaf(Leaf::Variable(v)) if v.role == Role::Parameter => {
                Ok((v.name.clone(), node.shape.clone()))
            }
            _ => {
                let why = format!("value {} is not a parameter", value.0);
                Err(Error::new("graph.optimizer", why).at(value))
            }
        }
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

    // What operators are made of

    /// A float32 constant without axes.
    pub(crate) fn scalar(&mut self, value: f32) -> Result<Value, Error> {
        self.constant(DType::F32, &[], &value.to_le_bytes())
    }

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
