//! Element-wise programs: several element-wise operators as one that passes through memory once, or
//! within the reduction of what they give. Plans are made of them, builders are not.

use super::Op;
use super::elementwise::{Binary, Comparison, Logic, Unary};
use super::reduce::Reduction;
use crate::dtype::DType;
use crate::graph::{Graph, Node};
use crate::shape::{Dim, Shape};

/// The most tensors that a program reads.
pub(crate) const MAX_SOURCES: usize = 8;
/// The most instructions of a program.
pub(crate) const MAX_INSTRUCTIONS: usize = 16;

/// What an instruction computes. Truths are 1 and 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Function {
    Unary(Unary),
    /// (x, dy).
    UnaryGradient(Unary),
    Binary(Binary),
    /// (a, b, dy).
    ExtremumGradient {
        maximum: bool,
    },
    Compare(Comparison),
    Logic(Logic),
    /// (condition, a, b).
    Select,
    /// Whether x is not 0.
    Truth,
    /// x divided by a size.
    DivideBy(Dim),
}

/// A function of up to three operands: the number of a source, or of an instruction before it plus
/// the number of sources.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Instruction {
    pub(crate) function: Function,
    /// Those after the last are 0.
    pub(crate) operands: [usize; 3],
}

/// How an operand of the node is read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    /// Its shape, which is broadcast to the result's.
    pub(crate) shape: Shape,
    /// The number of its elements before the first that is read.
    pub(crate) offset: u64,
}

/// A program. Its last instruction gives the result, of float32 or boolean.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Program {
    /// Of the node's operands, in order: float32, boolean or uint8.
    pub(crate) sources: Vec<Source>,
    pub(crate) instructions: Vec<Instruction>,
}

/// A reduction of what a program computes, of which no element is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reduced {
    /// It gives float32.
    pub(crate) program: Program,
    /// Of the program's result.
    pub(crate) shape: Shape,
    pub(crate) kind: Reduction,
    pub(crate) axes: Vec<usize>,
    pub(crate) keep: bool,
}

impl Reduced {
    /// What it does, in a line.
    pub(crate) fn describe(&self) -> String {
        let (kind, axes, program) = (self.kind, &self.axes, self.program.describe());
        format!("{kind:?} over {axes:?} of {}: {program}", self.shape)
    }
}

/// The instruction that an operator is, the operator's operands being its own; none where it is not
/// element-wise, or of integers.
pub(crate) fn function(graph: &Graph, node: &Node) -> Option<Function> {
    let real = |dtype| matches!(dtype, DType::F32 | DType::BF16 | DType::Bool);
    let from = |i: usize| graph.node(node.inputs[i]).dtype;
    let read = (0..node.inputs.len()).all(|i| real(from(i)) || from(i) == DType::U8);
    if !real(node.dtype) || !read {
        return None;
    }
    Some(match &node.op {
        Op::Unary(kind) => Function::Unary(*kind),
        Op::UnaryGradient(kind) => Function::UnaryGradient(*kind),
        Op::Binary(kind) => Function::Binary(*kind),
        Op::ExtremumGradient { maximum } => Function::ExtremumGradient { maximum: *maximum },
        Op::Compare(kind) => Function::Compare(*kind),
        Op::Logic(kind) => Function::Logic(*kind),
        Op::Select => Function::Select,
        // A truth or a byte is read as the number that it is.
        Op::Cast if node.dtype == DType::Bool => Function::Truth,
        Op::Cast => Function::Unary(Unary::Affine {
            factor: 1.0,
            offset: 0.0,
        }),
        Op::DivideBy(count) => Function::DivideBy(*count),
        _ => return None,
    })
}

impl Program {
    /// The program of one operator.
    pub(crate) fn of(graph: &Graph, node: &Node) -> Option<Self> {
        let function = function(graph, node)?;
        let source = |shape: &Shape| Source {
            shape: shape.clone(),
            offset: 0,
        };
        let operands = std::array::from_fn(|i| if i < node.inputs.len() { i } else { 0 });
        Some(Self {
            sources: node
                .inputs
                .iter()
                .map(|&x| source(&graph.node(x).shape))
                .collect(),
            instructions: vec![Instruction { function, operands }],
        })
    }

    /// What a program does, in a line.
    pub(crate) fn describe(&self) -> String {
        let lines = self.instructions.iter().enumerate().map(|(i, step)| {
            let used = match step.function {
                Function::Unary(_) | Function::Truth | Function::DivideBy(_) => 1,
                Function::UnaryGradient(_)
                | Function::Binary(_)
                | Function::Compare(_)
                | Function::Logic(_) => 2,
                Function::ExtremumGradient { .. } | Function::Select => 3,
            };
            let operands: Vec<String> = step.operands[..used]
                .iter()
                .map(|operand| format!("r{operand}"))
                .collect();
            let number = self.sources.len() + i;
            format!("r{number} = {:?} {}", step.function, operands.join(" "))
        });
        let read = self.sources.iter().map(|source| match source.offset {
            0 => source.shape.to_string(),
            offset => format!("{} from {offset}", source.shape),
        });
        let (read, lines): (Vec<String>, Vec<String>) = (read.collect(), lines.collect());
        format!("fused {}: {}", read.join(" "), lines.join("; "))
    }
}
