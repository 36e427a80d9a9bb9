//! Random schedules: what holds after every step.

use proptest::prelude::*;

use super::*;

/// A step of a random schedule.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        target: u32,
        gpus: u32,
        training: bool,
        gigabytes: u64,
        priority: u8,
        other: bool,
    },
    Cancel(usize),
    End(usize),
    Observe(usize, u64),
    Measure(u32, u64),
    Limits(u32, u32, u32),
    Drain(u32, bool),
    Pool(u32, u32),
    Fail(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gpus = prop_oneof![3 => Just(1u32), 1 => 2u32..5];
    let submit = (
        0u32..12,
        gpus,
        any::<bool>(),
        0u64..26,
        1u8..11,
        any::<bool>(),
    );
    let step = prop_oneof![
        8 => submit.prop_map(|(target, gpus, training, gigabytes, priority, other)| {
            Step::Submit { target, gpus, training, gigabytes, priority, other }
        }),
        1 => any::<usize>().prop_map(Step::Cancel),
        6 => any::<usize>().prop_map(Step::End),
        2 => (any::<usize>(), 0u64..26).prop_map(|(lease, bytes)| Step::Observe(lease, bytes)),
        2 => (0u32..8, 0u64..26).prop_map(|(gpu, used)| Step::Measure(gpu, used)),
        1 => (0u32..9, 0u32..4, 0u32..4).prop_map(|(gpu, t, i)| Step::Limits(gpu, t, i)),
        1 => (0u32..8, any::<bool>()).prop_map(|(gpu, draining)| Step::Drain(gpu, draining)),
        1 => (0u32..8, 0u32..4).prop_map(|(gpu, limit)| Step::Pool(gpu, limit)),
        1 => (0u32..40).prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 1..150)
}

/// What a random schedule holds at a moment.
struct Schedule {
    s: Scheduler,
    leases: Vec<(Grant, Request)>,
    waiting: HashMap<u64, Request>,
}

impl Schedule {
    /// Takes the decisions of the last step, and checks what must hold after each.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for (number, decision) in self.s.decisions() {
            let request = self.waiting.remove(&number);
            prop_assert!(request.is_some(), "{} was decided twice", number);
            if let (Ok(grant), Some(request)) = (decision, request) {
                let places = grant.places();
                prop_assert_eq!(places.len(), request.gpus as usize);
                prop_assert!(places.is_sorted_by(|a, b| a < b), "{:?}", places);
                for place in places {
                    let device = &self.s.ledger.devices[place];
                    prop_assert!(request.gpus == 1 || device.entry.id != DeviceId::Cpu);
                    prop_assert!(!device.entry.draining && device.entry.state == State::Ready);
                    prop_assert!(
                        device.counts.of(request.kind) <= device.entry.limits.of(request.kind)
                    );
                    prop_assert!(self.s.ledger.allows(device, &request.plugin));
                    for &pool in &device.pools {
                        let entry = &self.s.ledger.pools[pool];
                        let limit = entry.pool.limits.of(request.kind).unwrap_or(u32::MAX);
                        prop_assert!(*entry.counts.of(request.kind) <= limit);
                    }
                }
                self.leases.push((grant, request));
            }
        }
        for (place, device) in self.s.ledger.devices.iter().enumerate() {
            let mine = || {
                let leases = self.leases.iter();
                leases.filter(|(grant, _)| grant.places().contains(&place))
            };
            prop_assert_eq!(device.holdings.len(), mine().count());
            prop_assert_eq!(
                device.memory.reserved(),
                mine().map(|(_, request)| device.need(request)).sum::<u64>()
            );
            prop_assert!(device.memory.reserved() <= device.most());
            prop_assert!(device.memory.observed() <= device.memory.reserved());
            for request in self.waiting.values() {
                let fits = self.s.ledger.admit(place, request).is_ok();
                prop_assert_eq!(self.s.ledger.fits(place, request), fits);
            }
            for kind in Kind::ALL {
                let count = mine().filter(|(_, request)| request.kind == kind).count();
                prop_assert_eq!(*device.counts.of(kind) as usize, count);
            }
        }
        // What is kept is kept whole, for one that waits.
        for device in &self.s.ledger.devices {
            if let Some(hold) = device.hold() {
                let Some(request) = self.waiting.get(&hold.wish) else {
                    return Err(TestCaseError::fail("a device is kept for nobody"));
                };
                let devices = self.s.ledger.devices.iter();
                let same =
                    devices.filter(|other| other.hold().is_some_and(|own| own.wish == hold.wish));
                prop_assert_eq!(same.count(), request.gpus as usize);
            }
        }
        for entry in &self.s.ledger.pools {
            let on = |kind| {
                entry
                    .members
                    .iter()
                    .map(|&place| *self.s.ledger.devices[place].counts.of(kind))
                    .sum::<u32>()
            };
            prop_assert_eq!(
                [entry.counts.training, entry.counts.inference],
                Kind::ALL.map(on)
            );
        }
        prop_assert_eq!(self.s.waiting(), self.waiting.len());
        prop_assert_eq!(self.s.forgotten(), None);
        Ok(())
    }

    fn end(&mut self, at: usize) {
        let (grant, _) = self.leases.swap_remove(at);
        self.s.end(&grant.places(), grant.lease);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Any schedule keeps every device and pool within its limits and its memory, ends each lease
    /// once, forgets nobody that fits, and grants everything once the leases end.
    #[test]
    fn the_scheduler_always_holds(gpus in 0u32..8, steps in steps()) {
        let mut schedule = Schedule { s: machine(gpus), leases: Vec::new(), waiting: HashMap::new() };
        for (second, step) in (0u64..).zip(steps) {
            let Schedule { s, leases, waiting } = &mut schedule;
            match step {
                Step::Submit { target, gpus, training, gigabytes, priority, other } => {
                    let selector = match target {
                        0 => "cpu".to_owned(),
                        1..4 => "cuda".to_owned(),
                        4 => "pool".to_owned(),
                        n => format!("cuda:{}", n - 5),
                    };
                    let kind = if training { Kind::Training } else { Kind::Inference };
                    let plugin = if other { "other" } else { "digits" }.to_owned();
                    let place = Place::new(Duration::from_secs(second * 7), priority, second);
                    let request = Request { gpus, plugin, place, ..wish(&selector, kind, gigabytes, 0) };
                    if let Ok(number) = s.submit(request.clone()) {
                        waiting.insert(number, request);
                    }
                }
                Step::Cancel(at) => {
                    let mut numbers: Vec<u64> = waiting.keys().copied().collect();
                    numbers.sort_unstable();
                    if !numbers.is_empty() {
                        let number = numbers[at % numbers.len()];
                        waiting.remove(&number);
                        s.cancel(number);
                    }
                }
                Step::End(at) if !leases.is_empty() => {
                    let at = at % leases.len();
                    let (grant, _) = leases[at].clone();
                    schedule.end(at);
                    schedule.check()?;
                    // A lease that has ended frees nothing again.
                    schedule.s.end(&grant.places(), grant.lease);
                }
                Step::Observe(at, gigabytes) if !leases.is_empty() => {
                    let (grant, _) = &leases[at % leases.len()];
                    for place in grant.places() {
                        s.ledger.observe(place, grant.lease, session(gigabytes));
                    }
                }
                Step::End(_) | Step::Observe(..) => {}
                Step::Measure(gpu, used) => s.measured(gpu, used),
                Step::Limits(target, training, inference) => {
                    let selector = if target == 8 { "cuda".to_owned() } else { format!("cuda:{target}") };
                    let change = limits(Some(training), Some(inference));
                    let _unknown = s.set_limits(&selector.parse().unwrap(), change);
                }
                Step::Drain(gpu, draining) => {
                    let _unknown = s.drain(DeviceId::Cuda(gpu), draining);
                }
                Step::Pool(gpu, limit) => {
                    let of = Pool {
                        gpus: vec![format!("cuda:{gpu}"), "cuda:1".to_owned()],
                        limits: limits(Some(limit), None),
                        plugins: if limit == 3 { vec!["digits".to_owned()] } else { Vec::new() },
                        ..Pool::default()
                    };
                    s.set_pools(vec![("pool".parse().unwrap(), of)]);
                }
                Step::Fail(gpu) => {
                    let fails = DeviceId::Cuda(gpu / 2);
                    let outcome = if gpu % 2 == 0 { Ok(0) } else { Err("lost".to_owned()) };
                    settle(s, fails, outcome);
                }
            }
            schedule.check()?;
        }
        schedule.s.set_pools(vec![("pool".parse().unwrap(), Pool::default())]);
        // Limits that fall later do not bind what is granted by that.
        schedule.check()?;
        let Schedule { s, .. } = &mut schedule;
        for selector in ["cuda", "cpu"] {
            let _no_gpu = s.set_limits(&selector.parse().unwrap(), limits(Some(2), Some(2)));
        }
        for gpu in (0..gpus).map(DeviceId::Cuda) {
            settle(s, gpu, Ok(0));
            s.drain(gpu, false).unwrap();
        }
        schedule.check()?;
        loop {
            for gpu in 0..gpus {
                let leases = schedule.leases.iter();
                let on = leases.filter(|(grant, _)| ordinals(grant).contains(&gpu));
                let used = on.map(|(_, request)| request.gpu_bytes / GB).sum();
                for _ in 0..64 {
                    schedule.s.measured(gpu, used);
                }
            }
            schedule.check()?;
            if schedule.leases.is_empty() {
                break;
            }
            schedule.end(0);
            schedule.check()?;
        }
        prop_assert!(schedule.waiting.is_empty(), "{:?}", schedule.waiting);
    }

    /// A task that needs whole GPUs is granted them though small ones keep coming.
    #[test]
    fn waiting_is_bounded(gpus in 1u32..5, several in any::<bool>(), life in 1usize..8, sizes in prop::collection::vec(1u64..9, 1..20), kinds in any::<u64>()) {
        let mut s = machine(gpus);
        s.set_limits(&Selector::AnyGpu, limits(Some(9), Some(9))).unwrap();
        let wanted = if several { gpus } else { 1 };
        let mut held: Vec<(usize, Grant)> = Vec::new();
        let mut large = None;
        let bound = (PASSES as usize + 4) * (life + 1);
        for step in 0..bound + 20 {
            let (ended, alive): (Vec<_>, Vec<_>) = held.into_iter().partition(|(end, _)| *end <= step);
            held = alive;
            for (_, grant) in ended {
                s.end(&grant.places(), grant.lease);
            }
            if step == 20 {
                large = Some(s.submit(gang("cuda", wanted, 24, 20)).unwrap());
            }
            let kind = if kinds >> (step % 64) & 1 == 0 { Kind::Training } else { Kind::Inference };
            for _ in 0..gpus {
                s.submit(wish("cuda", kind, sizes[step % sizes.len()], step as u64)).unwrap();
            }
            for (number, decision) in s.decisions() {
                if Some(number) == large {
                    prop_assert_eq!(ordinals(&decision.unwrap()).len(), wanted as usize);
                    return Ok(());
                }
                held.push((step + life, decision.unwrap()));
            }
        }
        prop_assert!(false, "{:?}", large.map(|number| s.reason(number)));
    }
}
