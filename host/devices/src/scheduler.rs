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

use crate::gang::{self, Member};
use crate::ledger::{Device, DeviceEntry, Hold, Ledger, Measurement, State};
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

    /// Whether tasks of a plugin and a kind can ever run on so many devices where a selector says, memory
    /// aside.
    pub(crate) fn check(
        &self,
        selector: &Selector,
        plugin: &str,
        kind: Kind,
        gpus: u32,
    ) -> Result<(), Refusal> {
        self.check_kind(selector, kind, gpus)?;
        let (devices, _) = self.resolve(selector)?;
        self.check_plugin(selector, &devices, plugin)?;
        self.check_gpus(selector, &devices, plugin, gpus)
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
        self.check_kind(&request.selector, request.kind, request.gpus)?;
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

    /// Takes measurements of GPUs; true where one left more room than before.
    pub(crate) fn measure(&mut self, measurements: &[(DeviceId, Measurement)]) -> bool {
        let mut free = Vec::new();
        for (id, measurement) in measurements {
            let Some(place) = self.ledger.find(*id) else {
                continue;
            };
            let more = self.ledger.measure(place, measurement);
            free.extend(self.unhold_hopeless(place));
            free.extend(more.then_some(place));
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

    /// Whether tasks of a kind may run on so many devices, and a selector may name as many.
    fn check_kind(&self, selector: &Selector, kind: Kind, gpus: u32) -> Result<(), Refusal> {
        let why = match (kind, selector) {
            _ if gpus <= 1 => return Ok(()),
            (Kind::Inference, _) => "an inference runs on one device".to_owned(),
            (Kind::Training, Selector::Device(id)) => {
                format!("`{id}` is 1 device: ask for `cuda` or a pool")
            }
            (Kind::Training, Selector::AnyGpu | Selector::Pool(_)) => return Ok(()),
        };
        Err(Refusal::Replicas { wanted: gpus, why })
    }

    /// Whether there are so many GPUs that can run tasks of a plugin together.
    fn check_gpus(
        &self,
        selector: &Selector,
        devices: &[usize],
        plugin: &str,
        gpus: u32,
    ) -> Result<(), Refusal> {
        let devices = devices.iter().map(|&place| &self.ledger.devices[place]);
        let joins = devices.filter(|device| device.joins() && self.ledger.allows(device, plugin));
        let there = joins.count();
        if gpus <= 1 || there >= gpus as usize {
            return Ok(());
        }
        let named: Vec<usize> = match selector {
            Selector::Pool(name) => match self.ledger.find_pool(name) {
                Some(pool) => self.ledger.pools[pool].members.clone(),
                None => Vec::new(),
            },
            Selector::AnyGpu | Selector::Device(_) => self.gpus().collect(),
        };
        let mut why = format!("`{selector}` has {there} that can run it together");
        let unable = self.unable(&named);
        if !unable.is_empty() {
            why = format!("{why}; {unable}");
        }
        Err(Refusal::Replicas { wanted: gpus, why })
    }

    /// Whether a wish can ever be granted as many of these devices as it asks for.
    fn check_wish(&self, devices: &[usize], request: &Request) -> Result<(), Refusal> {
        let Request {
            selector,
            plugin,
            gpus,
            ..
        } = request;
        self.check_plugin(selector, devices, plugin)?;
        self.check_gpus(selector, devices, plugin, *gpus)?;
        let devices = devices.iter().map(|&place| &self.ledger.devices[place]);
        let mut allowed: Vec<&Device> = devices
            .filter(|device| self.ledger.allows(device, plugin) && (*gpus <= 1 || device.joins()))
            .collect();
        // Those with the most memory first: the last that it needs is the first to be too small.
        allowed.sort_by_key(|device| {
            let short = device.need(request) > device.most();
            (short, std::cmp::Reverse(device.most()), device.entry.id)
        });
        match allowed.get((*gpus).max(1) as usize - 1) {
            Some(device) if device.need(request) > device.most() => Err(Refusal::NeverFits {
                needed: device.need(request),
                device: device.entry.id,
                available: device.entry.memory_bytes,
                headroom: device.entry.headroom_bytes,
            }),
            Some(_) | None => Ok(()),
        }
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
    fn together(
        &self,
        request: &Request,
        scored: impl Iterator<Item = ((u64, u64), usize)>,
        room: impl Fn(usize) -> u32,
    ) -> Option<Vec<usize>> {
        let devices = &self.ledger.devices;
        let members = scored.filter(|(_, place)| devices[*place].joins());
        let members: Vec<Member<'_>> = members
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

    /// Counts that those before `key` which wait for memory of a device are passed where it is one of
    /// `places`, and those that wait for several GPUs whatever they wait for there. Gives the devices that
    /// are kept no longer.
    fn pass(&mut self, key: Key, places: &[usize]) -> Vec<usize> {
        let mut passed = Vec::new();
        for &place in places {
            for &class in &self.by_device[place] {
                let first = self.classes[class].waiting.range(..key).take(WINDOW);
                for (&before, wish) in first {
                    let device = &self.ledger.devices[place];
                    let counts = wish.request.gpus > 1
                        || self.ledger.room(device, wish.request.kind).is_ok();
                    if counts && self.could_take(place, &wish.request) {
                        passed.push((before, class));
                    }
                }
            }
        }
        passed.sort_unstable();
        passed.dedup();
        let mut freed = Vec::new();
        for (before, class) in passed {
            if let Some(wish) = self.classes[class].waiting.get_mut(&before) {
                wish.passes += 1;
                if wish.passes >= PASSES && wish.holds.is_empty() {
                    freed.extend(self.hold(class, before));
                }
            }
        }
        freed
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

    /// Keeps as many devices for a wish as it asks for, or none: of those that it could take and that are
    /// kept for nobody before it, with a free slot first, then those with the most memory for leases
    /// now. Gives the devices that are kept no longer, because another wish would not have had all its.
    fn hold(&mut self, class: usize, key: Key) -> Vec<usize> {
        let Some(wish) = self.classes[class].waiting.get(&key) else {
            return Vec::new();
        };
        let request = &wish.request;
        let kind = request.kind;
        let able = self.classes[class].devices.iter().filter_map(|&place| {
            let device = &self.ledger.devices[place];
            let behind = device.hold.is_none_or(|hold| hold.place > key.0);
            let able = behind && self.could_take(place, request);
            let full = self.ledger.room(device, kind).is_err();
            let rank = 2 * u64::from(device.hold.is_some()) + u64::from(full);
            able.then(|| ((rank, u64::MAX - device.allocatable()), place))
        });
        let places = if request.gpus > 1 {
            // What runs now ends: a set counts that its limits allow on empty GPUs.
            let room = |pool: usize| {
                let limits = &self.ledger.pools[pool].pool.limits;
                limits.of(kind).unwrap_or(u32::MAX)
            };
            let able =
                able.filter(|(_, place)| *self.ledger.devices[*place].entry.limits.of(kind) > 0);
            self.together(request, able, room)
        } else {
            able.min().map(|(_, place)| vec![place])
        };
        let mut freed = Vec::new();
        for &place in places.iter().flatten() {
            if let Some(other) = self.ledger.devices[place].hold {
                freed.extend(self.unhold(other.wish));
            }
            self.ledger.devices[place].hold = Some(Hold {
                wish: key.1,
                place: key.0,
                kind,
            });
        }
        if let Some(wish) = self.classes[class].waiting.get_mut(&key) {
            wish.holds = places.unwrap_or_default();
        }
        freed
    }

    /// Keeps the devices of a wish that is gone no longer.
    fn free(&mut self, wish: &Wish) -> Vec<usize> {
        for &place in &wish.holds {
            self.ledger.devices[place].hold = None;
        }
        wish.holds.clone()
    }

    /// Keeps no device for a wish that waits any more. Gives those that were.
    fn unhold(&mut self, number: u64) -> Vec<usize> {
        let Some(&(class, at)) = self.wishes.get(&number) else {
            return Vec::new();
        };
        let wish = self.classes[class].waiting.get_mut(&(at, number));
        let holds = wish.map_or_else(Vec::new, |wish| std::mem::take(&mut wish.holds));
        for &place in &holds {
            self.ledger.devices[place].hold = None;
        }
        holds
    }

    /// Keeps no device any more for the wish that this one is kept for, where other programs now keep it
    /// from that. Gives those that were kept.
    fn unhold_hopeless(&mut self, place: usize) -> Vec<usize> {
        let Some(hold) = self.ledger.devices[place].hold else {
            return Vec::new();
        };
        let Some(&(class, at)) = self.wishes.get(&hold.wish) else {
            return Vec::new();
        };
        let wish = self.classes[class].waiting.get(&(at, hold.wish));
        if wish.is_some_and(|wish| self.could_take(place, &wish.request)) {
            return Vec::new();
        }
        self.unhold(hold.wish)
    }
}

#[cfg(test)]
mod tests;
