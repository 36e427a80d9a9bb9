//! The ledger: what every device has, and who holds how much of it. No lock, no clock.

mod device;

use std::time::Duration;

pub use self::device::{Cause, DeviceEntry, Measurement, State, Taken};
pub(crate) use self::device::{Device, Hold, Holding, Rank};
use crate::heat::COOL;
use crate::memory::Average;
use crate::pool::Pool;
use crate::request::{Kind, PartialLimits, PerKind, Request};
use crate::selector::{DeviceId, PoolName};

/// Why a wish is not granted on a device now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    State,
    Draining,
    /// Too hot, or not cool for long enough since.
    Hot,
    Plugin,
    /// The device's limit of this kind.
    Limit(Kind),
    /// A pool's limit of this kind.
    PoolLimit(usize, Kind),
    /// Leases, other programs and the headroom leave too little.
    Memory,
    /// It is kept for a wish before this one.
    Held,
}

#[derive(Debug)]
pub(crate) struct PoolEntry {
    pub(crate) name: PoolName,
    pub(crate) pool: Pool,
    /// Places of its GPUs.
    pub(crate) members: Vec<usize>,
    pub(crate) counts: PerKind<u32>,
}

/// Devices and pools by their places in the lists, which stay.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) devices: Vec<Device>,
    pub(crate) pools: Vec<PoolEntry>,
    /// How long a GPU that was too hot stays cool before it takes tasks again.
    pub(crate) cool: Duration,
    /// What each device offers a task of each kind: one more than the bytes that the task may need, 0
    /// where it can run none. It is all in [`Device`] as well; a look at every device stays in the
    /// processor's cache with this.
    offers: Vec<[u64; 2]>,
    /// In what order each device would be kept for a task of each kind, pools' limits aside. It is all in
    /// [`Device`] as well, as with the offers.
    ranks: Vec<[Rank; 2]>,
    /// The number of the last lease.
    leases: u64,
}

impl Ledger {
    pub(crate) fn new(mut devices: Vec<DeviceEntry>) -> Self {
        devices.sort_by_key(|entry| entry.id);
        let mut ledger = Self {
            offers: Vec::new(),
            ranks: Vec::new(),
            devices: Vec::new(),
            pools: Vec::new(),
            cool: COOL,
            leases: 0,
        };
        devices.into_iter().for_each(|entry| ledger.add(entry));
        ledger
    }

    /// Adds a device, whose name is behind those of all others.
    pub(crate) fn add(&mut self, entry: DeviceEntry) {
        let device = Device::new(entry);
        self.offers.push([0; 2]);
        self.ranks.push(Kind::ALL.map(|kind| device.rank(kind)));
        self.devices.push(device);
        self.refresh(self.devices.len() - 1);
    }

    /// Works out what a device offers and its rank, after a change of it.
    fn refresh(&mut self, place: usize) {
        let device = &self.devices[place];
        let open = device.entry.state == State::Ready && !device.entry.draining && !device.hot();
        let bytes = device
            .allocatable()
            .checked_sub(device.entry.overhead_bytes);
        let offer = |kind| match bytes {
            Some(bytes) if open && device.counts.of(kind) < device.entry.limits.of(kind) => {
                bytes.saturating_add(1)
            }
            _ => 0,
        };
        self.offers[place] = Kind::ALL.map(offer);
        self.ranks[place] = Kind::ALL.map(|kind| device.rank(kind));
    }

    /// In what order a device would be kept for a task of a kind; that is no further behind than by
    /// [`Self::rank`].
    pub(crate) fn rank_at_best(&self, place: usize, kind: Kind) -> Rank {
        self.ranks[place][kind as usize]
    }

    /// In what order a device would be kept for a task of a kind.
    pub(crate) fn rank(&self, place: usize, kind: Kind) -> Rank {
        let full = self.room(&self.devices[place], kind).is_err();
        Rank {
            full,
            ..self.rank_at_best(place, kind)
        }
    }

    /// Keeps a device for a wish, or for nobody.
    pub(crate) fn keep(&mut self, place: usize, hold: Option<Hold>) {
        self.devices[place].hold = hold;
        self.refresh(place);
    }

    /// Changes what is known of a device.
    pub(crate) fn change(&mut self, place: usize, work: impl FnOnce(&mut DeviceEntry)) {
        work(&mut self.devices[place].entry);
        self.refresh(place);
    }

    /// The place of a device.
    pub(crate) fn find(&self, id: DeviceId) -> Option<usize> {
        self.devices
            .binary_search_by_key(&id, |device| device.entry.id)
            .ok()
    }

    /// The place of a pool.
    pub(crate) fn find_pool(&self, name: &PoolName) -> Option<usize> {
        self.pools.iter().position(|entry| entry.name == *name)
    }

    /// Replaces all pools, and counts the tasks of each again.
    pub(crate) fn set_pools(&mut self, pools: Vec<(PoolName, Pool)>) {
        self.devices
            .iter_mut()
            .for_each(|device| device.pools.clear());
        self.pools = Vec::new();
        for (place, (name, pool)) in pools.into_iter().enumerate() {
            let (mut members, mut counts) = (Vec::new(), PerKind::default());
            for (number, device) in self.devices.iter_mut().enumerate() {
                if device.facts().is_some_and(|facts| pool.contains(&facts)) {
                    members.push(number);
                    device.pools.push(place);
                    counts.training += device.counts.training;
                    counts.inference += device.counts.inference;
                }
            }
            self.pools.push(PoolEntry {
                name,
                pool,
                members,
                counts,
            });
        }
    }

    /// Whether a device's pools let a plugin's tasks in: those that name plugins, one of them at least.
    pub(crate) fn allows(&self, device: &Device, plugin: &str) -> bool {
        let mut naming = device.pools.iter().map(|&pool| &self.pools[pool].pool);
        let mut any = false;
        let named = naming.by_ref().filter(|pool| !pool.plugins.is_empty());
        for pool in named {
            if pool.allows(plugin) {
                return true;
            }
            any = true;
        }
        !any
    }

    /// Whether tasks can run on a device at all, tasks of this plugin among them.
    pub(crate) fn eligible(&self, device: &Device, plugin: &str) -> Result<(), Block> {
        if device.entry.state != State::Ready {
            return Err(Block::State);
        }
        if device.entry.draining {
            return Err(Block::Draining);
        }
        if device.hot() {
            return Err(Block::Hot);
        }
        if !device.pools.is_empty() && !self.allows(device, plugin) {
            return Err(Block::Plugin);
        }
        Ok(())
    }

    /// Whether one more task of a kind may run on a device.
    pub(crate) fn room(&self, device: &Device, kind: Kind) -> Result<(), Block> {
        if device.counts.of(kind) >= device.entry.limits.of(kind) {
            return Err(Block::Limit(kind));
        }
        for &place in &device.pools {
            let entry = &self.pools[place];
            let limit = entry.pool.limits.of(kind);
            if limit.is_some_and(|limit| *entry.counts.of(kind) >= limit) {
                return Err(Block::PoolLimit(place, kind));
            }
        }
        Ok(())
    }

    /// The most that one of these devices offers a task of a kind: one more than the bytes that it may
    /// need, 0 where it can run none.
    pub(crate) fn most_offered(&self, places: &[usize], kind: Kind) -> u64 {
        let offers = places
            .iter()
            .map(|&place| self.offers[place][kind as usize]);
        offers.max().unwrap_or(0)
    }

    /// Whether a wish fits on a device now.
    pub(crate) fn fits(&self, place: usize, request: &Request) -> bool {
        // The processor's overhead is none, and few wishes are for it.
        let bytes = request.bytes.min(request.gpu_bytes);
        self.offers[place][request.kind as usize] > bytes && self.admit(place, request).is_ok()
    }

    /// Whether a wish fits on a device now, and why it does not.
    pub(crate) fn admit(&self, place: usize, request: &Request) -> Result<(), Block> {
        let device = &self.devices[place];
        // The cheapest and most frequent reason first.
        self.room(device, request.kind)?;
        self.eligible(device, &request.plugin)?;
        if device.held_from(request.kind, request.place) {
            return Err(Block::Held);
        }
        if device.need(request) > device.allocatable() {
            return Err(Block::Memory);
        }
        Ok(())
    }

    /// Records that a wish holds devices: the lease's number, the same on each.
    pub(crate) fn grant(&mut self, places: &[usize], request: &Request) -> u64 {
        self.leases += 1;
        places.iter().for_each(|&place| self.take(place, request));
        self.leases
    }

    fn take(&mut self, place: usize, request: &Request) {
        let device = &mut self.devices[place];
        device.memory.grant(self.leases, device.need(request));
        device.last_grant = self.leases;
        *device.counts.of_mut(request.kind) += 1;
        device.holdings.push(Holding {
            lease: self.leases,
            task: request.task.clone(),
            kind: request.kind,
            failure: None,
        });
        for &pool in &device.pools {
            *self.pools[pool].counts.of_mut(request.kind) += 1;
        }
        self.refresh(place);
    }

    /// Ends a lease on one of its devices. Gives the places of the devices that may take more now; none where there is no
    /// such lease.
    pub(crate) fn end(&mut self, place: usize, lease: u64) -> Vec<usize> {
        let device = &mut self.devices[place];
        let Some(at) = device.holdings.iter().position(|held| held.lease == lease) else {
            return Vec::new();
        };
        let held = device.holdings.remove(at);
        device.memory.end(lease);
        *device.counts.of_mut(held.kind) -= 1;
        let mut free = vec![place];
        for &pool in &device.pools {
            let entry = &mut self.pools[pool];
            let count = entry.counts.of_mut(held.kind);
            let full = entry
                .pool
                .limits
                .of(held.kind)
                .is_some_and(|limit| *count >= limit);
            *count -= 1;
            if full {
                free.extend(&entry.members);
            }
        }
        self.refresh(place);
        free
    }

    /// Takes a worker's word for what its lease has taken: whether a context, and the bytes of its
    /// sessions. Gives all of it in bytes, the overhead of a context included.
    pub(crate) fn observe(&mut self, place: usize, lease: u64, taken: Taken) -> u64 {
        let device = &mut self.devices[place];
        let overhead = if taken.context {
            device.entry.overhead_bytes
        } else {
            0
        };
        let bytes = taken.session_bytes.saturating_add(overhead);
        let observed = device.memory.observe(lease, bytes, taken.session_bytes > 0);
        self.refresh(place);
        observed
    }

    /// Takes the memory in use on a device, measured out of turn; true where it leaves more room than
    /// before.
    pub(crate) fn used(&mut self, place: usize, used_bytes: u64) -> bool {
        let before = self.devices[place].allocatable();
        self.devices[place]
            .memory
            .measure(Some(used_bytes), Average::Keep);
        self.refresh(place);
        self.devices[place].allocatable() > before
    }

    /// Takes for free what an ended lease gave back.
    pub(crate) fn forget(&mut self, place: usize, lease: u64) {
        self.devices[place].memory.forget(lease);
        self.refresh(place);
    }

    /// Waits no longer for what an ended lease gave back. Gives the bytes that have leaked.
    pub(crate) fn write_off(&mut self, place: usize, lease: u64) -> u64 {
        let leaked = self.devices[place].memory.write_off(lease);
        self.refresh(place);
        leaked
    }

    /// Has all leases of a device end; with `only`, the lease that is there alone.
    pub(crate) fn fail(&mut self, place: usize, cause: &Cause, only: bool) {
        let holdings = &mut self.devices[place].holdings;
        if only && holdings.len() > 1 {
            return;
        }
        for held in holdings {
            held.failure.get_or_insert_with(|| cause.clone());
        }
    }

    /// Why a lease ends before its task does.
    pub(crate) fn failure(&self, place: usize, lease: u64) -> Option<&Cause> {
        let mut holdings = self.devices[place].holdings.iter();
        holdings.find(|held| held.lease == lease)?.failure.as_ref()
    }

    /// Takes a measurement; true where it leaves more room than the last.
    pub(crate) fn measure(&mut self, place: usize, measurement: &Measurement) -> bool {
        let more = self.devices[place].measure(measurement, self.cool);
        self.refresh(place);
        more
    }

    /// Changes the limits of a device.
    pub(crate) fn set_limits(&mut self, place: usize, limits: PartialLimits) {
        self.change(place, |entry| entry.limits = entry.limits.with(limits));
    }

    /// Why a wish is not granted on a device now, for people.
    pub(crate) fn explain(&self, place: usize, request: &Request, block: Block) -> String {
        let device = &self.devices[place];
        let id = device.entry.id;
        match block {
            Block::State => {
                let reason = device.entry.state.reason().unwrap_or("it is not ready");
                match device.entry.state {
                    State::Unwell(_) => format!("{id} cannot be used for now: {reason}"),
                    _ => format!("{id}: {reason}"),
                }
            }
            Block::Draining => format!("{id} is drained by the operator"),
            Block::Hot => format!("{id} {}", device.heat.reason(self.cool)),
            Block::Plugin => format!("{id} is kept for other plugins than `{}`", request.plugin),
            Block::Limit(kind) => format!(
                "{id} runs {} of {} {}",
                device.counts.of(kind),
                device.entry.limits.of(kind),
                kind.plural()
            ),
            Block::PoolLimit(pool, kind) => {
                let entry = &self.pools[pool];
                format!(
                    "the pool `{}` of {id} runs {} of {} {}",
                    entry.name,
                    entry.counts.of(kind),
                    entry.pool.limits.of(kind).unwrap_or(0),
                    kind.plural()
                )
            }
            Block::Memory => format!(
                "{id} has {} bytes free, the task needs {}; leases hold {}, other programs {}, tasks \
                 that ended {}, {} are kept free",
                device.allocatable(),
                device.need(request),
                device.memory.reserved(),
                device.memory.foreign_counted(),
                device.memory.returning(),
                device.entry.headroom_bytes
            ),
            Block::Held => format!("{id} is kept for a task that has waited longer"),
        }
    }
}
