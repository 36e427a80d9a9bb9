//! What a selector means, and which wishes can never be granted.

use super::{NAMED, Scheduler};
use crate::ledger::{Device, State};
use crate::request::{Kind, Refusal, Request};
use crate::selector::{DeviceId, Selector};

impl Scheduler {
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

    pub(super) fn unknown(&self, selector: &Selector) -> Refusal {
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
    pub(super) fn resolve(
        &self,
        selector: &Selector,
    ) -> Result<(Vec<usize>, Option<String>), Refusal> {
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
    pub(super) fn check_kind(
        &self,
        selector: &Selector,
        kind: Kind,
        gpus: u32,
    ) -> Result<(), Refusal> {
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
        if gpus <= 1 {
            return Ok(());
        }
        let devices = devices.iter().map(|&place| &self.ledger.devices[place]);
        let joins = devices.filter(|device| device.joins() && self.ledger.allows(device, plugin));
        let there = joins.count();
        if there >= gpus as usize {
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
    pub(super) fn check_wish(&self, devices: &[usize], request: &Request) -> Result<(), Refusal> {
        let Request {
            selector,
            plugin,
            gpus,
            ..
        } = request;
        self.check_plugin(selector, devices, plugin)?;
        self.check_gpus(selector, devices, plugin, *gpus)?;
        let devices = devices.iter().map(|&place| &self.ledger.devices[place]);
        let allowed = devices
            .filter(|device| self.ledger.allows(device, plugin) && (*gpus <= 1 || device.joins()));
        let wanted = (*gpus).max(1) as usize;
        let short = |device: &&Device| device.need(request) > device.most();
        let large = allowed.clone().filter(|device| !short(device));
        if large.take(wanted).count() == wanted {
            return Ok(());
        }
        // Those with the most memory first: the last that it needs is the first to be too small.
        let mut allowed: Vec<&Device> = allowed.collect();
        allowed.sort_by_key(|device| {
            (
                short(device),
                std::cmp::Reverse(device.most()),
                device.entry.id,
            )
        });
        match allowed.get(wanted - 1) {
            Some(device) if short(device) => Err(Refusal::NeverFits {
                needed: device.need(request),
                device: device.entry.id,
                available: device.entry.memory_bytes,
                headroom: device.entry.headroom_bytes,
            }),
            Some(_) | None => Ok(()),
        }
    }
}
