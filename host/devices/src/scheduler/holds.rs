//! Devices that are kept for wishes which others have passed often enough.

use super::{Key, PASSES, Scheduler, WINDOW, Wish};
use crate::ledger::Hold;
use crate::request::Request;

impl Scheduler {
    /// Counts that those before `key` which wait for memory of a device are passed where it is one of
    /// `places`, and those that wait for several GPUs whatever they wait for there. Gives the devices that
    /// are kept no longer.
    pub(super) fn pass(&mut self, key: Key, places: &[usize]) -> Vec<usize> {
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
    /// kept for nobody before it, the first by [`crate::ledger::Rank`]. Gives the devices that are kept no
    /// longer, because another wish would not have had all its.
    pub(super) fn hold(&mut self, class: usize, key: Key) -> Vec<usize> {
        let Some(wish) = self.classes[class].waiting.get(&key) else {
            return Vec::new();
        };
        let request = &wish.request;
        let kind = request.kind;
        let able = |place: usize| {
            let hold = self.ledger.devices[place].hold();
            hold.is_none_or(|hold| hold.place > key.0) && self.could_take(place, request)
        };
        let devices = self.classes[class].devices.iter().copied();
        let places = if request.gpus > 1 {
            // What runs now ends: a set counts that its limits allow on empty GPUs.
            let room = |pool: usize| {
                let limits = &self.ledger.pools[pool].pool.limits;
                limits.of(kind).unwrap_or(u32::MAX)
            };
            let takes = |&place: &usize| *self.ledger.devices[place].entry.limits.of(kind) > 0;
            let ranked = devices
                .filter(|&place| able(place))
                .filter(takes)
                .map(|place| (self.ledger.rank(place, kind), place));
            self.together(request, ranked, room)
        } else {
            let mut first = None;
            for place in devices {
                let before = |rank| first.is_none_or(|first| (rank, place) < first);
                if before(self.ledger.rank_at_best(place, kind)) && able(place) {
                    let rank = self.ledger.rank(place, kind);
                    first = before(rank).then_some((rank, place)).or(first);
                }
            }
            first.map(|(_, place)| vec![place])
        };
        let mut freed = Vec::new();
        for &place in places.iter().flatten() {
            if let Some(other) = self.ledger.devices[place].hold() {
                freed.extend(self.unhold(other.wish));
            }
            let hold = Hold {
                wish: key.1,
                place: key.0,
                kind,
            };
            self.ledger.keep(place, Some(hold));
        }
        if let Some(wish) = self.classes[class].waiting.get_mut(&key) {
            wish.holds = places.unwrap_or_default();
        }
        freed
    }

    /// Keeps the devices of a wish that is gone no longer.
    pub(super) fn free(&mut self, wish: &Wish) -> Vec<usize> {
        for &place in &wish.holds {
            self.ledger.keep(place, None);
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
            self.ledger.keep(place, None);
        }
        holds
    }

    /// Keeps no device any more for the wish that this one is kept for, where other programs now keep it
    /// from that. Gives those that were kept.
    pub(super) fn unhold_hopeless(&mut self, place: usize) -> Vec<usize> {
        let Some(hold) = self.ledger.devices[place].hold() else {
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
