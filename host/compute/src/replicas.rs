//! One model on several devices: each replica computes the gradients of its own samples at the same time
//! as the others, and all make the same step with the averages (data parallelism).
//!
//! A batch's samples are parted in order, as evenly as can be; a batch of fewer samples than there are
//! replicas is computed by the first of them. Averages are weighed by samples, added up in the order of
//! the replicas in float64 and rounded once, in host memory, so that results are the same bit for bit from
//! run to run, and variables the same on all replicas.

mod gather;
mod share;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use self::gather::{averaged, concatenated, nothing, rows, slice};
pub use self::share::Share;
use self::share::{Gather, batch_axis};
use crate::backend::{Backend, ParameterInfo, Session};
use crate::error::Error;
use crate::opening::{check_inputs, check_output, no_plan};
use crate::schedule::Schedule;
use crate::tensor::HostTensor;

/// Once gradients are averaged the step is made whole, on all replicas.
static NEVER: AtomicBool = AtomicBool::new(false);

/// A plan of the session.
struct Opened {
    share: Share,
    /// The number of its part among the plans of a device, and of its update.
    part: usize,
    update: usize,
    /// By scalar output, the samples of each replica since its mean was last asked for.
    samples: Vec<Vec<u64>>,
}

/// A run whose outputs can be read.
struct Run {
    plan: usize,
    batch: usize,
    rows: Vec<Range<usize>>,
    /// Outputs that the update has overwritten on the devices.
    kept: Vec<(String, HostTensor)>,
}

struct Replicated {
    sessions: Vec<Box<dyn Session>>,
    plans: Vec<Opened>,
    pool: rayon::ThreadPool,
    last: Option<Run>,
    /// A step that was not made on all replicas: they are not the same any more.
    parted: Option<Error>,
}

/// Opens plans on several devices, each with the same budget. Errors: as a backend's, and
/// `backend.threads` where the system gives no threads.
pub fn open(
    backends: &[Arc<dyn Backend>],
    shares: &[Share],
    budget_bytes: u64,
) -> Result<Box<dyn Session>, Error> {
    Ok(Box::new(replicated(backends, shares, budget_bytes)?))
}

fn replicated(
    backends: &[Arc<dyn Backend>],
    shares: &[Share],
    budget_bytes: u64,
) -> Result<Replicated, Error> {
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(backends.len())
        .thread_name(|number| format!("replica-{number}"))
        .build();
    let pool = threads.map_err(|error| {
        let message = format!("no threads for {} devices: {error}", backends.len());
        Error::new("backend.threads", message)
    })?;
    let opened = |(replica, backend): (usize, &Arc<dyn Backend>)| {
        let plans = shares.iter().flat_map(Share::plans);
        let plans = plans.map(|plan| plan.clone().reseeded(replica)).collect();
        let session = backend.open(plans, budget_bytes);
        session.map_err(|error| error.on(backend.device()))
    };
    let sessions: Vec<_> = pool.install(|| backends.par_iter().enumerate().map(opened).collect());
    let sessions = sessions.into_iter().collect::<Result<Vec<_>, Error>>()?;
    let mut next = 0;
    let plans = shares.iter().map(|share| {
        let part = next;
        next += share.plans().count();
        Opened {
            samples: vec![vec![0; backends.len()]; share.gathers.len()],
            share: share.clone(),
            part,
            update: part + 1,
        }
    });
    Ok(Replicated {
        plans: plans.collect(),
        sessions,
        pool,
        last: None,
        parted: None,
    })
}

/// The first error, of a device before all others.
fn first<T>(results: Vec<Result<T, Error>>) -> Result<Vec<T>, Error> {
    let mut failures = results.iter().filter_map(|result| result.as_ref().err());
    let own = failures
        .clone()
        .find(|error| error.code().starts_with("device."));
    match own.or(failures.next()) {
        Some(error) => Err(error.clone()),
        None => results.into_iter().collect(),
    }
}

impl Replicated {
    /// Works with all sessions at the same time. Gives the results in order.
    fn each<T: Send>(
        &mut self,
        work: impl Fn(usize, &mut dyn Session) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        self.each_of(usize::MAX, work)
    }

    /// The same with the first sessions alone.
    fn each_of<T: Send>(
        &mut self,
        count: usize,
        work: impl Fn(usize, &mut dyn Session) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let sessions = &mut self.sessions;
        let count = count.min(sessions.len());
        let results = self.pool.install(|| {
            let working = sessions[..count].par_iter_mut().enumerate().with_max_len(1);
            working
                .map(|(replica, session)| {
                    let result = work(replica, &mut **session);
                    result.map_err(|error| error.on(session.device()))
                })
                .collect()
        });
        first(results)
    }

    fn opened(&self, plan: usize) -> Result<&Opened, Error> {
        let count = self.plans.len();
        self.plans.get(plan).ok_or_else(|| no_plan(count, plan))
    }

    /// Computes each replica's samples. Gives the outputs that are fetched at once, by replica.
    fn compute(
        &mut self,
        plan: usize,
        (batch, rows): (usize, &[Range<usize>]),
        inputs: &[(&str, &HostTensor)],
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<HostTensor>>, Error> {
        let opened = self.opened(plan)?;
        let (part, split) = (opened.part, opened.share.split);
        let own = &opened.share.part;
        let ports: Vec<(String, bool)> = own
            .inputs()
            .iter()
            .map(|port| (port.name.clone(), batch_axis(&port.shape).is_some()))
            .collect();
        let fetched: Vec<String> = match opened.share.update {
            Some(_) => own.outputs().iter().map(|port| port.name.clone()).collect(),
            None => Vec::new(),
        };
        self.each_of(rows.len(), |replica, session| {
            let mut tensors = Vec::with_capacity(ports.len());
            for (name, batched) in &ports {
                let tensor = inputs.iter().find(|(given, _)| given == name);
                if let Some((_, tensor)) = tensor {
                    let own = (split && *batched)
                        .then(|| slice(tensor, &rows[replica], batch))
                        .transpose()?;
                    tensors.push((name.as_str(), own, *tensor));
                }
            }
            let tensors: Vec<(&str, &HostTensor)> = tensors
                .iter()
                .map(|(name, own, whole)| (*name, own.as_ref().unwrap_or(whole)))
                .collect();
            session.run(part, rows[replica].len(), &tensors, cancel)?;
            let outputs = fetched.iter().map(|name| session.output(part, name));
            outputs.collect()
        })
    }

    /// Makes the step of averaged gradients on all replicas. Gives the outputs of the batch that it
    /// overwrites there.
    fn update(
        &mut self,
        plan: usize,
        (batch, rows): (usize, &[Range<usize>]),
        outputs: &[Vec<HostTensor>],
        inputs: &[(&str, &HostTensor)],
    ) -> Result<Vec<(String, HostTensor)>, Error> {
        let opened = self.opened(plan)?;
        let Some(update) = &opened.share.update else {
            return Ok(Vec::new());
        };
        let samples: Vec<usize> = rows.iter().map(Range::len).collect();
        let of = |name: &str| {
            let mut ports = opened.share.part.outputs().iter();
            let number = ports.position(|port| port.name == name);
            let parts = number.map(|n| outputs.iter().filter_map(move |own| own.get(n)));
            parts.into_iter().flatten().collect::<Vec<&HostTensor>>()
        };
        let average = |name: &String| Ok((name.clone(), averaged(&of(name), &samples)?));
        let averages = update.crossing.iter().map(average);
        let averages = self
            .pool
            .install(|| averages.collect::<Result<Vec<_>, Error>>())?;
        let mut kept = Vec::new();
        for (name, gather) in &opened.share.gathers {
            let parts = of(name);
            let gathered = match gather {
                Gather::Update => continue,
                Gather::Mean => averaged(&parts, &samples)?,
                Gather::First => parts.first().copied().cloned().ok_or_else(nothing)?,
                Gather::Rows(axis) => {
                    let parts: Vec<HostTensor> = parts.into_iter().cloned().collect();
                    concatenated(&parts, *axis)?
                }
            };
            kept.push((name.clone(), gathered));
        }
        let takes = |name: &str| update.plan.inputs().iter().any(|port| port.name == name);
        let averages = averages
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor));
        let given: Vec<(&str, &HostTensor)> = averages
            .chain(inputs.iter().copied())
            .filter(|(name, _)| takes(name))
            .collect();
        let number = opened.update;
        let made = self.each(|_, session| session.run(number, batch, &given, &NEVER));
        if let Err(error) = &made {
            self.parted = Some(error.clone());
        }
        made.map(|_| kept)
    }

    /// The place of an output among those of a plan.
    fn gather(&self, plan: usize, name: &str) -> Result<(usize, Gather), Error> {
        let mut gathers = self.opened(plan)?.share.gathers.iter();
        let found = gathers.position(|(own, _)| own == name);
        let gather = found.map(|number| (number, self.plans[plan].share.gathers[number].1));
        gather.ok_or_else(|| {
            let message = format!("plan {plan} has no output `{name}`");
            Error::new("model.output", message)
        })
    }
}

impl Session for Replicated {
    fn device(&self) -> &str {
        self.sessions.first().map_or("", |first| first.device())
    }

    fn run(
        &mut self,
        plan: usize,
        batch: usize,
        inputs: &[(&str, &HostTensor)],
        cancel: &AtomicBool,
    ) -> Result<(), Error> {
        let opened = self.opened(plan)?;
        check_inputs(&opened.share.whole, batch, inputs)?;
        let replicas = if opened.share.split {
            self.sessions.len()
        } else {
            1
        };
        let rows = rows(batch, replicas);
        if let Some(error) = &self.parted {
            return Err(error.clone());
        }
        self.last = None;
        let outputs = self.compute(plan, (batch, &rows), inputs, cancel)?;
        let kept = self.update(plan, (batch, &rows), &outputs, inputs)?;
        for samples in &mut self.plans[plan].samples {
            for (own, rows) in samples.iter_mut().zip(&rows) {
                *own += rows.len() as u64;
            }
        }
        self.last = Some(Run {
            plan,
            batch,
            rows,
            kept,
        });
        Ok(())
    }

    fn output(&mut self, plan: usize, name: &str) -> Result<HostTensor, Error> {
        let last = self.last.as_ref().map(|run| (run.plan, run.batch));
        check_output(&self.opened(plan)?.share.whole, plan, name, last)?;
        let (_, gather) = self.gather(plan, name)?;
        let (part, update) = (self.plans[plan].part, self.plans[plan].update);
        let run = self.last.as_ref();
        let mut kept = run.into_iter().flat_map(|run| &run.kept);
        if let Some((_, tensor)) = kept.find(|(own, _)| own == name) {
            return Ok(tensor.clone());
        }
        let rows = run.map_or_else(Vec::new, |run| run.rows.clone());
        let samples: Vec<usize> = rows.iter().map(Range::len).collect();
        let (number, count) = match gather {
            Gather::Update => (update, 1),
            Gather::First => (part, 1),
            Gather::Mean | Gather::Rows(_) => (part, rows.len()),
        };
        let mut parts = self.each_of(count, |_, session| session.output(number, name))?;
        match gather {
            Gather::Rows(axis) => concatenated(&parts, axis),
            Gather::Mean => averaged(&parts.iter().collect::<Vec<_>>(), &samples),
            Gather::First | Gather::Update => Ok(parts.swap_remove(0)),
        }
    }

    fn mean(&mut self, plan: usize, name: &str) -> Result<f64, Error> {
        let (number, gather) = self.gather(plan, name)?;
        let opened = &mut self.plans[plan];
        let (part, update) = (opened.part, opened.update);
        let none = vec![0; self.sessions.len()];
        let samples = std::mem::replace(&mut opened.samples[number], none);
        if gather == Gather::Update {
            let means = self.each_of(1, |_, session| session.mean(update, name))?;
            return Ok(means.first().copied().unwrap_or(f64::NAN));
        }
        let means = self.each(|_, session| session.mean(part, name))?;
        let (mut total, mut count) = (0.0, 0);
        for (mean, samples) in means.into_iter().zip(samples) {
            if samples > 0 {
                total += mean * samples as f64;
                count += samples;
            }
        }
        Ok(if count == 0 {
            f64::NAN
        } else {
            total / count as f64
        })
    }

    fn parameters(&self) -> Vec<ParameterInfo> {
        let first = self.sessions.first();
        first.map_or_else(Vec::new, |first| first.parameters())
    }

    fn download(&mut self, name: &str) -> Result<HostTensor, Error> {
        let mut values = self.each_of(1, |_, session| session.download(name))?;
        Ok(values.swap_remove(0))
    }

    fn upload(&mut self, name: &str, value: &HostTensor) -> Result<(), Error> {
        self.each(|_, session| session.upload(name, value))
            .map(drop)
    }

    fn set_schedule(&mut self, schedule: Schedule) {
        for session in &mut self.sessions {
            session.set_schedule(schedule);
        }
    }

    fn learning_rate(&self) -> f64 {
        self.sessions
            .first()
            .map_or(f64::NAN, |first| first.learning_rate())
    }

    fn steps(&self) -> u64 {
        self.sessions.first().map_or(0, |first| first.steps())
    }

    fn set_steps(&mut self, steps: u64) {
        for session in &mut self.sessions {
            session.set_steps(steps);
        }
    }

    fn used_bytes(&self) -> u64 {
        let used = self.sessions.iter().map(|session| session.used_bytes());
        used.max().unwrap_or(0)
    }

    fn scratch_bytes(&self) -> u64 {
        let own = self.sessions.iter().map(|session| session.scratch_bytes());
        // The outputs of every replica, their averages, and what is gathered of them.
        let fetched = self
            .plans
            .iter()
            .filter(|opened| opened.share.update.is_some());
        let fetched = fetched.map(|opened| {
            let part = &opened.share.part;
            let bytes = part
                .outputs()
                .iter()
                .map(|port| part.bytes(port.value, part.max_batch()));
            bytes
                .map(|bytes| bytes.unwrap_or(u64::MAX))
                .fold(0, u64::saturating_add)
        });
        let copies = 2 * self.sessions.len() as u64 + 1;
        own.fold(0, u64::saturating_add)
            .saturating_add(fetched.max().unwrap_or(0).saturating_mul(copies))
    }
}

#[cfg(test)]
mod tests;
