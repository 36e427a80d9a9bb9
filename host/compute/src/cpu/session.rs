//! A session on the processor: variables, one arena, and the run of a plan.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytemuck::{Pod, Zeroable};

use super::run::Run;
use super::signal;
use crate::backend::{ParameterInfo, Session};
use crate::error::Error;
use crate::graph::{Leaf, Variable};
use crate::ops::Op;
use crate::passes::memory::ALIGNMENT;
use crate::plan::{Place, Plan};
use crate::schedule::{Schedule, ScheduleKind};
use crate::shape::Shape;
use crate::tensor::HostTensor;

/// Memory is kept in units of a plan's alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u8; ALIGNMENT as usize]);

fn lines(bytes: u64) -> Vec<Line> {
    vec![Line::zeroed(); bytes.div_ceil(ALIGNMENT) as usize]
}

/// A plan with what the session keeps for it.
pub(super) struct Opened {
    pub(super) plan: Plan,
    /// The session's variable for each of the plan's.
    pub(super) variables: Vec<usize>,
    pub(super) constants: Vec<Vec<Line>>,
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
