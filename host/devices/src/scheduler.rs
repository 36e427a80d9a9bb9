//! Who gets which device: the ledger, those that wait, and the decisions. No lock, no clock.
//!
//! Wishes of one selector and kind form a class, in the order of their places. After every change only
//! the first [`WINDOW`] of the classes that the changed devices serve are looked at, in the order of
//! their places across classes, and only on those devices: what waits fits nowhere else, or it would
//! have been granted before. So a decision costs the same however many wait.
//!
//! A wish that fits may pass one before it that waits for memory, up to [`PASSES`] times. From then on
//! a device is kept for the wish that was passed: none behind it is granted that device.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ledger::{DeviceEntry, Hold, Ledger, Measurement, State};
use crate::policy::Policy;
use crate::pool::Pool;
use crate::queue::Place;
use crate::request::{Kind, PartialLimits, Refusal, Request};
use crate::selector::{DeviceId, PoolName, Selector};

/// Wishes of a class that are looked at when a device changes.
const WINDOW: usize = 16;
/// How often a wish is passed before a device is kept for it.
const PASSES: u32 = 16;
/// Devices named in a reason.
const NAMED: usize = 4;

/// A wish that waits, by place and number.
type Key = (Place, u64);

/// What a wish was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) lease: u64,
    /// The device's place in the ledger.
    pub(crate) place: usize,
    pub(crate) device: DeviceId,
    /// Without the overhead.
    pub(crate) bytes: u64,
    /// Why the processor where a GPU was asked for.
    pub(crate) fallback_reason: Option<String>,
}

pub(crate) type Decision = Result<Grant, Refusal>;

#[derive(Debug)]
struct Wish {
    request: Request,
    /// Not yet looked at on every device of its class.
    fresh: bool,
    /// How often it was passed.
    passes: u32,
    /// The device that is kept for it.
    hold: Option<usize>,
}

#[derive(Debug)]
struct Class {
    selector: Selector,
    kind: Kind,
    /// Places of the devices that serve it, in order.
    devices: Vec<usize>,
    fallback_reason: Option<String>,
    waiting: BTreeMap<Key, Wish>,
}

/// Decides; the decisions are taken from it by [`Scheduler::decisions`].
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) ledger: Ledger,
    pub(crate) policy: Policy,
    /// Whether `cuda` means the processor where no GPU can run tasks.
    pub(crate) cpu_fallback: bool,
    classes: Vec<Class>,
    by_selector: HashMap<(Selector, Kind), usize>,
    /// The classes that each device serves.
    by_device: Vec<Vec<usize>>,
    /// The class and the place of each wish that waits.
    wishes: HashMap<u64, (usize, Place)>,
    next: u64,
    decided: Vec<(u64, Decision)>,
}

impl Scheduler {
    pub(crate) fn new(devices: Vec<DeviceEntry>, policy: Policy) -> Self {
        let ledger = Ledger::new(devices);
        Self {
            by_device: vec![Vec::new(); ledger.devices.len()],
            ledger,
            policy,
            cpu_fallback: true,
            classes: Vec::new(),
            by_selector: HashMap::new(),
            wishes: HashMap::new(),
            next: 0,
            decided: Vec::new(),
        }
    }

    /// What was decided since this was last asked, by wish.
    pub(crate) fn decisions(&mut self) -> Vec<(u64, Decision)> {
        std::mem::take(&mut self.decided)
    }

    /// Whether tasks of a plugin can ever run where a selector says, memory aside.
    pub(crate) fn check(&self, selector: &Selector, plugin: &str) -> Result<(), Refusal> {
        let (devices, _) = self.resolve(selector)?;
        self.check_plugin(selector, &devices, plugin)
    }

    /// Whether a selector names something that there is.
    pub(crate) fn exists(&self, selector: &Selector) -> Result<(), Refusal> {
        let exists = match selector {
            Selector::Device(id) => self.ledger.find(*id).is_some(),
            Selector::AnyGpu => self.gpus().next().is_some(),
            Selector::Pool(name) => self.ledger.find_pool(name).is_some(),
        };
        if exists {
            Ok(())
        } else {
            Err(self.unknown(selector))
        }
    }

    /// Puts a wish among those that wait, and decides on it: its number.
    pub(crate) fn submit(&mut self, request: Request) -> Result<u64, Refusal> {
        let class = self.class(&request.selector, request.kind)?;
        self.check_wish(&self.classes[class].devices, &request)?;
        self.next += 1;
        let number = self.next;
        self.insert(
            class,
            number,
            Wish {
                request,
                fresh: true,
                passes: 0,
                hold: None,
            },
        );
        self.decide(Vec::new(), vec![class]);
        Ok(number)
    }

    /// Forgets a wish that waits.
    pub(crate) fn cancel(&mut self, number: u64) {
        let Some((class, place)) = self.wishes.remove(&number) else {
            return;
        };
        let removed = self.classes[class].waiting.remove(&(place, number));
        let freed = removed.and_then(|wish| self.free(&wish));
        self.decide(freed.into_iter().collect(), vec![class]);
    }

    /// Ends a lease.
    pub(crate) fn end(&mut self, place: usize, lease: u64) {
        let free = self.ledger.end(place, lease);
        self.decide(free, Vec::new());
    }

    /// Takes for free what an ended lease gave back.
    pub(crate) fn forget(&mut self, place: usize, lease: u64) {
        self.ledger.forget(place, lease);
        self.decide(vec![place], Vec::new());
    }

    /// Takes the memory in use on a device, in bytes, measured because an ended lease is to be seen to
    /// give its own back. Gives what is still to come.
    pub(crate) fn returned(&mut self, place: usize, lease: u64, used_bytes: Option<u64>) -> u64 {
        if let Some(used_bytes) = used_bytes
            && self.ledger.used(place, used_bytes)
        {
            self.decide(vec![place], Vec::new());
        }
        self.ledger.devices[place].memory.returning_of(lease)
    }

    /// Takes measurements of GPUs; true where one left more room than before.
    pub(crate) fn measure(&mut self, measurements: &[(DeviceId, Measurement)]) -> bool {
        let mut free = Vec::new();
        for (id, measurement) in measurements {
            let Some(place) = self.ledger.find(*id) else {
                continue;
            };
            let more = self.ledger.measure(place, measurement);
            if self.unhold_hopeless(place) || more {
                free.push(place);
            }
        }
        let any = !free.is_empty();
        self.decide(free, Vec::new());
        any
    }

    /// Takes what is known of a device: `change` changes what there is of it.
    pub(crate) fn update(&mut self, id: DeviceId, change: impl FnOnce(&mut DeviceEntry)) {
        if let Some(place) = self.ledger.find(id) {
            let device = &mut self.ledger.devices[place];
            let mut entry = device.entry.clone();
            change(&mut entry);
            if entry.state == State::Ready && device.entry.state != State::Ready {
                // What its self-test took is no other program's, and is gone with it.
                device.memory.restart_average();
            }
            self.ledger.change(place, |known| *known = entry);
        }
        self.review();
    }

    /// Sets the memory of a device that no lease takes, in bytes.
    pub(crate) fn set_headroom(&mut self, id: DeviceId, bytes: u64) -> Result<(), Refusal> {
        let place = self
            .ledger
            .find(id)
            .ok_or_else(|| self.unknown(&Selector::Device(id)))?;
        self.ledger
            .change(place, |entry| entry.headroom_bytes = bytes);
        self.review();
        Ok(())
    }

    /// Keeps new tasks away from a device, or lets them in again.
    pub(crate) fn drain(&mut self, id: DeviceId, draining: bool) -> Result<(), Refusal> {
        let place = self
            .ledger
            .find(id)
            .ok_or_else(|| self.unknown(&Selector::Device(id)))?;
        self.ledger.change(place, |entry| entry.draining = draining);
        self.review();
        Ok(())
    }

    /// Changes the limits of a device, with `cuda` of every GPU, with a pool's name of the pool.
    pub(crate) fn set_limits(
        &mut self,
        selector: &Selector,
        limits: PartialLimits,
    ) -> Result<(), Refusal> {
        self.exists(selector)?;
        let places: Vec<usize> = match selector {
            Selector::Device(id) => self.ledger.find(*id).into_iter().collect(),
            Selector::AnyGpu => self.gpus().collect(),
            Selector::Pool(name) => {
                if let Some(pool) = self.ledger.find_pool(name) {
                    let pool = &mut self.ledger.pools[pool].pool;
                    pool.limits = pool.limits.with(limits);
                }
                Vec::new()
            }
        };
        for place in places {
            self.ledger.set_limits(place, limits);
        }
        self.review();
        Ok(())
    }

    /// Lets `cuda` mean the processor where no GPU can run tasks, or not.
    pub(crate) fn set_cpu_fallback(&mut self, allowed: bool) {
        self.cpu_fallback = allowed;
        self.review();
    }

    /// Replaces all pools.
    pub(crate) fn set_pools(&mut self, pools: Vec<(PoolName, Pool)>) {
        self.ledger.set_pools(pools);
        self.review();
    }

    /// Why a wish waits; none where it does not.
    pub(crate) fn reason(&self, number: u64) -> Option<String> {
        let &(class, place) = self.wishes.get(&number)?;
        let class = &self.classes[class];
        let wish = class.waiting.get(&(place, number))?;
        let blocks = class.devices.iter().filter_map(|&device| {
            let block = self.ledger.admit(device, &wish.request).err()?;
            Some(self.ledger.explain(device, &wish.request, block))
        });
        let mut reasons: Vec<String> = blocks.take(NAMED).collect();
        if reasons.is_empty() {
            let before = class.waiting.range(..(place, number)).count();
            return Some(format!(
                "{before} tasks for `{}` are before it",
                class.selector
            ));
        }
        if class.devices.len() > NAMED {
            reasons.push(format!("and {} more", class.devices.len() - NAMED));
        }
        Some(reasons.join("; "))
    }

    /// The number of those that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.wishes.len()
    }

    fn gpus(&self) -> impl Iterator<Item = usize> {
        let devices = self.ledger.devices.iter().enumerate();
        devices
            .filter(|(_, device)| device.entry.id != DeviceId::Cpu)
            .map(|(place, _)| place)
    }

    fn unknown(&self, selector: &Selector) -> Refusal {
        let devices = self
            .ledger
            .devices
            .iter()
            .map(|device| format!("`{}`", device.entry.id));
        let pools = self
            .ledger
            .pools
            .iter()
            .map(|pool| format!("`{}`", pool.name));
        let exist: Vec<String> = devices.chain(pools).collect();
        Refusal::Unknown {
            selector: selector.clone(),
            exist: exist.join(", "),
        }
    }

    /// Why no task can run on any of these devices.
    fn unable(&self, places: &[usize]) -> String {
        let devices = places
            .iter()
            .map(|&place| &self.ledger.devices[place].entry);
        let reasons =
            devices.filter_map(|entry| Some(format!("{}: {}", entry.id, entry.state.reason()?)));
        let reasons: Vec<String> = reasons.take(NAMED).collect();
        reasons.join("; ")
    }

    /// The places of the devices that a selector means, and why the processor is among them in place of
    /// a GPU.
    fn resolve(&self, selector: &Selector) -> Result<(Vec<usize>, Option<String>), Refusal> {
        let able =
            |place: &usize| !matches!(self.ledger.devices[*place].entry.state, State::Unable(_));
        let (places, fallback) = match selector {
            Selector::Device(id) => {
                let place = self
                    .ledger
                    .find(*id)
                    .ok_or_else(|| self.unknown(selector))?;
                (vec![place], None)
            }
            Selector::AnyGpu => {
                let fallback = self.cpu_fallback.then_some(DeviceId::Cpu);
                let cpu = fallback.and_then(|cpu| self.ledger.find(cpu));
                (self.gpus().collect(), cpu)
            }
            Selector::Pool(name) => {
                let pool = self
                    .ledger
                    .find_pool(name)
                    .ok_or_else(|| self.unknown(selector))?;
                (self.ledger.pools[pool].members.clone(), None)
            }
        };
        if places.iter().any(able) {
            return Ok((places.into_iter().filter(able).collect(), None));
        }
        let reason = match (places.is_empty(), selector) {
            (false, Selector::Device(_)) => {
                let reason = self.ledger.devices[places[0]].entry.state.reason();
                reason.unwrap_or_default().to_owned()
            }
            (false, _) => self.unable(&places),
            (true, Selector::Pool(_)) => "no GPU of this machine belongs to it".to_owned(),
            (true, _) => "there is no GPU".to_owned(),
        };
        match fallback {
            Some(cpu) => Ok((vec![cpu], Some(reason))),
            None => Err(Refusal::Unschedulable {
                device: selector.clone(),
                reason,
            }),
        }
    }

    fn check_plugin(
        &self,
        selector: &Selector,
        devices: &[usize],
        plugin: &str,
    ) -> Result<(), Refusal> {
        let named = match selector {
            Selector::Pool(name) => self.ledger.find_pool(name),
            _ => None,
        };
        let pool_allows = named.is_none_or(|pool| self.ledger.pools[pool].pool.allows(plugin));
        let allows = |&place: &usize| self.ledger.allows(&self.ledger.devices[place], plugin);
        if pool_allows && devices.iter().any(allows) {
            return Ok(());
        }
        Err(Refusal::Plugin {
            selector: selector.clone(),
            plugin: plugin.to_owned(),
        })
    }

    /// Whether a wish can ever be granted one of these devices.
    fn check_wish(&self, devices: &[usize], request: &Request) -> Result<(), Refusal> {
        self.check_plugin(&request.selector, devices, &request.plugin)?;
        let devices = devices.iter().map(|&place| &self.ledger.devices[place]);
        let mut most = None;
        for device in devices.filter(|device| self.ledger.allows(device, &request.plugin)) {
            if device.need(request) <= device.most() {
                return Ok(());
            }
            most = most.max(Some((device.most(), std::cmp::Reverse(device.entry.id))));
        }
        let Some((_, std::cmp::Reverse(id))) = most else {
            return Ok(());
        };
        let device = self
            .ledger
            .find(id)
            .map(|place| &self.ledger.devices[place]);
        device.map_or(Ok(()), |device| {
            Err(Refusal::NeverFits {
                needed: device.need(request),
                device: id,
                available: device.entry.memory_bytes,
                headroom: device.entry.headroom_bytes,
            })
        })
    }

    /// The class of a selector and a kind.
    fn class(&mut self, selector: &Selector, kind: Kind) -> Result<usize, Refusal> {
        if let Some(&class) = self.by_selector.get(&(selector.clone(), kind)) {
            return Ok(class);
        }
        let (devices, fallback_reason) = self.resolve(selector)?;
        let class = self.classes.len();
        devices
            .iter()
            .for_each(|&place| self.by_device[place].push(class));
        self.by_selector.insert((selector.clone(), kind), class);
        self.classes.push(Class {
            selector: selector.clone(),
            kind,
            devices,
            fallback_reason,
            waiting: BTreeMap::new(),
        });
        Ok(class)
    }

    fn insert(&mut self, class: usize, number: u64, wish: Wish) {
        let place = wish.request.place;
        self.wishes.insert(number, (class, place));
        self.classes[class].waiting.insert((place, number), wish);
    }

    /// Sorts all that wait anew, after a change of what there is: refuses what can never be granted
    /// now, and decides on the rest.
    fn review(&mut self) {
        self.by_selector.clear();
        self.wishes.clear();
        self.by_device.iter_mut().for_each(Vec::clear);
        self.ledger
            .devices
            .iter_mut()
            .for_each(|device| device.hold = None);
        let classes = std::mem::take(&mut self.classes);
        let mut passed = Vec::new();
        for class in classes {
            for ((_, number), mut wish) in class.waiting {
                let sorted = self.class(&class.selector, class.kind).and_then(|class| {
                    self.check_wish(&self.classes[class].devices, &wish.request)?;
                    Ok(class)
                });
                match sorted {
                    Ok(class) => {
                        wish.fresh = true;
                        wish.hold = None;
                        if wish.passes >= PASSES {
                            passed.push(((wish.request.place, number), class));
                        }
                        self.insert(class, number, wish);
                    }
                    Err(refusal) => self.decided.push((number, Err(refusal))),
                }
            }
        }
        passed.sort_unstable();
        passed
            .into_iter()
            .for_each(|(key, class)| self.hold(class, key));
        self.decide(Vec::new(), (0..self.classes.len()).collect());
    }

    /// Grants what can be granted: looks at those first in `touched` classes that are new there, and at
    /// those first in every class that a device of `dirty` serves.
    fn decide(&mut self, mut dirty: Vec<usize>, mut touched: Vec<usize>) {
        while !(dirty.is_empty() && touched.is_empty()) {
            let line = self.line(&dirty, &touched);
            let (mut freed, mut shifted) = (Vec::new(), HashSet::new());
            for (key, class) in line {
                if let Some(device) = self.choose(class, key, &dirty) {
                    freed.extend(self.grant(class, key, device));
                    shifted.insert(class);
                } else if let Some(wish) = self.classes[class].waiting.get_mut(&key) {
                    wish.fresh = false;
                }
            }
            // What was looked at fits even less after the grants; what moved up, and what may use a
            // device that is kept no longer, is still to be looked at.
            dirty = freed;
            touched = shifted.into_iter().collect();
        }
    }

    /// Those to look at, in order.
    fn line(&self, dirty: &[usize], touched: &[usize]) -> Vec<(Key, usize)> {
        let room = |kind| {
            let room = |&place: &usize| self.ledger.room(&self.ledger.devices[place], kind).is_ok();
            dirty.iter().any(room)
        };
        let room = Kind::ALL.map(room);
        let served = dirty
            .iter()
            .flat_map(|&place| &self.by_device[place])
            .copied();
        let mut classes: Vec<usize> = served.chain(touched.iter().copied()).collect();
        classes.sort_unstable();
        classes.dedup();
        let mut line = Vec::new();
        for class in classes {
            let Class { kind, waiting, .. } = &self.classes[class];
            let room = room[*kind as usize];
            let first = waiting
                .iter()
                .take(WINDOW)
                .filter(|(_, wish)| wish.fresh || room);
            line.extend(first.map(|(&key, _)| (key, class)));
        }
        line.sort_unstable();
        line
    }

    /// The device that a wish gets now: of all that serve its class where it is new, else of `dirty`.
    fn choose(&self, class: usize, key: Key, dirty: &[usize]) -> Option<usize> {
        let class = &self.classes[class];
        let wish = class.waiting.get(&key)?;
        let request = &wish.request;
        let of_pool = || match &class.selector {
            Selector::Pool(name) => self.ledger.pools[self.ledger.find_pool(name)?].pool.policy,
            _ => None,
        };
        let policy = request.policy.or_else(of_pool).unwrap_or(self.policy);
        let fits = |place: &&usize| self.ledger.fits(**place, request);
        let scored = |&place: &usize| {
            let device = &self.ledger.devices[place];
            (policy.score(&device.candidate(device.need(request))), place)
        };
        let best = if wish.fresh {
            class.devices.iter().filter(fits).map(scored).min()
        } else {
            let serves = |place: &&usize| class.devices.binary_search(place).is_ok();
            dirty.iter().filter(fits).filter(serves).map(scored).min()
        };
        best.map(|(_, place)| place)
    }

    /// Grants a device to a wish. Gives the device that was kept for it.
    fn grant(&mut self, class: usize, key: Key, place: usize) -> Option<usize> {
        self.pass(key, place);
        let wish = self.classes[class].waiting.remove(&key)?;
        self.wishes.remove(&key.1);
        let freed = self.free(&wish);
        let lease = self.ledger.grant(place, &wish.request);
        let device = self.ledger.devices[place].entry.id;
        let bytes = match device {
            DeviceId::Cpu => wish.request.bytes,
            DeviceId::Cuda(_) => wish.request.gpu_bytes,
        };
        let fallback_reason = self.classes[class].fallback_reason.clone();
        self.decided.push((
            key.1,
            Ok(Grant {
                lease,
                place,
                device,
                bytes,
                fallback_reason,
            }),
        ));
        freed
    }

    /// Counts that those before `key` which wait for memory of a device are passed there.
    fn pass(&mut self, key: Key, place: usize) {
        let mut passed = Vec::new();
        for &class in &self.by_device[place] {
            let first = self.classes[class].waiting.range(..key).take(WINDOW);
            for (&before, wish) in first {
                let room = self
                    .ledger
                    .room(&self.ledger.devices[place], wish.request.kind);
                if room.is_ok() && self.could_take(place, &wish.request) {
                    passed.push((before, class));
                }
            }
        }
        passed.sort_unstable();
        for (before, class) in passed {
            if let Some(wish) = self.classes[class].waiting.get_mut(&before) {
                wish.passes += 1;
                if wish.passes >= PASSES && wish.hold.is_none() {
                    self.hold(class, before);
                }
            }
        }
    }

    /// Whether a wish could take a device once its leases have ended.
    fn could_take(&self, place: usize, request: &Request) -> bool {
        let device = &self.ledger.devices[place];
        self.ledger.eligible(device, &request.plugin).is_ok()
            && device.need(request)
                <= device
                    .most()
                    .saturating_sub(device.memory.foreign_counted())
    }

    /// Keeps a device for a wish: of those that it could take, one with a free slot, then the one with
    /// the most memory for leases now.
    fn hold(&mut self, class: usize, key: Key) {
        let Some(wish) = self.classes[class].waiting.get(&key) else {
            return;
        };
        let kind = wish.request.kind;
        let able = self.classes[class].devices.iter().filter(|&&place| {
            self.ledger.devices[place].hold.is_none() && self.could_take(place, &wish.request)
        });
        let best = able.max_by_key(|&&place| {
            let device = &self.ledger.devices[place];
            (
                self.ledger.room(device, kind).is_ok(),
                device.allocatable(),
                std::cmp::Reverse(place),
            )
        });
        let Some(&place) = best else {
            return;
        };
        self.ledger.devices[place].hold = Some(Hold {
            wish: key.1,
            place: key.0,
            kind,
        });
        if let Some(wish) = self.classes[class].waiting.get_mut(&key) {
            wish.hold = Some(place);
        }
    }

    /// Keeps the device of a wish that is gone no longer.
    fn free(&mut self, wish: &Wish) -> Option<usize> {
        let place = wish.hold?;
        self.ledger.devices[place].hold = None;
        Some(place)
    }

    /// Keeps a device no longer for a wish that other programs now keep from it; true where it did.
    fn unhold_hopeless(&mut self, place: usize) -> bool {
        let Some(hold) = self.ledger.devices[place].hold else {
            return false;
        };
        let Some(&(class, at)) = self.wishes.get(&hold.wish) else {
            return false;
        };
        let key = (at, hold.wish);
        let wish = self.classes[class].waiting.get(&key);
        if wish.is_some_and(|wish| self.could_take(place, &wish.request)) {
            return false;
        }
        self.ledger.devices[place].hold = None;
        if let Some(wish) = self.classes[class].waiting.get_mut(&key) {
            wish.hold = None;
        }
        true
    }
}

#[cfg(test)]
mod tests;
