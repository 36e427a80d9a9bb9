//! A session on the processor: variables, one arena, and the run of a plan.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytemuck::{Pod, Zeroable};

use super::SCRATCH_BYTES;
use super::chunks::Workers;
use super::run::Run;
use super::signal;
use crate::backend::{ParameterInfo, Session};
use crate::error::Error;
use crate::graph::{Leaf, Value};
use crate::opening::{Sums, Variables, check_inputs, check_output, no_plan};
use crate::ops::Op;
use crate::passes::memory::ALIGNMENT;
use crate::plan::{Place, Plan};
use crate::schedule::{Schedule, ScheduleKind};
use crate::tensor::HostTensor;

/// Memory is kept in units of a plan's alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u8; ALIGNMENT as usize]);

/// Memory that the system has not to find before it is written.
fn lines(bytes: u64) -> Vec<Line> {
    bytemuck::zeroed_vec(bytes.div_ceil(ALIGNMENT) as usize)
}

/// The wish to end of work that is not to be cut short.
static NEVER: AtomicBool = AtomicBool::new(false);

/// A plan with what the session keeps for it.
pub(super) struct Opened {
    pub(super) plan: Plan,
    /// The session's variable for each of the plan's.
    pub(super) variables: Vec<usize>,
    pub(super) constants: Vec<Vec<Line>>,
    /// What the variables had changed so often when the prologue ran last.
    prepared: Option<u64>,
}

pub(crate) struct CpuSession {
    pool: Option<Arc<rayon::ThreadPool>>,
    plans: Vec<Opened>,
    variables: Variables,
    values: Vec<Vec<f32>>,
    sums: Sums,
    arena: Vec<Line>,
    /// What each plan keeps between runs.
    kept: Vec<Vec<Line>>,
    /// How often variables have changed.
    changes: u64,
    workspace: Vec<f32>,
    transforms: signal::Transforms,
    schedule: Schedule,
    steps: u64,
    /// The plan whose results the arena holds, and their batch.
    last: Option<(usize, usize)>,
    /// Whether buffers are filled with [`POISON`] while no step needs them.
    #[cfg(test)]
    pub(crate) poison: bool,
}

/// The byte that fills dead buffers: floats of it are not-a-number.
#[cfg(test)]
const POISON: u8 = 0xff;

/// Fills what no step after a value's needs of the arena.
#[cfg(test)]
fn poison(plan: &Plan, value: Value, arena: &mut [Line]) {
    let number = plan.all_steps().position(|step| step == value);
    // Inputs are written between the prologue and the steps.
    let time = number.map_or(0, |n| n + 1 + usize::from(n >= plan.prologue.len()));
    let mut needed = vec![false; arena.len()];
    for (value, life) in &plan.buffers {
        if let Place::Arena(offset) = plan.places[value.index()]
            && life.first <= time
            && life.last > time
        {
            let (first, end) = (
                offset / ALIGNMENT,
                (offset + life.bytes).div_ceil(ALIGNMENT),
            );
            needed[first as usize..end as usize].fill(true);
        }
    }
    let dead = arena.iter_mut().zip(needed).filter(|(_, needed)| !needed);
    dead.for_each(|(line, _)| line.0.fill(POISON));
}

impl CpuSession {
    pub(crate) fn new(
        plans: Vec<Plan>,
        pool: Option<Arc<rayon::ThreadPool>>,
    ) -> Result<Self, Error> {
        let largest = |bytes: fn(&Plan) -> u64| plans.iter().map(bytes).max().unwrap_or(0);
        let mut session = Self {
            pool,
            arena: lines(largest(|plan| plan.arena_bytes)),
            workspace: bytemuck::zeroed_vec((largest(|plan| plan.workspace_bytes) / 4) as usize),
            kept: plans.iter().map(|plan| lines(plan.kept_bytes)).collect(),
            changes: 0,
            plans: Vec::new(),
            variables: Variables::new(&plans)?,
            values: Vec::new(),
            sums: Sums::new(&plans),
            transforms: HashMap::new(),
            schedule: Schedule::new(1e-3, 0, ScheduleKind::Constant)?,
            steps: 0,
            last: None,
            #[cfg(test)]
            poison: false,
        };
        for number in 0..session.variables.infos.len() {
            session.values.push(session.variables.initial(number)?);
        }
        for (plan, variables) in plans.into_iter().zip(session.variables.of_plans.clone()) {
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
            for step in plan.all_steps() {
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
                prepared: None,
            });
        }
        Ok(session)
    }

    fn opened(&self, plan: usize) -> Result<&Opened, Error> {
        let count = self.plans.len();
        self.plans.get(plan).ok_or_else(|| no_plan(count, plan))
    }

    /// A result's bytes at a batch size.
    fn bytes(&self, plan: usize, value: Value, batch: usize) -> Result<&[u8], Error> {
        let opened = self.opened(plan)?;
        let bytes = opened.plan.bytes(value, batch as u64)? as usize;
        Ok(match opened.plan.places[value.index()] {
            Place::Arena(offset) => {
                &bytemuck::cast_slice(&self.arena)[offset as usize..offset as usize + bytes]
            }
            Place::Variable(i) => bytemuck::cast_slice(&self.values[opened.variables[i]]),
            Place::Constant(i) => &bytemuck::cast_slice(&opened.constants[i])[..bytes],
            Place::Kept(offset) => {
                let kept = bytemuck::cast_slice(&self.kept[plan]);
                &kept[offset as usize..offset as usize + bytes]
            }
            Place::Nowhere => &[],
        })
    }

    /// Adds the run's scalar outputs to their sums.
    fn sum_scalars(&mut self, plan: usize, batch: usize) -> Result<(), Error> {
        let values = self.opened(plan)?.plan.scalars().map(|port| {
            let bytes = self.bytes(plan, port.value, batch)?;
            Ok(bytes
                .first_chunk()
                .map_or(f32::NAN, |four| f32::from_le_bytes(*four)))
        });
        let values = values.collect::<Result<Vec<f32>, Error>>()?;
        self.sums.add(plan, batch, values.into_iter());
        Ok(())
    }

    /// Copies the inputs to their places.
    fn feed(&mut self, plan: usize, tensors: &[&HostTensor]) {
        let opened = &self.plans[plan];
        let arena: &mut [u8] = bytemuck::cast_slice_mut(&mut self.arena);
        for (port, tensor) in opened.plan.inputs.iter().zip(tensors) {
            if let Place::Arena(offset) = opened.plan.places[port.value.index()] {
                let (start, bytes) = (offset as usize, tensor.bytes());
                arena[start..start + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// Runs the prologue, where variables have changed since, and the steps.
    fn run_plan(
        &mut self,
        plan: usize,
        batch: usize,
        tensors: &[&HostTensor],
        cancel: &AtomicBool,
    ) -> Result<(), Error> {
        if self.plans[plan].prepared != Some(self.changes) {
            self.plans[plan].prepared = None;
            self.run_steps(plan, batch, cancel, |plan| &plan.prologue)?;
            self.plans[plan].prepared = Some(self.changes);
        }
        self.feed(plan, tensors);
        let trains = u64::from(self.plans[plan].plan.trains);
        self.changes += trains;
        self.run_steps(plan, batch, cancel, |plan| &plan.steps)?;
        self.steps += trains;
        Ok(())
    }

    fn run_steps(
        &mut self,
        plan: usize,
        batch: usize,
        cancel: &AtomicBool,
        steps: fn(&Plan) -> &[Value],
    ) -> Result<(), Error> {
        let opened = &self.plans[plan];
        let (many, rate) = (self.pool.is_some(), self.schedule.rate(self.steps));
        let mut run = Run {
            opened,
            batch,
            workers: Workers::new(many, cancel),
            step: self.steps + 1,
            variables: &mut self.values,
            arena: &mut self.arena,
            kept: &mut self.kept[plan],
            workspace: &mut self.workspace,
            transforms: &self.transforms,
        };
        let epilogues: HashSet<Value> = opened.plan.epilogues.values().copied().collect();
        let steps = steps(&opened.plan).iter();
        for &value in steps.filter(|value| !epilogues.contains(value)) {
            let node = opened.plan.graph.node(value);
            // Updates come last, and once one has begun all are made: a step is taken whole.
            if node.op.is_update() {
                run.workers = Workers::new(many, &NEVER);
            }
            match &node.op {
                Op::Optimize(rule) => run.optimize(rule, node, rate),
                Op::UpdateRunning { momentum, count } => {
                    run.update_running(*momentum, count.at(batch as u64), node);
                }
                _ => run
                    .compute(value, node)
                    .map_err(|error| error.at(node.origin))?,
            }
            if run.workers.cancelled() {
                return Err(Error::new("task.cancelled", "the task is cancelled"));
            }
            #[cfg(test)]
            if self.poison {
                poison(&opened.plan, value, run.arena);
            }
        }
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
        let tensors = check_inputs(&self.opened(plan)?.plan, batch, inputs)?;
        self.last = None;
        match self.pool.clone() {
            Some(pool) => pool.install(|| self.run_plan(plan, batch, &tensors, cancel))?,
            None => self.run_plan(plan, batch, &tensors, cancel)?,
        }
        self.last = Some((plan, batch));
        self.sum_scalars(plan, batch)
    }

    fn output(&mut self, plan: usize, name: &str) -> Result<HostTensor, Error> {
        let (port, batch) = check_output(&self.opened(plan)?.plan, plan, name, self.last)?;
        let bytes = self.bytes(plan, port.value, batch)?.to_vec();
        HostTensor::new(port.dtype, port.shape.at(batch), bytes)
    }

    fn mean(&mut self, plan: usize, name: &str) -> Result<f64, Error> {
        self.sums.take(plan, name)
    }

    fn parameters(&self) -> Vec<ParameterInfo> {
        self.variables.infos.clone()
    }

    fn download(&mut self, name: &str) -> Result<HostTensor, Error> {
        let number = self.variables.find(name)?;
        HostTensor::from_f32(&self.variables.infos[number].shape, &self.values[number])
    }

    fn upload(&mut self, name: &str, value: &HostTensor) -> Result<(), Error> {
        let number = self.variables.accept(name, value)?;
        if let Some(values) = value.to_f32() {
            self.values[number] = values;
            self.changes += 1;
        }
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

    fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    fn used_bytes(&self) -> u64 {
        let lines = |lines: &Vec<Line>| lines.len() as u64 * ALIGNMENT;
        let floats = |floats: &Vec<f32>| floats.len() as u64 * 4;
        let constants = self.plans.iter().flat_map(|opened| &opened.constants);
        lines(&self.arena)
            + self.kept.iter().map(lines).sum::<u64>()
            + floats(&self.workspace)
            + self.values.iter().map(floats).sum::<u64>()
            + constants.map(lines).sum::<u64>()
    }

    fn scratch_bytes(&self) -> u64 {
        let threads = self
            .pool
            .as_ref()
            .map_or(1, |pool| pool.current_num_threads());
        threads as u64 * SCRATCH_BYTES
    }
}
