//! Plans: a graph scheduled, with a place for every tensor, so that its memory is known before any
//! is allocated.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Leaf, Node, Value, Variable};
use crate::ops::Op;
use crate::ops::conv::Conv2d;
use crate::ops::geometry::{Geometry, Pass};
use crate::ops::norm::LayerNorm;
use crate::passes::epilogue::epilogues;
use crate::passes::in_place::{root, taken};
use crate::passes::memory::{ALIGNMENT, Lifetime, place};
pub use crate::passes::precision::Precision;
use crate::passes::{dead, optimize, precision, prologue};
use crate::random::splitmix64;
use crate::shape::{Dim, Shape};
use crate::{cpu, cuda};

/// Where a value lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is never computed.
    Nowhere,
    /// At this offset of the arena, in bytes.
    Arena(u64),
    /// The plan's variable of this number.
    Variable(usize),
    /// The plan's constant of this number.
    Constant(usize),
    /// At this offset of what the plan keeps between runs, in bytes.
    Kept(u64),
}

/// A name, dtype and shape that a plan takes or gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// The name.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The sizes.
    pub shape: Shape,
    pub(crate) value: Value,
}

/// How a plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Options {
    /// How intermediate results are stored.
    pub precision: Precision,
}

/// A graph ready to be opened by a backend.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) graph: Arc<Graph>,
    pub(crate) precision: Precision,
    pub(crate) max_batch: u64,
    /// The nodes that run once after variables changed, in order.
    pub(crate) prologue: Vec<Value>,
    /// The nodes that run each time, in order.
    pub(crate) steps: Vec<Value>,
    /// By a product, convolution or reduction, the step that may be applied to its result as parts of
    /// it are finished.
    pub(crate) epilogues: HashMap<Value, Value>,
    pub(crate) places: Vec<Place>,
    /// The values that the arena has a place for, each with the times of the steps that need it.
    pub(crate) buffers: Vec<(Value, Lifetime)>,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) variables: Vec<(Variable, Shape)>,
    pub(crate) constants: Vec<Value>,
    pub(crate) arena_bytes: u64,
    /// Of the prologue's results that steps or outputs use.
    pub(crate) kept_bytes: u64,
    pub(crate) workspace_bytes: u64,
    pub(crate) trains: bool,
}

impl Plan {
    /// Plans a graph, after optimizing it, for batches of up to `max_batch` samples; a smaller batch
    /// uses the same places. Errors: `graph.empty`, `graph.limit`.
    pub fn new(graph: &Graph, max_batch: u32) -> Result<Self, Error> {
        Self::with(graph, max_batch, Options::default())
    }

    /// The same, made otherwise. Errors: as for `new`.
    pub fn with(graph: &Graph, max_batch: u32, options: Options) -> Result<Self, Error> {
        Self::scheduled(optimize(graph), max_batch, options)
    }

    /// Plans a graph as it is, without a node that no output and no update needs.
    pub(crate) fn scheduled(graph: Graph, max_batch: u32, options: Options) -> Result<Self, Error> {
        let fixed = prologue::fixed;
        Self::assembled(graph, max_batch, options, fixed)
    }

    /// Plans a part of a graph that trains: variables change between its runs, so that nothing is kept.
    pub(crate) fn part(graph: &Graph, max_batch: u32, options: Options) -> Result<Self, Error> {
        let fixed = |graph: &Graph| vec![false; graph.nodes.len()];
        Self::assembled(optimize(graph), max_batch, options, fixed)
    }

    /// `fixed` tells which nodes run once after variables changed.
    fn assembled(
        graph: Graph,
        max_batch: u32,
        options: Options,
        fixed: fn(&Graph) -> Vec<bool>,
    ) -> Result<Self, Error> {
        let graph = precision::stored(graph, options.precision);
        let max_batch = u64::from(max_batch);
        if max_batch == 0 {
            return Err(Error::limit("a plan takes batches of at least one sample"));
        }
        let (fixed, trains) = (fixed(&graph), dead::trains(&graph));
        let mut plan = Self {
            precision: options.precision,
            buffers: Vec::new(),
            max_batch,
            prologue: Vec::new(),
            steps: Vec::new(),
            epilogues: HashMap::new(),
            places: vec![Place::Nowhere; graph.nodes.len()],
            inputs: Vec::new(),
            outputs: Vec::new(),
            variables: Vec::new(),
            constants: Vec::new(),
            arena_bytes: 0,
            kept_bytes: 0,
            workspace_bytes: 0,
            trains,
            graph: Arc::new(graph),
        };
        let graph = Arc::clone(&plan.graph);
        let runs = |v: &Value| !matches!(graph.node(*v).op, Op::Leaf(_) | Op::Reshape);
        let all = (0..graph.nodes.len()).map(|i| Value(i as u32)).filter(runs);
        let (prologue, steps): (Vec<Value>, Vec<Value>) = all.partition(|v| fixed[v.index()]);
        // Updates come last, so that nothing sees a variable change during a run.
        let (updates, steps): (Vec<Value>, Vec<Value>) = steps
            .into_iter()
            .partition(|v| graph.node(*v).op.is_update());
        plan.prologue = prologue;
        plan.steps = [steps, updates].concat();
        if plan.steps.is_empty() && graph.outputs.is_empty() {
            return Err(Error::new(
                "graph.empty",
                "the graph has no output and no optimizer step",
            ));
        }
        plan.place_leaves();
        plan.place_results()?;
        plan.outputs = graph
            .outputs
            .iter()
            .map(|(name, v)| plan.port(name, *v))
            .collect();
        let steps: Vec<Value> = plan.all_steps().collect();
        for step in steps {
            let node = graph.node(step);
            let converted =
                precision::converted_elements(&graph, node, options.precision, max_batch)?;
            let bytes = workspace_bytes(&graph, node, max_batch)?;
            let bytes = bytes.saturating_add(converted.saturating_mul(4));
            plan.workspace_bytes = plan.workspace_bytes.max(bytes);
        }
        Ok(plan)
    }

    /// The same plan for the replica of this number, whose samples have random numbers of their own.
    pub(crate) fn reseeded(mut self, replica: usize) -> Self {
        let random = |node: &Node| matches!(node.op, Op::Dropout(_) | Op::Random { .. });
        if replica == 0 || !self.graph.nodes.iter().any(random) {
            return self;
        }
        let own = |seed: &mut u64| *seed ^= splitmix64(replica as u64);
        let batched = |dim: &Dim| matches!(dim, Dim::Batch(_));
        let mut graph = Graph::clone(&self.graph);
        for node in &mut graph.nodes {
            match &mut node.op {
                _ if !node.shape.0.iter().any(batched) => {}
                Op::Dropout(dropout) => own(&mut dropout.seed),
                Op::Random { seed } => own(seed),
                _ => {}
            }
        }
        self.graph = Arc::new(graph);
        self
    }

    /// The nodes of the prologue, then those of a run.
    pub(crate) fn all_steps(&self) -> impl Iterator<Item = Value> {
        self.prologue.iter().chain(&self.steps).copied()
    }

    /// The value of the graph as it was built that a value computes.
    pub(crate) fn origin(&self, value: Value) -> Value {
        self.graph.node(value).origin
    }

    fn port(&self, name: &str, value: Value) -> Port {
        let node = self.graph.node(value);
        Port {
            name: name.to_owned(),
            dtype: node.dtype,
            shape: node.shape.clone(),
            value,
        }
    }

    fn place_leaves(&mut self) {
        let graph = Arc::clone(&self.graph);
        for (i, node) in graph.nodes.iter().enumerate() {
            let value = Value(i as u32);
            match &node.op {
                Op::Leaf(Leaf::Variable(variable)) => {
                    self.places[i] = Place::Variable(self.variables.len());
                    self.variables.push((variable.clone(), node.shape.clone()));
                }
                Op::Leaf(Leaf::Constant(_)) => {
                    self.places[i] = Place::Constant(self.constants.len());
                    self.constants.push(value);
                }
                Op::Leaf(Leaf::Input(name)) => {
                    let port = self.port(name, value);
                    self.inputs.push(port);
                }
                _ => {}
            }
        }
    }

    fn place_results(&mut self) -> Result<(), Error> {
        let graph = Arc::clone(&self.graph);
        // The prologue's steps come at times from 1 on, then the inputs are written, then the steps
        // follow; outputs stay to the end.
        let fed = self.prologue.len() + 1;
        let end = fed + self.steps.len() + 1;
        let timed = |first: usize, steps: &[Value]| -> Vec<(Value, usize)> {
            steps.iter().copied().zip(first..).collect()
        };
        let (prologue, steps) = (timed(1, &self.prologue), timed(fed + 1, &self.steps));
        let mut last = vec![0; graph.nodes.len()];
        for (step, time) in prologue.iter().chain(&steps) {
            for input in &graph.node(*step).inputs {
                last[root(&graph, *input).index()] = *time;
            }
        }
        for (_, value) in &graph.outputs {
            last[root(&graph, *value).index()] = end;
        }
        let mut buffers: Vec<(Value, usize)> = Vec::new();
        for &(value, time) in &prologue {
            if last[value.index()] > fed {
                self.places[value.index()] = Place::Kept(self.kept_bytes);
                let bytes = self.bytes(value, self.max_batch)?;
                self.kept_bytes += bytes.next_multiple_of(ALIGNMENT);
            } else {
                buffers.push((value, time));
            }
        }
        buffers.extend(self.inputs.iter().map(|port| (port.value, fed)));
        // Of a result in place, the value whose buffer it takes.
        let mut home: Vec<Value> = (0..graph.nodes.len() as u32).map(Value).collect();
        let mut in_place: HashMap<Value, Value> = HashMap::new();
        for &(value, time) in &steps {
            let node = graph.node(value);
            if node.op.is_update() {
                continue;
            }
            let in_arena = |v: Value| match graph.node(v).op {
                Op::Leaf(Leaf::Input(_)) => true,
                Op::Leaf(_) => false,
                _ => self.places[v.index()] == Place::Nowhere,
            };
            match taken(&graph, node, |v| in_arena(v) && last[v.index()] == time) {
                Some(operand) => {
                    home[value.index()] = home[operand.index()];
                    in_place.insert(value, operand);
                }
                None => buffers.push((value, time)),
            }
        }
        // What is converted as a whole is not finished in parts.
        if self.precision == Precision::Float32 {
            self.epilogues = epilogues(&graph, &self.steps, &in_place);
        }
        // A buffer is of use as long as the last value in it.
        let mut end_of = last.clone();
        for (i, own) in home.iter().enumerate() {
            end_of[own.index()] = end_of[own.index()].max(last[i]);
        }
        let mut lifetimes = Vec::with_capacity(buffers.len());
        for &(value, first) in &buffers {
            let bytes = self.bytes(value, self.max_batch);
            lifetimes.push(Lifetime {
                bytes: bytes.map_err(|e| e.at(self.origin(value)))?,
                first,
                last: end_of[value.index()].max(first),
            });
        }
        let (offsets, arena) = place(&lifetimes);
        self.arena_bytes = arena;
        for ((value, _), offset) in buffers.iter().zip(offsets) {
            self.places[value.index()] = Place::Arena(offset);
        }
        self.buffers = buffers
            .iter()
            .map(|(value, _)| *value)
            .zip(lifetimes)
            .collect();
        for (value, _) in &steps {
            let own = home[value.index()];
            self.places[value.index()] = self.places[own.index()];
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            if node.op == Op::Reshape {
                self.places[i] = self.places[root(&graph, Value(i as u32)).index()];
            }
        }
        Ok(())
    }

    /// Bytes of a value at a batch size.
    pub(crate) fn bytes(&self, value: Value, batch: u64) -> Result<u64, Error> {
        let node = self.graph.node(value);
        Ok(node.shape.elements(batch)? * node.dtype.size_bytes() as u64)
    }

    /// The memory that a session of this plan alone takes, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        peak_bytes_of(&[self])
    }

    /// Bytes of the arena that holds inputs and intermediate results.
    pub fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// Bytes that kernels on the CPU work in.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }

    /// The largest batch, in samples.
    pub fn max_batch(&self) -> u64 {
        self.max_batch
    }

    /// The tensors to feed.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The tensors that can be read after a run.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The names of parameters and buffers that a run uses.
    pub fn variable_names(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|(variable, _)| &*variable.name)
    }

    /// The float32 outputs without axes, in order.
    pub(crate) fn scalars(&self) -> impl Iterator<Item = &Port> {
        let scalar = |port: &&Port| port.dtype == DType::F32 && port.shape.0.is_empty();
        self.outputs.iter().filter(scalar)
    }

    /// Whether a run takes an optimizer step.
    pub fn trains(&self) -> bool {
        self.trains
    }

    /// The plan as text, one line a step: value, operator, shapes, offset in bytes.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "batch up to {}; arena {} bytes, kept {} bytes, workspace {} bytes, peak {} bytes\n\
             beside it: on the CPU up to {} bytes a thread; on a GPU {}\n",
            self.max_batch,
            self.arena_bytes,
            self.kept_bytes,
            self.workspace_bytes,
            self.peak_bytes(),
            cpu::SCRATCH_BYTES,
            cuda::describe(self),
        );
        for (number, step) in self.all_steps().enumerate() {
            let node = self.graph.node(step);
            if number < self.prologue.len() {
                text.push_str("once: ");
            }
            let inputs: Vec<String> = node.inputs.iter().map(|v| format!("%{}", v.0)).collect();
            let _ = writeln!(
                text,
                "%{} = {}({}) : {} {} at {:?}",
                step.0,
                node.op.describe(),
                inputs.join(", "),
                node.dtype,
                node.shape,
                self.places[step.index()]
            );
            if let Some(epilogue) = self.epilogues.get(&step) {
                let _ = writeln!(text, "    as it is finished: %{}", epilogue.0);
            }
        }
        text
    }
}

/// Bytes of workspace that a node's kernel takes at a batch size.
fn workspace_bytes(graph: &Graph, node: &Node, batch: u64) -> Result<u64, Error> {
    let shape = |v: Value| graph.node(v).shape.at(batch as usize);
    let own = || node.shape.at(batch as usize);
    let convolution = |c: &Conv2d, x: &[usize], weight: &[usize], pass| {
        Geometry::new(c, x, weight).and_then(|g| g.workspace(pass))
    };
    let operand = |i: usize| shape(node.inputs[i]);
    let elements = match &node.op {
        Op::Conv2d(c) => convolution(c, &operand(0), &operand(1), Pass::Forward),
        Op::Conv2dInputGradient(c) => convolution(c, &own(), &operand(1), Pass::Input),
        Op::Conv2dWeightGradient(c) => convolution(c, &operand(0), &own(), Pass::Weight),
        Op::LayerNormParameterGradient(_) => {
            let x = shape(node.inputs[0]);
            let size = x.last().copied().unwrap_or(1);
            LayerNorm::workspace(x.iter().product::<usize>() / size, size)
        }
        _ => Some(0),
    };
    elements
        .and_then(|n| n.checked_mul(4))
        .map(|n| n as u64)
        .ok_or_else(|| Error::limit("the workspace of an operator is too large"))
}

/// The memory that one session of these plans takes, in bytes: variables of the same name once,
/// constants, what each plan keeps, one arena and one workspace of the largest size, as only one plan runs at a time.
pub fn peak_bytes_of(plans: &[&Plan]) -> u64 {
    let mut variables: HashMap<&str, u64> = HashMap::new();
    for (variable, shape) in plans.iter().flat_map(|p| &p.variables) {
        variables.insert(
            &variable.name,
            shape.elements(1).unwrap_or(u64::MAX).saturating_mul(4),
        );
    }
    let constants = plans.iter().flat_map(|p| {
        let bytes = |v: &Value| {
            p.bytes(*v, 1)
                .unwrap_or(u64::MAX)
                .next_multiple_of(ALIGNMENT)
        };
        p.constants.iter().map(bytes)
    });
    let largest = |f: fn(&Plan) -> u64| plans.iter().map(|p| f(p)).max().unwrap_or(0);
    let kept = plans.iter().map(|plan| plan.kept_bytes);
    variables
        .into_values()
        .chain(constants)
        .chain(kept)
        .chain([largest(|p| p.arena_bytes), largest(|p| p.workspace_bytes)])
        .fold(0, u64::saturating_add)
}
