//! Graphs: operators in the order in which they were built, each with one result.

use std::fmt::Write;

use crate::dtype::DType;
use crate::initializer::Initializer;
use crate::ops::Op;
use crate::shape::Shape;

/// The result of a node, by its number in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u32);

impl Value {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a leaf holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Leaf {
    /// Fed at every run.
    Input(String),
    /// Kept between runs.
    Variable(Variable),
    /// Little-endian elements.
    Constant(Vec<u8>),
}

/// What becomes of a tensor that is kept between runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained and saved.
    Parameter,
    /// Saved, not trained.
    Buffer,
    /// An optimizer's own.
    OptimizerState,
}

/// A float32 tensor kept between runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) initializer: Initializer,
    pub(crate) seed: u64,
}

/// An operator and the type of its result.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Value>,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    /// The value of the graph as it was built that this one computes, which errors name.
    pub(crate) origin: Value,
    /// 0 for what was built; otherwise the number of the recomputation that this is a part of.
    /// Nodes of different numbers are different values, however alike: one is to be forgotten
    /// before the other is computed.
    pub(crate) again: u32,
}

/// The output of a part of a graph that [`Graph::closed`] gives.
pub const CLOSED_OUTPUT: &str = "value";

/// A computation: nodes that refer to earlier ones, and named outputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, Value)>,
    /// In a graph as it was built, the values that `gradients` returned, each with the number of nodes
    /// that there were then.
    pub(crate) gradients: Vec<(Value, u32)>,
}

impl Graph {
    /// Adds a node, whose inputs come before it.
    pub(crate) fn push(&mut self, node: Node) -> Value {
        self.nodes.push(node);
        Value(self.nodes.len() as u32 - 1)
    }

    pub(crate) fn node(&self, value: Value) -> &Node {
        &self.nodes[value.index()]
    }

    /// The part of the graph that computes a value from constants alone, with it as its only output,
    /// named [`CLOSED_OUTPUT`]; none where an input or a variable is needed.
    pub fn closed(&self, value: Value) -> Option<Self> {
        let mut needed = vec![false; value.index() + 1];
        *needed.last_mut()? = true;
        self.nodes.get(value.index())?;
        for i in (0..=value.index()).rev() {
            if !needed[i] {
                continue;
            }
            if matches!(
                self.nodes[i].op,
                Op::Leaf(Leaf::Input(_) | Leaf::Variable(_)) | Op::Random { .. }
            ) {
                return None;
            }
            self.nodes[i]
                .inputs
                .iter()
                .for_each(|x| needed[x.index()] = true);
        }
        let mut part = Self::default();
        let mut moved = vec![Value(0); needed.len()];
        for (i, node) in self
            .nodes
            .iter()
            .enumerate()
            .take(needed.len())
            .filter(|(i, _)| needed[*i])
        {
            let mut node = node.clone();
            node.inputs.iter_mut().for_each(|x| *x = moved[x.index()]);
            moved[i] = part.push(node);
        }
        part.outputs
            .push((CLOSED_OUTPUT.to_owned(), moved[value.index()]));
        Some(part)
    }

    /// The graph as text, one line a node.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let inputs: Vec<_> = node.inputs.iter().map(|v| format!("%{}", v.0)).collect();
            let _ = writeln!(
                text,
                "%{i} = {}({}) : {} {}",
                node.op.describe(),
                inputs.join(", "),
                node.dtype,
                node.shape
            );
        }
        for (name, value) in &self.outputs {
            let _ = writeln!(text, "output {name} = %{}", value.0);
        }
        text
    }
}
