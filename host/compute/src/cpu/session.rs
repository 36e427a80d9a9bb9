//! A session on the processor: variables, one arena, and the run of a plan.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::{Pod, Zeroable};

use super::{
    conv, elementwise, loss, matmul, movement, norm, optimizer, pool, reduce, signal, softmax,
};
use crate::backend::{ParameterInfo, Session};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Leaf, Node, Value, Variable};
use crate::ops::Op;
use crate::ops::conv::Geometry;
use crate::ops::optimizer::Optimizer;
use crate::passes::memory::ALIGNMENT;
use crate::plan::{Place, Plan};
use crate::schedule::{Schedule, ScheduleKind};
use crate::shape::Shape;
use crate::tensor::HostTensor;

/// Memory is kept in units of a plan's alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; ALIGNMENT as usize]);

fn lines(bytes: u64) -> Vec<Line> {
    vec![Line::zeroed(); bytes.div_ceil(ALIGNMENT) as usize]
}

/// A plan with what the session keeps for it.
struct Opened {
    plan: Plan,
    /// The session's variable for each of the plan's.
    variables: Vec<usize>,
    constants: Vec<Vec<Line>>,
}

pub(super) struct CpuSession {
    pool: Option<Arc<rayon::ThreadPool>>,
    plans: Vec<Opened>,
    infos: Vec<ParameterInfo>,
    variables: Vec<Vec<f32>>,
    arena: Vec<Line>,
    workspace: Vec<f32>,
    transforms: signal::Transforms,
    schedule: Schedule,
    steps: u64,
    /// The plan whose results the arena holds, and their batch.
    last: Option<(usize, usize)>,
}

impl CpuSession {
    pub(super) fn new(
        plans: Vec<Plan>,
        pool: Option<Arc<rayon::ThreadPool>>,
    ) -> Result<Self, Error> {
        let largest = |bytes: fn(&Plan) -> u64| plans.iter().map(bytes).max().unwrap_or(0);
        let mut session = Self {
            pool,
            arena: lines(largest(|plan| plan.arena_bytes)),
            workspace: vec![0.0; (largest(|plan| plan.workspace_bytes) / 4) as usize],
            plans: Vec::new(),
            infos: Vec::new(),
            variables: Vec::new(),
            transforms: HashMap::new(),
            schedule: Schedule::new(1e-3, 0, ScheduleKind::Constant)?,
            steps: 0,
            last: None,
        };
        let mut known: HashMap<String, (usize, Variable, Shape)> = HashMap::new();
        for plan in plans {
            let mut variables = Vec::with_capacity(plan.variables.len());
            for (variable, shape) in &plan.variables {
                if let Some((index, other, other_shape)) = known.get(&variable.name) {
                    if (other, other_shape) != (variable, shape) {
                        let message = format!(
                            "two plans declare `{}` differently: {other_shape} and {shape}, or \
                             another initializer, seed or role",
                            variable.name
                        );
                        return Err(Error::new("model.parameter", message));
                    }
                    variables.push(*index);
                    continue;
                }
                let index = session.variables.len();
                let mut values = vec![0.0; shape.elements(1)? as usize];
                variable
                    .initializer
                    .fill(variable.seed, &variable.name, &mut values);
                session.variables.push(values);
                session.infos.push(ParameterInfo {
                    name: variable.name.clone(),
                    shape: shape.at(1),
                    role: variable.role,
                });
                known.insert(
                    variable.name.clone(),
                    (index, variable.clone(), shape.clone()),
                );
                variables.push(index);
            }
            let constants = plan
                .constants
                .iter()
                .map(|&value| match &plan.graph.node(value).op {
                    Op::Leaf(Leaf::Constant(bytes)) => {
                        let mut lines = lines(bytes.len() as u64);
                        bytemuck::cast_slice_mut(&mut lines)[..bytes.len()].copy_from_slice(bytes);
                        lines
                    }
                    _ => Vec::new(),
                });
            let constants = constants.collect();
            for &step in &plan.steps {
                if let Op::StftPower(stft) | Op::StftPowerGradient(stft) = &plan.graph.node(step).op
                {
                    let transform = || signal::Transform::new(stft);
                    session.transforms.entry(*stft).or_insert_with(transform);
                }
            }
            session.plans.push(Opened {
                plan,
                variables,
                constants,
            });
        }
        Ok(session)
    }

    fn opened(&self, plan: usize) -> Result<&Opened, Error> {
        self.plans.get(plan).ok_or_else(|| {
            let message = format!(
                "the session has {} plans, not one numbered {plan}",
                self.plans.len()
            );
            Error::new("model.plan", message)
        })
    }

    fn find(&self, name: &str) -> Result<usize, Error> {
        self.infos
            .iter()
            .position(|info| info.name == name)
            .ok_or_else(|| {
                Error::new(
                    "model.parameter",
                    format!("the session has no parameter `{name}`"),
                )
            })
    }

    /// Copies the inputs to their places, after checking all of them.
    fn feed(
        &mut self,
        plan: usize,
        batch: usize,
        inputs: &[(&str, &HostTensor)],
    ) -> Result<(), Error> {
        let refuse = |message: String| Err(Error::new("model.input", message));
        let opened = self.opened(plan)?;
        let most = opened.plan.max_batch;
        if batch == 0 || batch as u64 > most {
            return refuse(format!(
                "a batch of {batch} samples; the plan takes 1 to {most}"
            ));
        }
        let known = || {
            let names: Vec<_> = opened.plan.inputs.iter().map(|port| &*port.name).collect();
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        for (name, _) in inputs {
            if !opened.plan.inputs.iter().any(|port| port.name == *name) {
                return refuse(format!(
                    "the plan has no input `{name}`; its inputs: {}",
                    known()
                ));
            }
        }
        let mut copies = Vec::with_capacity(inputs.len());
        for port in &opened.plan.inputs {
            let Some((_, tensor)) = inputs.iter().find(|(name, _)| *name == port.name) else {
                return refuse(format!(
                    "the input `{}` is missing; the plan takes {}",
                    port.name,
                    known()
                ));
            };
            if tensor.dtype() != port.dtype || tensor.shape() != port.shape.at(batch) {
                return refuse(format!(
                    "the input `{}` is {} {:?}, not {} {:?}",
                    port.name,
                    tensor.dtype(),
                    tensor.shape(),
                    port.dtype,
                    port.shape.at(batch)
                ));
            }
            if let Place::Arena(offset) = opened.plan.places[port.value.index()] {
                copies.push((offset as usize, *tensor));
            }
        }
        let arena: &mut [u8] = bytemuck::cast_slice_mut(&mut self.arena);
        for (offset, tensor) in copies {
            arena[offset..offset + tensor.bytes().len()].copy_from_slice(tensor.bytes());
        }
        Ok(())
    }

    fn run_steps(&mut self, plan: usize, batch: usize, cancel: &AtomicBool) -> Result<(), Error> {
        let Some(opened) = self.plans.get(plan) else {
            return Ok(());
        };
        let (rate, step) = (self.schedule.rate(self.steps), self.steps + 1);
        let mut run = Run {
            opened,
            batch,
            parallel: self.pool.is_some(),
            variables: &mut self.variables,
            arena: &mut self.arena,
            workspace: &mut self.workspace,
            transforms: &self.transforms,
        };
        for &value in &opened.plan.steps {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::new("task.cancelled", "the task is cancelled"));
            }
            let node = opened.plan.graph.node(value);
            match &node.op {
                Op::Optimize(rule) => run.optimize(rule, node, rate, step),
                Op::UpdateRunning { momentum } => run.update_running(*momentum, node),
                _ => run.compute(value, node).map_err(|error| error.at(value))?,
            }
        }
        self.steps += u64::from(opened.plan.trains);
        Ok(())
    }
}

impl Session for CpuSession {
    fn device(&self) -> &str {
        "cpu"
    }

    fn run(
        &mut self,
        plan: usize,
        batch: usize,
        inputs: &[(&str, &HostTensor)],
        cancel: &AtomicBool,
    ) -> Result<(), Error> {
        self.feed(plan, batch, inputs)?;
        self.last = None;
        match self.pool.clone() {
            Some(pool) => pool.install(|| self.run_steps(plan, batch, cancel))?,
            None => self.run_steps(plan, batch, cancel)?,
        }
        self.last = Some((plan, batch));
        Ok(())
    }

    fn output(&self, plan: usize, name: &str) -> Result<HostTensor, Error> {
        let opened = self.opened(plan)?;
        let refuse = |message: String| Error::new("model.output", message);
        let port = opened
            .plan
            .outputs
            .iter()
            .find(|port| port.name == name)
            .ok_or_else(|| {
                let names: Vec<_> = opened.plan.outputs.iter().map(|port| &*port.name).collect();
                refuse(format!(
                    "the plan has no output `{name}`; its outputs: {}",
                    names.join(", ")
                ))
            })?;
        let Some((_, batch)) = self.last.filter(|(last, _)| *last == plan) else {
            return Err(refuse(format!(
                "plan {plan} is not the one that ran last, without an error"
            )));
        };
        let bytes = opened.plan.bytes(port.value, batch as u64)? as usize;
        let bytes = match opened.plan.places[port.value.index()] {
            Place::Arena(offset) => {
                &bytemuck::cast_slice(&self.arena)[offset as usize..offset as usize + bytes]
            }
            Place::Variable(i) => bytemuck::cast_slice(&self.variables[opened.variables[i]]),
            Place::Constant(i) => &bytemuck::cast_slice(&opened.constants[i])[..bytes],
            Place::Nowhere => &[],
        };
        HostTensor::new(port.dtype, port.shape.at(batch), bytes.to_vec())
    }

    fn parameters(&self) -> Vec<ParameterInfo> {
        self.infos.clone()
    }

    fn download(&self, name: &str) -> Result<HostTensor, Error> {
        let index = self.find(name)?;
        HostTensor::from_f32(&self.infos[index].shape, &self.variables[index])
    }

    fn upload(&mut self, name: &str, value: &HostTensor) -> Result<(), Error> {
        let index = self.find(name)?;
        let shape = &self.infos[index].shape;
        let Some(values) = value.to_f32().filter(|_| value.shape() == shape) else {
            let (dtype, given) = (value.dtype(), value.shape());
            let message = format!("`{name}` is float32 {shape:?}, not {dtype} {given:?}");
            return Err(Error::new("model.parameter", message));
        };
        self.variables[index] = values;
        Ok(())
    }

    fn set_schedule(&mut self, schedule: Schedule) {
        self.schedule = schedule;
    }

    fn learning_rate(&self) -> f64 {
        self.schedule.rate(self.steps)
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn used_bytes(&self) -> u64 {
        let lines = |lines: &Vec<Line>| lines.len() as u64 * ALIGNMENT;
        let floats = |floats: &Vec<f32>| floats.len() as u64 * 4;
        let constants = self.plans.iter().flat_map(|opened| &opened.constants);
        lines(&self.arena)
            + floats(&self.workspace)
            + self.variables.iter().map(floats).sum::<u64>()
            + constants.map(lines).sum::<u64>()
    }
}

/// One run of a plan.
struct Run<'a> {
    opened: &'a Opened,
    batch: usize,
    parallel: bool,
    variables: &'a mut [Vec<f32>],
    arena: &'a mut [Line],
    workspace: &'a mut [f32],
    transforms: &'a signal::Transforms,
}

/// What a kernel reads: everything but its result.
struct Operands<'a> {
    opened: &'a Opened,
    batch: usize,
    variables: &'a [Vec<f32>],
    /// The arena before and after the result.
    before: &'a [Line],
    after: &'a [Line],
    /// The line at which `after` starts.
    after_start: usize,
}

impl<'a> Operands<'a> {
    /// The elements of a value.
    fn get<T: Pod>(&self, value: Value) -> &'a [T] {
        let plan = &self.opened.plan;
        let bytes = plan.bytes(value, self.batch as u64).unwrap_or(0) as usize;
        let bytes: &[u8] = match plan.places[value.index()] {
            Place::Nowhere => &[],
            Place::Variable(i) => bytemuck::cast_slice(&self.variables[self.opened.variables[i]]),
            Place::Constant(i) => &bytemuck::cast_slice(&self.opened.constants[i])[..bytes],
            Place::Arena(offset) => {
                let line = (offset / ALIGNMENT) as usize;
                let (part, line) = match line.checked_sub(self.after_start) {
                    Some(line) => (self.after, line),
                    None => (self.before, line),
                };
                &bytemuck::cast_slice(&part[line..])[..bytes]
            }
        };
        bytemuck::cast_slice(bytes)
    }

    fn node(&self, value: Value) -> &'a Node {
        self.opened.plan.graph.node(value)
    }

    fn shape(&self, value: Value) -> Vec<usize> {
        self.node(value).shape.at(self.batch)
    }
}

impl Run<'_> {
    /// Runs the kernel of a node that has a result.
    fn compute(&mut self, value: Value, node: &Node) -> Result<(), Error> {
        let plan = &self.opened.plan;
        let Place::Arena(offset) = plan.places[value.index()] else {
            return Ok(());
        };
        let bytes = plan.bytes(value, self.batch as u64)?;
        let (first, count) = (
            (offset / ALIGNMENT) as usize,
            bytes.div_ceil(ALIGNMENT) as usize,
        );
        let (before, rest) = self.arena.split_at_mut(first);
        let (out, after) = rest.split_at_mut(count);
        let operands = Operands {
            opened: self.opened,
            batch: self.batch,
            variables: self.variables,
            before,
            after,
            after_start: first + count,
        };
        let out = &mut bytemuck::cast_slice_mut(out)[..bytes as usize];
        match node.dtype {
            DType::F32 => float_kernel(
                self.parallel,
                node,
                &operands,
                bytemuck::cast_slice_mut(out),
                self.workspace,
                self.transforms,
            ),
            _ => {
                other_kernel(self.parallel, node, &operands, out);
                Ok(())
            }
        }
    }

    /// The elements of a value, which may be in the memory about to be changed.
    fn copy(&self, value: Value) -> Vec<f32> {
        let operands = Operands {
            opened: self.opened,
            batch: self.batch,
            variables: self.variables,
            before: self.arena,
            after: &[],
            after_start: self.arena.len(),
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

    fn optimize(&mut self, rule: &Optimizer, node: &Node, rate: f64, step: u64) {
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
            batch: self.batch,
            variables: self.variables,
            before: self.arena,
            after: &[],
            after_start: self.arena.len(),
        };
        let gradient = copied.as_deref().unwrap_or_else(|| operands.get(gradient));
        optimizer::update(
            self.parallel,
            rule,
            rate,
            step,
            &mut values,
            gradient,
            &mut states,
        );
        self.variables[index] = values;
        for (index, state) in state_indices.into_iter().zip(states) {
            self.variables[index] = state;
        }
    }

    fn update_running(&mut self, momentum: f64, node: &Node) {
        let &[mean, variance, statistics, x] = &*node.inputs else {
            return;
        };
        let (Some(mean), Some(variance)) = (self.variable(mean), self.variable(variance)) else {
            return;
        };
        let statistics = self.copy(statistics);
        let shape = self.opened.plan.graph.node(x).shape.at(self.batch);
        let count = shape.iter().product::<usize>() / shape[1];
        let mut means = std::mem::take(&mut self.variables[mean]);
        if mean == variance {
            self.variables[mean] = means;
            return;
        }
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

/// Computes a float32 result.
fn float_kernel(
    parallel: bool,
    node: &Node,
    operands: &Operands<'_>,
    out: &mut [f32],
    workspace: &mut [f32],
    transforms: &signal::Transforms,
) -> Result<(), Error> {
    let x = &node.inputs;
    let get = |i: usize| operands.get::<f32>(x[i]);
    let shape = |i: usize| operands.shape(x[i]);
    let own = node.shape.at(operands.batch);
    match &node.op {
        Op::Unary(kind) => elementwise::unary(parallel, *kind, get(0), out),
        Op::UnaryGradient(kind) => {
            elementwise::unary_gradient(parallel, *kind, get(0), get(1), out)
        }
        Op::Binary(kind) => {
            let (a, b) = ((get(0), &*shape(0)), (get(1), &*shape(1)));
            elementwise::binary(parallel, *kind, a, b, (out, &own));
        }
        Op::ExtremumGradient { maximum } => {
            let (a, b) = ((get(0), &*shape(0)), (get(1), &*shape(1)));
            elementwise::extremum_gradient(parallel, *maximum, a, b, get(2), (out, &own));
        }
        Op::DivideBy(count) => {
            let factor = 1.0 / count.at(operands.batch as u64) as f32;
            elementwise::map(parallel, get(0), out, |x| x * factor);
        }
        Op::Cast => match operands.node(x[0]).dtype {
            DType::I64 => {
                out.iter_mut()
                    .zip(operands.get::<i64>(x[0]))
                    .for_each(|(y, &x)| *y = x as f32);
            }
            DType::Bool => {
                out.iter_mut()
                    .zip(operands.get::<u8>(x[0]))
                    .for_each(|(y, &x)| *y = f32::from(x != 0));
            }
            _ => out.copy_from_slice(get(0)),
        },
        Op::Permute(order) => movement::permute(parallel, get(0), &shape(0), order, (out, &own)),
        Op::Expand => movement::expand(parallel, get(0), &shape(0), (out, &own)),
        Op::Row { index } => out.copy_from_slice(&get(0)[index * out.len()..][..out.len()]),
        Op::Reduce { kind, axes, .. } => {
            reduce::reduce(parallel, *kind, get(0), &shape(0), axes, out);
        }
        Op::AmaxGradient => {
            reduce::amax_gradient(get(0), &own, get(1), get(2), &shape(1), out);
        }
        Op::Matmul {
            transpose_a,
            transpose_b,
        } => {
            let (a, b) = (shape(0), shape(1));
            let (a, b) = ((get(0), &*a, *transpose_a), (get(1), &*b, *transpose_b));
            matmul::matmul(parallel, a, b, (out, &own));
        }
        Op::Conv2d(c) => {
            let g = geometry(c, &shape(0), &shape(1))?;
            let bias = (x.len() > 2).then(|| get(2));
            conv::forward(parallel, &g, get(0), get(1), bias, out, workspace);
        }
        Op::Conv2dInputGradient(c) => {
            let g = geometry(c, &own, &shape(1))?;
            conv::input_gradient(parallel, &g, get(0), get(1), out, workspace);
        }
        Op::Conv2dWeightGradient(c) => {
            let g = geometry(c, &shape(0), &own)?;
            conv::weight_gradient(parallel, &g, get(0), get(1), out, workspace);
        }
        Op::Pool2d(pool) => pool::pool2d(parallel, pool, get(0), &shape(0), (out, &own)),
        Op::Pool2dGradient(pool) => {
            pool::gradient(parallel, pool, get(0), get(1), &shape(1), (out, &own));
        }
        Op::BatchStatistics { epsilon } => {
            norm::batch_statistics(parallel, *epsilon, get(0), &shape(0), out);
        }
        Op::FixedStatistics { epsilon } => norm::fixed_statistics(*epsilon, get(0), get(1), out),
        Op::BatchNorm => {
            norm::batch_norm(parallel, get(0), &own, get(1), get(2), get(3), out);
        }
        Op::BatchNormParameterGradient => {
            norm::parameter_gradient(parallel, get(0), &shape(0), get(1), get(2), out);
        }
        Op::BatchNormTrainGradient => {
            norm::train_gradient(parallel, &own, get(0), get(1), get(2), get(3), get(4), out);
        }
        Op::BatchNormEvalGradient => {
            norm::eval_gradient(parallel, &own, get(0), get(1), get(2), out);
        }
        Op::Softmax { axis, log } => softmax::softmax(parallel, *log, get(0), &own, *axis, out),
        Op::SoftmaxGradient { axis, log } => {
            softmax::gradient(parallel, *log, get(0), get(1), &own, *axis, out);
        }
        Op::CrossEntropy { smoothing } => {
            out[0] = loss::cross_entropy(get(0), operands.get(x[1]), *smoothing)?;
        }
        Op::CrossEntropyGradient { smoothing } => {
            loss::gradient(get(0), operands.get(x[1]), *smoothing, get(2)[0], out)?;
        }
        Op::StftPower(stft) => {
            if let Some(transform) = transforms.get(stft) {
                transform.power(parallel, stft.hop as usize, get(0), shape(0)[1], out);
            }
        }
        Op::StftPowerGradient(stft) => {
            if let Some(transform) = transforms.get(stft) {
                transform.gradient(parallel, stft.hop as usize, get(0), get(1), own[1], out);
            }
        }
        Op::Leaf(_)
        | Op::Equal
        | Op::Reshape
        | Op::Argmax { .. }
        | Op::UpdateRunning { .. }
        | Op::Optimize(_) => {}
    }
    Ok(())
}

fn geometry(
    c: &crate::ops::conv::Conv2d,
    x: &[usize],
    weight: &[usize],
) -> Result<Geometry, Error> {
    Geometry::new(c, x, weight).ok_or_else(|| Error::new("graph.shape", "conv2d: sizes overflow"))
}

/// Computes an int64 or boolean result.
fn other_kernel(parallel: bool, node: &Node, operands: &Operands<'_>, out: &mut [u8]) {
    let x = &node.inputs;
    let own = node.shape.at(operands.batch);
    let from = operands.node(x[0]).dtype;
    match (&node.op, node.dtype) {
        (Op::Equal, _) => {
            let (a, b) = (operands.shape(x[0]), operands.shape(x[1]));
            macro_rules! equal {
                ($T:ty) => {
                    elementwise::broadcasting(
                        parallel,
                        (operands.get::<$T>(x[0]), &*a),
                        (operands.get::<$T>(x[1]), &*b),
                        (out, &own),
                        |a, b| u8::from(a == b),
                    )
                };
            }
            match from {
                DType::F32 => equal!(f32),
                DType::I64 => equal!(i64),
                _ => equal!(u8),
            }
        }
        (Op::Argmax { axis }, _) => {
            let shape = operands.shape(x[0]);
            reduce::argmax(
                operands.get(x[0]),
                &shape,
                *axis,
                bytemuck::cast_slice_mut(out),
            );
        }
        (Op::Permute(order), DType::I64) => {
            let out = (bytemuck::cast_slice_mut::<u8, i64>(out), &*own);
            movement::permute(
                parallel,
                operands.get(x[0]),
                &operands.shape(x[0]),
                order,
                out,
            );
        }
        (Op::Permute(order), _) => {
            movement::permute(
                parallel,
                operands.get(x[0]),
                &operands.shape(x[0]),
                order,
                (out, &own),
            );
        }
        (Op::Cast, DType::I64) => {
            let out: &mut [i64] = bytemuck::cast_slice_mut(out);
            match from {
                // Towards zero, as in PyTorch; what does not fit is clamped, NaN is 0.
                DType::F32 => out
                    .iter_mut()
                    .zip(operands.get::<f32>(x[0]))
                    .for_each(|(y, &x)| *y = x as i64),
                DType::I64 => out.copy_from_slice(operands.get(x[0])),
                _ => out
                    .iter_mut()
                    .zip(operands.get::<u8>(x[0]))
                    .for_each(|(y, &x)| *y = i64::from(x != 0)),
            }
        }
        (Op::Cast, _) => match from {
            DType::F32 => out
                .iter_mut()
                .zip(operands.get::<f32>(x[0]))
                .for_each(|(y, &x)| *y = u8::from(x != 0.0)),
            DType::I64 => out
                .iter_mut()
                .zip(operands.get::<i64>(x[0]))
                .for_each(|(y, &x)| *y = u8::from(x != 0)),
            _ => out.copy_from_slice(operands.get(x[0])),
        },
        _ => {}
    }
}
