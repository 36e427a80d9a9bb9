//! One run of a plan: each step's kernel on what it reads and where its result goes.

use bytemuck::Pod;

use super::chunks::Workers;
use super::reduce::Operand;
use super::session::{Line, Opened};
use super::{
    attention, conv, elementwise, fused, index, layer_norm, loss, matmul, movement, narrow, norm,
    optimizer, pool, random, reduce, resample, signal, softmax,
};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::ops::Op;
use crate::ops::attention::Sizes;
use crate::ops::fused::Program;
use crate::ops::geometry::Geometry;
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

/// Lines of memory with a part in their middle taken out.
#[derive(Clone, Copy)]
struct Around<'a> {
    before: &'a [Line],
    after: &'a [Line],
    /// The line at which `after` starts.
    after_start: usize,
}

impl<'a> Around<'a> {
    /// All of some memory.
    fn nothing(lines: &'a [Line]) -> Self {
        Self {
            before: lines,
            after: &[],
            after_start: lines.len(),
        }
    }

    /// So many lines from the first one on, and what is around them.
    fn split(lines: &'a mut [Line], first: usize, count: usize) -> (&'a mut [Line], Self) {
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
struct Operands<'a> {
    opened: &'a Opened,
    /// Where that goes.
    result: Place,
    batch: usize,
    variables: &'a [Vec<f32>],
    arena: Around<'a>,
    kept: Around<'a>,
    /// Operands that are not read as they are stored.
    converted: Vec<(Value, &'a [f32])>,
}

impl<'a> Operands<'a> {
    /// The elements of a value.
    fn get<T: Pod>(&self, value: Value) -> &'a [T] {
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
    fn machine<'b>(&self, node: &Node, program: &'b Program, shape: &[usize]) -> fused::Machine<'b>
    where
        'a: 'b,
    {
        let sources: Vec<_> = node.inputs.iter().map(|&x| self.elements(x)).collect();
        fused::Machine::new(program, &sources, self.batch, shape)
    }

    /// The program of a node, or `own` where its operator is one, on its operands.
    fn element_wise<'b>(
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
    fn is_result(&self, value: Value) -> bool {
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
    fn dtype(&self, value: Value) -> DType {
        computed(self.node(value).dtype)
    }

    fn node(&self, value: Value) -> &'a Node {
        self.opened.plan.graph.node(value)
    }

    fn shape(&self, value: Value) -> Vec<usize> {
        self.node(value).shape.at(self.batch)
    }
}

/// Elements from the start of a workspace, each part of which begins at a multiple of 16.
fn take<'a>(workspace: &mut &'a mut [f32], count: usize) -> &'a mut [f32] {
    let all = std::mem::take(workspace);
    let (own, rest) = all.split_at_mut(count.next_multiple_of(16));
    *workspace = rest;
    &mut own[..count]
}

/// What elements are computed as.
fn computed(stored: DType) -> DType {
    match stored {
        DType::BF16 => DType::F32,
        other => other,
    }
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

/// An element that kernels move without looking at it.
trait Element: Pod + Send + Sync {
    /// The element nearest to a number.
    fn of(number: f64) -> Self;
}

impl Element for f32 {
    fn of(number: f64) -> Self {
        number as Self
    }
}

impl Element for u16 {
    fn of(number: f64) -> Self {
        narrow::narrowed(number as f32)
    }
}

impl Element for i64 {
    fn of(number: f64) -> Self {
        number as Self
    }
}

impl Element for u8 {
    fn of(number: f64) -> Self {
        Self::from(number != 0.0)
    }
}

/// An axis's size, and the elements of one of its steps.
fn along(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis], shape[axis + 1..].iter().product())
}

/// Computes a result whose elements are those of an operand; whether the operator is of that kind.
fn moving_kernel<T: Element>(
    workers: Workers<'_>,
    node: &Node,
    operands: &Operands<'_>,
    out: &mut [T],
) -> Result<bool, Error> {
    let x = &node.inputs;
    let get = |i: usize| operands.get::<T>(x[i]);
    let shape = |i: usize| operands.shape(x[i]);
    let own = node.shape.at(operands.batch);
    match &node.op {
        Op::Permute(order) => movement::permute(workers, get(0), &shape(0), order, (out, &own)),
        Op::Expand => movement::expand(workers, get(0), &shape(0), (out, &own)),
        Op::Row { index } => out.copy_from_slice(&get(0)[index * out.len()..][..out.len()]),
        Op::Slice(window) => movement::slice(workers, get(0), &shape(0), window, (out, &own)),
        Op::Place { window, fill } => {
            let placed = (window, T::of(*fill));
            movement::place(workers, get(0), &shape(0), placed, (out, &own));
        }
        Op::Concat { axis } => {
            let parts: Vec<_> = (0..x.len()).map(|i| (get(i), shape(i)[*axis])).collect();
            movement::concat(workers, &parts, (out, &own), *axis);
        }
        Op::Select => {
            let (a, b) = ((get(1), &*shape(1)), (get(2), &*shape(2)));
            let condition = (operands.get(x[0]), &*shape(0));
            elementwise::select(workers, condition, a, b, (out, &own));
        }
        Op::Gather { axis } => {
            let ((size, inner), by) = (along(&shape(0), *axis), operands.get(x[1]));
            index::gather(workers, get(0), by, (size, own[*axis], inner), out)?;
        }
        Op::Take { axis } => {
            let by = operands.get(x[1]);
            index::take(workers, get(0), by, along(&shape(0), *axis), out)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Computes a float32 result; `step` is the number of the optimizer step. Products, convolutions and
/// reductions call `finish` once with every part of their results: the number of its first element,
/// and it.
fn float_kernel(
    (workers, step): (Workers<'_>, u64),
    node: &Node,
    operands: &Operands<'_>,
    out: &mut [f32],
    workspace: &mut [f32],
    transforms: &signal::Transforms,
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Result<(), Error> {
    let x = &node.inputs;
    let get = |i: usize| operands.get::<f32>(x[i]);
    let shape = |i: usize| operands.shape(x[i]);
    let own = node.shape.at(operands.batch);
    match &node.op {
        // From int64; others are programs.
        Op::Cast => elementwise::convert(workers, operands.get(x[0]), out, |x: i64| x as f32),
        Op::ScatterAdd { axis } => {
            let ((size, inner), count) = (along(&own, *axis), shape(1)[*axis]);
            let by = operands.get(x[1]);
            index::scatter_add(workers, get(0), by, (size, count, inner), out)?;
        }
        Op::TakeGradient { axis } => {
            let by = operands.get(x[1]);
            index::take_gradient(workers, get(0), by, along(&own, *axis), out)?;
        }
        Op::Resample { axis } => {
            let table = (operands.get(x[1]), get(2));
            resample::resample(workers, get(0), along(&shape(0), *axis), table, out);
        }
        Op::Cumsum { axis, reverse } => {
            reduce::cumsum(workers, get(0), &own, *axis, *reverse, out);
        }
        Op::LayerNorm(attributes) => {
            let optional = |i: usize| x.get(i).map(|_| get(i));
            let (scale, bias) = (optional(1), optional(2));
            layer_norm::layer_norm(workers, attributes, get(0), last(&own), scale, bias, out);
        }
        Op::LayerNormGradient(attributes) => {
            let (pair, scale) = ((get(0), get(1)), x.get(2).map(|_| get(2)));
            layer_norm::input_gradient(workers, attributes, pair, last(&own), scale, out);
        }
        Op::LayerNormParameterGradient(attributes) => {
            let pair = (get(0), get(1));
            layer_norm::parameter_gradient(workers, attributes, pair, last(&own), out, workspace);
        }
        Op::Dropout(dropout) => {
            let row = own.iter().skip(1).product();
            random::dropout(workers, dropout, step, get(0), row, out);
        }
        Op::Random { seed } => random::fill(workers, *seed, step, out),
        Op::Reduce { kind, axes, .. } => {
            let x = Operand::Stored(get(0));
            reduce::reduce(workers, *kind, &x, (&shape(0), axes), out, finish);
        }
        Op::FusedReduce(reduced) => {
            let shape = reduced.shape.at(operands.batch);
            let x = Operand::Computed(operands.machine(node, &reduced.program, &shape));
            reduce::reduce(
                workers,
                reduced.kind,
                &x,
                (&shape, &reduced.axes),
                out,
                finish,
            );
        }
        Op::ExtremeGradient => {
            reduce::extreme_gradient(workers, get(0), &own, get(1), get(2), &shape(1), out);
        }
        Op::Matmul {
            transpose_a,
            transpose_b,
        } => {
            let (a, b) = (shape(0), shape(1));
            let (a, b) = ((get(0), &*a, *transpose_a), (get(1), &*b, *transpose_b));
            let bias = (x.len() > 2).then(|| get(2));
            matmul::matmul(workers, a, b, (out, &own), |first, piece| {
                if let Some(bias) = bias {
                    let bias = &bias[first % bias.len()..];
                    piece.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
                }
                finish(first, piece);
            });
        }
        Op::Conv2d(c) => {
            let g = geometry(c, &shape(0), &shape(1))?;
            let bias = (x.len() > 2).then(|| get(2));
            let operands = (get(0), get(1), bias);
            conv::forward(workers, &g, operands, out, workspace, finish);
        }
        Op::Conv2dInputGradient(c) => {
            let g = geometry(c, &own, &shape(1))?;
            conv::input_gradient(workers, &g, (get(0), get(1)), out, workspace);
        }
        Op::Conv2dWeightGradient(c) => {
            let g = geometry(c, &shape(0), &own)?;
            conv::weight_gradient(workers, &g, (get(0), get(1)), out, workspace);
        }
        Op::Pool2d(pool) => pool::pool2d(workers, pool, get(0), &shape(0), (out, &own)),
        Op::Pool2dGradient(pool) => {
            pool::gradient(workers, pool, get(0), get(1), &shape(1), (out, &own));
        }
        Op::BatchStatistics { epsilon } => {
            norm::batch_statistics(workers, *epsilon, get(0), &shape(0), out);
        }
        Op::FixedStatistics { epsilon } => {
            norm::fixed_statistics(workers, *epsilon, get(0), get(1), out)
        }
        Op::BatchNorm => {
            norm::batch_norm(workers, get(0), &own, get(1), get(2), get(3), out);
        }
        Op::BatchNormParameterGradient => {
            norm::parameter_gradient(workers, get(0), &shape(0), get(1), get(2), out);
        }
        Op::BatchNormTrainGradient => {
            let dy = (!operands.is_result(x[0])).then(|| get(0));
            norm::train_gradient(workers, &own, dy, get(1), get(2), get(3), get(4), out);
        }
        Op::BatchNormEvalGradient => {
            norm::eval_gradient(workers, &own, get(0), get(1), get(2), out);
        }
        Op::Attention(attributes) => {
            let bias = x.get(3).copied();
            with_attention(operands, node, bias, |of| {
                attention::attention(workers, attributes, of, out);
            });
        }
        Op::AttentionGradient(attributes) => {
            with_attention(operands, node, x.get(5).copied(), |of| {
                attention::gradient(workers, attributes, of, (get(3), get(4)), out);
            });
        }
        Op::AttentionBiasGradient(attributes) => {
            with_attention(operands, node, x.get(5).copied(), |of| {
                attention::bias_gradient(workers, attributes, of, (get(3), get(4)), out);
            });
        }
        Op::Softmax { axis, log } => softmax::softmax(workers, *log, get(0), &own, *axis, out),
        Op::SoftmaxGradient { axis, log } => {
            softmax::gradient(workers, *log, get(0), get(1), &own, *axis, out);
        }
        Op::CrossEntropy { smoothing } => {
            out[0] = loss::cross_entropy(workers, get(0), operands.get(x[1]), *smoothing)?;
        }
        Op::CrossEntropyGradient { smoothing } => {
            let labels = operands.get(x[1]);
            loss::gradient(workers, get(0), labels, *smoothing, get(2)[0], out)?;
        }
        Op::StftPower(stft) => {
            if let Some(transform) = transforms.get(stft) {
                transform.power(workers, stft.hop as usize, get(0), shape(0)[1], out);
            }
        }
        Op::StftPowerGradient(stft) => {
            if let Some(transform) = transforms.get(stft) {
                transform.gradient(workers, stft.hop as usize, get(0), get(1), own[1], out);
            }
        }
        Op::BatchNormCoefficients => norm::coefficients(get(0), get(1), get(2), out),
        Op::Leaf(_)
        | Op::Reshape
        | Op::Unary(_)
        | Op::UnaryGradient(_)
        | Op::Binary(_)
        | Op::ExtremumGradient { .. }
        | Op::DivideBy(_)
        | Op::Fused(_)
        | Op::Compare(_)
        | Op::Logic(_)
        | Op::Argmax { .. }
        | Op::TopK { .. }
        | Op::Permute(_)
        | Op::Expand
        | Op::Row { .. }
        | Op::Slice(_)
        | Op::Place { .. }
        | Op::Concat { .. }
        | Op::Select
        | Op::Gather { .. }
        | Op::Take { .. }
        | Op::UpdateRunning { .. }
        | Op::Optimize(_) => {}
    }
    Ok(())
}

/// Calls a kernel with the operands of an attention.
fn with_attention(
    operands: &Operands<'_>,
    node: &Node,
    bias: Option<Value>,
    kernel: impl FnOnce(attention::Operands<'_>),
) {
    let [q, k, v] =
        [0, 1, 2].map(|i| (operands.get(node.inputs[i]), operands.shape(node.inputs[i])));
    let bias = bias.map(|bias| (operands.get(bias), operands.shape(bias)));
    kernel(attention::Operands {
        q: q.0,
        k: k.0,
        v: v.0,
        bias: bias.as_ref().map(|(data, shape)| (*data, &**shape)),
        heads: &q.1[..q.1.len() - 2],
        sizes: Sizes::new(&q.1, &k.1, &v.1),
    });
}

fn geometry(
    c: &crate::ops::conv::Conv2d,
    x: &[usize],
    weight: &[usize],
) -> Result<Geometry, Error> {
    Geometry::new(c, x, weight).ok_or_else(|| Error::new("graph.shape", "conv2d: sizes overflow"))
}

/// The size of the last axis.
fn last(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// Computes an int64 result, or a boolean one of int64 operands.
fn other_kernel(workers: Workers<'_>, node: &Node, operands: &Operands<'_>, out: &mut [u8]) {
    let x = &node.inputs;
    let own = node.shape.at(operands.batch);
    let from = x.first().map_or(node.dtype, |&v| operands.dtype(v));
    match (&node.op, node.dtype) {
        (Op::Compare(kind), _) => {
            let (a, b) = (operands.shape(x[0]), operands.shape(x[1]));
            let (a, b) = ((operands.get(x[0]), &*a), (operands.get(x[1]), &*b));
            elementwise::compare(workers, *kind, a, b, (out, &own));
        }
        (Op::Binary(kind), DType::I64) => {
            let (a, b) = (operands.shape(x[0]), operands.shape(x[1]));
            let (a, b) = ((operands.get(x[0]), &*a), (operands.get(x[1]), &*b));
            let out = (bytemuck::cast_slice_mut(out), &*own);
            elementwise::integer_binary(workers, *kind, a, b, out);
        }
        (Op::Argmax { axis, smallest }, _) => {
            let shape = operands.shape(x[0]);
            let out = bytemuck::cast_slice_mut(out);
            reduce::argmax(workers, operands.get(x[0]), &shape, *axis, *smallest, out);
        }
        (Op::TopK { axis, smallest }, _) => {
            let shape = operands.shape(x[0]);
            let out = (bytemuck::cast_slice_mut(out), own[*axis]);
            reduce::top_k(workers, operands.get(x[0]), &shape, *axis, *smallest, out);
        }
        (Op::Cast, DType::I64) => {
            let out: &mut [i64] = bytemuck::cast_slice_mut(out);
            let bytes = || operands.get::<u8>(x[0]);
            match from {
                // Towards zero, as in PyTorch; what does not fit is clamped, NaN is 0.
                DType::F32 => {
                    elementwise::convert(workers, operands.get(x[0]), out, |x: f32| x as i64);
                }
                DType::I64 => out.copy_from_slice(operands.get(x[0])),
                DType::U8 => elementwise::convert(workers, bytes(), out, i64::from),
                _ => elementwise::convert(workers, bytes(), out, |x| i64::from(x != 0)),
            }
        }
        (Op::Cast, _) => {
            let x = operands.get(x[0]);
            elementwise::convert(workers, x, out, |x: i64| u8::from(x != 0));
        }
        _ => {}
    }
}
