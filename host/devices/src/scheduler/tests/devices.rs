//! Limits, memory, health, pools and policies: which devices a wish may have.

use std::time::Duration;

use super::*;

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
    // Those that wait have another reason for it now, told once.
    assert!(margin(&mut s, 0, 3) && !margin(&mut s, 0, 4));
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
    assert!(sample(&mut s, 5, true));
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
