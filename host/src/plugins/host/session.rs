//! `model`: sessions. One call runs one training step; tensors never enter the plugin.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use compute::cpu::CpuBackend;
use compute::cuda::{self, CudaBackend};
use compute::schedule::ScheduleKind;
use compute::{Backend, DType, HostTensor, Schedule, replicas};
use wasmtime::component::Resource;

use super::State;
use super::data::Loader;
use super::devices::{Held, Lease};
use super::error::{HostError, Result};
use super::model::Plan;
use crate::plugins::bindings::hangar::pipeline::model;
use crate::worker::protocol::{FromWorker, Grant};

/// The most bytes of one `read`.
const READ_BYTES: u32 = 1 << 20;
/// The input that takes a batch's samples, and the one that takes its labels.
const SAMPLES: &str = "x";
const LABELS: &str = "y";

/// Plans open on a lease.
pub struct Session {
    pub(super) session: Box<dyn compute::Session>,
    plans: Vec<OpenPlan>,
    used_bytes: u64,
    held: Arc<Held>,
}

/// What the host knows of a plan of a session.
struct OpenPlan {
    inputs: Vec<(String, DType, compute::Shape)>,
}

impl OpenPlan {
    fn new(plan: &compute::Plan) -> Self {
        Self {
            inputs: plan
                .inputs()
                .iter()
                .map(|port| (port.name.clone(), port.dtype, port.shape.clone()))
                .collect(),
        }
    }

    fn takes(&self, name: &str) -> bool {
        self.inputs.iter().any(|(input, ..)| input == name)
    }

    /// The input of this name as the plugin wrote it.
    fn input(&self, name: &str, batch: usize, bytes: Vec<u8>) -> Result<HostTensor> {
        let Some((_, dtype, shape)) = self.inputs.iter().find(|(input, ..)| input == name) else {
            let message = format!("the plan has no input `{name}`");
            return Err(HostError::new("model.input", message));
        };
        let expected = shape
            .elements(batch as u64)?
            .saturating_mul(dtype.size_bytes() as u64);
        if expected != bytes.len() as u64 {
            let message = format!(
                "input `{name}` of {dtype} {shape} takes {expected} bytes for {batch} samples, not {}",
                bytes.len()
            );
            return Err(HostError::new("model.input", message));
        }
        Ok(HostTensor::new(*dtype, shape.at(batch), bytes)?)
    }
}

impl Session {
    /// Runs a plan.
    fn run(
        &mut self,
        plan: usize,
        batch: usize,
        inputs: &[(&str, &HostTensor)],
        cancelled: &std::sync::atomic::AtomicBool,
    ) -> Result<()> {
        if self.held.dropped.load(Ordering::Relaxed) {
            let message = "the lease of this session was dropped: open another on a new lease";
            return Err(HostError::new("device.released", message));
        }
        self.on_device(|session| session.run(plan, batch, inputs, cancelled))
    }

    /// Does something on the device, and keeps the error that ends its use.
    pub(super) fn on_device<T>(
        &mut self,
        work: impl FnOnce(&mut dyn compute::Session) -> std::result::Result<T, compute::Error>,
    ) -> Result<T> {
        work(&mut *self.session).map_err(|error| self.held.note(error))
    }

    fn plan(&self, plan: usize) -> Result<&OpenPlan> {
        self.plans.get(plan).ok_or_else(|| no_plan(plan))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.held.gives_back(self.used_bytes);
    }
}

fn no_plan(plan: usize) -> HostError {
    HostError::new("model.plan", format!("the session has no plan {plan}"))
}

impl State {
    /// The backends of granted devices, in order.
    fn backends(
        &self,
        grant: &Grant,
    ) -> std::result::Result<Vec<Arc<dyn Backend>>, compute::Error> {
        let Some(uuid) = &grant.uuid else {
            return Ok(vec![Arc::new(CpuBackend::new(self.grants.threads)?)]);
        };
        let options = cuda::Options {
            tf32: self.grants.tf32,
            ..cuda::Options::default()
        };
        let mut backends: Vec<Arc<dyn Backend>> =
            vec![Arc::new(CudaBackend::new(uuid, &grant.device, options)?)];
        for gpu in &grant.others {
            let backend = CudaBackend::new(&gpu.uuid, &gpu.device, options);
            backends.push(Arc::new(backend.map_err(|error| error.on(&gpu.device))?));
        }
        Ok(backends)
    }
}

impl model::HostSession for State {
    fn open(
        &mut self,
        plans: Vec<Resource<Plan>>,
        on: Resource<Lease>,
    ) -> Result<Resource<Session>> {
        self.check_cancelled()?;
        let held = Arc::clone(&self.table.get(&on)?.0);
        let mut known = Vec::with_capacity(plans.len());
        for plan in &plans {
            known.push(OpenPlan::new(&self.table.get(plan)?.plan));
        }
        let backends = held.backends_or(|grant| self.backends(grant))?;
        let session = match &backends[..] {
            [backend] => {
                let plans = plans
                    .iter()
                    .map(|plan| Ok(self.table.get(plan)?.plan.clone()));
                backend.open(plans.collect::<Result<_>>()?, held.free_bytes())?
            }
            backends => {
                let shares = plans.iter().map(|plan| {
                    let plan = self.table.get_mut(plan)?;
                    Ok(plan.share(held.width())?.clone())
                });
                let shares = shares.collect::<Result<Vec<_>>>()?;
                let opened = replicas::open(backends, &shares, held.free_bytes());
                opened.map_err(|error| held.note(error))?
            }
        };
        let used_bytes = session.used_bytes();
        held.took(used_bytes);
        let device = session.device().to_owned();
        let scratch_bytes = session.scratch_bytes();
        let session = self.table.push(Session {
            session,
            plans: known,
            used_bytes,
            held,
        })?;
        self.tell(FromWorker::Running {
            device,
            scratch_bytes,
        });
        Ok(session)
    }

    fn learning_rate(
        &mut self,
        session: Resource<Session>,
        base: f64,
        kind: String,
        options: Vec<(String, String)>,
    ) -> Result<()> {
        let schedule = schedule(base, &kind, &options)?;
        self.table.get_mut(&session)?.session.set_schedule(schedule);
        Ok(())
    }

    fn current_learning_rate(&mut self, session: Resource<Session>) -> wasmtime::Result<f64> {
        Ok(self.table.get(&session)?.session.learning_rate())
    }

    fn step(
        &mut self,
        session: Resource<Session>,
        plan: u32,
        batches: Resource<Loader>,
    ) -> Result<u32> {
        self.check_cancelled()?;
        let cancelled = Arc::clone(&self.grants.cancelled);
        let plan = plan as usize;
        let labelled = self.table.get(&session)?.plan(plan)?.takes(LABELS);
        let loader = &mut self.table.get_mut(&batches)?.0;
        let Some(batch) = loader.next(&cancelled) else {
            return Ok(0);
        };
        let batch = batch?;
        let mut inputs = vec![(SAMPLES, &batch.samples)];
        match &batch.labels {
            Some(labels) if labelled => inputs.push((LABELS, labels)),
            None if labelled => {
                let message = format!("the plan takes labels (`{LABELS}`), and the data has none");
                return Err(HostError::new("model.input", message));
            }
            Some(_) | None => {}
        }
        let session = self.table.get_mut(&session)?;
        session.run(plan, batch.size, &inputs, &cancelled)?;
        Ok(u32::try_from(batch.size).unwrap_or(u32::MAX))
    }

    fn run(
        &mut self,
        session: Resource<Session>,
        plan: u32,
        batch: u32,
        inputs: Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        self.check_cancelled()?;
        let (plan, batch) = (plan as usize, batch as usize);
        let cancelled = Arc::clone(&self.grants.cancelled);
        let session = self.table.get_mut(&session)?;
        let known = session.plan(plan)?;
        let tensors: Vec<(String, HostTensor)> = inputs
            .into_iter()
            .map(|(name, bytes)| {
                let tensor = known.input(&name, batch, bytes)?;
                Ok((name, tensor))
            })
            .collect::<Result<_>>()?;
        let inputs: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        session.run(plan, batch, &inputs, &cancelled)
    }

    fn mean(&mut self, session: Resource<Session>, plan: u32, output: String) -> Result<f64> {
        let session = self.table.get_mut(&session)?;
        session.on_device(|session| session.mean(plan as usize, &output))
    }

    fn read(
        &mut self,
        session: Resource<Session>,
        plan: u32,
        output: String,
        offset: u64,
        length: u32,
    ) -> Result<Vec<u8>> {
        if length > READ_BYTES {
            let message = format!("{length} bytes: at most {READ_BYTES} are read at once");
            return Err(HostError::new("model.range", message));
        }
        let session = self.table.get_mut(&session)?;
        let tensor = session.on_device(|session| session.output(plan as usize, &output))?;
        let bytes = tensor.bytes();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let end = start.saturating_add(length as usize).min(bytes.len());
        Ok(bytes.get(start..end).unwrap_or_default().to_vec())
    }

    fn output_shape(
        &mut self,
        session: Resource<Session>,
        plan: u32,
        output: String,
    ) -> Result<Vec<u32>> {
        let session = self.table.get_mut(&session)?;
        let tensor = session.on_device(|session| session.output(plan as usize, &output))?;
        let size = |&size: &usize| u32::try_from(size).unwrap_or(u32::MAX);
        Ok(tensor.shape().iter().map(size).collect())
    }

    fn save(
        &mut self,
        session: Resource<Session>,
        name: String,
        metadata: Vec<(String, String)>,
    ) -> Result<()> {
        self.write_weights(&session, &name, &metadata)
    }

    fn load(&mut self, session: Resource<Session>) -> Result<()> {
        self.read_weights(&session, &[]).map(|_| ())
    }

    fn load_adapted(
        &mut self,
        session: Resource<Session>,
        options: Vec<(String, String)>,
    ) -> Result<Vec<String>> {
        self.read_weights(&session, &options)
    }

    fn save_state(
        &mut self,
        session: Resource<Session>,
        name: String,
        metadata: Vec<(String, String)>,
    ) -> Result<()> {
        self.write_state(&session, &name, metadata)
    }

    fn load_state(&mut self, session: Resource<Session>) -> Result<()> {
        self.read_state(&session)
    }

    fn drop(&mut self, session: Resource<Session>) -> wasmtime::Result<()> {
        self.table.delete(session)?;
        Ok(())
    }
}

/// A schedule from the contract's words.
fn schedule(base: f64, kind: &str, options: &[(String, String)]) -> Result<Schedule> {
    let known: &[&str] = match kind {
        "constant" => &[],
        "step" => &["every", "gamma", "warmup"],
        "cosine" => &["total", "final", "warmup"],
        other => {
            let message =
                format!("`{other}` is not a schedule; choose one of constant, step, cosine");
            return Err(HostError::new("option.value", message));
        }
    };
    if let Some((name, _)) = options.iter().find(|(name, _)| !known.contains(&&**name)) {
        let listed = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        let message = format!("`{name}` is not an option of the schedule {kind}; it has {listed}");
        return Err(HostError::new("option.unknown", message));
    }
    let option = |name: &str| {
        let given = options.iter().find(|(given, _)| given == name);
        given.map(|(_, value)| value.as_str())
    };
    fn parse<T: std::str::FromStr>(name: &str, value: Option<&str>) -> Result<Option<T>> {
        let Some(value) = value else { return Ok(None) };
        value.parse().map(Some).map_err(|_| {
            let message = format!("`{name}` is `{}`, not a number", value.escape_debug());
            HostError::new("option.value", message)
        })
    }
    let required = |name: &str| {
        HostError::new(
            "option.value",
            format!("the schedule {kind} needs the option `{name}`"),
        )
    };
    let warmup = parse("warmup", option("warmup"))?.unwrap_or(0);
    let kind = match kind {
        "step" => ScheduleKind::Step {
            every: parse("every", option("every"))?.ok_or_else(|| required("every"))?,
            gamma: parse("gamma", option("gamma"))?.ok_or_else(|| required("gamma"))?,
        },
        "cosine" => ScheduleKind::Cosine {
            total: parse("total", option("total"))?.ok_or_else(|| required("total"))?,
            last: parse("final", option("final"))?.unwrap_or(0.0),
        },
        _ => ScheduleKind::Constant,
    };
    Ok(Schedule::new(base, warmup, kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<T>(result: Result<T>) -> (String, String) {
        match result {
            Err(HostError::Told(error)) => (error.code, error.message),
            Err(HostError::Trap(error)) => panic!("{error}"),
            Ok(_) => panic!("no error"),
        }
    }

    fn pairs(options: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        options.iter().map(owned).collect()
    }

    #[test]
    fn a_schedule_refuses_options_it_does_not_know_and_lists_those_it_does() {
        let (code, message) = told(schedule(0.1, "cosine", &pairs(&[("tota", "10")])));
        assert_eq!(code, "option.unknown");
        assert!(message.contains("total, final, warmup"), "{message}");
    }

    #[test]
    fn a_schedule_refuses_values_that_are_no_numbers_and_missing_ones() {
        let given = [
            ("step", pairs(&[("every", "x"), ("gamma", "0.1")])),
            ("step", pairs(&[("every", "10")])),
            ("cosine", pairs(&[])),
            ("magic", pairs(&[])),
        ];
        for (kind, options) in given {
            assert_eq!(
                told(schedule(0.1, kind, &options)).0,
                "option.value",
                "{kind}"
            );
        }
    }

    #[test]
    fn a_cosine_schedule_reaches_its_final_rate() {
        let options = pairs(&[("total", "10"), ("final", "0.01")]);
        let schedule = match schedule(0.1, "cosine", &options) {
            Ok(schedule) => schedule,
            Err(error) => panic!("{error:?}"),
        };
        assert!((schedule.rate(10) - 0.01).abs() < 1e-12);
    }
}
