//! The supervisor of one task: its worker, its lease, and what the worker tells.

use std::sync::Arc;
use std::time::Duration;

use devices::{DeviceId, Lease, Refusal, Request, Selector, Taken, Ticket};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::deadline::{Deadline, Overdue};
use super::store::Event;
use super::task::{DeviceMemory, TaskDevice, TaskKind, TaskRecord, TaskState};
use super::{Inner, Turn, now};
use crate::machine::returned::{BOUND, Returned};
use crate::worker::protocol::{
    DataGrant, Failure, FromWorker, Grant, GrantedGpu, LeaseRequest, Start, ToWorker, receive, send,
};
use crate::worker::spawn;

/// A worker that says nothing for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);
/// A worker that was told to cancel is killed after so long.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A task whose worker died waits so long at most for its memory to return: the driver takes it back
/// with the process.
const CRASHED: Duration = Duration::from_millis(500);
/// The code of memory that ran out in spite of the lease.
const EXHAUSTED: &str = "memory.exhausted";

/// Codes of failures that may be the device's own.
const FAULTS: [&str; 2] = ["device.fault", "device.lost"];

/// How a task ended.
struct End {
    state: TaskState,
    message: String,
    code: Option<String>,
}

fn failed(code: &str, message: impl Into<String>) -> End {
    End {
        state: TaskState::Failed,
        message: message.into(),
        code: Some(code.to_owned()),
    }
}

/// Runs a task to its end, and records it. One that has not begun to compute when the host ends
/// stays queued.
pub(super) async fn run(inner: &Arc<Inner>, id: &str, turn: Turn, told: watch::Receiver<bool>) {
    let Ok(mut record) = inner.store.get(id) else {
        return;
    };
    let mut end = attempt(inner, &mut record, turn, told.clone()).await;
    // Another program was faster with the memory. It is measured now, and the task has not begun.
    if end.code.as_deref() == Some(EXHAUSTED) && record.started_at.is_none() {
        let again = format!("{}; the task is tried once more", end.message);
        inner.record(&mut record, Some(event("warning", again)));
        inner.plans_again(&record, turn.place);
        end = attempt(inner, &mut record, turn, told).await;
    }
    if end.state == TaskState::Interrupted && record.state == TaskState::Queued {
        return;
    }
    inner.end(&mut record, end.state, &end.message, end.code);
}

async fn attempt(
    inner: &Arc<Inner>,
    record: &mut TaskRecord,
    turn: Turn,
    told: watch::Receiver<bool>,
) -> End {
    let supervised = supervise(inner, record, turn, told).await;
    supervised.unwrap_or_else(|error| failed("worker.failed", format!("{error:#}")))
}

fn start(inner: &Inner, record: &TaskRecord) -> Start {
    let settings = &inner.settings;
    Start {
        task_id: record.id.clone(),
        plugin: record.plugin_file.clone(),
        kind: match record.kind {
            TaskKind::Training => "training",
            TaskKind::Inference => "inference",
        }
        .to_owned(),
        model: record.model.clone(),
        parameters: record.parameters.clone(),
        device: record.device_requested.clone(),
        gpus: record.gpus,
        devices: settings.machine.facts(),
        data: record
            .data
            .iter()
            .map(|data| DataGrant {
                name: data.name.clone(),
                path: data.path.clone(),
                part: data.part.clone(),
            })
            .collect(),
        weights: record.weights.clone(),
        resume: record.resume.clone(),
        output: record.output.clone(),
        compile_cache: settings.compile_cache.clone(),
        threads: settings.threads_per_worker,
        tf32: record.tf32,
        limits: settings.limits,
    }
}

async fn supervise(
    inner: &Arc<Inner>,
    record: &mut TaskRecord,
    turn: Turn,
    mut told: watch::Receiver<bool>,
) -> anyhow::Result<End> {
    let (worker, socket) = spawn::spawn(&inner.settings.machine.uuids())?;
    let _named = inner.workers.name(worker.id(), &record.id);
    let (mut source, mut sink) = socket.into_split();
    let (heard, mut messages) = mpsc::channel::<FromWorker>(64);
    // Reading a frame cannot be interrupted, so that a task of its own does it.
    let reader = tokio::spawn(async move {
        while let Ok(Some(message)) = receive(&mut source).await {
            if heard.send(message).await.is_err() {
                return;
            }
        }
    });
    let _reader = tokio_util::task::AbortOnDropHandle::new(reader);
    tell(&mut sink, ToWorker::Start(Box::new(start(inner, record)))).await;
    let deadline = Instant::now() + Duration::from_secs(inner.settings.limits.wall_seconds);
    // A task that has had a lease has begun.
    let mut overdue = turn.deadline;
    let mut changes = inner.changes.subscribe();
    let mut last_word = Instant::now();
    let (mut lease, mut wish): (Option<Lease>, Option<Ticket>) = (None, None);
    let mut returning = Vec::new();
    let mut culprit = None;
    let mut cancelled: Option<Instant> = None;
    let end = loop {
        if let Some(cause) = lease.as_ref().and_then(Lease::failure) {
            // A process that the driver does not let go is left to the system.
            let _ended = tokio::time::timeout(PATIENCE, worker.kill()).await;
            break Some(failed(cause.code, cause.reason));
        }
        let until = cancelled
            .map_or(last_word + SILENCE, |at| at + PATIENCE)
            .min(deadline);
        tokio::select! {
            message = messages.recv() => {
                last_word = Instant::now();
                let Some(message) = message else {
                    if cancelled.is_some() {
                        break None;
                    }
                    break Some(failed("worker.died", worker.ended(PATIENCE).await));
                };
                match message {
                    FromWorker::AcquireLease(asked) => match ask(inner, record, turn, &asked) {
                        Ok(ticket) => wish = Some(ticket),
                        Err(failure) => tell(&mut sink, ToWorker::Refused(failure)).await,
                    },
                    FromWorker::LeaseReleased => {
                        if let Some(lease) = lease.take() {
                            returning = release(inner, lease);
                        }
                    }
                    FromWorker::Finished { failure } => {
                        let completed = || End { state: TaskState::Completed, message: "completed".to_owned(), code: None };
                        let end = match failure {
                            Some(failure) => failed(&failure.code, blamed(inner, record, &failure, culprit).await),
                            None => completed(),
                        };
                        worker.ended(PATIENCE).await;
                        break Some(end);
                    }
                    FromWorker::Memory { context, session_bytes } => {
                        let taken = Taken { context, session_bytes };
                        let observed = lease.as_ref().map(|lease| lease.observed(taken));
                        if observed > record.lease_observed_bytes {
                            record.lease_observed_bytes = observed;
                            inner.record(record, None);
                        }
                    }
                    running @ FromWorker::Running { .. } => {
                        observe(inner, record, lease.as_ref()).await;
                        note(inner, record, running);
                    }
                    FromWorker::Fault { device, message } if culprit.is_none() => {
                        // At once: an Xid that comes when its lease has ended must find who did it.
                        culprit = lay(inner, record, &device, &message).await;
                    }
                    FromWorker::Heartbeat => observe(inner, record, lease.as_ref()).await,
                    other => note(inner, record, other),
                }
            }
            decided = decision(&mut wish, overdue) => {
                wish = None;
                match decided {
                    Ok(Ok(granted)) => {
                        overdue = None;
                        lease = Some(grant(inner, record, granted, &mut sink).await);
                    }
                    Err(error) => {
                        // It has not begun, and what it would do without its device is not wanted.
                        worker.kill().await;
                        break Some(failed(error.code(), error.to_string()));
                    }
                    Ok(Err(refusal)) => tell(&mut sink, ToWorker::Refused(refused(&refusal))).await,
                }
            }
            _ = changes.changed(), if wish.is_some() || lease.is_some() => {
                waits(inner, record, wish.as_ref());
            }
            () = cancel(&mut told), if cancelled.is_none() => {
                cancelled = Some(Instant::now());
                wish = None;
                tell(&mut sink, ToWorker::Cancel).await;
            }
            () = tokio::time::sleep_until(until) => {
                worker.kill().await;
                if cancelled.is_some() {
                    break None;
                }
                break Some(if Instant::now() >= deadline {
                    failed("task.time", "the task took longer than it may, and was ended")
                } else {
                    failed("worker.silent", format!("the worker said nothing for {} s, and was ended", SILENCE.as_secs()))
                });
            }
        }
    };
    // A worker that ended well has given its lease back before.
    let crashed = lease.is_some();
    if let Some(lease) = lease {
        returning = release(inner, lease);
    }
    settle(inner, record, returning, crashed).await;
    Ok(match (cancelled, end) {
        (None, Some(end)) => end,
        (Some(_), Some(end)) if end.state == TaskState::Completed => end,
        _ if inner.live().closing => End {
            state: TaskState::Interrupted,
            message: "the host ended while the task ran".to_owned(),
            code: None,
        },
        _ => End {
            state: TaskState::Cancelled,
            message: "cancelled".to_owned(),
            code: None,
        },
    })
}

/// Lays a fault to one of a task's devices, of which it names one, and tells the machine. Gives that
/// device.
async fn lay(inner: &Inner, record: &TaskRecord, named: &str, message: &str) -> Option<DeviceId> {
    let device = |text: &str| match text.parse() {
        Ok(Selector::Device(id)) => Some(id),
        _ => None,
    };
    let granted = record.devices.iter();
    let among: Vec<DeviceId> = granted.filter_map(|own| device(&own.device)).collect();
    let machine = &inner.settings.machine;
    let failed = machine.culprit(device(named)?, &among).await;
    machine.fault(failed, message);
    Some(failed)
}

/// What a failure says, and what the machine knows of it. A fault of the task's device is laid to its
/// first, unless the worker has named one: that is the `culprit`.
async fn blamed(
    inner: &Inner,
    record: &TaskRecord,
    failure: &Failure,
    culprit: Option<DeviceId>,
) -> String {
    let message = failure.message.clone();
    if !FAULTS.contains(&failure.code.as_str()) {
        return message;
    }
    let culprit = match (culprit, &record.device) {
        (None, Some(first)) => lay(inner, record, first, &message).await,
        (culprit, _) => culprit,
    };
    let Some(device) = culprit else {
        return message;
    };
    let name = device.to_string();
    let mut granted = record.devices.iter();
    let own = granted.find(|granted| granted.device == name);
    let uuid = own.and_then(|granted| granted.device_uuid.as_deref());
    let uuid = uuid.unwrap_or("no UUID");
    let named = format!("{device} ({uuid}): {message}");
    match inner.settings.machine.reported(device) {
        Some(xid) => format!("{named}; the driver reported Xid {xid}"),
        None => named,
    }
}

/// Waits until the task is to be cancelled.
async fn cancel(told: &mut watch::Receiver<bool>) {
    if told.wait_for(|cancel| *cancel).await.is_err() {
        // Nobody can cancel the task any more.
        std::future::pending::<()>().await;
    }
}

/// Waits until a wish is decided; for ever where there is none. Errors: one that still waits at the
/// deadline.
async fn decision(
    wish: &mut Option<Ticket>,
    deadline: Option<Deadline>,
) -> Result<Result<Lease, Refusal>, Overdue> {
    let Some(ticket) = wish else {
        return std::future::pending().await;
    };
    let Some(deadline) = deadline else {
        return Ok(ticket.await);
    };
    // What is decided is taken, however late it is.
    match tokio::time::timeout_at(deadline.at(), &mut *ticket).await {
        Ok(decided) => Ok(decided),
        Err(_) => Err(deadline.overdue(Instant::now(), ticket.reason())),
    }
}

/// Asks for the lease that a worker wants.
fn ask(
    inner: &Inner,
    record: &mut TaskRecord,
    turn: Turn,
    asked: &LeaseRequest,
) -> Result<Ticket, Failure> {
    // The user's choice wins over what the worker says.
    let text = record.device_requested.as_ref().unwrap_or(&asked.device);
    let invalid = |error: devices::InvalidSelector| Failure {
        code: "device.invalid".to_owned(),
        message: error.to_string(),
    };
    let selector: Selector = text.parse().map_err(invalid)?;
    let submitted = inner.settings.machine.allocator.submit(Request {
        selector,
        kind: record.kind.into(),
        gpus: record.gpus.unwrap_or(asked.replicas),
        bytes: asked.bytes,
        gpu_bytes: asked.gpu_bytes,
        task: record.id.clone(),
        plugin: record.plugin.clone(),
        policy: record.policy,
        place: turn.place,
    });
    let ticket = submitted.map_err(|refusal| refused(&refusal))?;
    waits(inner, record, Some(&ticket));
    inner.planned(&record.id);
    Ok(ticket)
}

fn refused(refusal: &Refusal) -> Failure {
    Failure {
        code: refusal.code().to_owned(),
        message: refusal.to_string(),
    }
}

/// Records why a wish waits, where that has changed.
fn waits(inner: &Inner, record: &mut TaskRecord, wish: Option<&Ticket>) {
    let reason = wish.and_then(Ticket::reason);
    if reason.is_some() && record.waiting_reason != reason {
        record.message = format!("waits: {}", reason.as_deref().unwrap_or_default());
        record.waiting_reason = reason;
        inner.record(record, None);
    }
}

/// Tells the worker something. One that is gone is noticed by the end of what it says, which also
/// tells how it ended.
async fn tell(sink: &mut OwnedWriteHalf, message: ToWorker) {
    let _gone = send(sink, &message).await;
}

/// Notes how much memory is in use on the task's GPUs.
async fn observe(inner: &Inner, record: &mut TaskRecord, lease: Option<&Lease>) {
    if let (Some(_), Some(lease)) = (&record.device_memory, lease) {
        let used = inner.settings.machine.used_bytes_on(&lease.devices()).await;
        record.note_memory(&used, |memory, used| {
            memory.during_bytes = memory.during_bytes.max(used);
        });
    }
}

/// What watches the memory of a lease that has ended return, by device.
type Returning = Vec<(DeviceId, JoinHandle<Returned>)>;

/// Ends a lease, and watches its memory return while the task goes on.
fn release(inner: &Inner, lease: Lease) -> Returning {
    let watched = lease.release().into_iter().map(|returning| {
        let (machine, device) = (Arc::clone(&inner.settings.machine), returning.device());
        let watching = tokio::spawn(async move {
            let returned = machine.returned(returning).await;
            if returned.leaked_bytes > 0 {
                crate::output::message(format_args!(
                    "{device}: {} bytes of a task that ended were not given back within {} s, and count \
                     as other programs' until they are",
                    returned.leaked_bytes,
                    BOUND.as_secs()
                ));
            }
            returned
        });
        (device, watching)
    });
    watched.collect()
}

/// Waits until the memory of a task that has ended is back on its GPUs or has leaked, and notes what is
/// in use then.
async fn settle(inner: &Inner, record: &mut TaskRecord, returning: Returning, crashed: bool) {
    if record.device_memory.is_none() {
        return;
    }
    let bound = if crashed { CRASHED } else { Duration::MAX };
    let end = Instant::now().checked_add(bound);
    let (mut after, mut leaked) = (Vec::new(), Vec::new());
    for (device, watching) in returning {
        let returned = match end {
            Some(end) => tokio::time::timeout_at(end, watching).await.ok(),
            None => Some(watching.await),
        };
        after.push(match returned {
            Some(Ok(returned)) => {
                leaked
                    .extend((returned.leaked_bytes > 0).then_some((device, returned.leaked_bytes)));
                returned.used_bytes
            }
            // What leaks is told by the one that watches.
            Some(Err(_)) | None => inner.settings.machine.used_bytes(device).await,
        });
    }
    record.note_memory(&after, |memory, used| memory.after_bytes = used);
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let text = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), mib);
    for TaskDevice {
        device,
        device_memory,
        ..
    } in record.devices.clone()
    {
        let Some(memory) = device_memory else {
            continue;
        };
        let told = format!(
            "memory in use on {device} by NVML: {} before the task, {} during it, {} after it",
            mib(memory.before_bytes),
            text(memory.during_bytes),
            text(memory.after_bytes)
        );
        inner.record(record, Some(event("info", told)));
    }
    for (device, bytes) in leaked {
        let told = format!("{bytes} bytes on {device} were not given back, and count as leaked");
        inner.record(record, Some(event("warning", told)));
    }
}

/// Records a lease that was granted, and tells the worker.
async fn grant(
    inner: &Inner,
    record: &mut TaskRecord,
    granted: Lease,
    sink: &mut OwnedWriteHalf,
) -> Lease {
    let (devices, machine) = (granted.devices(), &inner.settings.machine);
    let uuids: Vec<Option<String>> = devices.iter().map(|device| machine.uuid(*device)).collect();
    let used = if uuids.iter().any(Option::is_some) {
        machine.used_bytes_on(&devices).await
    } else {
        vec![None; devices.len()]
    };
    let known = devices.iter().zip(&uuids).zip(used);
    record.devices = known
        .map(|((device, uuid), used)| TaskDevice {
            device: device.to_string(),
            device_uuid: uuid.clone(),
            device_memory: used.map(DeviceMemory::before),
        })
        .collect();
    let first = record.devices.first();
    record.device_memory = first.and_then(|first| first.device_memory);
    record.device_uuid = first.and_then(|first| first.device_uuid.clone());
    let others = devices.iter().zip(&uuids).skip(1);
    let grant = Grant {
        device: granted.device().to_string(),
        uuid: uuids.first().cloned().flatten(),
        others: others
            .filter_map(|(device, uuid)| {
                let (device, uuid) = (device.to_string(), uuid.clone()?);
                Some(GrantedGpu { device, uuid })
            })
            .collect(),
        bytes: granted.bytes(),
        fallback_reason: granted.fallback_reason().map(str::to_owned),
    };
    record.waiting_reason = None;
    record.fallback_reason.clone_from(&grant.fallback_reason);
    record.lease_bytes = Some(grant.bytes);
    let warning = grant
        .fallback_reason
        .as_ref()
        .map(|reason| event("warning", format!("runs on the CPU: {reason}")));
    inner.record(record, warning);
    inner.leased(&record.id);
    tell(sink, ToWorker::Granted(grant)).await;
    granted
}

fn event(level: &str, message: String) -> Event {
    Event {
        sequence: 0,
        timestamp: now(),
        level: level.to_owned(),
        message,
        metrics: None,
        step: None,
        stage: None,
        status: None,
    }
}

/// Records what a worker tells of its task.
fn note(inner: &Inner, record: &mut TaskRecord, message: FromWorker) {
    match message {
        FromWorker::Running {
            device,
            scratch_bytes,
            ..
        } => {
            record.scratch_bytes = record.scratch_bytes.max(Some(scratch_bytes));
            record.state = TaskState::Running;
            record.started_at.get_or_insert_with(now);
            record.message = match (&record.devices[..], &record.device_uuid) {
                ([_, _, ..], _) => {
                    let named = record.devices.iter().map(|granted| {
                        let uuid = granted.device_uuid.as_deref().unwrap_or("no UUID");
                        format!("{} ({uuid})", granted.device)
                    });
                    format!("runs on {}", named.collect::<Vec<_>>().join(", "))
                }
                (_, Some(uuid)) => format!("runs on {device} ({uuid})"),
                (_, None) => format!("runs on {device}"),
            };
            let told = event("info", record.message.clone());
            record.device = Some(device);
            inner.record(record, Some(told));
        }
        FromWorker::Progress { fraction, message } => {
            record.progress = (fraction * 100.0).clamp(0.0, 100.0);
            record.message = message;
            inner.record(record, None);
        }
        FromWorker::Metrics(metrics) => {
            record.current_epoch = Some(metrics.epoch);
            record.total_epochs = Some(metrics.epochs);
            if record.kind == TaskKind::Training {
                let epochs = [("epoch", metrics.epoch), ("total_epochs", metrics.epochs)];
                let epochs = epochs.map(|(name, value)| (name.to_owned(), value.into()));
                record.latest_metrics.extend(epochs);
            }
            record.latest_metrics.extend(metrics.values.clone());
            let told = Event {
                metrics: Some(metrics.values),
                step: Some(metrics.epoch),
                stage: Some(metrics.stage),
                ..event(
                    "info",
                    format!("epoch {} of {}", metrics.epoch, metrics.epochs),
                )
            };
            inner.record(record, Some(told));
        }
        FromWorker::Log { level, message } => inner.record(record, Some(event(&level, message))),
        FromWorker::Artifact { name } => {
            inner.record(record, Some(event("info", format!("wrote {name}"))));
        }
        FromWorker::Heartbeat
        | FromWorker::Fault { .. }
        | FromWorker::AcquireLease(_)
        | FromWorker::LeaseReleased
        | FromWorker::Memory { .. }
        | FromWorker::Finished { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use devices::{Allocator, DeviceEntry, Kind, Limits, Place, Policy, State};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wish(allocator: &Arc<Allocator>, number: u64) -> Ticket {
        let request = Request {
            selector: Selector::Device(DeviceId::Cpu),
            kind: Kind::Training,
            gpus: 1,
            bytes: 1,
            gpu_bytes: 1,
            task: number.to_string(),
            plugin: "digits".to_owned(),
            policy: None,
            place: Place::new(Duration::ZERO, 5, number),
        };
        allocator.submit(request).unwrap()
    }

    #[tokio::test]
    async fn a_wish_that_waits_at_its_deadline_is_refused_and_one_that_is_granted_is_not() {
        let cpu = DeviceEntry {
            id: DeviceId::Cpu,
            uuid: None,
            model: "CPU".to_owned(),
            compute_capability: None,
            memory_bytes: 1 << 30,
            headroom_bytes: 0,
            overhead_bytes: 0,
            limits: Limits {
                training: 1,
                inference: 1,
            },
            state: State::Ready,
            draining: false,
            peers: Vec::new(),
        };
        let allocator = Allocator::new(vec![cpu], Policy::default());
        let passed = Some(Deadline::new(SECOND, 3 * SECOND, Instant::now()));
        let mut first = Some(wish(&allocator, 1));
        let lease = decision(&mut first, passed).await.unwrap().unwrap();
        let mut second = Some(wish(&allocator, 2));
        let refused = decision(&mut second, passed).await.unwrap_err().to_string();
        assert!(refused.starts_with("it waited 3.0 s"), "{refused}");
        assert!(refused.ends_with("cpu runs 1 of 1 trainings"), "{refused}");
        let begun = Instant::now();
        let soon = Deadline::new(SECOND / 20, Duration::ZERO, begun);
        decision(&mut second, Some(soon)).await.unwrap_err();
        assert!(begun.elapsed() >= SECOND / 20);
        drop(lease);
        decision(&mut second, passed).await.unwrap().unwrap();
    }
}
