//! One run of a plan: each step's kernel on what it reads and where its result goes.

use super::chunks::Workers;
use super::dispatch::{float_kernel, moving_kernel, other_kernel};
use super::operands::{Around, Operands, computed};
use super::session::{Line, Opened};
use super::{fused, narrow, norm, optimizer, signal};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::ops::fused::Program;
use crate::ops::optimizer::Optimizer;
use crate::passes::memory::ALIGNMENT;
use crate::passes::precision::{Conversion, conversion, only_moves};
use crate::plan::Place;

/// One run of a plan.
pub(super) struct Run<'a> {
    pub(super) opened: &'a Opened,
    pub(super) batch: usize,
    pub(super) workers: Workers<'a>,
    /// The number of the optimizer step, from 1.
    pub(super) step: u64,
    pub(super) variables: &'a mut [Vec<f32>],
    pub(super) arena: &'a mut [Line],
    /// What the plan keeps between runs.
    pub(super) kept: &'a mut [Line],
    pub(super) workspace: &'a mut [f32],
    pub(super) transforms: &'a signal::Transforms,
}

/// Elements from the start of a workspace, each part of which begins at a multiple of 16.
fn take<'a>(workspace: &mut &'a mut [f32], count: usize) -> &'a mut [f32] {
    let all = std::mem::take(workspace);
    let (own, rest) = all.split_at_mut(count.next_multiple_of(16));
    *workspace = rest;
    &mut own[..count]
}

impl Run<'_> {
    /// Runs the kernel of a node that has a result.
    pub(super) fn compute(&mut self, value: Value, node: &Node) -> Result<(), Error> {
        let plan = &self.opened.plan;
        let bytes = plan.bytes(value, self.batch as u64)?;
        let lines = |offset: u64| (offset / ALIGNMENT) as usize;
        let count = lines(bytes.next_multiple_of(ALIGNMENT));
        let place = plan.places[value.index()];
        let (out, arena, kept) = match place {
            Place::Arena(offset) => {
                let (out, arena) = Around::split(self.arena, lines(offset), count);
                (out, arena, Around::nothing(self.kept))
            }
            Place::Kept(offset) => {
                let (out, kept) = Around::split(self.kept, lines(offset), count);
                (out, Around::nothing(self.arena), kept)
            }
            Place::Nowhere | Place::Variable(_) | Place::Constant(_) => return Ok(()),
        };
        let mut operands = Operands {
            opened: self.opened,
            result: place,
            batch: self.batch,
            variables: self.variables,
            arena,
            kept,
            converted: Vec::new(),
        };
        let stored = &mut bytemuck::cast_slice_mut(out)[..bytes as usize];
        let workers = self.workers;
        if node.dtype == DType::BF16 && only_moves(&plan.graph, node) {
            let out = bytemuck::cast_slice_mut(stored);
            return moving_kernel::<u16>(workers, node, &operands, out).map(|_| ());
        }
        // Operands as kernels take them, the result as they give it, and what is left.
        let mut workspace = &mut *self.workspace;
        for (i, &x) in node.inputs.iter().enumerate() {
            if let Some(conversion) = conversion(&plan.graph, node, i, plan.precision) {
                let count = operands.shape(x).iter().product();
                let own = take(&mut workspace, count);
                match conversion {
                    Conversion::Widen => narrow::widen(workers, operands.get(x), own),
                    Conversion::Round => narrow::round(workers, operands.get(x), own),
                }
                operands.converted.push((x, own));
            }
        }
        let (out, stored): (&mut [u8], _) = match node.dtype {
            DType::BF16 => {
                let wide = take(&mut workspace, stored.len() / 2);
                (bytemuck::cast_slice_mut(wide), Some(stored))
            }
            _ => (stored, None),
        };
        let dtype = computed(node.dtype);
        let own = Program::of(&plan.graph, node);
        if let Some(machine) = operands.element_wise(node, own.as_ref()) {
            if dtype == DType::F32 {
                fused::floats(workers, &machine, bytemuck::cast_slice_mut(out));
            } else {
                fused::truths(workers, &machine, out);
            }
            if let Some(stored) = stored {
                let out = bytemuck::cast_slice(out);
                narrow::narrow(workers, out, bytemuck::cast_slice_mut(stored));
            }
            return Ok(());
        }
        // What is made in this result's place while parts of it are finished.
        let epilogue = plan.epilogues.get(&value).map(|v| plan.graph.node(*v));
        let own = epilogue.and_then(|node| Program::of(&plan.graph, node));
        let epilogue = epilogue.and_then(|node| operands.element_wise(node, own.as_ref()));
        let finish = |first: usize, part: &mut [f32]| {
            if let Some(machine) = &epilogue {
                machine.run(first, part);
            }
        };
        let moved = match dtype.size_bytes() {
            4 => moving_kernel::<f32>(workers, node, &operands, bytemuck::cast_slice_mut(out))?,
            8 => moving_kernel::<i64>(workers, node, &operands, bytemuck::cast_slice_mut(out))?,
            _ => moving_kernel::<u8>(workers, node, &operands, out)?,
        };
        match dtype {
            _ if moved => {}
            DType::F32 => float_kernel(
                (workers, self.step),
                node,
                &operands,
                bytemuck::cast_slice_mut(out),
                workspace,
                self.transforms,
                &finish,
            )?,
            _ => other_kernel(workers, node, &operands, out),
        }
        if let Some(stored) = stored {
            let out = bytemuck::cast_slice(out);
            narrow::narrow(workers, out, bytemuck::cast_slice_mut(stored));
        }
        Ok(())
    }

    /// The elements of a value, which may be in the memory about to be changed.
    fn copy(&self, value: Value) -> Vec<f32> {
        let operands = Operands {
            opened: self.opened,
            result: Place::Nowhere,
            batch: self.batch,
            variables: self.variables,
            arena: Around::nothing(self.arena),
            kept: Around::nothing(self.kept),
            converted: Vec::new(),
        };
        operands.get(value).to_vec()
    }

    /// The session's variable that a value is.
    fn variable(&self, value: Value) -> Option<usize> {
        match self.opened.plan.places[value.index()] {
            Place::Variable(i) => self.opened.variables.get(i).copied(),
            _ => None,
        }
    }

    pub(super) fn optimize(&mut self, rule: &Optimizer, node: &Node, rate: f64) {
        let (parameter, gradient) = (node.inputs[0], node.inputs[1]);
        let Some(index) = self.variable(parameter) else {
            return;
        };
        let state_indices: Vec<usize> = node.inputs[2..]
            .iter()
            .filter_map(|&state| self.variable(state))
            .collect();
        let copied = self.variable(gradient).map(|_| self.copy(gradient));
        let mut values = std::mem::take(&mut self.variables[index]);
        let mut states: Vec<Vec<f32>> = state_indices
            .iter()
            .map(|&i| std::mem::take(&mut self.variables[i]))
            .collect();
        let operands = Operands {
            opened: self.opened,
            result: Place::Nowhere,
            batch: self.batch,
            variables: self.variables,
            arena: Around::nothing(self.arena),
            kept: Around::nothing(self.kept),
            converted: Vec::new(),
        };
        let gradient = copied.as_deref().unwrap_or_else(|| operands.get(gradient));
        optimizer::update(
            self.workers,
            rule,
            rate,
            self.step,
            &mut values,
            gradient,
            &mut states,
        );
        self.variables[index] = values;
        for (index, state) in state_indices.into_iter().zip(states) {
            self.variables[index] = state;
        }
    }

    pub(super) fn update_running(&mut self, momentum: f64, count: u64, node: &Node) {
        let &[mean, variance, statistics] = &*node.inputs else {
            return;
        };
        let (Some(mean), Some(variance)) = (self.variable(mean), self.variable(variance)) else {
            return;
        };
        let statistics = self.copy(statistics);
        let mut means = std::mem::take(&mut self.variables[mean]);
        norm::update_running(
            momentum,
            &mut means,
            &mut self.variables[variance],
            &statistics,
            count,
        );
        self.variables[mean] = means;
    }
}
