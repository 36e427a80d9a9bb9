//! A session on a GPU: one allocation, and runs that the host only queues.
//!
//! A run copies its batch into a pinned buffer, from which a stream of its own takes it to the GPU
//! while the run before computes. The compute stream then puts it into place, runs the plan's
//! commands (from the second time on as a graph) and sends back the error word and the scalar
//! outputs. The host looks at these when the buffer is needed again, or when it is asked for a
//! result.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::blas::Product;
use super::driver::{DeviceMemory, Event, Function, Graph, PinnedMemory, Stream};
use super::layout::{Layout, SLOTS};
use super::lower::{self, Part};
use super::optimizer::{Group, groups, step_bytes};
use super::program::{Command, ErrorWord, Launch, Target};
use super::recent::Recent;
use super::{Gpu, Options, dnn, signal};
use crate::backend::{ParameterInfo, Session};
use crate::error::Error;
use crate::graph::{Leaf, Value};
use crate::opening::{Sums, Variables, check_inputs, check_output, no_plan};
use crate::ops::Op;
use crate::plan::{Place, Plan};
use crate::schedule::{Schedule, ScheduleKind};
use crate::tensor::HostTensor;

/// Commands are kept ready for so many pairs of plan and batch size, those that ran last.
const MOST_READY: usize = 16;
/// Bytes that one copy between the GPU and pageable memory moves.
const PIECE_BYTES: usize = 4 << 20;

/// A plan with its place on the GPU.
struct Opened {
    plan: Plan,
    addresses: lower::Addresses,
    groups: Vec<Group>,
    /// Of each input within a staging buffer, then of the step values.
    staged: Vec<u64>,
    /// How often variables had changed when the prologue ran last.
    prepared: Option<u64>,
}

/// A command whose functions and algorithms are found.
enum Prepared {
    Launch(Function, [u32; 3], Vec<Vec<u64>>),
    Copy { to: u64, from: u64, bytes: u64 },
    Product(Product),
    Convolution(dnn::Convolution),
}

impl Prepared {
    fn give(&mut self, stream: &Stream) -> Result<(), Error> {
        match self {
            Self::Launch(function, blocks, arguments) => {
                let pointer = |words: &mut Vec<u64>| words.as_mut_ptr().cast::<c_void>();
                let mut pointers: Vec<_> = arguments.iter_mut().map(pointer).collect();
                stream.launch(*function, *blocks, &mut pointers)
            }
            Self::Copy { to, from, bytes } => stream.copy(*to, *from, *bytes),
            Self::Product(product) => product.run(stream),
            Self::Convolution(convolution) => convolution.run(stream),
        }
    }
}

/// A plan's commands at a batch size.
struct Ready {
    commands: Vec<Prepared>,
    graph: Option<Graph>,
    /// Whether recording was tried.
    recorded: bool,
}

impl Ready {
    fn give(&mut self, stream: &Stream) -> Result<(), Error> {
        let mut commands = self.commands.iter_mut();
        commands.try_for_each(|command| command.give(stream))
    }

    /// Records the commands as a graph. Where that fails they are launched one by one, with the
    /// same results.
    fn record(&mut self, stream: &Stream) {
        self.recorded = true;
        self.graph = stream.capture(|| self.give(stream)).ok();
    }
}

/// A batch on its way.
struct Slot {
    inputs: PinnedMemory,
    results: PinnedMemory,
    uploaded: Event,
    done: Event,
    /// Plan and batch size of the run whose results are still to be read.
    running: Option<(usize, usize)>,
}

pub(super) struct CudaSession {
    device: String,
    options: Options,
    plans: Vec<Opened>,
    variables: Variables,
    /// Addresses by the session's numbers.
    values: Vec<u64>,
    sums: Sums,
    schedule: Schedule,
    steps: u64,
    /// How often variables have changed.
    changes: u64,
    last: Option<(usize, usize)>,
    turn: usize,
    layout: Layout,
    // Dropped in this order: what uses the memory before the memory, all before the context.
    ready: Recent<(usize, usize), Ready>,
    compute: Stream,
    copies: Stream,
    slots: [Slot; SLOTS],
    bounce: PinnedMemory,
    memory: DeviceMemory,
    gpu: Arc<Gpu>,
}

impl CudaSession {
    pub(super) fn new(
        plans: Vec<Plan>,
        gpu: Arc<Gpu>,
        device: String,
        options: Options,
    ) -> Result<Self, Error> {
        let context = Arc::clone(&gpu.context);
        context.bind()?;
        let variables = Variables::new(&plans)?;
        let layout = Layout::new(&plans.iter().collect::<Vec<_>>())?;
        let memory = DeviceMemory::new(&context, layout.total_bytes)?;
        let base = memory.address();
        let slot = || -> Result<Slot, Error> {
            Ok(Slot {
                inputs: PinnedMemory::new(&context, layout.staging_bytes)?,
                results: PinnedMemory::new(&context, layout.results_bytes)?,
                uploaded: Event::new(&context)?,
                done: Event::new(&context)?,
                running: None,
            })
        };
        let values = variables
            .infos
            .iter()
            .map(|info| base + layout.variables[&info.name]);
        let opened = |(number, plan): (usize, &Plan)| Opened {
            addresses: layout.addresses(number, plan, base),
            groups: groups(plan),
            staged: layout.plans[number].staged.clone(),
            prepared: None,
            plan: plan.clone(),
        };
        let mut session = Self {
            device,
            options,
            values: values.collect(),
            sums: Sums::new(&plans),
            plans: plans.iter().enumerate().map(opened).collect(),
            variables,
            schedule: Schedule::new(1e-3, 0, ScheduleKind::Constant)?,
            steps: 0,
            changes: 0,
            last: None,
            turn: 0,
            ready: Recent::new(MOST_READY),
            compute: Stream::new(&context)?,
            copies: Stream::new(&context)?,
            slots: [slot()?, slot()?],
            bounce: PinnedMemory::new(&context, PIECE_BYTES as u64)?,
            layout,
            memory,
            gpu,
        };
        session.fill()?;
        Ok(session)
    }

    /// Writes everything that is there before the first run.
    fn fill(&mut self) -> Result<(), Error> {
        let base = self.memory.address();
        self.compute.clear(base, self.layout.total_bytes)?;
        for number in 0..self.values.len() {
            let values = self.variables.initial(number)?;
            self.write(self.values[number], bytemuck::cast_slice(&values))?;
        }
        for (stft, offset) in self.layout.tables.clone() {
            self.write(base + offset, bytemuck::cast_slice(&signal::table(&stft)))?;
        }
        for number in 0..self.plans.len() {
            let plan = self.plans[number].plan.clone();
            for (i, &value) in plan.constants.iter().enumerate() {
                if let Op::Leaf(Leaf::Constant(bytes)) = &plan.graph.node(value).op {
                    self.write(self.plans[number].addresses.constants[i], bytes)?;
                }
            }
            let targets = self.targets(number);
            let at = self.plans[number].addresses.targets;
            self.write(at, bytemuck::cast_slice(&targets))?;
        }
        Ok(())
    }

    fn targets(&self, number: usize) -> Vec<Target> {
        let opened = &self.plans[number];
        let target = |&step: &Value| {
            let inputs = &opened.plan.graph.node(step).inputs;
            let at = |i: usize| {
                inputs
                    .get(i)
                    .map_or(0, |&value| self.address(number, value))
            };
            let elements = opened
                .plan
                .graph
                .node(inputs[0])
                .shape
                .elements(1)
                .unwrap_or(0);
            Target {
                parameter: at(0),
                gradient: at(1),
                first: at(2),
                second: at(3),
                elements: elements as u32,
                unused: 0,
            }
        };
        opened
            .groups
            .iter()
            .flat_map(|group| &group.nodes)
            .map(target)
            .collect()
    }

    fn address(&self, plan: usize, value: Value) -> u64 {
        let Opened {
            plan, addresses, ..
        } = &self.plans[plan];
        addresses.of(plan, value)
    }

    fn opened(&self, plan: usize) -> Result<&Opened, Error> {
        let count = self.plans.len();
        self.plans.get(plan).ok_or_else(|| no_plan(count, plan))
    }

    /// Copies bytes to the GPU, and waits.
    fn write(&mut self, mut to: u64, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.bounce.bytes_mut()[..piece.len()].copy_from_slice(piece);
            self.compute.upload(to, &self.bounce, piece.len())?;
            self.compute.synchronize()?;
            to += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies bytes from the GPU, after all that runs there.
    fn read(&mut self, from: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let mut read = Vec::with_capacity(bytes);
        while read.len() < bytes {
            let piece = PIECE_BYTES.min(bytes - read.len());
            self.compute
                .download(&mut self.bounce, from + read.len() as u64, piece)?;
            self.compute.synchronize()?;
            read.extend_from_slice(&self.bounce.bytes()[..piece]);
        }
        Ok(read)
    }

    /// Waits for a slot's run and takes its results. Errors: what the run met.
    fn finish(&mut self, slot: usize) -> Result<(), Error> {
        let Some((plan, batch)) = self.slots[slot].running.take() else {
            return Ok(());
        };
        self.slots[slot].done.synchronize()?;
        let bytes = self.slots[slot].results.bytes();
        let (word, scalars) = bytes.split_at(size_of::<ErrorWord>());
        let word: ErrorWord = bytemuck::pod_read_unaligned(word);
        if word.node != 0 {
            // Runs that came after may have met the word too: they are not summed.
            self.last = None;
            self.compute.synchronize()?;
            self.slots.iter_mut().for_each(|slot| slot.running = None);
            self.compute
                .clear(self.plans[plan].addresses.results, word_bytes())?;
            let value = Value(word.node - 1);
            let labels = matches!(
                self.plans[plan].plan.graph.node(value).op,
                Op::CrossEntropy { .. } | Op::CrossEntropyGradient { .. }
            );
            let error = if labels {
                Error::label(word.label, word.classes as usize)
            } else {
                Error::index(word.label, word.classes as usize)
            };
            return Err(error.at(self.plans[plan].plan.origin(value)));
        }
        let scalars = scalars
            .as_chunks::<4>()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four));
        self.sums.add(plan, batch, scalars);
        Ok(())
    }

    /// Waits for all runs, the oldest first, and takes their results.
    fn finish_all(&mut self) -> Result<(), Error> {
        let first = self.turn;
        (0..SLOTS).try_for_each(|i| self.finish((first + i) % SLOTS))
    }

    fn prepare(&self, plan: usize, part: Part, batch: usize) -> Result<Ready, Error> {
        let opened = &self.plans[plan];
        let capacity = Some(self.layout.workspace_bytes);
        let lowered = lower::lower(&opened.plan, part, batch, &opened.addresses, capacity)?;
        let workspace = self.memory.address() + self.layout.library;
        let tf32 = self.options.tf32;
        let mut commands = Vec::with_capacity(lowered.commands.len());
        let launch = |launch: Launch| -> Result<Prepared, Error> {
            let function = self.gpu.kernels.get(launch.kernel)?;
            Ok(Prepared::Launch(function, launch.blocks, launch.arguments))
        };
        for command in lowered.commands {
            match command {
                Command::Launch(own) => commands.push(launch(own)?),
                Command::Copy { to, from, bytes } => {
                    commands.push(Prepared::Copy { to, from, bytes });
                }
                Command::Product(shape, operands) => {
                    let product = Product::new(&self.gpu.blas, shape, operands, workspace, tf32)?;
                    commands.push(Prepared::Product(product));
                }
                Command::Convolution(conv) => {
                    let ready = self.gpu.dnn.as_ref().and_then(|dnn| {
                        let workspace = (workspace, self.layout.library_bytes);
                        dnn::Convolution::new(dnn, &conv.shape, conv.operands, workspace, tf32).ok()
                    });
                    let launches = match ready {
                        Some(ready) => {
                            for own in conv.before {
                                commands.push(launch(own)?);
                            }
                            commands.push(Prepared::Convolution(ready));
                            conv.after
                        }
                        None => conv.own,
                    };
                    for own in launches {
                        commands.push(launch(own)?);
                    }
                }
            }
        }
        Ok(Ready {
            commands,
            graph: None,
            recorded: false,
        })
    }

    /// Queues what a plan computes of variables alone, where they have changed since.
    fn run_prologue(&mut self, plan: usize, batch: usize) -> Result<(), Error> {
        if self.plans[plan].prepared != Some(self.changes) {
            let mut once = self.prepare(plan, Part::Prologue, batch)?;
            self.plans[plan].prepared = None;
            once.give(&self.compute)?;
            self.plans[plan].prepared = Some(self.changes);
        }
        Ok(())
    }

    /// Fills a slot's pinned buffer and returns the bytes of it that are used.
    fn stage(&mut self, slot: usize, plan: usize, tensors: &[&HostTensor]) -> usize {
        let opened = &self.plans[plan];
        let buffer = self.slots[slot].inputs.bytes_mut();
        let mut used = 0;
        for (tensor, &offset) in tensors.iter().zip(&opened.staged) {
            let (start, bytes) = (offset as usize, tensor.bytes());
            buffer[start..start + bytes.len()].copy_from_slice(bytes);
            used = start + bytes.len();
        }
        let (rate, step) = (self.schedule.rate(self.steps), self.steps + 1);
        let mut at = opened.staged[tensors.len()] as usize;
        for group in &opened.groups {
            let values = group.rule.step_values(rate, step);
            let bytes: &[u8] = bytemuck::cast_slice(&values);
            buffer[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
        buffer[at..at + 8].copy_from_slice(&step.to_le_bytes());
        used.max(at + 8)
    }
}

/// Pinned host memory of a session.
pub(super) fn host_bytes(layout: &Layout) -> u64 {
    let slot = layout.staging_bytes + layout.results_bytes;
    SLOTS as u64 * slot + PIECE_BYTES as u64
}

fn word_bytes() -> u64 {
    size_of::<ErrorWord>() as u64
}

impl Session for CudaSession {
    fn device(&self) -> &str {
        &self.device
    }

    fn run(
        &mut self,
        plan: usize,
        batch: usize,
        inputs: &[(&str, &HostTensor)],
        cancel: &AtomicBool,
    ) -> Result<(), Error> {
        let tensors = check_inputs(&self.opened(plan)?.plan, batch, inputs)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new("task.cancelled", "the task is cancelled"));
        }
        self.gpu.context.bind()?;
        let slot = self.turn;
        self.finish(slot)?;
        self.last = None;
        // The first run launches the commands one by one, which also lets the libraries load what
        // they need: that is not allowed while a graph is recorded.
        let mut ready = match self.ready.take(&(plan, batch)) {
            Some(mut ready) => {
                if self.options.graphs && !ready.recorded {
                    ready.record(&self.compute);
                }
                ready
            }
            None => self.prepare(plan, Part::Run, batch)?,
        };
        self.run_prologue(plan, batch)?;
        let used = self.stage(slot, plan, &tensors);
        let staging = self.memory.address() + self.layout.staging[slot];
        let (opened, own) = (&self.plans[plan], &mut self.slots[slot]);
        self.copies.upload(staging, &own.inputs, used)?;
        own.uploaded.record(&self.copies)?;
        self.compute.wait(&own.uploaded)?;
        for ((port, tensor), offset) in opened.plan.inputs.iter().zip(&tensors).zip(&opened.staged)
        {
            if let Place::Arena(place) = opened.plan.places[port.value.index()] {
                let bytes = tensor.bytes().len() as u64;
                self.compute
                    .copy(opened.addresses.arena + place, staging + offset, bytes)?;
            }
        }
        let (from, bytes) = (
            staging + opened.staged[tensors.len()],
            step_bytes(&opened.groups),
        );
        self.compute.copy(opened.addresses.steps, from, bytes)?;
        match &ready.graph {
            Some(graph) => self.compute.replay(graph)?,
            None => ready.give(&self.compute)?,
        }
        let bytes = word_bytes() as usize + 4 * opened.plan.scalars().count();
        self.compute
            .download(&mut own.results, opened.addresses.results, bytes)?;
        own.done.record(&self.compute)?;
        own.running = Some((plan, batch));
        self.steps += u64::from(opened.plan.trains);
        self.changes += u64::from(opened.plan.trains);
        self.ready.put((plan, batch), ready);
        self.turn = (self.turn + 1) % SLOTS;
        self.last = Some((plan, batch));
        Ok(())
    }

    fn output(&mut self, plan: usize, name: &str) -> Result<HostTensor, Error> {
        self.gpu.context.bind()?;
        self.finish_all()?;
        let opened = self.opened(plan)?;
        let (port, batch) = check_output(&opened.plan, plan, name, self.last)?;
        let (dtype, shape) = (port.dtype, port.shape.at(batch));
        let bytes = opened.plan.bytes(port.value, batch as u64)? as usize;
        let bytes = self.read(self.address(plan, port.value), bytes)?;
        HostTensor::new(dtype, shape, bytes)
    }

    fn mean(&mut self, plan: usize, name: &str) -> Result<f64, Error> {
        self.gpu.context.bind()?;
        self.finish_all()?;
        self.sums.take(plan, name)
    }

    fn parameters(&self) -> Vec<ParameterInfo> {
        self.variables.infos.clone()
    }

    fn download(&mut self, name: &str) -> Result<HostTensor, Error> {
        let number = self.variables.find(name)?;
        self.gpu.context.bind()?;
        self.finish_all()?;
        let ParameterInfo { shape, .. } = &self.variables.infos[number];
        let shape = shape.clone();
        let bytes = shape.iter().product::<usize>() * 4;
        let bytes = self.read(self.values[number], bytes)?;
        HostTensor::new(crate::dtype::DType::F32, shape, bytes)
    }

    fn upload(&mut self, name: &str, value: &HostTensor) -> Result<(), Error> {
        let number = self.variables.accept(name, value)?;
        self.gpu.context.bind()?;
        self.finish_all()?;
        self.changes += 1;
        self.write(self.values[number], value.bytes())
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
        self.layout.total_bytes
    }

    fn scratch_bytes(&self) -> u64 {
        host_bytes(&self.layout)
    }
}

impl Drop for CudaSession {
    fn drop(&mut self) {
        // What still runs uses buffers that are about to go.
        let _bound = self.gpu.context.bind();
        let _waited = self.copies.synchronize().and(self.compute.synchronize());
    }
}
