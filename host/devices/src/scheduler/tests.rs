use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ledger::Taken;
use crate::request::Limits;

const GB: u64 = 1 << 30;

pub(crate) fn entry(id: DeviceId, gigabytes: u64) -> DeviceEntry {
    let (training, inference) = match id {
        DeviceId::Cpu => (2, 4),
        DeviceId::Cuda(_) => (1, 3),
    };
    DeviceEntry {
        id,
        uuid: None,
        model: "GPU".to_owned(),
        compute_capability: Some("8.0".to_owned()),
        memory_bytes: gigabytes * GB,
        headroom_bytes: 0,
        overhead_bytes: 0,
        limits: Limits {
            training,
            inference,
        },
        state: State::Ready,
        draining: false,
        peers: Vec::new(),
    }
}

/// Probes a device: what a lease costs there besides its task, or why no task can run.
fn settle(s: &mut Scheduler, id: DeviceId, outcome: Result<u64, String>) {
    s.update(id, |entry| entry.state = State::Probing);
    s.update(id, |entry| match outcome {
        Ok(overhead_bytes) => {
            entry.overhead_bytes = overhead_bytes;
            entry.state = State::Ready;
        }
        Err(reason) => entry.state = State::Unable(reason),
    });
}

fn machine(gpus: u32) -> Scheduler {
    let gpus = (0..gpus).map(|n| entry(DeviceId::Cuda(n), 24));
    let devices = std::iter::once(entry(DeviceId::Cpu, 64)).chain(gpus);
    Scheduler::new(devices.collect(), Policy::default())
}

fn wish(selector: &str, kind: Kind, gigabytes: u64, second: u64) -> Request {
    Request {
        selector: selector.parse().unwrap(),
        kind,
        gpus: 1,
        bytes: gigabytes * GB,
        gpu_bytes: gigabytes * GB,
        task: "t".to_owned(),
        plugin: "digits".to_owned(),
        policy: None,
        place: Place::new(Duration::from_secs(second), 5, second),
    }
}

fn training(selector: &str, gigabytes: u64, second: u64) -> Request {
    wish(selector, Kind::Training, gigabytes, second)
}

fn inference(selector: &str, gigabytes: u64, second: u64) -> Request {
    wish(selector, Kind::Inference, gigabytes, second)
}

/// A training on several GPUs.
fn gang(selector: &str, gpus: u32, gigabytes: u64, second: u64) -> Request {
    Request {
        gpus,
        ..training(selector, gigabytes, second)
    }
}

/// The ordinals of a grant's GPUs.
fn ordinals(grant: &Grant) -> Vec<u32> {
    let others = grant.others.iter().map(|(_, device)| *device);
    let all = std::iter::once(grant.device).chain(others);
    all.filter_map(|device| match device {
        DeviceId::Cpu => None,
        DeviceId::Cuda(ordinal) => Some(ordinal),
    })
    .collect()
}

/// What a worker takes whose sessions hold so much.
fn session(gigabytes: u64) -> Taken {
    Taken {
        context: true,
        session_bytes: gigabytes * GB,
    }
}

fn limits(training: Option<u32>, inference: Option<u32>) -> PartialLimits {
    PartialLimits {
        training,
        inference,
    }
}

impl Scheduler {
    /// Submits a wish that is granted at once.
    fn granted(&mut self, request: Request) -> Grant {
        let number = self.submit(request).unwrap();
        let reason = self.reason(number);
        let decided = self
            .decisions()
            .into_iter()
            .find(|(other, _)| *other == number);
        decided.unwrap_or_else(|| panic!("{reason:?}")).1.unwrap()
    }

    /// Submits a wish that waits: its number and the reason.
    fn waits(&mut self, request: Request) -> (u64, String) {
        let number = self.submit(request).unwrap();
        (number, self.reason(number).unwrap())
    }

    /// Ends a lease: the wishes granted by that, with their devices.
    fn ended(&mut self, grant: &Grant) -> Vec<(u64, String)> {
        self.end(&grant.places(), grant.lease);
        self.grants()
    }

    fn grants(&mut self) -> Vec<(u64, String)> {
        let decided = self.decisions().into_iter();
        decided
            .map(|(number, grant)| (number, grant.unwrap().device.to_string()))
            .collect()
    }

    fn measured(&mut self, gpu: u32, used_gigabytes: u64) {
        let measurement = Measurement {
            used_bytes: Some(used_gigabytes * GB),
            ..Measurement::default()
        };
        self.measure(&[(DeviceId::Cuda(gpu), measurement)]);
    }

    /// The first wish within its class's window that fits somewhere now.
    fn forgotten(&self) -> Option<(u64, DeviceId)> {
        for class in &self.classes {
            for ((_, number), wish) in class.waiting.iter().take(WINDOW) {
                if wish.request.gpus > 1 {
                    let key = (wish.request.place, *number);
                    let class = self.wishes[number].0;
                    if let Some(places) = self.choose(class, key, &[]) {
                        return Some((*number, self.ledger.devices[places[0]].entry.id));
                    }
                    continue;
                }
                for &place in &class.devices {
                    if self.ledger.admit(place, &wish.request).is_ok() {
                        return Some((*number, self.ledger.devices[place].entry.id));
                    }
                }
            }
        }
        None
    }
}

#[test]
fn trainings_spread_over_the_gpus_then_wait_and_a_release_frees_one() {
    let mut s = machine(3);
    let grants: Vec<Grant> = (0..3)
        .map(|second| s.granted(training("cuda", 1, second)))
        .collect();
    let devices: Vec<String> = grants
        .iter()
        .map(|grant| grant.device.to_string())
        .collect();
    assert_eq!(devices, ["cuda:0", "cuda:1", "cuda:2"]);
    let (number, reason) = s.waits(training("cuda", 1, 4));
    assert!(reason.contains("cuda:1 runs 1 of 1 trainings"), "{reason}");
    assert_eq!(s.ended(&grants[1]), [(number, "cuda:1".to_owned())]);
    assert_eq!(s.reason(number), None);
    // Ending a lease twice frees nothing.
    assert_eq!(s.ended(&grants[1]), []);
    assert_eq!(s.ledger.devices[2].counts.training, 1);
}

#[test]
fn memory_is_counted_over_leases_and_its_lack_is_told_with_the_figures() {
    let mut s = machine(1);
    let held = s.granted(training("cuda:0", 20, 0));
    let (number, reason) = s.waits(inference("cuda:0", 5, 1));
    for figure in [4 * GB, 5 * GB, 20 * GB] {
        assert!(reason.contains(&figure.to_string()), "{reason}");
    }
    let refusal = s.submit(inference("cuda", 25, 2)).unwrap_err();
    assert_eq!(refusal.code(), "memory.never-fits");
    for figure in [24 * GB, 25 * GB] {
        assert!(
            refusal.to_string().contains(&figure.to_string()),
            "{refusal}"
        );
    }
    assert_eq!(s.ended(&held), [(number, "cuda:0".to_owned())]);
}

#[test]
fn the_headroom_is_never_given_away() {
    let mut gpu = entry(DeviceId::Cuda(0), 24);
    (gpu.headroom_bytes, gpu.overhead_bytes) = (GB, GB / 2);
    let mut s = Scheduler::new(vec![gpu], Policy::default());
    let refusal = s.submit(training("cuda:0", 23, 0)).unwrap_err().to_string();
    assert!(
        refusal.contains(&format!("{GB} are kept free")),
        "{refusal}"
    );
    let _held = s.granted(training("cuda:0", 20, 1));
    s.waits(inference("cuda:0", 3, 2));
    s.granted(inference("cuda:0", 2, 3));
    assert_eq!(s.ledger.devices[0].allocatable(), 0);
}

#[test]
fn without_a_gpu_cuda_means_the_processor_with_its_limits() {
    let mut s = machine(0);
    let first = s.granted(training("cuda", 1, 0));
    assert_eq!(first.device, DeviceId::Cpu);
    assert_eq!(first.fallback_reason.as_deref(), Some("there is no GPU"));
    s.granted(training("cuda", 1, 1));
    assert!(
        s.waits(training("cuda", 1, 2))
            .1
            .contains("2 of 2 trainings")
    );
}

#[test]
fn without_a_gpu_and_a_fallback_cuda_is_refused() {
    let mut s = machine(0);
    let held = s.granted(training("cuda", 1, 0));
    s.granted(training("cuda", 1, 1));
    let (waiting, _) = s.waits(training("cuda", 1, 2));
    s.set_cpu_fallback(false);
    let decisions = s.decisions();
    let [(number, Err(refusal))] = &decisions[..] else {
        panic!("{decisions:?}");
    };
    assert_eq!((*number, refusal.code()), (waiting, "device.unschedulable"));
    let refusal = s.submit(training("cuda", 1, 3)).unwrap_err().to_string();
    assert!(refusal.contains("there is no GPU"), "{refusal}");
    s.end(&held.places(), held.lease);
    let cpu = s.granted(training("cpu", 1, 4));
    assert_eq!((cpu.device, cpu.fallback_reason), (DeviceId::Cpu, None));
    s.set_cpu_fallback(true);
    assert!(s.submit(training("cuda", 1, 5)).is_ok());
}

#[test]
fn what_other_programs_hold_is_waited_for_with_leases_and_without() {
    let mut s = machine(1);
    s.measured(0, 20);
    let (first, reason) = s.waits(training("cuda:0", 14, 0));
    assert!(
        reason.contains(&format!("other programs {}", 20 * GB)),
        "{reason}"
    );
    s.measured(0, 2);
    // What they held on average still counts.
    let reason = s.reason(first).unwrap();
    assert!(
        reason.contains(&format!("other programs {}", 11 * GB)),
        "{reason}"
    );
    s.measured(0, 0);
    assert_eq!(s.grants(), [(first, "cuda:0".to_owned())]);
    for _ in 0..64 {
        s.measured(0, 0);
    }
    let place = s.ledger.find(DeviceId::Cuda(0)).unwrap();
    let lease = s.ledger.devices[place].holdings[0].lease;
    // What the lease takes is not counted again, before its worker tells and after.
    s.measured(0, 14);
    assert_eq!(s.ledger.devices[place].memory.foreign_counted(), 0);
    s.ledger.observe(place, lease, session(14));
    s.measured(0, 14);
    assert_eq!(s.ledger.devices[place].memory.foreign_counted(), 0);
    assert_eq!(s.ledger.devices[place].allocatable(), 10 * GB);
    // Another program grows while the lease is held.
    s.measured(0, 20);
    assert_eq!(s.ledger.devices[place].allocatable(), 4 * GB);
    let (second, reason) = s.waits(inference("cuda:0", 5, 1));
    assert!(
        reason.contains(&format!("other programs {}", 6 * GB)),
        "{reason}"
    );
    // What the lease gives back is free once it is seen to be.
    s.end(&[place], lease);
    assert!(
        s.reason(second)
            .unwrap()
            .contains(&format!("ended {}", 14 * GB))
    );
    assert_eq!(s.returned(place, lease, Some(20 * GB)), 14 * GB);
    assert_eq!(s.grants(), []);
    assert_eq!(s.returned(place, lease, Some(6 * GB)), 0);
    assert_eq!(s.grants(), [(second, "cuda:0".to_owned())]);
}

#[test]
fn what_a_probe_takes_is_not_counted_once_it_is_gone() {
    let mut gpu = entry(DeviceId::Cuda(0), 24);
    gpu.state = State::Probing;
    let mut s = Scheduler::new(vec![gpu], Policy::default());
    s.measured(0, 1);
    s.measured(0, 5);
    // Whether the probe settles before the sample after it is taken, or after that.
    for _ in 0..2 {
        settle(&mut s, DeviceId::Cuda(0), Ok(0));
        s.measured(0, 1);
        assert_eq!(s.ledger.devices[0].allocatable(), 23 * GB);
        s.measured(0, 5);
        s.measured(0, 1);
    }
    assert_ne!(s.ledger.devices[0].allocatable(), 23 * GB);
    settle(&mut s, DeviceId::Cuda(0), Ok(0));
    assert_eq!(s.ledger.devices[0].allocatable(), 23 * GB);
}

#[test]
fn the_headroom_is_changed_while_tasks_wait() {
    let mut s = machine(1);
    let gpu = DeviceId::Cuda(0);
    s.set_headroom(gpu, 4 * GB).unwrap();
    let _held = s.granted(inference("cuda:0", 10, 0));
    let (waiting, _) = s.waits(inference("cuda:0", 12, 1));
    s.set_headroom(gpu, 2 * GB).unwrap();
    assert_eq!(s.grants(), [(waiting, "cuda:0".to_owned())]);
    let refusal = s.set_headroom(DeviceId::Cuda(1), 0).unwrap_err();
    assert_eq!(refusal.code(), "device.unknown");
}

#[test]
fn promised_memory_counts_though_nothing_is_taken_yet() {
    let mut s = machine(1);
    s.measured(0, 0);
    let first = s.granted(inference("cuda:0", 20, 0));
    s.measured(0, 0);
    s.waits(inference("cuda:0", 5, 1));
    s.ledger.observe(first.place, first.lease, session(20));
    // The measurement is older than what the worker tells: it does not make room.
    assert_eq!(s.ledger.devices[first.place].allocatable(), 4 * GB);
}

#[test]
fn a_gpu_that_is_probed_makes_tasks_wait_and_its_overhead_counts() {
    let mut gpu = entry(DeviceId::Cuda(0), 24);
    gpu.state = State::Probing;
    let mut s = Scheduler::new(vec![entry(DeviceId::Cpu, 64), gpu], Policy::default());
    let (too_large, reason) = s.waits(training("cuda", 24, 0));
    assert!(reason.contains("cuda:0: it is being probed"), "{reason}");
    let (fits, _) = s.waits(training("cuda", 23, 1));
    settle(&mut s, DeviceId::Cuda(0), Ok(GB));
    let decided: HashMap<u64, Decision> = s.decisions().into_iter().collect();
    assert_eq!(
        decided[&too_large].as_ref().unwrap_err().code(),
        "memory.never-fits"
    );
    assert_eq!(decided[&fits].as_ref().unwrap().bytes, 23 * GB);
    assert_eq!(s.ledger.devices[1].memory.reserved(), 24 * GB);
    // A GPU that fails moves those that asked for any to the processor, and refuses the others.
    let (any, _) = s.waits(training("cuda", 1, 2));
    let (pinned, _) = s.waits(training("cuda:0", 1, 3));
    settle(&mut s, DeviceId::Cuda(0), Err("it fell off".to_owned()));
    let decided: HashMap<u64, Decision> = s.decisions().into_iter().collect();
    let moved = decided[&any].as_ref().unwrap();
    assert_eq!(moved.device, DeviceId::Cpu);
    assert_eq!(
        moved.fallback_reason.as_deref(),
        Some("cuda:0: it fell off")
    );
    assert_eq!(
        decided[&pinned].as_ref().unwrap_err().code(),
        "device.unschedulable"
    );
    assert_eq!(
        s.check(&"cuda:0".parse().unwrap(), "p", Kind::Training, 1)
            .unwrap_err()
            .code(),
        "device.unschedulable"
    );
    let unknown = s
        .check(&"cuda:9".parse().unwrap(), "p", Kind::Training, 1)
        .unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "there is no device `cuda:9`; the devices are `cpu`, `cuda:0`"
    );
}

#[test]
fn a_partial_update_keeps_the_other_limit_and_cuda_sets_every_gpu() {
    let mut s = machine(2);
    let first = s.granted(training("cuda:0", 1, 0));
    let (second, _) = s.waits(training("cuda:0", 1, 1));
    s.set_limits(&Selector::AnyGpu, limits(Some(2), None))
        .unwrap();
    assert_eq!(s.grants(), [(second, "cuda:0".to_owned())]);
    let all: Vec<Limits> = s
        .ledger
        .devices
        .iter()
        .map(|device| device.entry.limits)
        .collect();
    let gpu = Limits {
        training: 2,
        inference: 3,
    };
    assert_eq!(
        all,
        [
            Limits {
                training: 2,
                inference: 4
            },
            gpu,
            gpu
        ]
    );
    // A lower limit ends nothing, and counts for the next.
    s.set_limits(&"cuda:0".parse().unwrap(), limits(Some(1), None))
        .unwrap();
    let (third, _) = s.waits(training("cuda:0", 1, 2));
    assert_eq!(s.ended(&first), []);
    assert!(s.reason(third).unwrap().contains("1 of 1"));
    for unknown in ["cuda:7", "fast"] {
        let refusal = s
            .set_limits(&unknown.parse().unwrap(), limits(None, None))
            .unwrap_err();
        assert_eq!(refusal.code(), "device.unknown");
    }
}

#[test]
fn a_drained_gpu_takes_nothing_until_it_is_enabled() {
    let mut s = machine(2);
    let held = s.granted(training("cuda:0", 1, 0));
    s.drain(DeviceId::Cuda(0), true).unwrap();
    let (pinned, reason) = s.waits(inference("cuda:0", 1, 1));
    assert!(reason.contains("drained"), "{reason}");
    assert_eq!(s.granted(inference("cuda", 1, 2)).device, DeviceId::Cuda(1));
    assert_eq!(s.ended(&held), []);
    s.drain(DeviceId::Cuda(0), false).unwrap();
    assert_eq!(s.grants(), [(pinned, "cuda:0".to_owned())]);
    assert_eq!(
        s.drain(DeviceId::Cuda(5), true).unwrap_err().code(),
        "device.unknown"
    );
}

#[test]
fn a_gpu_near_its_slowdown_temperature_takes_nothing_until_it_has_cooled() {
    let mut s = machine(2);
    let margin = |s: &mut Scheduler, second: u64, celsius: i32| {
        let thermal_margin_c = Some(celsius);
        let measurement = Measurement {
            at: Duration::from_secs(second),
            thermal_margin_c,
            ..Measurement::default()
        };
        s.measure(&[(DeviceId::Cuda(0), measurement)])
    };
    assert!(!margin(&mut s, 0, 4));
    let (pinned, reason) = s.waits(training("cuda:0", 1, 0));
    assert!(
        reason.contains("cuda:0 is 4 °C from its slowdown"),
        "{reason}"
    );
    assert_eq!(s.granted(training("cuda", 1, 1)).device, DeviceId::Cuda(1));
    margin(&mut s, 1, 11);
    margin(&mut s, 30, 11);
    assert_eq!(s.grants(), []);
    assert!(margin(&mut s, 31, 11));
    assert_eq!(s.grants(), [(pinned, "cuda:0".to_owned())]);
    // What runs goes on, and so does a GPU that was never too hot.
    margin(&mut s, 32, 6);
    s.granted(inference("cuda:0", 1, 2));
}

#[test]
fn a_gpu_that_slows_down_for_heat_again_and_again_takes_nothing_until_it_no_longer_does() {
    let mut s = machine(1);
    s.ledger.cool = Duration::from_secs(2);
    let sample = |s: &mut Scheduler, second, slowed_by_heat| {
        let measurement = Measurement {
            at: Duration::from_secs(second),
            slowed_by_heat,
            ..Measurement::default()
        };
        s.measure(&[(DeviceId::Cuda(0), measurement)])
    };
    for (second, slowed) in (0..).zip([true, true, false, true, true]) {
        assert!(!sample(&mut s, second, slowed));
    }
    s.granted(inference("cuda:0", 1, 0));
    sample(&mut s, 5, true);
    let (waiting, reason) = s.waits(inference("cuda:0", 1, 1));
    assert!(
        reason.contains("cuda:0 slows its clocks down for heat"),
        "{reason}"
    );
    assert!(!sample(&mut s, 6, false) && !sample(&mut s, 7, false));
    assert!(sample(&mut s, 8, false));
    assert_eq!(s.grants(), [(waiting, "cuda:0".to_owned())]);
}

#[test]
fn a_gpu_that_appears_takes_what_waits_and_joins_pools() {
    let mut s = machine(1);
    s.granted(training("cuda", 1, 0));
    let (waiting, _) = s.waits(training("cuda", 1, 1));
    let missing = s.submit(training("cuda:1", 1, 2)).unwrap_err();
    assert_eq!(missing.code(), "device.unknown");
    s.add(entry(DeviceId::Cuda(1), 24));
    assert_eq!(s.grants(), [(waiting, "cuda:1".to_owned())]);
    // Twice, or out of order, is nothing new.
    s.add(entry(DeviceId::Cuda(1), 99));
    s.add(entry(DeviceId::Cpu, 99));
    assert_eq!(s.ledger.devices.len(), 3);
    s.set_pools(vec![("all".parse().unwrap(), Pool::default())]);
    assert_eq!(s.ledger.pools[0].members, [1, 2]);
    // Where there was none, tasks wait no longer for the processor.
    let mut s = machine(0);
    assert_eq!(s.granted(training("cuda", 1, 0)).device, DeviceId::Cpu);
    s.add(entry(DeviceId::Cuda(0), 24));
    assert_eq!(s.granted(training("cuda", 1, 1)).device, DeviceId::Cuda(0));
}

#[test]
fn tasks_wait_for_a_gpu_that_is_unwell_and_others_take_what_there_is() {
    let mut s = machine(1);
    let state = |s: &mut Scheduler, state| s.update(DeviceId::Cuda(0), |gpu| gpu.state = state);
    state(&mut s, State::Unwell("it is lost".to_owned()));
    let (pinned, reason) = s.waits(training("cuda:0", 1, 0));
    assert_eq!(reason, "cuda:0 cannot be used for now: it is lost");
    // Whatever may come back is no reason to fall back to the processor.
    let (any, _) = s.waits(inference("cuda", 1, 1));
    state(&mut s, State::Ready);
    let mut grants = s.grants();
    grants.sort();
    let mut both = [(pinned, "cuda:0".to_owned()), (any, "cuda:0".to_owned())];
    both.sort();
    assert_eq!(grants, both);
}

fn pool(json: &str) -> Pool {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_pool_has_gpus_limits_a_policy_and_plugins_of_its_own() {
    let mut s = machine(4);
    let pools = [
        (
            "pair",
            r#"{"gpus": ["cuda:1", "cuda:2"], "policy": "pack", "limits": {"training": 1, "inference": null}}"#,
        ),
        (
            "digits-only",
            r#"{"gpus": ["cuda:3"], "plugins": ["digits"]}"#,
        ),
        ("none", r#"{"models": ["B200"]}"#),
    ];
    s.set_pools(
        pools
            .map(|(name, json)| (name.parse().unwrap(), pool(json)))
            .into(),
    );
    // Packed onto one of the pair, where the default would spread.
    let first = s.granted(inference("pair", 1, 0));
    let second = s.granted(inference("pair", 1, 1));
    assert_eq!(
        (first.device, second.device),
        (DeviceId::Cuda(1), DeviceId::Cuda(1))
    );
    // The pool's limit counts every task on its GPUs, and is told.
    let held = s.granted(training("cuda:1", 1, 2));
    let (waiting, reason) = s.waits(training("pair", 1, 3));
    assert!(
        reason.contains("the pool `pair` of cuda:2 runs 1 of 1 trainings"),
        "{reason}"
    );
    assert_eq!(s.ended(&held).len(), 1);
    assert!(s.reason(waiting).is_none());
    // Other plugins keep off a GPU that is kept for some, however they ask.
    let other = |selector: &str, second| Request {
        plugin: "other".to_owned(),
        ..inference(selector, 1, second)
    };
    for selector in ["cuda:3", "digits-only"] {
        let refusal = s.submit(other(selector, 4)).unwrap_err();
        assert_eq!(refusal.code(), "device.plugin", "{refusal}");
    }
    s.granted(inference("digits-only", 1, 5));
    s.set_policy_most_free();
    assert_ne!(s.granted(other("cuda", 6)).device, DeviceId::Cuda(3));
    assert_eq!(
        s.submit(inference("none", 1, 7)).unwrap_err().code(),
        "device.unschedulable"
    );
    let unknown = s.submit(inference("fast", 1, 8)).unwrap_err().to_string();
    assert!(
        unknown.contains("`pair`, `digits-only`, `none`"),
        "{unknown}"
    );
    // The limit of a pool is changed as a device's is.
    let (more, _) = s.waits(training("pair", 1, 9));
    s.set_limits(&"pair".parse().unwrap(), limits(Some(2), None))
        .unwrap();
    assert_eq!(
        s.grants()
            .into_iter()
            .map(|(number, _)| number)
            .collect::<Vec<_>>(),
        [more]
    );
}

impl Scheduler {
    fn set_policy_most_free(&mut self) {
        self.policy = Policy::MostFreeMemory;
    }
}

#[test]
fn the_policy_is_the_requests_else_the_pools_else_the_hosts() {
    let mut s = machine(2);
    s.set_pools(vec![(
        "all".parse().unwrap(),
        pool(r#"{"policy": "pack"}"#),
    )]);
    s.policy = Policy::Spread;
    s.granted(inference("cuda:1", 1, 0));
    let device = |s: &mut Scheduler, selector: &str, policy: Option<Policy>| {
        let grant = s.granted(Request {
            policy,
            ..inference(selector, 1, 1)
        });
        s.end(&grant.places(), grant.lease);
        grant.device
    };
    assert_eq!(device(&mut s, "cuda", None), DeviceId::Cuda(0));
    assert_eq!(device(&mut s, "all", None), DeviceId::Cuda(1));
    assert_eq!(
        device(&mut s, "all", Some(Policy::Spread)),
        DeviceId::Cuda(0)
    );
    assert_eq!(
        device(&mut s, "cuda", Some(Policy::Pack)),
        DeviceId::Cuda(1)
    );
    let round = |s: &mut Scheduler| device(s, "cuda", Some(Policy::RoundRobin));
    assert_eq!(
        [round(&mut s), round(&mut s), round(&mut s)],
        [0, 1, 0].map(DeviceId::Cuda)
    );
}

#[test]
fn those_that_wait_are_granted_by_priority_then_by_age() {
    let mut s = machine(1);
    let mut held = s.granted(training("cuda", 1, 0));
    let place =
        |second, priority, number| Place::new(Duration::from_secs(second), priority, number);
    let places = [
        place(1, 5, 1),
        place(2, 1, 2),
        place(3, 5, 3),
        place(4, 10, 4),
        place(1000, 1, 5),
    ];
    let numbers = places.map(|place| {
        // Asked for by different names, which one order covers.
        let selector = if place < Place::new(Duration::from_secs(3), 5, 0) {
            "cuda"
        } else {
            "cuda:0"
        };
        s.waits(Request {
            place,
            ..training(selector, 1, 0)
        })
        .0
    });
    let mut order = Vec::new();
    for _ in 0..5 {
        s.end(&held.places(), held.lease);
        let (number, grant) = s.decisions().pop().unwrap();
        order.push(numbers.iter().position(|other| *other == number).unwrap());
        held = grant.unwrap();
    }
    assert_eq!(order, [1, 0, 2, 3, 4]);
}

#[test]
fn a_small_task_passes_a_large_one_a_bounded_number_of_times() {
    let mut s = machine(1);
    s.set_limits(&Selector::AnyGpu, limits(Some(4), Some(4)))
        .unwrap();
    let mut held = s.granted(inference("cuda", 10, 0));
    let (large, _) = s.waits(training("cuda", 20, 1));
    let mut passed = 0;
    for second in 2.. {
        let number = s.submit(inference("cuda", 1, second)).unwrap();
        if s.reason(number).is_some() {
            assert!(s.reason(number).unwrap().contains("waited longer"));
            break;
        }
        passed += 1;
        let (_, grant) = s.decisions().pop().unwrap();
        let grant = grant.unwrap();
        s.end(&grant.places(), grant.lease);
    }
    assert_eq!(passed, PASSES);
    // A higher priority is not behind it.
    let urgent = Request {
        place: Place::new(Duration::from_secs(100), 1, 0),
        ..inference("cuda", 1, 0)
    };
    s.granted(Request {
        place: Place::default(),
        ..urgent
    });
    s.decisions();
    s.end(&held.places(), held.lease);
    assert_eq!(s.decisions()[0].0, large);
    // What waited behind it goes on beside it, or after it.
    held = s.granted(inference("cuda", 1, 1000));
    assert_eq!(s.ended(&held), []);
}

#[test]
fn a_task_that_waits_for_a_slot_or_for_other_programs_keeps_nothing_from_others() {
    let mut s = machine(1);
    let _held = s.granted(training("cuda", 10, 0));
    s.waits(training("cuda", 10, 1));
    s.measured(0, 12);
    s.measured(0, 12);
    for second in 0..40 {
        let grant = s.granted(inference("cuda", 1, 2 + second));
        s.end(&grant.places(), grant.lease);
        s.measured(0, 12);
    }
    let mut s = machine(1);
    s.measured(0, 10);
    s.waits(training("cuda", 20, 1));
    for second in 0..40 {
        let grant = s.granted(inference("cuda", 1, 2 + second));
        s.end(&grant.places(), grant.lease);
        s.measured(0, 10);
    }
}

#[test]
fn a_task_on_several_gpus_takes_all_in_one_step_and_gives_all_back() {
    let mut s = machine(4);
    let small: Vec<Grant> = (0..3)
        .map(|second| s.granted(training("cuda", 1, second)))
        .collect();
    let (large, reason) = s.waits(gang("cuda", 4, 10, 4));
    assert!(
        reason.starts_with("it waits for 4 GPUs at once, and 1 have room; cuda:0 runs 1 of 1"),
        "{reason}"
    );
    assert_eq!(s.ended(&small[0]), []);
    assert_eq!(s.ended(&small[1]), []);
    // Nothing of it is held while it waits.
    assert_eq!(s.ledger.devices[1].memory.reserved(), 0);
    s.end(&small[2].places(), small[2].lease);
    let (number, granted) = s.decisions().pop().unwrap();
    let granted = granted.unwrap();
    assert_eq!((number, ordinals(&granted)), (large, vec![0, 1, 2, 3]));
    for gpu in 1..=4 {
        assert_eq!(s.ledger.devices[gpu].memory.reserved(), 10 * GB);
    }
    let (next, _) = s.waits(training("cuda", 1, 5));
    assert_eq!(s.ended(&granted), [(next, "cuda:0".to_owned())]);
    assert_eq!(s.ended(&granted), []);
    let idle = s.ledger.devices[2..].iter();
    assert!(
        idle.clone()
            .all(|gpu| gpu.holdings.is_empty() && gpu.memory.reserved() == 0)
    );
}

#[test]
fn what_can_never_have_so_many_gpus_is_refused_with_both_figures() {
    let mut s = machine(3);
    s.set_pools(vec![(
        "two".parse().unwrap(),
        Pool {
            gpus: vec!["cuda:0".to_owned(), "cuda:2".to_owned()],
            ..Pool::default()
        },
    )]);
    let refused = |s: &mut Scheduler, request: Request| {
        let at_once = s.check(&request.selector, "digits", request.kind, request.gpus);
        let refusal = s.submit(request).unwrap_err();
        assert_eq!(at_once, Err(refusal.clone()));
        assert_eq!((refusal.code(), s.waiting()), ("device.replicas", 0));
        refusal.to_string()
    };
    assert_eq!(
        refused(&mut s, gang("cuda", 4, 1, 0)),
        "the task asks for 4 GPUs, and `cuda` has 3 that can run it together"
    );
    assert_eq!(
        refused(&mut s, gang("two", 3, 1, 0)),
        "the task asks for 3 GPUs, and `two` has 2 that can run it together"
    );
    for device in ["cpu", "cuda:1"] {
        let told = refused(&mut s, gang(device, 2, 1, 0));
        assert!(told.ends_with(&format!("`{device}` is 1 device: ask for `cuda` or a pool")));
    }
    let inference = Request {
        kind: Kind::Inference,
        ..gang("cuda", 2, 1, 0)
    };
    assert!(refused(&mut s, inference).ends_with("an inference runs on one device"));
    assert_eq!(ordinals(&s.granted(gang("two", 2, 1, 0))), [0, 2]);
    // One that is too small for it counts by its memory.
    s.update(DeviceId::Cuda(1), |gpu| gpu.memory_bytes = 8 * GB);
    let refusal = s.submit(gang("cuda", 3, 9, 1)).unwrap_err();
    assert_eq!(refusal.code(), "memory.never-fits");
    assert!(
        refusal
            .to_string()
            .contains("`cuda:1` has 8589934592 bytes"),
        "{refusal}"
    );
    // One that fails while it is waited for leaves too few; the processor takes no part.
    let (waiting, _) = s.waits(gang("cuda", 3, 1, 2));
    settle(&mut s, DeviceId::Cuda(1), Err("it fell off".to_owned()));
    let (number, decision) = s.decisions().pop().unwrap();
    let refusal = decision.unwrap_err();
    assert_eq!((number, refusal.code()), (waiting, "device.replicas"));
    assert!(
        refusal.to_string().contains("cuda:1: it fell off"),
        "{refusal}"
    );
    let refusal = machine(0).submit(gang("cuda", 2, 1, 0)).unwrap_err();
    assert_eq!(refusal.code(), "device.replicas");
}

#[test]
fn gpus_that_are_linked_best_go_together_and_an_instance_with_none() {
    let mut s = machine(4);
    for gpu in 0..4 {
        s.update(DeviceId::Cuda(gpu), |entry| {
            entry.uuid = Some(format!("GPU-{gpu}"));
            let level = |other: u32| {
                if gpu % 2 == other % 2 {
                    "single_switch"
                } else {
                    "system"
                }
            };
            let peer = |other: u32| crate::gpu::Peer {
                uuid: format!("GPU-{other}"),
                level: Some(level(other)),
                p2p: Some("ok"),
            };
            entry.peers = (0..4).filter(|other| *other != gpu).map(peer).collect();
        });
    }
    let first = s.granted(gang("cuda", 2, 1, 0));
    assert_eq!(ordinals(&first), [0, 2]);
    assert_eq!(ordinals(&s.granted(gang("cuda", 2, 1, 1))), [1, 3]);
    s.ended(&first);
    s.update(DeviceId::Cuda(0), |entry| {
        entry.uuid = Some("MIG-0".to_owned())
    });
    let refusal = s.submit(gang("cuda", 4, 1, 2)).unwrap_err().to_string();
    assert!(refusal.contains("`cuda` has 3 that can"), "{refusal}");
}

#[test]
fn a_task_on_several_gpus_is_passed_a_bounded_number_of_times() {
    let mut s = machine(2);
    let mut held = vec![s.granted(training("cuda", 1, 0))];
    let (large, _) = s.waits(gang("cuda", 2, 20, 1));
    let mut passed = 0;
    // There is a GPU at every moment, and never two.
    for second in 2.. {
        let number = s.submit(training("cuda", 1, second)).unwrap();
        if let Some(reason) = s.reason(number) {
            assert!(reason.contains("waited longer"), "{reason}");
            break;
        }
        passed += 1;
        held.push(s.decisions().pop().unwrap().1.unwrap());
        let ended = held.remove(0);
        assert_eq!(s.ended(&ended), []);
    }
    assert_eq!(passed, PASSES);
    let ended = held.remove(0);
    s.end(&ended.places(), ended.lease);
    let (number, granted) = s.decisions().pop().unwrap();
    assert_eq!((number, ordinals(&granted.unwrap())), (large, vec![0, 1]));
}

#[test]
fn gpus_are_kept_for_the_first_of_those_that_were_passed_and_for_none_that_cannot_have_all() {
    let mut s = machine(3);
    s.set_limits(&Selector::AnyGpu, limits(Some(2), Some(3)))
        .unwrap();
    let whole = |s: &mut Scheduler, gpus, second| s.waits(gang("cuda", gpus, 24, second)).0;
    let held: Vec<Grant> = (0..3)
        .map(|gpu| s.granted(training(&format!("cuda:{gpu}"), 1, 0)))
        .collect();
    let small = |s: &mut Scheduler, second| s.granted(inference("cuda:0", 1, second));
    let second = whole(&mut s, 2, 20);
    for time in 30..30 + u64::from(PASSES) {
        let grant = small(&mut s, time);
        s.end(&grant.places(), grant.lease);
    }
    let kept = |s: &Scheduler, wish| {
        s.ledger
            .devices
            .iter()
            .filter(|gpu| gpu.hold().is_some_and(|hold| hold.wish == wish))
            .count()
    };
    assert_eq!(kept(&s, second), 2);
    // One before it that was passed as often takes what it needs, and the other keeps nothing.
    let first = whole(&mut s, 3, 10);
    for time in 0..u64::from(PASSES) {
        let grant = s.granted(inference(&format!("cuda:{}", time % 3), 1, 15));
        s.end(&grant.places(), grant.lease);
    }
    assert_eq!((kept(&s, first), kept(&s, second)), (3, 0));
    // A GPU that another program has filled cannot be waited for, and nothing is kept for it any more.
    s.measured(0, 12);
    assert_eq!((kept(&s, first), kept(&s, second)), (0, 0));
    s.measured(0, 0);
    for _ in 0..64 {
        s.measured(0, 0);
    }
    for grant in &held {
        s.end(&grant.places(), grant.lease);
    }
    let order: Vec<u64> = s
        .decisions()
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(order, [second]);
}

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
