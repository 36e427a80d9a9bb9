//! A device's memory: what leases were promised, what they have taken by their workers' word, what they
//! gave back and is not seen free yet, what was left behind, and what other programs hold. No clock.
//!
//! Of what NVML shows in use, leases explain what their workers told. What a lease gives back goes on to
//! count until a measurement shows it free:
//!
//! ```text
//! promised ─▶ observed ─▶ given back (by a lease that goes on) ─▶ free
//!                 └─────▶ returning (its lease has ended) ───────▶ free
//!                                      └─▶ leaked (written off) ─▶ free
//! ```
//!
//! Other programs hold the rest. While something is still to be seen free, memory in use above what they
//! held before is taken for that.

/// What one lease has of a device.
#[derive(Debug, Clone, Default)]
struct Share {
    lease: u64,
    /// All that it may take, in bytes.
    reserved: u64,
    /// What it has taken by its worker's word, in bytes.
    observed: u64,
    /// What it gave back and is not seen free yet, in bytes.
    given: u64,
    /// Its worker has told of a session: what it says is all that it has taken.
    told: bool,
}

impl Share {
    /// What it holds, or may hold where its worker has not told yet.
    fn held(&self) -> u64 {
        if self.told {
            self.observed
        } else {
            self.reserved
        }
    }
}

/// What a lease that has ended gave back and is not seen free yet.
#[derive(Debug)]
struct Returning {
    lease: u64,
    bytes: u64,
}

/// What a measurement does to the running average of what other programs hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Average {
    /// Moves it half of the way.
    Move,
    /// Leaves it.
    Keep,
}

/// The memory of one device.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    shares: Vec<Share>,
    /// Of leases that have ended, the oldest first.
    returning: Vec<Returning>,
    /// Written off, and not seen free since.
    leaked: u64,
    /// In use by the last measurement, with what leases told since that they took; none where it is not
    /// known.
    used: Option<u64>,
    /// What other programs held at the last measurement, and its running average.
    foreign: u64,
    average: u64,
    /// The next measurement begins the average anew.
    restart: bool,
    /// Sums over the leases.
    reserved: u64,
    observed: u64,
    given: u64,
}

fn sum(figures: impl Iterator<Item = u64>) -> u64 {
    figures.fold(0, u64::saturating_add)
}

impl Memory {
    /// Memory held by leases, in bytes.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Memory that leases have taken by their workers' word, in bytes.
    pub(crate) fn observed(&self) -> u64 {
        self.observed
    }

    /// Memory that leases which have ended gave back and that is not seen free yet, in bytes.
    pub(crate) fn returning(&self) -> u64 {
        sum(self.returning.iter().map(|returning| returning.bytes))
    }

    /// Memory that leases which have ended left behind, in bytes.
    pub(crate) fn leaked(&self) -> u64 {
        self.leaked
    }

    /// Memory in use that no lease explains, in bytes: what other programs hold, and what leaked.
    pub(crate) fn foreign(&self) -> u64 {
        self.foreign.saturating_add(self.leaked)
    }

    /// What other programs are counted with: [`Self::foreign`], or what they held on average where
    /// that is more, so that a moment's dip is not taken for room.
    pub(crate) fn foreign_counted(&self) -> u64 {
        self.foreign.max(self.average).saturating_add(self.leaked)
    }

    /// Bytes of `total` that a lease can take now: what the ledger leaves or what was measured leaves,
    /// whichever is less, without the headroom.
    pub(crate) fn allocatable(&self, total: u64, headroom: u64) -> u64 {
        let counted = [self.reserved, self.foreign_counted(), self.returning()];
        let by_ledger = total.saturating_sub(sum(counted.into_iter()));
        let promised = self
            .reserved
            .saturating_sub(self.observed.saturating_add(self.given));
        let by_measurement = self.used.map_or(u64::MAX, |used| {
            total.saturating_sub(used.saturating_add(promised))
        });
        by_ledger.min(by_measurement).saturating_sub(headroom)
    }

    fn add_up(&mut self) {
        let shares = &self.shares;
        self.reserved = sum(shares.iter().map(|share| share.reserved));
        self.observed = sum(shares.iter().map(|share| share.observed));
        self.given = sum(shares.iter().map(|share| share.given));
    }

    /// Promises a lease its bytes.
    pub(crate) fn grant(&mut self, lease: u64, reserved: u64) {
        self.shares.push(Share {
            lease,
            reserved,
            ..Share::default()
        });
        self.add_up();
    }

    /// Takes a worker's word for what its lease has taken, in bytes; `session` tells that this is all
    /// of it. Gives what is noted.
    pub(crate) fn observe(&mut self, lease: u64, bytes: u64, session: bool) -> u64 {
        let Some(share) = self.shares.iter_mut().find(|share| share.lease == lease) else {
            return 0;
        };
        let bytes = bytes.min(share.reserved);
        let (more, less) = (
            bytes.saturating_sub(share.observed),
            share.observed.saturating_sub(bytes),
        );
        share.told |= session;
        share.observed = bytes;
        if let Some(used) = &mut self.used {
            share.given = share.given.saturating_add(less);
            *used = used.saturating_add(more);
        }
        self.add_up();
        bytes
    }

    /// Ends a lease. What it has taken returns, where that can be seen.
    pub(crate) fn end(&mut self, lease: u64) {
        let Some(at) = self.shares.iter().position(|share| share.lease == lease) else {
            return;
        };
        let share = self.shares.remove(at);
        let bytes = share.held().saturating_add(share.given);
        if self.used.is_some() && bytes > 0 {
            self.returning.push(Returning { lease, bytes });
        }
        self.add_up();
    }

    /// What of an ended lease is not seen free yet, in bytes.
    pub(crate) fn returning_of(&self, lease: u64) -> u64 {
        let own = self.returning.iter().filter(|own| own.lease == lease);
        sum(own.map(|own| own.bytes))
    }

    /// Takes for free what an ended lease gave back.
    pub(crate) fn forget(&mut self, lease: u64) {
        self.returning.retain(|own| own.lease != lease);
    }

    /// Waits no longer for what an ended lease gave back: it has leaked until it is seen free. Gives
    /// its bytes.
    pub(crate) fn write_off(&mut self, lease: u64) -> u64 {
        let bytes = self.returning_of(lease);
        self.forget(lease);
        self.leaked = self.leaked.saturating_add(bytes);
        bytes
    }

    /// Counts other programs from the next measurement on with what they hold by it, however much they
    /// held before.
    pub(crate) fn restart_average(&mut self) {
        self.average = self.foreign;
        self.restart = true;
    }

    /// Takes a measurement of the memory in use, in bytes; none where it cannot be told, and what was
    /// given back is taken for free.
    pub(crate) fn measure(&mut self, used: Option<u64>, average: Average) {
        let Some(in_use) = used else {
            self.used = None;
            self.returning.clear();
            self.shares.iter_mut().for_each(|share| share.given = 0);
            self.add_up();
            return;
        };
        // Above what leases hold and other programs held lies what is not free yet: what leaked first,
        // then what was given back the longest ago.
        let unexplained = in_use.saturating_sub(self.observed);
        let mut left = unexplained.saturating_sub(self.foreign);
        let mut keep = |bytes: &mut u64| {
            *bytes = left.min(*bytes);
            left -= *bytes;
        };
        let returning = self.returning.iter_mut().map(|own| &mut own.bytes);
        let given = self.shares.iter_mut().map(|share| &mut share.given);
        std::iter::once(&mut self.leaked)
            .chain(returning)
            .chain(given)
            .for_each(&mut keep);
        self.returning.retain(|own| own.bytes > 0);
        self.add_up();
        let kept = [self.given, self.returning(), self.leaked];
        let unexplained = unexplained.saturating_sub(sum(kept.into_iter()));
        // What leases may have taken without a word explains a difference before other programs do.
        let untold = self
            .shares
            .iter()
            .map(|share| share.held() - share.observed);
        let least = unexplained.saturating_sub(sum(untold));
        let first = self.used.is_none();
        self.foreign = if first {
            unexplained
        } else {
            self.foreign.clamp(least, unexplained)
        };
        self.average = match average {
            _ if first || self.restart => self.foreign,
            Average::Move => self.average.midpoint(self.foreign),
            Average::Keep => self.average,
        };
        self.restart = false;
        self.used = used;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A lease of 10 that has taken 8 beside 3 of other programs, on a device of 100.
    fn running() -> Memory {
        let mut memory = Memory::default();
        memory.measure(Some(3), Average::Move);
        memory.grant(1, 10);
        memory.observe(1, 2, false);
        memory.observe(1, 8, true);
        memory.measure(Some(11), Average::Move);
        memory
    }

    #[test]
    fn the_ledger_the_workers_word_and_the_measurement_agree() {
        let memory = running();
        assert_eq!((memory.observed(), memory.foreign()), (8, 3));
        assert_eq!(memory.allocatable(100, 0), 87);
    }

    #[test]
    fn a_lease_that_has_not_told_yet_is_not_taken_for_another_program() {
        let mut memory = Memory::default();
        memory.measure(Some(3), Average::Move);
        memory.grant(1, 10);
        memory.measure(Some(5), Average::Move);
        memory.observe(1, 2, false);
        memory.measure(Some(11), Average::Move);
        assert_eq!((memory.foreign(), memory.observed()), (3, 2));
        memory.observe(1, 8, true);
        memory.measure(Some(11), Average::Move);
        assert_eq!(memory.foreign(), 3);
    }

    #[test]
    fn what_a_lease_took_is_free_once_it_is_seen_to_be() {
        let mut memory = running();
        memory.end(1);
        assert_eq!((memory.reserved(), memory.returning()), (0, 8));
        assert_eq!(memory.allocatable(100, 0), 89);
        memory.measure(Some(7), Average::Move);
        assert_eq!((memory.returning_of(1), memory.foreign()), (4, 3));
        assert_eq!(memory.allocatable(100, 0), 93);
        memory.measure(Some(3), Average::Move);
        assert_eq!((memory.returning_of(1), memory.foreign()), (0, 3));
        assert_eq!(memory.allocatable(100, 0), 97);
        assert_eq!(memory.write_off(1), 0);
    }

    #[test]
    fn what_does_not_return_has_leaked_until_it_does() {
        let mut memory = running();
        memory.end(1);
        memory.measure(Some(8), Average::Move);
        assert_eq!(memory.write_off(1), 5);
        assert_eq!((memory.leaked(), memory.foreign()), (5, 8));
        assert_eq!(memory.allocatable(100, 0), 92);
        // Another lease and another program change nothing of that.
        memory.grant(2, 20);
        memory.observe(2, 20, true);
        memory.measure(Some(30), Average::Move);
        assert_eq!((memory.leaked(), memory.foreign()), (5, 10));
        memory.measure(Some(25), Average::Move);
        assert_eq!((memory.leaked(), memory.foreign()), (0, 5));
    }

    #[test]
    fn a_session_that_closes_gives_back_what_its_lease_may_take_again() {
        let mut memory = running();
        memory.observe(1, 2, true);
        // Neither free for others nor counted twice.
        assert_eq!(memory.allocatable(100, 0), 87);
        memory.measure(Some(5), Average::Move);
        assert_eq!(memory.allocatable(100, 0), 87);
        memory.observe(1, 10, true);
        memory.measure(Some(13), Average::Move);
        assert_eq!((memory.foreign(), memory.allocatable(100, 0)), (3, 87));
        memory.observe(1, 0, true);
        memory.end(1);
        assert_eq!(memory.returning_of(1), 10);
    }

    #[test]
    fn where_nothing_is_measured_a_lease_gives_back_at_once() {
        let mut memory = Memory::default();
        memory.grant(1, 10);
        memory.observe(1, 10, true);
        memory.end(1);
        assert_eq!((memory.returning(), memory.allocatable(100, 0)), (0, 100));
        let mut memory = running();
        memory.end(1);
        memory.forget(1);
        assert_eq!((memory.returning(), memory.leaked()), (0, 0));
        let mut memory = running();
        memory.end(1);
        memory.measure(None, Average::Move);
        assert_eq!(
            (memory.write_off(1), memory.allocatable(100, 0)),
            (0, 100 - 3)
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Grant(u64),
        Take(usize),
        Give(usize),
        End(usize),
        Free(u64),
        WriteOff,
        Measure,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1u64..30).prop_map(Step::Grant),
            3 => any::<usize>().prop_map(Step::Take),
            1 => any::<usize>().prop_map(Step::Give),
            2 => any::<usize>().prop_map(Step::End),
            2 => (0u64..30).prop_map(Step::Free),
            1 => Just(Step::WriteOff),
            4 => Just(Step::Measure),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        /// Leases, the dead and other programs share 100 bytes: what is admitted always fits beside what
        /// is really in use, and after each measurement every byte in use has one explanation.
        #[test]
        fn nothing_is_admitted_twice_and_every_byte_is_explained(foreign in 0u64..40, steps in steps()) {
            let mut memory = Memory::default();
            memory.measure(Some(foreign), Average::Move);
            // Lease, promised, taken in truth; and bytes of ended leases that the driver still holds.
            let (mut leases, mut dead, mut number): (Vec<(u64, u64, u64)>, u64, u64) = (Vec::new(), 0, 0);
            let mut ended = Vec::new();
            for step in steps {
                let count = leases.len().max(1);
                match step {
                    Step::Grant(bytes) if bytes <= memory.allocatable(100, 0) => {
                        number += 1;
                        memory.grant(number, bytes);
                        leases.push((number, bytes, 0));
                    }
                    Step::Take(at) if !leases.is_empty() => {
                        let (lease, promised, taken) = &mut leases[at % count];
                        *taken = *promised;
                        memory.observe(*lease, *taken, true);
                    }
                    Step::Give(at) if !leases.is_empty() => {
                        let (lease, _, taken) = &mut leases[at % count];
                        *taken = 0;
                        memory.observe(*lease, 0, true);
                    }
                    Step::End(at) if !leases.is_empty() => {
                        let (lease, _, taken) = leases.swap_remove(at % count);
                        memory.end(lease);
                        ended.push(lease);
                        dead += taken;
                    }
                    Step::Free(bytes) => dead = dead.saturating_sub(bytes),
                    Step::WriteOff => ended.drain(..).for_each(|lease| {
                        memory.write_off(lease);
                    }),
                    _ => {}
                }
                let taken: u64 = leases.iter().map(|lease| lease.2).sum();
                let promised: u64 = leases.iter().map(|lease| lease.1).sum();
                prop_assert!(promised + dead + foreign <= 100);
                prop_assert_eq!((memory.observed(), memory.reserved()), (taken, promised));
                if matches!(step, Step::Measure) {
                    let used = taken + dead + foreign;
                    memory.measure(Some(used), Average::Move);
                    let known = memory.observed() + memory.returning() + memory.given;
                    if memory.shares.iter().all(|share| share.told) {
                        prop_assert_eq!(known + memory.foreign(), used);
                    }
                    prop_assert!(memory.returning() + memory.leaked() <= dead);
                }
                prop_assert!(memory.allocatable(100, 0) + promised + dead + foreign <= 100);
            }
            // Once all has returned, nothing is missing.
            for (lease, ..) in leases {
                memory.end(lease);
            }
            for _ in 0..8 {
                memory.measure(Some(foreign), Average::Move);
            }
            prop_assert_eq!((memory.leaked(), memory.returning()), (0, 0));
            prop_assert_eq!(memory.allocatable(100, 0), 100 - foreign);
        }
    }
}
