//! The allocator: one lock around the scheduler, and those that wait for its decisions.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::ledger::{Cause, DeviceEntry, Measurement, State, Taken};
use crate::policy::Policy;
use crate::pool::Pool;
use crate::request::{Kind, Limits, PartialLimits, PerKind, Refusal, Request};
use crate::scheduler::{Decision, Grant, Scheduler};
use crate::selector::{DeviceId, PoolName, Selector};

/// What a device does at the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// The device.
    pub device: DeviceId,
    /// Tasks at once.
    pub limits: Limits,
    /// The tasks that hold it.
    pub tasks: Vec<(String, Kind)>,
    /// Memory that leases and other programs may take together, in bytes; 0 where it is not known.
    pub memory_bytes: u64,
    /// Memory held by leases, in bytes.
    pub reserved_bytes: u64,
    /// Memory that leases have taken by their workers' word, in bytes.
    pub observed_bytes: u64,
    /// Memory in use that no lease explains, in bytes: what other programs hold, and what leaked.
    pub foreign_bytes: u64,
    /// Memory that leases which have ended gave back and that is not seen free yet, in bytes.
    pub returning_bytes: u64,
    /// Memory that leases which have ended left behind, in bytes.
    pub leaked_bytes: u64,
    /// Memory that no lease takes, in bytes.
    pub headroom_bytes: u64,
    /// Memory that a lease can take now, in bytes.
    pub allocatable_bytes: u64,
    /// Percent of the time in which kernels ran, averaged over some samples.
    pub utilization_percent: Option<f64>,
    /// Whether tasks can run on it.
    pub state: State,
    /// Whether the operator keeps new tasks away from it.
    pub draining: bool,
    /// Whether it takes no new task until it has been cool for a while.
    pub hot: bool,
    /// Its pools.
    pub pools: Vec<PoolName>,
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

    /// Why no new task can run there now.
    pub fn reason(&self) -> Option<&str> {
        let drained = self.draining.then_some("it is drained by the operator");
        let hot = self
            .hot
            .then_some("it is too hot, or has not been cool for long enough since");
        self.state.reason().or(drained).or(hot)
    }
}

/// A pool at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolUsage {
    /// Its name.
    pub name: PoolName,
    /// As the operator wrote it, with its limits now.
    pub pool: Pool,
    /// Its GPUs.
    pub gpus: Vec<DeviceId>,
    /// Tasks on them.
    pub tasks: PerKind<u32>,
}

/// A wish that waits, or is decided but not fetched yet.
#[derive(Debug)]
enum Slot {
    Waiting(Option<Waker>),
    Decided(Decision),
}

#[derive(Debug)]
struct Core {
    scheduler: Scheduler,
    slots: BTreeMap<u64, Slot>,
}

impl Core {
    /// Hands decisions to those that wait for them. Gives whom to wake once the lock is free.
    fn deliver(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for (number, decision) in self.scheduler.decisions() {
            match self.slots.insert(number, Slot::Decided(decision)) {
                Some(Slot::Waiting(waker)) => wakers.extend(waker),
                Some(Slot::Decided(_)) | None => {}
            }
        }
        wakers
    }
}

/// Called after every change of who holds what.
type Listener = Box<dyn Fn() + Send + Sync>;

/// Decides who gets which device.
pub struct Allocator {
    core: Mutex<Core>,
    /// Counts changes of what the others tell.
    version: AtomicU64,
    listeners: Mutex<Vec<Listener>>,
}

impl Allocator {
    /// An allocator of these devices, the processor among them, which chooses by a policy where
    /// neither a request nor a pool has one.
    pub fn new(devices: Vec<DeviceEntry>, policy: Policy) -> Arc<Self> {
        let core = Core {
            scheduler: Scheduler::new(devices, policy),
            slots: BTreeMap::new(),
        };
        Arc::new(Self {
            core: Mutex::new(core),
            version: AtomicU64::new(0),
            listeners: Mutex::new(Vec::new()),
        })
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another number after every change of what [`Self::usage`], [`Self::pools`], [`Self::cpu_fallback`] and
    /// [`Self::policy`] tell.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Counts a change that was made.
    fn count(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Calls `listener` after every change of who holds what.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(listener));
    }

    fn notify(&self) {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener());
    }

    /// Changes what there is, and wakes those whose wishes that decided.
    fn change<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.core();
        let result = work(&mut core);
        let wakers = core.deliver();
        self.count();
        drop(core);
        wakers.into_iter().for_each(Waker::wake);
        self.notify();
        result
    }

    /// Whether tasks of a plugin and a kind can ever be granted so many devices where a selector says,
    /// memory aside.
    pub fn check(
        &self,
        selector: &Selector,
        plugin: &str,
        kind: Kind,
        gpus: u32,
    ) -> Result<(), Refusal> {
        self.core().scheduler.check(selector, plugin, kind, gpus)
    }

    /// Whether a selector names something that there is.
    pub fn exists(&self, selector: &Selector) -> Result<(), Refusal> {
        self.core().scheduler.exists(selector)
    }

    /// Asks for a device. Deciding and recording is one step, now or when a change allows it.
    pub fn submit(self: &Arc<Self>, request: Request) -> Result<Ticket, Refusal> {
        let number = self.change(|core| {
            let number = core.scheduler.submit(request)?;
            core.slots.insert(number, Slot::Waiting(None));
            Ok(number)
        })?;
        Ok(Ticket {
            allocator: Arc::clone(self),
            number,
        })
    }

    /// What every device does, the processor first.
    pub fn usage(&self) -> Vec<Usage> {
        let core = self.core();
        let ledger = &core.scheduler.ledger;
        let usage = ledger.devices.iter().map(|device| Usage {
            device: device.entry.id,
            limits: device.entry.limits,
            tasks: device
                .holdings
                .iter()
                .map(|held| (held.task.clone(), held.kind))
                .collect(),
            memory_bytes: device.entry.memory_bytes,
            reserved_bytes: device.memory.reserved(),
            observed_bytes: device.memory.observed(),
            foreign_bytes: device.memory.foreign(),
            returning_bytes: device.memory.returning(),
            leaked_bytes: device.memory.leaked(),
            headroom_bytes: device.entry.headroom_bytes,
            allocatable_bytes: device.allocatable(),
            utilization_percent: device.utilization(),
            state: device.entry.state.clone(),
            draining: device.entry.draining,
            hot: device.hot(),
            pools: device
                .pools
                .iter()
                .map(|&pool| ledger.pools[pool].name.clone())
                .collect(),
        });
        usage.collect()
    }

    /// The pools.
    pub fn pools(&self) -> Vec<PoolUsage> {
        let core = self.core();
        let ledger = &core.scheduler.ledger;
        let pools = ledger.pools.iter().map(|entry| PoolUsage {
            name: entry.name.clone(),
            pool: entry.pool.clone(),
            gpus: entry
                .members
                .iter()
                .map(|&place| ledger.devices[place].entry.id)
                .collect(),
            tasks: entry.counts,
        });
        pools.collect()
    }

    /// The number of wishes that wait.
    pub fn waiting(&self) -> usize {
        self.core().scheduler.waiting()
    }

    /// The host's policy.
    pub fn policy(&self) -> Policy {
        self.core().scheduler.policy
    }

    /// Sets the host's policy.
    pub fn set_policy(&self, policy: Policy) {
        self.core().scheduler.policy = policy;
        self.count();
    }

    /// How long a GPU that was too hot stays cool before it takes tasks again.
    pub fn cool(&self) -> Duration {
        self.core().scheduler.ledger.cool
    }

    /// Sets how long a GPU that was too hot stays cool before it takes tasks again; from the next
    /// measurement on.
    pub fn set_cool(&self, cool: Duration) {
        self.core().scheduler.ledger.cool = cool;
        self.count();
    }

    /// Whether `cuda` means the processor where no GPU can run tasks.
    pub fn cpu_fallback(&self) -> bool {
        self.core().scheduler.cpu_fallback
    }

    /// Lets `cuda` mean the processor where no GPU can run tasks, or not: then such tasks are refused,
    /// those that wait too.
    pub fn set_cpu_fallback(&self, allowed: bool) {
        self.change(|core| core.scheduler.set_cpu_fallback(allowed));
    }

    /// Changes the limits of a device, with `cuda` of every GPU, with a pool's name of the pool. Tasks
    /// that run stay.
    pub fn set_limits(&self, selector: &Selector, limits: PartialLimits) -> Result<(), Refusal> {
        self.change(|core| core.scheduler.set_limits(selector, limits))
    }

    /// Replaces all pools. Tasks that run stay.
    pub fn set_pools(&self, pools: Vec<(PoolName, Pool)>) {
        self.change(|core| core.scheduler.set_pools(pools));
    }

    /// Sets the memory of a device that no lease takes, in bytes. Tasks that run stay.
    pub fn set_headroom(&self, id: DeviceId, bytes: u64) -> Result<(), Refusal> {
        self.change(|core| core.scheduler.set_headroom(id, bytes))
    }

    /// Keeps new tasks away from a device, or lets them in again. Tasks that run stay.
    pub fn drain(&self, id: DeviceId, draining: bool) -> Result<(), Refusal> {
        self.change(|core| core.scheduler.drain(id, draining))
    }

    /// Adds a device that has appeared, whose number is higher than all others; it belongs to no pool
    /// until pools are set.
    pub fn add(&self, entry: DeviceEntry) {
        self.change(|core| core.scheduler.add(entry));
    }

    /// Changes what is known of a device.
    pub fn update(&self, id: DeviceId, change: impl FnOnce(&mut DeviceEntry)) {
        self.change(|core| core.scheduler.update(id, change));
    }

    /// Has all leases of a device end, for a reason that their holders are told; with `only`, the lease
    /// that is there alone.
    pub fn fail(&self, id: DeviceId, cause: &Cause, only: bool) {
        self.change(|core| {
            let ledger = &mut core.scheduler.ledger;
            if let Some(place) = ledger.find(id) {
                ledger.fail(place, cause, only);
            }
        });
    }

    /// Takes what was measured on GPUs.
    pub fn measured(&self, measurements: &[(DeviceId, Measurement)]) {
        let mut core = self.core();
        let changed = core.scheduler.measure(measurements);
        let wakers = core.deliver();
        self.count();
        drop(core);
        wakers.into_iter().for_each(Waker::wake);
        if changed {
            self.notify();
        }
    }
}

impl std::fmt::Debug for Allocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocator")
            .field("core", &self.core)
            .finish_non_exhaustive()
    }
}

/// A wish that was submitted: a future of its lease. Dropping it takes the wish back.
#[derive(Debug)]
#[must_use = "a wish ends when its ticket is dropped"]
pub struct Ticket {
    allocator: Arc<Allocator>,
    number: u64,
}

impl Ticket {
    /// Why it waits; none where it is decided.
    pub fn reason(&self) -> Option<String> {
        self.allocator.core().scheduler.reason(self.number)
    }
}

impl Future for Ticket {
    type Output = Result<Lease, Refusal>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut core = self.allocator.core();
        if let Some(Slot::Waiting(waker)) = core.slots.get_mut(&self.number) {
            *waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let Some(Slot::Decided(decision)) = core.slots.remove(&self.number) else {
            return Poll::Pending;
        };
        drop(core);
        Poll::Ready(decision.map(|grant| Lease::new(&self.allocator, grant)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut core = self.allocator.core();
        let slot = core.slots.remove(&self.number);
        if let Some(Slot::Waiting(_)) = slot {
            core.scheduler.cancel(self.number);
        }
        let wakers = core.deliver();
        self.allocator.count();
        drop(core);
        wakers.into_iter().for_each(Waker::wake);
        if let Some(Slot::Decided(Ok(grant))) = slot {
            drop(Lease::new(&self.allocator, grant));
        }
    }
}

/// The right to use a device, or several at once. It ends when it is dropped, exactly once.
#[derive(Debug)]
pub struct Lease {
    allocator: Arc<Allocator>,
    grant: Grant,
    /// Something waits until its memory has returned.
    watched: bool,
}

impl Lease {
    fn new(allocator: &Arc<Allocator>, grant: Grant) -> Self {
        Self {
            allocator: Arc::clone(allocator),
            grant,
            watched: false,
        }
    }
}

impl Lease {
    /// The device granted, the first of several.
    pub fn device(&self) -> DeviceId {
        self.grant.device
    }

    /// All devices granted, in order.
    pub fn devices(&self) -> Vec<DeviceId> {
        let others = self.grant.others.iter().map(|(_, device)| *device);
        std::iter::once(self.grant.device).chain(others).collect()
    }

    /// Memory granted on each device, in bytes.
    pub fn bytes(&self) -> u64 {
        self.grant.bytes
    }

    /// Why the processor was granted where a GPU was asked for.
    pub fn fallback_reason(&self) -> Option<&str> {
        self.grant.fallback_reason.as_deref()
    }

    /// Why it ends before its task does, once that is so.
    pub fn failure(&self) -> Option<Cause> {
        let core = self.allocator.core();
        let ledger = &core.scheduler.ledger;
        let mut places = self.grant.places().into_iter();
        places.find_map(|place| ledger.failure(place, self.grant.lease).cloned())
    }

    /// Takes a worker's word for what it has taken of the lease on each device. Gives the most of it on
    /// one in bytes, the overhead of a context included.
    pub fn observed(&self, taken: Taken) -> u64 {
        let mut core = self.allocator.core();
        let ledger = &mut core.scheduler.ledger;
        let places = self.grant.places().into_iter();
        let observed = places.map(|place| ledger.observe(place, self.grant.lease, taken));
        let most = observed.max().unwrap_or(0);
        self.allocator.count();
        most
    }

    /// Ends it, and gives what watches its memory return on each device.
    pub fn release(mut self) -> Vec<Returning> {
        self.watched = true;
        let on = self.grant.places().into_iter().zip(self.devices());
        let returning = on.map(|(place, device)| Returning {
            allocator: Arc::clone(&self.allocator),
            device,
            place,
            lease: self.grant.lease,
        });
        returning.collect()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (places, lease) = (self.grant.places(), self.grant.lease);
        self.allocator.change(|core| {
            core.scheduler.end(&places, lease);
            // Of one that nobody was given nothing was taken.
            for place in places.iter().filter(|_| !self.watched) {
                core.scheduler.forget(*place, lease);
            }
        });
    }
}

/// What a lease that has ended gave back, until it is seen free. Dropping it writes off the rest.
#[derive(Debug)]
#[must_use = "what returns is written off when this is dropped"]
pub struct Returning {
    allocator: Arc<Allocator>,
    device: DeviceId,
    place: usize,
    lease: u64,
}

impl Returning {
    /// The device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Takes a new measurement of the memory in use on the device, in bytes, where there is one. Gives
    /// the bytes that are still to return.
    pub fn seen(&self, used_bytes: Option<u64>) -> u64 {
        let (place, lease) = (self.place, self.lease);
        self.allocator
            .change(|core| core.scheduler.returned(place, lease, used_bytes))
    }

    /// Waits no longer. Gives the bytes that have leaked.
    pub fn write_off(&self) -> u64 {
        let (place, lease) = (self.place, self.lease);
        self.allocator
            .change(|core| core.scheduler.ledger.write_off(place, lease))
    }

    /// Waits no longer, and takes for free what could not be seen.
    pub fn forget(&self) {
        let (place, lease) = (self.place, self.lease);
        self.allocator
            .change(|core| core.scheduler.forget(place, lease));
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        self.write_off();
    }
}

#[cfg(test)]
mod tests;
