//! Element-wise programs, over blocks that stay in the cache between instructions.

use std::cell::Cell;

use super::chunks::{CHUNK, Workers};
use super::functions;
use crate::ops::fused::{Function, Instruction, Program, Source};
use crate::walk::{Walk, broadcast};

/// Elements that one instruction is applied to at a time; a chunk is a whole number of them.
pub(super) const BLOCK: usize = 512;

thread_local! {
    /// Registers of a block each, kept for the next program.
    static REGISTERS: Cell<Vec<Vec<f32>>> = const { Cell::new(Vec::new()) };
}

/// The elements of a source.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    Floats(&'a [f32]),
    /// Truths or uint8.
    Bytes(&'a [u8]),
    /// What the result's memory holds: the source ends where the result begins.
    Own,
}

/// How a block of a source is had.
enum Access<'a> {
    /// As it lies in memory.
    Direct(&'a [f32]),
    /// The result's memory before it is written.
    Own,
    /// One number.
    Single(f32),
    /// By its strides.
    Floats(&'a [f32], Walk<1>),
    Bytes(&'a [u8], Walk<1>),
}

/// A program on its sources at a batch size.
pub(super) struct Machine<'a> {
    program: &'a Program,
    sources: Vec<Access<'a>>,
    batch: usize,
}

impl<'a> Machine<'a> {
    /// For a result of `shape`.
    pub(super) fn new(
        program: &'a Program,
        sources: &[Elements<'a>],
        batch: usize,
        shape: &[usize],
    ) -> Self {
        let count: usize = shape.iter().product();
        let access = |(elements, source): (&Elements<'a>, &Source)| {
            let (own, offset) = (source.shape.at(batch), source.offset as usize);
            let size: usize = own.iter().product();
            let walk = || Walk::new(shape, [&broadcast(&own, shape)]);
            match *elements {
                Elements::Own => Access::Own,
                Elements::Floats(x) if size == count => Access::Direct(&x[offset..][..count]),
                Elements::Floats(x) if size == 1 => Access::Single(x[offset]),
                Elements::Bytes(x) if size == 1 => Access::Single(f32::from(x[offset])),
                Elements::Floats(x) => Access::Floats(&x[offset..], walk()),
                Elements::Bytes(x) => Access::Bytes(&x[offset..], walk()),
            }
        };
        Self {
            program,
            sources: sources.iter().zip(&program.sources).map(access).collect(),
            batch,
        }
    }

    /// Computes the elements from `first` on; `out` holds what [`Elements::Own`] stands for.
    pub(super) fn run(&self, first: usize, out: &mut [f32]) {
        let mut registers = REGISTERS.take();
        let count = self.sources.len() + self.program.instructions.len();
        while registers.len() < count {
            registers.push(vec![0.0; BLOCK]);
        }
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            self.block(&mut registers, first + i * BLOCK, out);
        }
        REGISTERS.set(registers);
    }

    fn block(&self, registers: &mut [Vec<f32>], start: usize, out: &mut [f32]) {
        let count = out.len();
        for (source, register) in self.sources.iter().zip(registers.iter_mut()) {
            match source {
                Access::Direct(_) => {}
                Access::Single(number) => register[..count].fill(*number),
                Access::Own => register[..count].copy_from_slice(out),
                Access::Floats(x, walk) => load(register, (start, count), walk, x, |x| x),
                Access::Bytes(x, walk) => load(register, (start, count), walk, x, f32::from),
            }
        }
        let Some((last, first)) = self.program.instructions.split_last() else {
            return;
        };
        for (number, instruction) in (self.sources.len()..).zip(first) {
            let mut result = std::mem::take(&mut registers[number]);
            self.apply(instruction, registers, start, &mut result[..count]);
            registers[number] = result;
        }
        self.apply(last, registers, start, out);
    }

    fn apply(&self, step: &Instruction, registers: &[Vec<f32>], start: usize, out: &mut [f32]) {
        let count = out.len();
        let operand = |i: usize| -> &[f32] {
            let number = step.operands[i];
            match self.sources.get(number) {
                Some(Access::Direct(x)) => &x[start..start + count],
                _ => &registers[number][..count],
            }
        };
        match step.function {
            Function::Unary(kind) => functions::unary(kind, operand(0), out),
            Function::UnaryGradient(kind) => {
                functions::unary_gradient(kind, operand(0), operand(1), out);
            }
            Function::Binary(kind) => functions::binary(kind, operand(0), operand(1), out),
            Function::ExtremumGradient { maximum } => {
                functions::extremum_gradient(maximum, operand(0), operand(1), operand(2), out);
            }
            Function::Compare(kind) => functions::compare(kind, operand(0), operand(1), out),
            Function::Logic(kind) => functions::logic(kind, operand(0), operand(1), out),
            Function::Select => functions::select(operand(0), operand(1), operand(2), out),
            Function::Truth => functions::not_zero(operand(0), out),
            Function::DivideBy(count) => {
                let factor = 1.0 / count.at(self.batch as u64) as f32;
                functions::scale(factor, operand(0), out);
            }
        }
    }
}

/// Writes so many elements of a source from one on to its register.
fn load<T: Copy>(
    register: &mut [f32],
    (start, count): (usize, usize),
    walk: &Walk<1>,
    x: &[T],
    convert: impl Fn(T) -> f32,
) {
    let (mut rest, [stride]) = (&mut register[..count], walk.inner());
    walk.runs(start, start + count, |[at], length| {
        let (run, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        if stride == 0 {
            run.fill(convert(x[at]));
        } else {
            let from = x[at..].iter().step_by(stride);
            run.iter_mut().zip(from).for_each(|(y, &x)| *y = convert(x));
        }
    });
}

/// Computes a float32 result.
pub(super) fn floats(workers: Workers<'_>, machine: &Machine<'_>, out: &mut [f32]) {
    workers.chunks(out, CHUNK, |i, out| machine.run(i * CHUNK, out));
}

/// Computes truths.
pub(super) fn truths(workers: Workers<'_>, machine: &Machine<'_>, out: &mut [u8]) {
    workers.chunks(out, CHUNK, |i, out| {
        let mut results = [0.0; BLOCK];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let results = &mut results[..out.len()];
            machine.run(i * CHUNK + block * BLOCK, results);
            out.iter_mut()
                .zip(results)
                .for_each(|(y, x)| *y = u8::from(*x != 0.0));
        }
    });
}
