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
}

/// A computation: nodes that refer to earlier ones, and named outputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, Value)>,
}

impl Graph {
    pub(crate) fn node(&self, value: Value) -> &Node {
        &self.nodes[value.index()]
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
