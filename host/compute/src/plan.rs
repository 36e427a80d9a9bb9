//! Plans: a graph scheduled, with a place for every tensor, so that its memory is known before any
//! is allocated.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::builder::MAX_NODES;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Leaf, Node, Value, Variable};
use crate::ops::norm::LayerNorm;
use crate::ops::{Op, conv};
use crate::passes::memory::{ALIGNMENT, Lifetime, place};
use crate::passes::reachable::reachable;
use crate::shape::Shape;

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

/// A graph ready to be opened by a backend.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) graph: Arc<Graph>,
    pub(crate) max_batch: u64,
    /// The nodes that run, in order.
    pub(crate) steps: Vec<Value>,
    pub(crate) places: Vec<Place>,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) variables: Vec<(Variable, Shape)>,
    pub(crate) constants: Vec<Value>,
    pub(crate) arena_bytes: u64,
    pub(crate) workspace_bytes: u64,
    pub(crate) trains: bool,
}

impl Plan {
    /// Plans a graph for batches of up to `max_batch` samples; a smaller batch uses the same places.
    /// Errors: `graph.empty`, `graph.limit`.
    pub fn new(graph: &Graph, max_batch: u32) -> Result<Self, Error> {
        let max_batch = u64::from(max_batch);
        if max_batch == 0 {
            return Err(Error::limit("a plan takes batches of at least one sample"));
        }
        let live = reachable(graph);
        let mut plan = Self {
            graph: Arc::new(graph.clone()),
            max_batch,
            steps: Vec::new(),
            places: vec![Place::Nowhere; graph.nodes.len()],
            inputs: Vec::new(),
            outputs: Vec::new(),
            variables: Vec::new(),
            constants: Vec::new(),
            arena_bytes: 0,
            workspace_bytes: 0,
            trains: false,
        };
        let values = || (0..graph.nodes.len().min(MAX_NODES)).map(|i| Value(i as u32));
        let runs = |v: &Value| {
            let node = graph.node(*v);
            live[v.index()] && !matches!(node.op, Op::Leaf(_) | Op::Reshape)
        };
        // Updates come last, so that nothing sees a variable change during a run.
        plan.steps = values()
            .filter(|v| runs(v) && !graph.node(*v).op.is_update())
            .collect();
        plan.steps
            .extend(values().filter(|v| runs(v) && graph.node(*v).op.is_update()));
        if plan.steps.is_empty() && graph.outputs.is_empty() {
            return Err(Error::new(
                "graph.empty",
                "the graph has no output and no optimizer step",
            ));
        }
        plan.trains = plan
            .steps
            .iter()
            .any(|v| matches!(graph.node(*v).op, Op::Optimize(_)));
        plan.place_leaves(&live);
        plan.place_results(&live)?;
        plan.outputs = graph
            .outputs
            .iter()
            .map(|(name, v)| plan.port(name, *v))
            .collect();
        for &step in &plan.steps {
            let bytes = workspace_bytes(graph, graph.node(step), max_batch)?;
            plan.workspace_bytes = plan.workspace_bytes.max(bytes);
        }
        Ok(plan)
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

    fn place_leaves(&mut self, live: &[bool]) {
        let graph = Arc::clone(&self.graph);
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
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

    fn place_results(&mut self, live: &[bool]) -> Result<(), Error> {
        let graph = Arc::clone(&self.graph);
        // Inputs are written at time 0, step i at time i + 1; outputs stay to the end.
        let end = self.steps.len() + 1;
        let mut last = vec![0; graph.nodes.len()];
        for (time, step) in (1..).zip(&self.steps) {
            for input in &graph.node(*step).inputs {
                last[root(&graph, *input).index()] = time;
            }
        }
        for (_, value) in &graph.outputs {
            last[root(&graph, *value).index()] = end;
        }
        let inputs = self.inputs.iter().map(|p| (p.value, 0));
        let results = (1..).zip(&self.steps).map(|(time, v)| (*v, time));
        let buffers: Vec<(Value, usize)> = inputs
            .chain(results.filter(|(v, _)| !graph.node(*v).op.is_update()))
            .collect();
        let mut lifetimes = Vec::with_capacity(buffers.len());
        for &(value, first) in &buffers {
            let bytes = self.bytes(value, self.max_batch).map_err(|e| e.at(value))?;
            lifetimes.push(Lifetime {
                bytes,
                first,
                last: last[value.index()].max(first),
            });
        }
        let (offsets, arena) = place(&lifetimes);
        self.arena_bytes = arena;
        for ((value, _), offset) in buffers.iter().zip(offsets) {
            self.places[value.index()] = Place::Arena(offset);
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            if live[i] && node.op == Op::Reshape {
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
            "batch up to {}; arena {} bytes, workspace {} bytes, peak {} bytes\n",
            self.max_batch,
            self.arena_bytes,
            self.workspace_bytes,
            self.peak_bytes()
        );
        for &step in &self.steps {
            let node = self.graph.node(step);
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
        }
        text
    }
}

/// The value whose buffer a chain of reshapes shows.
fn root(graph: &Graph, mut value: Value) -> Value {
    while graph.node(value).op == Op::Reshape {
        value = graph.node(value).inputs[0];
    }
    value
}

/// Bytes of workspace that a node's kernel takes at a batch size.
fn workspace_bytes(graph: &Graph, node: &Node, batch: u64) -> Result<u64, Error> {
    let shape = |v: Value| graph.node(v).shape.at(batch as usize);
    let elements = match &node.op {
        Op::Conv2d(c) => conv::workspace(c, &shape(node.inputs[0]), &shape(node.inputs[1]), false),
        Op::Conv2dInputGradient(c) => conv::workspace(
            c,
            &node.shape.at(batch as usize),
            &shape(node.inputs[1]),
            false,
        ),
        Op::Conv2dWeightGradient(c) => conv::workspace(
            c,
            &shape(node.inputs[0]),
            &node.shape.at(batch as usize),
            true,
        ),
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
/// constants, one arena and one workspace of the largest size, as only one plan runs at a time.
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
    variables
        .into_values()
        .chain(constants)
        .chain([largest(|p| p.arena_bytes), largest(|p| p.workspace_bytes)])
        .fold(0, u64::saturating_add)
}
