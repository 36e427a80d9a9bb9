//! Who gets which device: the ledger, those that wait, and the decisions. No lock, no clock.
//!
//! Wishes of one selector and kind form a class, in the order of their places. After every change only
//! the first [`WINDOW`] of the classes that the changed devices serve are looked at, in the order of
//! their places across classes, and only on those devices: what waits fits nowhere else, or it would
//! have been granted before. So a decision costs the same however many wait.
//!
//! A wish that fits may pass one before it that waits for memory, up to [`PASSES`] times. From then on
//! a device is kept for the wish that was passed: none behind it is granted that device.

mod holds;
mod refusals;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::gang::{self, Member};
use crate::ledger::{DeviceEntry, Ledger, Measurement, State};
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
    /// The other GPUs of a task on several.
    pub(crate) others: Vec<(usize, DeviceId)>,
    /// On each, without the overhead.
    pub(crate) bytes: u64,
    /// Why the processor where a GPU was asked for.
    pub(crate) fallback_reason: Option<String>,
}

impl Grant {
    /// The places of all its devices.
    pub(crate) fn places(&self) -> Vec<usize> {
        let others = self.others.iter().map(|(place, _)| *place);
        std::iter::once(self.place).chain(others).collect()
    }
}

pub(crate) type Decision = Result<Grant, Refusal>;

#[derive(Debug)]
struct Wish {
    /// What it takes at least of a device, in bytes.
    least_bytes: u64,
    request: Request,
    /// Not yet looked at on every device of its class.
    fresh: bool,
    /// How often it was passed.
    passes: u32,
    /// The devices that are kept for it.
    holds: Vec<usize>,
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
    wishes: BTreeMap<u64, (usize, Place)>,
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
            wishes: BTreeMap::new(),
            next: 0,
            decided: Vec::new(),
        }
    }

    /// What was decided since this was last asked, by wish.
    pub(crate) fn decisions(&mut self) -> Vec<(u64, Decision)> {
        std::mem::take(&mut self.decided)
    }

    /// Puts a wish among those that wait, and decides on it: its number.
    pub(crate) fn submit(&mut self, request: Request) -> Result<u64, Refusal> {
        self.check_kind(&request.selector, request.kind, request.gpus)?;
        let class = self.class(&request.selector, request.kind)?;
        self.check_wish(&self.classes[class].devices, &request)?;
        self.next += 1;
        let number = self.next;
        self.insert(
            class,
            number,
            Wish {
                // The processor's overhead is none, and few wishes are for it.
                least_bytes: request.bytes.min(request.gpu_bytes),
                request,
                fresh: true,
                passes: 0,
                holds: Vec::new(),
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
        let freed = removed.map_or_else(Vec::new, |wish| self.free(&wish));
        self.decide(freed, vec![class]);
    }

    /// Ends a lease on all its devices.
    pub(crate) fn end(&mut self, places: &[usize], lease: u64) {
        let ended = places.iter().map(|&place| self.ledger.end(place, lease));
        let free: Vec<Vec<usize>> = ended.collect();
        self.decide(free.concat(), Vec::new());
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

    /// Takes measurements of GPUs; true where one left more room than before, or another reason to wait.
    pub(crate) fn measure(&mut self, measurements: &[(DeviceId, Measurement)]) -> bool {
        let (mut free, mut heated) = (Vec::new(), false);
        for (id, measurement) in measurements {
            let Some(place) = self.ledger.find(*id) else {
                continue;
            };
            let hot = self.ledger.devices[place].hot();
            let more = self.ledger.measure(place, measurement);
            heated |= !hot && self.ledger.devices[place].hot();
            free.extend(self.unhold_hopeless(place));
            free.extend(more.then_some(place));
        }
        let any = heated || !free.is_empty();
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

    /// Adds a device that has appeared, unless one of its name or behind it is there. It belongs to no
    /// pool until pools are set.
    pub(crate) fn add(&mut self, entry: DeviceEntry) {
        let last = self.ledger.devices.last().map(|device| device.entry.id);
        if last < Some(entry.id) {
            self.ledger.add(entry);
            self.by_device.push(Vec::new());
            self.review();
        }
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
        let blocks: Vec<String> = blocks.collect();
        let blocked = blocks.len();
        let mut reasons: Vec<String> = blocks.into_iter().take(NAMED).collect();
        if wish.request.gpus > 1 {
            let free = class.devices.iter().filter(|&&device| {
                self.ledger.devices[device].joins() && self.ledger.fits(device, &wish.request)
            });
            let (gpus, free) = (wish.request.gpus, free.count());
            let together = if free < gpus as usize {
                ""
            } else {
                ", but not together: a pool's limit leaves less, or a task is before it"
            };
            let told = format!("it waits for {gpus} GPUs at once, and {free} have room{together}");
            reasons.insert(0, told);
        } else if reasons.is_empty() {
            let before = class.waiting.range(..(place, number)).count();
            return Some(format!(
                "{before} tasks for `{}` are before it",
                class.selector
            ));
        }
        if blocked > NAMED {
            reasons.push(format!("and {} more", blocked - NAMED));
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
        for place in 0..self.ledger.devices.len() {
            self.ledger.keep(place, None);
        }
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
                        wish.holds.clear();
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
        // The first takes what it needs, and the others what is left.
        for (key, class) in passed {
            self.hold(class, key);
        }
        self.decide(Vec::new(), (0..self.classes.len()).collect());
    }

    /// Grants what can be granted: looks at those first in `touched` classes that are new there, and at
    /// those first in every class that a device of `dirty` serves.
    fn decide(&mut self, mut dirty: Vec<usize>, mut touched: Vec<usize>) {
        while !(dirty.is_empty() && touched.is_empty()) {
            let line = self.line(&dirty, &touched);
            let (mut freed, mut shifted) = (Vec::new(), HashSet::new());
            for (key, class) in line {
                if let Some(places) = self.choose(class, key, &dirty) {
                    freed.extend(self.grant(class, key, &places));
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
        let offer = Kind::ALL.map(|kind| self.ledger.most_offered(dirty, kind));
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
            let offer = offer[*kind as usize];
            // Several GPUs may be had elsewhere as soon as a pool takes one more.
            let looked_at =
                |wish: &Wish| wish.fresh || wish.request.gpus > 1 || offer > wish.least_bytes;
            let first = waiting.iter().take(WINDOW);
            let first = first.filter(|(_, wish)| looked_at(wish));
            line.extend(first.map(|(&key, _)| (key, class)));
        }
        line.sort_unstable();
        line
    }

    /// The devices that a wish gets now: of all that serve its class where it is new or asks for several,
    /// else of `dirty`.
    fn choose(&self, class: usize, key: Key, dirty: &[usize]) -> Option<Vec<usize>> {
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
        if request.gpus > 1 {
            let fitting = class.devices.iter().filter(fits).map(scored);
            let room = |pool: usize| {
                let entry = &self.ledger.pools[pool];
                let limit = entry.pool.limits.of(request.kind).unwrap_or(u32::MAX);
                limit.saturating_sub(*entry.counts.of(request.kind))
            };
            return self.together(request, fitting, room);
        }
        let best = if wish.fresh {
            class.devices.iter().filter(fits).map(scored).min()
        } else {
            let serves = |place: &&usize| class.devices.binary_search(place).is_ok();
            dirty.iter().filter(fits).filter(serves).map(scored).min()
        };
        best.map(|(_, place)| vec![place])
    }

    /// The GPUs that a wish for several gets of those with a score; `room` tells how many more tasks of
    /// its kind a pool takes.
    fn together<S: Ord + Copy>(
        &self,
        request: &Request,
        scored: impl Iterator<Item = (S, usize)>,
        room: impl Fn(usize) -> u32,
    ) -> Option<Vec<usize>> {
        let devices = &self.ledger.devices;
        let members = scored.filter(|(_, place)| devices[*place].joins());
        let members: Vec<Member<'_, S>> = members
            .map(|(score, place)| Member {
                place,
                score,
                model: &devices[place].entry.model,
                pools: &devices[place].pools,
            })
            .collect();
        let link = |a: usize, b: usize| {
            gang::link(devices[members[a].place].peer(&devices[members[b].place]))
        };
        gang::choose(request.gpus as usize, &members, link, room)
    }

    /// Grants devices to a wish. Gives those that are kept no longer.
    fn grant(&mut self, class: usize, key: Key, places: &[usize]) -> Vec<usize> {
        let mut freed = self.pass(key, places);
        let Some((&place, others)) = places.split_first() else {
            return freed;
        };
        let Some(wish) = self.classes[class].waiting.remove(&key) else {
            return freed;
        };
        self.wishes.remove(&key.1);
        freed.extend(self.free(&wish));
        let lease = self.ledger.grant(places, &wish.request);
        let id = |place: usize| self.ledger.devices[place].entry.id;
        let device = id(place);
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
                others: others.iter().map(|&place| (place, id(place))).collect(),
                bytes,
                fallback_reason,
            }),
        ));
        freed
    }
}

#[cfg(test)]
mod tests;
