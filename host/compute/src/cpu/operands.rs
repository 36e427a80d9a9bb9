//! What a kernel reads: everything but the part of memory that its result takes.

use bytemuck::Pod;

use super::fused;
use super::session::{Line, Opened};
use crate::dtype::DType;
use crate::graph::{Node, Value};
use crate::ops::Op;
use crate::ops::fused::Program;
use crate::passes::memory::ALIGNMENT;
use crate::plan::Place;

/// Lines of memory with a part in their middle taken out.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    before: &'a [Line],
    after: &'a [Line],
    /// The line at which `after` starts.
    after_start: usize,
}

impl<'a> Around<'a> {
    /// All of some memory.
    pub(super) fn nothing(lines: &'a [Line]) -> Self {
        Self {
            before: lines,
            after: &[],
            after_start: lines.len(),
        }
    }

    /// So many lines from the first one on, and what is around them.
    pub(super) fn split(
        lines: &'a mut [Line],
        first: usize,
        count: usize,
    ) -> (&'a mut [Line], Self) {
        let (before, rest) = lines.split_at_mut(first);
        let (part, after) = rest.split_at_mut(count);
        let around = Self {
            before,
            after,
            after_start: first + count,
        };
        (part, around)
    }

    fn bytes(&self, offset: u64, count: usize) -> &'a [u8] {
        let line = (offset / ALIGNMENT) as usize;
        let (part, line) = match line.checked_sub(self.after_start) {
            Some(line) => (self.after, line),
            None => (self.before, line),
        };
        &bytemuck::cast_slice(&part[line..])[..count]
    }
}

/// What a kernel reads: everything but its result.
pub(super) struct Operands<'a> {
    pub(super) opened: &'a Opened,
    /// Where that goes.
    pub(super) result: Place,
    pub(super) batch: usize,
    pub(super) variables: &'a [Vec<f32>],
    pub(super) arena: Around<'a>,
    pub(super) kept: Around<'a>,
    /// Operands that are not read as they are stored.
    pub(super) converted: Vec<(Value, &'a [f32])>,
}

impl<'a> Operands<'a> {
    /// The elements of a value.
    pub(super) fn get<T: Pod>(&self, value: Value) -> &'a [T] {
        let converted = self.converted.iter().find(|(own, _)| *own == value);
        if let Some((_, elements)) = converted {
            return bytemuck::cast_slice(elements);
        }
        let plan = &self.opened.plan;
        let bytes = plan.bytes(value, self.batch as u64).unwrap_or(0) as usize;
        let bytes: &[u8] = match plan.places[value.index()] {
            Place::Nowhere => &[],
            Place::Variable(i) => bytemuck::cast_slice(&self.variables[self.opened.variables[i]]),
            Place::Constant(i) => &bytemuck::cast_slice(&self.opened.constants[i])[..bytes],
            Place::Arena(offset) => self.arena.bytes(offset, bytes),
            Place::Kept(offset) => self.kept.bytes(offset, bytes),
        };
        bytemuck::cast_slice(bytes)
    }

    /// A program on a node's operands, that gives a result of `shape`.
    pub(super) fn machine<'b>(
        &self,
        node: &Node,
        program: &'b Program,
        shape: &[usize],
    ) -> fused::Machine<'b>
    where
        'a: 'b,
    {
        let sources: Vec<_> = node.inputs.iter().map(|&x| self.elements(x)).collect();
        fused::Machine::new(program, &sources, self.batch, shape)
    }

    /// The program of a node, or `own` where its operator is one, on its operands.
    pub(super) fn element_wise<'b>(
        &self,
        node: &'b Node,
        own: Option<&'b Program>,
    ) -> Option<fused::Machine<'b>>
    where
        'a: 'b,
    {
        let program = match &node.op {
            Op::Fused(program) => program,
            _ => own?,
        };
        Some(self.machine(node, program, &node.shape.at(self.batch)))
    }

    /// Whether the result takes a value's memory.
    pub(super) fn is_result(&self, value: Value) -> bool {
        self.opened.plan.places[value.index()] == self.result
    }

    /// The elements of a value that a program reads, which may be where the result goes.
    fn elements(&self, value: Value) -> fused::Elements<'a> {
        if self.is_result(value) {
            return fused::Elements::Own;
        }
        match self.dtype(value) {
            DType::F32 => fused::Elements::Floats(self.get(value)),
            _ => fused::Elements::Bytes(self.get(value)),
        }
    }

    /// The type of a value's elements as kernels see them.
    pub(super) fn dtype(&self, value: Value) -> DType {
        computed(self.node(value).dtype)
    }

    pub(super) fn node(&self, value: Value) -> &'a Node {
        self.opened.plan.graph.node(value)
    }

    pub(super) fn shape(&self, value: Value) -> Vec<usize> {
        self.node(value).shape.at(self.batch)
    }
}

/// What elements are computed as.
pub(super) fn computed(stored: DType) -> DType {
    match stored {
        DType::BF16 => DType::F32,
        other => other,
    }
}
