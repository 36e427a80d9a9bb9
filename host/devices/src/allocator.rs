//! The allocator: one lock around a ledger of who holds what.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::selector::{DeviceId, Selector};

/// What a task does with a device; each kind has a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Trains a model.
    Training,
    /// Runs a trained model.
    Inference,
}

/// How many tasks of each kind a device takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Trainings.
    pub training: u32,
    /// Inferences.
    pub inference: u32,
}

/// A change of limits; what is none stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartialLimits {
    /// Trainings.
    pub training: Option<u32>,
    /// Inferences.
    pub inference: Option<u32>,
}

/// A device as the allocator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEntry {
    /// Its name in device strings.
    pub id: DeviceId,
    /// Memory that leases may take together, in bytes.
    pub memory_bytes: u64,
    /// Tasks at once.
    pub limits: Limits,
    /// Memory that every lease takes besides what its task needs, in bytes: on a GPU, what a context
    /// and the libraries cost.
    pub overhead_bytes: u64,
    /// Whether tasks can run on it.
    pub state: State,
}

/// Whether tasks can run on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// They can.
    Ready,
    /// It is not known yet: tasks wait.
    Probing,
    /// They cannot, for this reason.
    Unable(String),
}

impl State {
    /// Why no task can run now.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Probing => Some("it is being probed"),
            Self::Unable(reason) => Some(reason),
        }
    }
}

/// A wish for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The device.
    pub selector: Selector,
    /// For what.
    pub kind: Kind,
    /// Memory on the processor, in bytes.
    pub bytes: u64,
    /// Memory on a GPU, in bytes, without what a context costs.
    pub gpu_bytes: u64,
    /// The task's identity.
    pub task: String,
}

/// Why a wish can never be granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `device.unknown`.
    #[error("there is no device `{selector}`; the devices are {exist}")]
    Unknown {
        /// The device asked for.
        selector: Selector,
        /// Those that exist.
        exist: String,
    },
    /// `device.unschedulable`.
    #[error("`{device}` cannot run tasks: {reason}")]
    Unschedulable {
        /// The device asked for.
        device: DeviceId,
        /// Why it cannot.
        reason: String,
    },
    /// `memory.never-fits`.
    #[error("the task needs {needed} bytes; `{device}` has {available} bytes")]
    NeverFits {
        /// Bytes asked for.
        needed: u64,
        /// The device with the most memory among those asked for.
        device: DeviceId,
        /// Its bytes.
        available: u64,
    },
}

impl Refusal {
    /// The stable dotted code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "device.unknown",
            Self::Unschedulable { .. } => "device.unschedulable",
            Self::NeverFits { .. } => "memory.never-fits",
        }
    }
}

/// What becomes of a wish that can be granted.
#[derive(Debug)]
pub enum Outcome {
    /// The device is held.
    Granted(Lease),
    /// It is not free yet, for this reason.
    Busy(String),
}

/// What a device does at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The device.
    pub device: DeviceId,
    /// Tasks at once.
    pub limits: Limits,
    /// The tasks that hold it.
    pub tasks: Vec<(String, Kind)>,
    /// Memory held by leases, in bytes.
    pub reserved_bytes: u64,
    /// Memory that other programs hold, in bytes.
    pub foreign_bytes: u64,
    /// Whether tasks can run on it.
    pub state: State,
}

impl Usage {
    /// Tasks of a kind that hold the device.
    pub fn count(&self, kind: Kind) -> u32 {
        let count = self
            .tasks
            .iter()
            .filter(|(_, other)| *other == kind)
            .count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

#[derive(Debug, Clone)]
struct Holding {
    device: DeviceId,
    kind: Kind,
    bytes: u64,
    task: String,
}

#[derive(Debug)]
struct Ledger {
    devices: BTreeMap<DeviceId, DeviceEntry>,
    /// Memory that other programs hold, in bytes.
    foreign: BTreeMap<DeviceId, u64>,
    holdings: BTreeMap<u64, Holding>,
    next: u64,
}

/// Called after every change that may let a waiting wish be granted.
type Listener = Box<dyn Fn() + Send + Sync>;

/// Decides who gets which device.
pub struct Allocator {
    ledger: Mutex<Ledger>,
    listeners: Mutex<Vec<Listener>>,
}

impl Allocator {
    /// An allocator of these devices, the processor among them.
    pub fn new(devices: Vec<DeviceEntry>) -> Arc<Self> {
        let ledger = Ledger {
            devices: devices
                .into_iter()
                .map(|device| (device.id, device))
                .collect(),
            foreign: BTreeMap::new(),
            holdings: BTreeMap::new(),
            next: 0,
        };
        Arc::new(Self {
            ledger: Mutex::new(ledger),
            listeners: Mutex::new(Vec::new()),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `listener` after every change that may let a waiting wish be granted.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.push(Box::new(listener));
    }

    fn changed(&self) {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener());
    }

    /// Whether a device string can ever be granted, memory aside.
    pub fn check(&self, selector: &Selector) -> Result<(), Refusal> {
        self.ledger().candidates(selector).map(drop)
    }

    /// Grants a device, or says why not yet. Deciding and recording is one step.
    pub fn acquire(self: &Arc<Self>, request: &Request) -> Result<Outcome, Refusal> {
        let mut ledger = self.ledger();
        let (candidates, fallback_reason) = ledger.candidates(&request.selector)?;
        let most = candidates.iter().filter_map(|id| ledger.devices.get(id));
        let most = most.max_by_key(|device| device.memory_bytes);
        if let Some(device) = most.filter(|device| device.memory_bytes < device.bytes_of(request)) {
            return Err(Refusal::NeverFits {
                needed: device.bytes_of(request),
                device: device.id,
                available: device.memory_bytes,
            });
        }
        // Least loaded first, then the most free memory, then the lowest ordinal.
        let mut free: Vec<(u32, u64, DeviceId)> = Vec::new();
        let mut reasons = Vec::new();
        for &id in &candidates {
            match ledger.admit(id, request) {
                Ok((load, free_bytes)) => free.push((load, u64::MAX - free_bytes, id)),
                Err(reason) => reasons.push(reason),
            }
        }
        let Some(&(_, _, device)) = free.iter().min() else {
            return Ok(Outcome::Busy(reasons.join("; ")));
        };
        let id = ledger.next;
        ledger.next += 1;
        let entry = ledger.devices.get(&device);
        let holding = Holding {
            device,
            kind: request.kind,
            bytes: entry.map_or(0, |entry| entry.bytes_of(request)),
            task: request.task.clone(),
        };
        ledger.holdings.insert(id, holding);
        Ok(Outcome::Granted(Lease {
            allocator: Arc::clone(self),
            id,
            device,
            bytes: if device == DeviceId::Cpu {
                request.bytes
            } else {
                request.gpu_bytes
            },
            fallback_reason,
        }))
    }

    /// What every device does, the processor first.
    pub fn usage(&self) -> Vec<Usage> {
        let ledger = self.ledger();
        let usage = |device: &DeviceEntry| {
            let holdings: Vec<&Holding> = ledger.on(device.id).collect();
            Usage {
                device: device.id,
                limits: device.limits,
                tasks: holdings
                    .iter()
                    .map(|held| (held.task.clone(), held.kind))
                    .collect(),
                reserved_bytes: holdings.iter().map(|held| held.bytes).sum(),
                foreign_bytes: ledger.foreign.get(&device.id).copied().unwrap_or(0),
                state: device.state.clone(),
            }
        };
        ledger.devices.values().map(usage).collect()
    }

    /// Changes the limits of a device, or with `cuda` of every GPU. Tasks that run stay.
    pub fn set_limits(&self, selector: &Selector, limits: PartialLimits) -> Result<(), Refusal> {
        let mut ledger = self.ledger();
        let exist = ledger.exist();
        let mut changed = false;
        for device in ledger.devices.values_mut() {
            let meant = match selector {
                Selector::Device(id) => device.id == *id,
                Selector::AnyGpu => device.id != DeviceId::Cpu,
            };
            if meant {
                changed = true;
                device.limits.training = limits.training.unwrap_or(device.limits.training);
                device.limits.inference = limits.inference.unwrap_or(device.limits.inference);
            }
        }
        drop(ledger);
        if !changed {
            return Err(Refusal::Unknown {
                selector: *selector,
                exist,
            });
        }
        self.changed();
        Ok(())
    }

    /// Ends the probing of a device: what a lease costs there besides its task, in bytes, or why no
    /// task can run.
    pub fn settle(&self, id: DeviceId, outcome: Result<u64, String>) {
        if let Some(device) = self.ledger().devices.get_mut(&id) {
            match outcome {
                Ok(overhead_bytes) => {
                    device.overhead_bytes = overhead_bytes;
                    device.state = State::Ready;
                }
                Err(reason) => device.state = State::Unable(reason),
            }
        }
        self.changed();
    }

    /// Takes what was measured on a device, in bytes in use, for other programs', as long as no
    /// lease is held there.
    pub fn measured(&self, id: DeviceId, used_bytes: u64) {
        let mut ledger = self.ledger();
        if ledger.on(id).next().is_some() {
            return;
        }
        if ledger.foreign.insert(id, used_bytes) != Some(used_bytes) {
            drop(ledger);
            self.changed();
        }
    }

    fn release(&self, id: u64) {
        self.ledger().holdings.remove(&id);
        self.changed();
    }
}

impl std::fmt::Debug for Allocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocator")
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

impl DeviceEntry {
    /// Bytes that a lease for the request takes here.
    fn bytes_of(&self, request: &Request) -> u64 {
        match self.id {
            DeviceId::Cpu => request.bytes,
            DeviceId::Cuda(_) => request.gpu_bytes.saturating_add(self.overhead_bytes),
        }
    }
}

impl Ledger {
    fn on(&self, device: DeviceId) -> impl Iterator<Item = &Holding> {
        self.holdings
            .values()
            .filter(move |held| held.device == device)
    }

    fn exist(&self) -> String {
        let names: Vec<String> = self.devices.keys().map(|id| format!("`{id}`")).collect();
        names.join(", ")
    }

    /// The devices that a selector may mean, and why it means the processor instead of a GPU.
    fn candidates(&self, selector: &Selector) -> Result<(Vec<DeviceId>, Option<String>), Refusal> {
        let id = match selector {
            Selector::Device(id) => *id,
            Selector::AnyGpu => {
                let gpus = self
                    .devices
                    .values()
                    .filter(|device| device.id != DeviceId::Cpu);
                let (able, unable): (Vec<_>, Vec<_>) =
                    gpus.partition(|device| !matches!(device.state, State::Unable(_)));
                if !able.is_empty() {
                    return Ok((able.iter().map(|device| device.id).collect(), None));
                }
                let reasons = unable.iter().filter_map(|device| {
                    let reason = device.state.reason()?;
                    Some(format!("{}: {reason}", device.id))
                });
                let reasons: Vec<String> = reasons.collect();
                let reason = if reasons.is_empty() {
                    "there is no GPU".to_owned()
                } else {
                    reasons.join("; ")
                };
                let (ids, _) = self.candidates(&Selector::Device(DeviceId::Cpu))?;
                return Ok((ids, Some(reason)));
            }
        };
        let Some(device) = self.devices.get(&id) else {
            return Err(Refusal::Unknown {
                selector: *selector,
                exist: self.exist(),
            });
        };
        match &device.state {
            State::Ready | State::Probing => Ok((vec![id], None)),
            State::Unable(reason) => Err(Refusal::Unschedulable {
                device: id,
                reason: reason.clone(),
            }),
        }
    }

    /// The device's tasks and free bytes, where the request fits on it now; else why not.
    fn admit(&self, id: DeviceId, request: &Request) -> Result<(u32, u64), String> {
        let Some(device) = self.devices.get(&id) else {
            return Err(format!("{id} is gone"));
        };
        if let Some(reason) = device.state.reason() {
            return Err(format!("{id}: {reason}"));
        }
        let (limit, name) = match request.kind {
            Kind::Training => (device.limits.training, "trainings"),
            Kind::Inference => (device.limits.inference, "inferences"),
        };
        let (mut same, mut all, mut reserved) = (0u32, 0u32, 0u64);
        for held in self.on(id) {
            same += u32::from(held.kind == request.kind);
            all += 1;
            reserved += held.bytes;
        }
        if same >= limit {
            return Err(format!("{id} runs {same} of {limit} {name}"));
        }
        let foreign = self.foreign.get(&id).copied().unwrap_or(0);
        let free = device
            .memory_bytes
            .saturating_sub(reserved.saturating_add(foreign));
        let needed = device.bytes_of(request);
        if free < needed {
            return Err(format!(
                "{id} has {free} bytes free, the task needs {needed}; leases hold {reserved}, other \
                 programs {foreign}"
            ));
        }
        Ok((all, free))
    }
}

/// The right to use a device. It ends when it is dropped, exactly once.
#[derive(Debug)]
pub struct Lease {
    allocator: Arc<Allocator>,
    id: u64,
    device: DeviceId,
    bytes: u64,
    fallback_reason: Option<String>,
}

impl Lease {
    /// The device granted.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Memory granted, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Why the processor was granted where a GPU was asked for.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.fallback_reason.as_deref()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.allocator.release(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn device(id: DeviceId, gigabytes: u64) -> DeviceEntry {
        let limits = match id {
            DeviceId::Cpu => Limits {
                training: 2,
                inference: 4,
            },
            DeviceId::Cuda(_) => Limits {
                training: 1,
                inference: 3,
            },
        };
        DeviceEntry {
            id,
            memory_bytes: gigabytes << 30,
            limits,
            overhead_bytes: 0,
            state: State::Ready,
        }
    }

    fn machine(gpus: u32) -> Arc<Allocator> {
        let gpus = (0..gpus).map(|n| device(DeviceId::Cuda(n), 24));
        Allocator::new(
            std::iter::once(device(DeviceId::Cpu, 64))
                .chain(gpus)
                .collect(),
        )
    }

    fn wish(selector: &str, kind: Kind, gigabytes: u64) -> Request {
        let selector = selector.parse().unwrap();
        Request {
            selector,
            kind,
            bytes: gigabytes << 30,
            gpu_bytes: gigabytes << 30,
            task: "t".to_owned(),
        }
    }

    fn granted(allocator: &Arc<Allocator>, request: &Request) -> Lease {
        match allocator.acquire(request).unwrap() {
            Outcome::Granted(lease) => lease,
            Outcome::Busy(reason) => panic!("{reason}"),
        }
    }

    fn busy(allocator: &Arc<Allocator>, request: &Request) -> String {
        match allocator.acquire(request).unwrap() {
            Outcome::Granted(lease) => panic!("granted {}", lease.device()),
            Outcome::Busy(reason) => reason,
        }
    }

    #[test]
    fn trainings_spread_over_the_gpus_then_wait_and_a_release_frees_one() {
        let allocator = machine(3);
        let request = wish("cuda", Kind::Training, 1);
        let mut leases: Vec<Lease> = (0..3).map(|_| granted(&allocator, &request)).collect();
        let devices: Vec<String> = leases
            .iter()
            .map(|lease| lease.device().to_string())
            .collect();
        assert_eq!(devices, ["cuda:0", "cuda:1", "cuda:2"]);
        assert!(busy(&allocator, &request).contains("cuda:1 runs 1 of 1 trainings"));
        drop(leases.remove(1));
        assert_eq!(granted(&allocator, &request).device(), DeviceId::Cuda(1));
    }

    #[test]
    fn memory_is_counted_over_leases_and_its_lack_is_told_with_both_figures() {
        let allocator = machine(1);
        let _held = granted(&allocator, &wish("cuda:0", Kind::Training, 20));
        let reason = busy(&allocator, &wish("cuda:0", Kind::Inference, 5));
        assert!(reason.contains(&(4u64 << 30).to_string()), "{reason}");
        let refusal = allocator
            .acquire(&wish("cuda", Kind::Inference, 25))
            .unwrap_err();
        assert_eq!(refusal.code(), "memory.never-fits");
        let message = refusal.to_string();
        assert!(message.contains(&(25u64 << 30).to_string()), "{message}");
        assert!(message.contains(&(24u64 << 30).to_string()), "{message}");
    }

    #[test]
    fn without_a_gpu_cuda_means_the_processor_with_its_limits() {
        let allocator = machine(0);
        let request = wish("cuda", Kind::Training, 1);
        let leases = [granted(&allocator, &request), granted(&allocator, &request)];
        assert_eq!(leases[0].device(), DeviceId::Cpu);
        assert_eq!(leases[0].fallback_reason(), Some("there is no GPU"));
        assert!(busy(&allocator, &request).contains("2 of 2 trainings"));
    }

    #[test]
    fn a_gpu_that_cannot_compute_is_refused_by_name_and_passed_over_by_cuda() {
        let mut gpu = device(DeviceId::Cuda(0), 24);
        gpu.state = State::Unable("no backend".to_owned());
        let allocator = Allocator::new(vec![device(DeviceId::Cpu, 64), gpu]);
        let lease = granted(&allocator, &wish("cuda", Kind::Training, 1));
        assert_eq!(lease.fallback_reason(), Some("cuda:0: no backend"));
        let refusal = allocator.check(&"cuda:0".parse().unwrap()).unwrap_err();
        assert_eq!(refusal.code(), "device.unschedulable");
        let refusal = allocator.check(&"cuda:9".parse().unwrap()).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "there is no device `cuda:9`; the devices are `cpu`, `cuda:0`"
        );
    }

    #[test]
    fn a_partial_update_keeps_the_other_limit_and_cuda_sets_every_gpu() {
        let allocator = machine(2);
        let more = PartialLimits {
            training: Some(4),
            inference: None,
        };
        allocator.set_limits(&Selector::AnyGpu, more).unwrap();
        let limits: Vec<Limits> = allocator.usage().iter().map(|usage| usage.limits).collect();
        let gpu = Limits {
            training: 4,
            inference: 3,
        };
        assert_eq!(
            limits,
            [
                Limits {
                    training: 2,
                    inference: 4
                },
                gpu,
                gpu
            ]
        );
        let unknown = allocator
            .set_limits(&"cuda:7".parse().unwrap(), more)
            .unwrap_err();
        assert_eq!(unknown.code(), "device.unknown");
    }

    #[test]
    fn threads_that_race_never_hold_more_than_the_limit() {
        let allocator = machine(2);
        let (held, most) = (AtomicU32::new(0), AtomicU32::new(0));
        let wakes = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&wakes);
        allocator.on_change(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let grants = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let outcome = allocator.acquire(&wish("cuda", Kind::Training, 1)).unwrap();
                        if let Outcome::Granted(lease) = outcome {
                            most.fetch_max(
                                held.fetch_add(1, Ordering::SeqCst) + 1,
                                Ordering::SeqCst,
                            );
                            std::thread::yield_now();
                            held.fetch_sub(1, Ordering::SeqCst);
                            grants.fetch_add(1, Ordering::Relaxed);
                            drop(lease);
                        }
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(
            wakes.load(Ordering::Relaxed),
            grants.load(Ordering::Relaxed)
        );
        assert!(allocator.usage().iter().all(|usage| usage.tasks.is_empty()));
    }

    #[test]
    fn a_gpu_that_is_probed_makes_tasks_wait_and_its_overhead_counts() {
        let mut gpu = device(DeviceId::Cuda(0), 24);
        gpu.state = State::Probing;
        let allocator = Allocator::new(vec![device(DeviceId::Cpu, 64), gpu]);
        let reason = busy(&allocator, &wish("cuda", Kind::Training, 24));
        assert!(reason.contains("cuda:0: it is being probed"), "{reason}");
        allocator.settle(DeviceId::Cuda(0), Ok(1 << 30));
        let refusal = allocator
            .acquire(&wish("cuda", Kind::Training, 24))
            .unwrap_err();
        assert_eq!(refusal.code(), "memory.never-fits");
        assert!(
            refusal.to_string().contains(&(25u64 << 30).to_string()),
            "{refusal}"
        );
        let lease = granted(&allocator, &wish("cuda", Kind::Training, 23));
        assert_eq!(
            (lease.device(), lease.bytes()),
            (DeviceId::Cuda(0), 23 << 30)
        );
        assert_eq!(allocator.usage()[1].reserved_bytes, 24 << 30);
        allocator.settle(DeviceId::Cuda(0), Err("it fell off".to_owned()));
        let lease = granted(&allocator, &wish("cuda", Kind::Training, 1));
        assert_eq!(lease.fallback_reason(), Some("cuda:0: it fell off"));
    }

    #[test]
    fn what_other_programs_hold_is_waited_for() {
        let allocator = machine(1);
        allocator.measured(DeviceId::Cuda(0), 20 << 30);
        let wish = wish("cuda:0", Kind::Training, 10);
        let reason = busy(&allocator, &wish);
        assert!(
            reason.contains(&format!("other programs {}", 20u64 << 30)),
            "{reason}"
        );
        let changes = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&changes);
        allocator.on_change(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        allocator.measured(DeviceId::Cuda(0), 20 << 30);
        allocator.measured(DeviceId::Cuda(0), 1 << 30);
        assert_eq!(changes.load(Ordering::Relaxed), 1);
        let _lease = granted(&allocator, &wish);
        // What is measured now is the lease's own.
        allocator.measured(DeviceId::Cuda(0), 11 << 30);
        assert_eq!(allocator.usage()[1].foreign_bytes, 1 << 30);
    }

    proptest! {
        /// Any order of wishes and releases keeps every device within its limits and its memory,
        /// and a wish waits only where no device could take it.
        #[test]
        fn the_ledger_always_holds(
            gpus in 0u32..17,
            steps in prop::collection::vec((0u32..18, any::<bool>(), 0u64..26, any::<bool>()), 1..120),
        ) {
            let allocator = machine(gpus);
            let mut leases: Vec<(Lease, Kind)> = Vec::new();
            for (target, training, gigabytes, release) in steps {
                if release && !leases.is_empty() {
                    leases.swap_remove(target as usize % leases.len());
                    continue;
                }
                let selector = match target {
                    0 => "cpu".to_owned(),
                    1 => "cuda".to_owned(),
                    n => format!("cuda:{}", n - 2),
                };
                let kind = if training { Kind::Training } else { Kind::Inference };
                if let Ok(Outcome::Granted(lease)) = allocator.acquire(&wish(&selector, kind, gigabytes)) {
                    leases.push((lease, kind));
                }
                for usage in allocator.usage() {
                    let mine = || leases.iter().filter(|(lease, _)| lease.device() == usage.device);
                    prop_assert_eq!(usage.tasks.len(), mine().count());
                    prop_assert_eq!(usage.reserved_bytes, mine().map(|(lease, _)| lease.bytes()).sum::<u64>());
                    prop_assert!(usage.count(Kind::Training) <= usage.limits.training);
                    prop_assert!(usage.count(Kind::Inference) <= usage.limits.inference);
                    let gigabytes = if usage.device == DeviceId::Cpu { 64 } else { 24 };
                    prop_assert!(usage.reserved_bytes <= gigabytes << 30);
                }
            }
            drop(leases);
            prop_assert!(allocator.usage().iter().all(|usage| usage.tasks.is_empty()));
        }
    }
}
