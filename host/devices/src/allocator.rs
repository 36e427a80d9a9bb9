//! The allocator: one lock around the scheduler, and those that wait for its decisions.

use std::collections::HashMap;
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
    slots: HashMap<u64, Slot>,
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
            slots: HashMap::new(),
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
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;
    use std::thread::Thread;
    use std::time::Duration;

    use super::*;
    use crate::queue::Place;

    fn device(id: DeviceId) -> DeviceEntry {
        DeviceEntry {
            id,
            uuid: None,
            model: "GPU".to_owned(),
            compute_capability: None,
            memory_bytes: 24,
            headroom_bytes: 0,
            overhead_bytes: 0,
            limits: Limits {
                training: 1,
                inference: 3,
            },
            state: State::Ready,
            draining: false,
            peers: Vec::new(),
        }
    }

    fn machine(gpus: u32) -> Arc<Allocator> {
        let gpus = (0..gpus).map(DeviceId::Cuda);
        let all = std::iter::once(DeviceId::Cpu).chain(gpus);
        Allocator::new(all.map(device).collect(), Policy::default())
    }

    fn training(bytes: u64, number: u64) -> Request {
        Request {
            selector: Selector::AnyGpu,
            kind: Kind::Training,
            gpus: 1,
            bytes,
            gpu_bytes: bytes,
            task: "t".to_owned(),
            plugin: "p".to_owned(),
            policy: None,
            place: Place::new(Duration::ZERO, 5, number),
        }
    }

    struct Parked(Thread);

    impl Wake for Parked {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Waits on this thread for a lease, a minute at most.
    fn wait(mut ticket: Ticket) -> Option<Lease> {
        let waker = Waker::from(Arc::new(Parked(std::thread::current())));
        let end = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            match Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(lease) => return lease.ok(),
                Poll::Pending if std::time::Instant::now() > end => return None,
                Poll::Pending => std::thread::park_timeout(Duration::from_secs(60)),
            }
        }
    }

    fn counts(allocator: &Allocator) -> Vec<u32> {
        let usage = allocator.usage();
        usage
            .iter()
            .map(|usage| usage.count(Kind::Training))
            .collect()
    }

    #[test]
    fn a_lease_ends_when_it_is_dropped_and_wakes_who_waits() {
        let allocator = machine(1);
        let first = wait(allocator.submit(training(1, 0)).unwrap()).unwrap();
        let second = allocator.submit(training(1, 1)).unwrap();
        assert!(second.reason().unwrap().contains("1 of 1 trainings"));
        assert_eq!((counts(&allocator), allocator.waiting()), (vec![0, 1], 1));
        let waiting = std::thread::spawn(move || wait(second).map(|lease| lease.device()));
        drop(first);
        assert_eq!(waiting.join().unwrap(), Some(DeviceId::Cuda(0)));
        assert_eq!((counts(&allocator), allocator.waiting()), (vec![0, 0], 0));
    }

    #[test]
    fn a_lease_that_ends_is_watched_until_its_memory_returns_or_has_leaked() {
        let (allocator, gpu) = (machine(1), DeviceId::Cuda(0));
        let measure = |used| {
            let measurement = Measurement {
                used_bytes: Some(used),
                ..Measurement::default()
            };
            allocator.measured(&[(gpu, measurement)]);
        };
        let figures = || {
            let usage = allocator.usage();
            let gpu = usage.iter().find(|usage| usage.device == gpu).unwrap();
            (
                gpu.observed_bytes,
                gpu.returning_bytes,
                gpu.leaked_bytes,
                gpu.foreign_bytes,
            )
        };
        let taken = Taken {
            context: true,
            session_bytes: 10,
        };
        measure(4);
        for watched in [true, false] {
            let version = allocator.version();
            let lease = wait(allocator.submit(training(10, 0)).unwrap()).unwrap();
            assert_eq!(lease.observed(taken), 10);
            measure(14);
            assert_eq!(figures(), (10, 0, 0, 4));
            assert!(allocator.version() > version);
            if watched {
                let returning = lease.release().remove(0);
                assert_eq!(figures(), (0, 10, 0, 4));
                assert_eq!((returning.seen(None), returning.seen(Some(12))), (10, 8));
                assert_eq!(returning.write_off(), 8);
                assert_eq!(figures(), (0, 0, 8, 12));
            } else {
                drop(lease);
                // What was taken all the same is seen by the next measurement.
                assert_eq!(figures(), (0, 0, 0, 4));
            }
            measure(4);
            assert_eq!(figures(), (0, 0, 0, 4));
        }
        // A grant that is never fetched holds up nobody, nor does one whose end cannot be seen.
        drop(allocator.submit(training(20, 1)).unwrap());
        let lease = wait(allocator.submit(training(20, 2)).unwrap()).unwrap();
        let next = allocator.submit(training(20, 3)).unwrap();
        let returning = lease.release().remove(0);
        assert!(next.reason().is_some());
        returning.forget();
        assert_eq!(next.reason(), None);
    }

    #[test]
    fn a_ticket_that_is_dropped_takes_its_wish_back_granted_or_not() {
        let allocator = machine(1);
        let granted = allocator.submit(training(1, 0)).unwrap();
        let waiting = allocator.submit(training(1, 1)).unwrap();
        let last = allocator.submit(training(1, 2)).unwrap();
        drop(waiting);
        assert_eq!(allocator.waiting(), 1);
        drop(granted);
        assert_eq!((counts(&allocator), last.reason()), (vec![0, 1], None));
        drop(last);
        assert_eq!(
            (counts(&allocator), allocator.core().slots.len()),
            (vec![0, 0], 0)
        );
    }

    #[test]
    fn leases_of_a_gpu_that_fails_are_told_why_they_end() {
        let allocator = machine(1);
        let lease = || {
            let mut request = training(1, 0);
            request.kind = Kind::Inference;
            wait(allocator.submit(request).unwrap()).unwrap()
        };
        let cause = |code| Cause {
            code,
            reason: code.to_owned(),
        };
        let gpu = DeviceId::Cuda(0);
        let first = lease();
        allocator.fail(gpu, &cause("device.fault"), true);
        assert_eq!(first.failure(), Some(cause("device.fault")));
        // Nobody knows which of several did it, so that all go on.
        drop(first);
        let (first, second) = (lease(), lease());
        allocator.fail(gpu, &cause("device.fault"), true);
        assert_eq!((first.failure(), second.failure()), (None, None));
        allocator.fail(gpu, &cause("device.lost"), false);
        allocator.fail(gpu, &cause("device.silent"), false);
        for lease in [first, second] {
            assert_eq!(lease.failure(), Some(cause("device.lost")));
        }
        assert_eq!(lease().failure(), None);
    }

    #[test]
    fn a_wish_that_can_never_be_granted_any_more_is_refused_while_it_waits() {
        let allocator = machine(1);
        let _held = wait(allocator.submit(training(1, 0)).unwrap());
        let mut pinned = allocator
            .submit(Request {
                selector: Selector::Device(DeviceId::Cuda(0)),
                ..training(1, 1)
            })
            .unwrap();
        allocator.update(DeviceId::Cuda(0), |gpu| {
            gpu.state = State::Unable("it fell off".to_owned());
        });
        let polled = Pin::new(&mut pinned).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Err(refusal)) = polled else {
            panic!("{polled:?}");
        };
        assert_eq!(refusal.code(), "device.unschedulable");
    }

    #[test]
    fn threads_that_race_never_hold_more_than_the_limit_and_none_is_forgotten() {
        let allocator = machine(2);
        let (held, most, changes) = (
            AtomicU32::new(0),
            AtomicU32::new(0),
            Arc::new(AtomicU32::new(0)),
        );
        let counted = Arc::clone(&changes);
        allocator.on_change(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let grants = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (allocator, held, most, grants) = (&allocator, &held, &most, &grants);
                scope.spawn(move || {
                    for round in 0..200 {
                        let ticket = allocator
                            .submit(training(1, thread * 1000 + round))
                            .unwrap();
                        if (thread + round) % 5 == 0 {
                            drop(ticket);
                            continue;
                        }
                        let lease = wait(ticket).unwrap();
                        let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        held.fetch_sub(1, Ordering::SeqCst);
                        grants.fetch_add(1, Ordering::Relaxed);
                        drop(lease);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(grants.load(Ordering::Relaxed), 8 * 160);
        assert!(changes.load(Ordering::Relaxed) >= 2 * 8 * 160);
        assert_eq!(counts(&allocator), [0, 0, 0]);
        assert!(allocator.core().slots.is_empty());
    }
}
