//! Element-wise programs.

use bytemuck::{Pod, Zeroable};

use super::lower::Lowering;
use super::narrow::computed;
use super::numbers::{binary, unary};
use super::program::{Launch, Strided};
use crate::dtype::DType;
use crate::graph::Node;
use crate::ops::elementwise::Unary;
use crate::ops::fused::{Function, Instruction, MAX_INSTRUCTIONS, MAX_SOURCES, Program};
use crate::walk::broadcast;

/// `Class` of fused.cu.
#[derive(Clone, Copy)]
enum Class {
    Unary,
    UnaryGradient,
    Binary,
    ExtremumGradient,
    Compare,
    Logic,
    Select,
    Truth,
}

/// `Source` of fused.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Read {
    address: u64,
    bytes: u32,
    same: u32,
    layout: Strided,
    unused: u32,
}

/// `Instruction` of fused.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Step {
    instruction: i32,
    kind: i32,
    a: f32,
    b: f32,
    operands: [u32; 3],
    unused: u32,
}

/// `Program` of fused.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Steps {
    sources: u32,
    instructions: u32,
    truth: u32,
    unused: u32,
    source: [Read; MAX_SOURCES],
    instruction: [Step; MAX_INSTRUCTIONS],
}

fn step(instruction: &Instruction, batch: usize) -> Step {
    let (class, (kind, a, b)) = match instruction.function {
        Function::Unary(kind) => (Class::Unary, unary(kind)),
        Function::UnaryGradient(kind) => (Class::UnaryGradient, unary(kind)),
        Function::Binary(kind) => (Class::Binary, (binary(kind), 0.0, 0.0)),
        Function::ExtremumGradient { maximum } => {
            (Class::ExtremumGradient, (i32::from(maximum), 0.0, 0.0))
        }
        Function::Compare(kind) => (Class::Compare, (kind as i32, 0.0, 0.0)),
        Function::Logic(kind) => (Class::Logic, (kind as i32, 0.0, 0.0)),
        Function::Select => (Class::Select, (0, 0.0, 0.0)),
        Function::Truth => (Class::Truth, (0, 0.0, 0.0)),
        Function::DivideBy(count) => {
            let factor = 1.0 / count.at(batch as u64) as f32;
            let offset = 0.0;
            let (kind, ..) = unary(Unary::Affine {
                factor: 1.0,
                offset,
            });
            (Class::Unary, (kind, factor, 0.0))
        }
    };
    Step {
        instruction: class as i32,
        kind,
        a,
        b,
        operands: instruction.operands.map(|operand| operand as u32),
        unused: 0,
    }
}

impl Lowering<'_> {
    /// A program whose result has the sizes `own`; `x` are the node's inputs' addresses.
    pub(super) fn steps(&self, node: &Node, program: &Program, x: &[u64], own: &[usize]) -> Steps {
        let n: usize = own.iter().product();
        let mut steps = Steps::zeroed();
        steps.sources = program.sources.len() as u32;
        steps.instructions = program.instructions.len() as u32;
        steps.truth = u32::from(node.dtype == DType::Bool);
        for (i, (source, &address)) in program.sources.iter().zip(x).enumerate() {
            let shape = source.shape.at(self.batch());
            let dtype = computed(self.node(node.inputs[i]).dtype);
            steps.source[i] = Read {
                address: address + source.offset * dtype.size_bytes() as u64,
                bytes: u32::from(dtype != DType::F32),
                same: u32::from(shape.iter().product::<usize>() == n),
                layout: Strided::new(own, &broadcast(&shape, own)),
                unused: 0,
            };
        }
        for (i, instruction) in program.instructions.iter().enumerate() {
            steps.instruction[i] = step(instruction, self.batch());
        }
        steps
    }

    /// Launches a program.
    pub(super) fn fused(
        &mut self,
        node: &Node,
        program: &Program,
        x: &[u64],
        out: u64,
        own: &[usize],
    ) {
        let steps = self.steps(node, program, x, own);
        let n = own.iter().product();
        self.launch(Launch::threads("fused", n).with(steps).with(out).count(n));
    }
}
