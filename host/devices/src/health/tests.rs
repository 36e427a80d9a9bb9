use proptest::prelude::*;

use super::*;

fn second(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A GPU that has passed its first self-test, at second 0.
fn healthy() -> Condition {
    let mut gpu = Condition::new(second(0));
    assert_eq!(gpu.state(), State::Probing);
    let orders = gpu.signal(second(0), &Signal::Answered(None));
    assert_eq!(orders, [Order::Test]);
    assert!(gpu.signal(second(0), &Signal::Tested(Ok(()))).is_empty());
    assert_eq!(gpu.state(), State::Ready);
    gpu
}

fn xid(code: u64) -> Signal<'static> {
    xid_among(code, 1)
}

/// An Xid while so many leases are on the GPU.
fn xid_among(code: u64, leases: usize) -> Signal<'static> {
    Signal::Xid {
        code,
        action: XidTable::default().action(code),
        leases,
        beside: 0,
    }
}

/// The code with which orders end all leases.
fn fails(orders: &[Order]) -> Option<&'static str> {
    orders.iter().find_map(|order| match order {
        Order::Fail(cause) => Some(cause.code),
        Order::FailOnly(_) | Order::Test => None,
    })
}

#[test]
fn every_xid_of_the_catalogue_leads_where_it_says() {
    let lists: [(&[u64], Health, Option<&str>); 6] = [
        (
            &[
                37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 108, 121, 141, 152, 153, 154, 157,
                160, 161,
            ],
            Health::Healthy,
            None,
        ),
        (
            &[8, 11, 13, 25, 31, 32, 39, 40, 41, 68, 69, 70, 71, 80, 94],
            Health::Suspect,
            None,
        ),
        (
            &[46, 62, 64, 95, 109, 119, 120, 140, 143, 151, 155, 156, 158],
            Health::ResetRequired,
            Some("device.reset-required"),
        ),
        (&[48], Health::Quarantined, Some("device.quarantined")),
        (
            &[74, 144, 145, 146, 147, 148, 149, 150],
            Health::Quarantined,
            None,
        ),
        (&[79], Health::Lost, Some("device.lost")),
    ];
    for (codes, health, code) in lists {
        for &number in codes {
            let mut gpu = healthy();
            let orders = gpu.signal(second(5), &xid(number));
            assert_eq!(gpu.health(), health, "{number}");
            assert_eq!(fails(&orders), code, "{number}");
            let last = gpu.last_xid().unwrap();
            assert_eq!((last.code, last.at), (number, second(5)));
            let ready = health == Health::Healthy;
            assert_eq!(gpu.state() == State::Ready, ready, "{number}");
            // What is lost or must be reset is not tested before it has answered afresh, what is
            // quarantined not before the operator says so.
            let tested = orders.contains(&Order::Test);
            assert_eq!(tested, health == Health::Suspect, "{number}");
        }
    }
    let mut gpu = healthy();
    assert_eq!(gpu.signal(second(5), &xid(12345)), [Order::Test]);
    assert_eq!(gpu.health(), Health::Suspect);
}

#[test]
fn a_fault_of_a_program_ends_its_lease_and_tests_the_gpu() {
    let mut gpu = healthy();
    let orders = gpu.signal(second(1), &xid(31));
    let [Order::FailOnly(cause), Order::Test] = &orders[..] else {
        panic!("{orders:?}");
    };
    assert_eq!(cause.code, "device.fault");
    assert!(cause.reason.contains("Xid 31"), "{}", cause.reason);
    assert!(matches!(gpu.state(), State::Unwell(_)));
    gpu.signal(second(2), &Signal::Tested(Ok(())));
    assert_eq!(gpu.state(), State::Ready);
    // Another program's, where we have no lease.
    assert!(gpu.signal(second(3), &xid_among(31, 0)).is_empty());
    assert_eq!(gpu.state(), State::Ready);
}

/// Whether orders end the only lease there.
fn fails_only(orders: &[Order]) -> bool {
    let mut orders = orders.iter();
    orders.any(|order| matches!(order, Order::FailOnly(_)))
}

#[test]
fn a_fault_counts_once_and_ends_no_other_task_however_it_is_told() {
    let passed = Signal::Tested(Ok(()));
    let told = Signal::Fault("an illegal address");
    for first_the_task in [false, true] {
        let mut gpu = healthy();
        // Twice the driver tells of two tasks' GPU by two Xids, and the task that did it by its error.
        for at in [10, 40] {
            let orders = if first_the_task {
                gpu.signal(second(at), &told)
            } else {
                gpu.signal(second(at), &xid_among(13, 2))
            };
            assert_eq!(orders, [Order::Test]);
            let other = if first_the_task {
                xid_among(13, 1)
            } else {
                told.clone()
            };
            // Only the other task's lease is left.
            assert!(!fails_only(&gpu.signal(second(at), &other)));
            assert!(!fails_only(&gpu.signal(second(at), &xid_among(13, 1))));
            assert_eq!(gpu.health(), Health::Suspect);
            // The self-test was begun before the last of them.
            assert_eq!(gpu.signal(second(at + 1), &passed), [Order::Test]);
            gpu.signal(second(at + 2), &passed);
            assert_eq!(gpu.health(), Health::Healthy, "{at}");
            // The driver may tell late.
            assert_eq!(gpu.signal(second(at + 9), &xid(13)), [Order::Test]);
            gpu.signal(second(at + 9), &passed);
        }
        // It is another some time after; the third within an hour.
        assert!(fails_only(&gpu.signal(second(60), &xid(13))));
        assert_eq!(gpu.health(), Health::Quarantined);
    }
}

#[test]
fn a_task_may_tell_late_of_what_an_xid_told_and_two_tasks_tell_of_two() {
    let mut gpu = healthy();
    let told = Signal::Fault("an illegal address");
    gpu.signal(second(10), &xid_among(31, 3));
    gpu.signal(second(11), &Signal::Tested(Ok(())));
    assert_eq!(gpu.health(), Health::Healthy);
    gpu.signal(second(20), &told);
    gpu.signal(second(20), &told);
    assert_eq!(gpu.health(), Health::Suspect);
    gpu.signal(second(20), &told);
    assert_eq!(gpu.health(), Health::Quarantined);
}

#[test]
fn what_the_driver_tells_after_a_tasks_own_error_ends_no_other_task() {
    let mut gpu = healthy();
    gpu.signal(second(10), &xid_among(94, 2));
    gpu.signal(second(11), &Signal::Tested(Ok(())));
    gpu.signal(second(19), &Signal::Fault("an illegal address"));
    // Later than the first Xid's time, when the other task's lease alone is left.
    assert!(!fails_only(&gpu.signal(second(21), &xid(31))));
    assert_eq!(gpu.health(), Health::Suspect);
}

#[test]
fn a_fault_that_no_task_tells_of_ends_none_of_several_and_the_self_test_decides() {
    let mut gpu = healthy();
    let beside = Signal::Xid {
        code: 94,
        action: Action::RestartApp,
        leases: 1,
        beside: 1,
    };
    assert_eq!(gpu.signal(second(10), &beside), [Order::Test]);
    for outcome in [Ok(()), Err("a wrong loss")] {
        let mut gpu = healthy();
        let orders = gpu.signal(second(10), &xid_among(94, 2));
        assert_eq!(orders, [Order::Test]);
        assert!(gpu.signal(second(12), &Signal::Tested(outcome)).is_empty());
        let health = outcome.map_or(Health::Suspect, |()| Health::Healthy);
        assert_eq!(gpu.health(), health);
    }
}

#[test]
fn what_the_operator_says_of_an_xid_is_done() {
    let mut table = XidTable::default();
    table.set("109", Some("RESTART_APP")).unwrap();
    let mut gpu = healthy();
    let signal = Signal::Xid {
        code: 109,
        action: table.action(109),
        leases: 1,
        beside: 0,
    };
    assert!(fails_only(&gpu.signal(second(1), &signal)));
    assert_eq!(gpu.health(), Health::Suspect);
    assert_eq!(gpu.last_xid().unwrap().action, Action::RestartApp);
}

#[test]
fn faults_again_and_again_are_the_gpus() {
    let mut gpu = healthy();
    for at in [0, 4000, 4001, 4002] {
        assert_eq!(gpu.health(), Health::Healthy);
        gpu.signal(second(at), &Signal::Fault("an illegal address"));
        gpu.signal(second(at), &Signal::Tested(Ok(())));
    }
    assert_eq!(gpu.health(), Health::Quarantined);
    assert!(gpu.reason().unwrap().contains("3 tasks failed"));
    assert!(gpu.signal(second(9000), &Signal::Answered(None)).is_empty());
    // The operator's word alone does not do.
    assert_eq!(gpu.signal(second(9001), &Signal::Enabled), [Order::Test]);
    assert_eq!(gpu.health(), Health::Quarantined);
    gpu.signal(second(9002), &Signal::Tested(Ok(())));
    assert_eq!(gpu.health(), Health::Healthy);
    gpu.signal(second(9003), &Signal::Fault("an illegal address"));
    assert_eq!(gpu.health(), Health::Suspect);
}

#[test]
fn a_lost_gpu_returns_when_it_answers_afresh_and_passes() {
    let mut gpu = healthy();
    let lost = Signal::Failed(Failure::Lost, "fell off the bus");
    assert_eq!(fails(&gpu.signal(second(1), &lost)), Some("device.lost"));
    assert_eq!(gpu.since(), second(1));
    assert!(gpu.signal(second(2), &lost).is_empty());
    assert!(matches!(gpu.state(), State::Unwell(_)));
    assert_eq!(
        gpu.signal(second(9), &Signal::Answered(None)),
        [Order::Test]
    );
    assert_eq!(gpu.health(), Health::Lost);
    gpu.signal(second(10), &Signal::Tested(Err("no device")));
    assert_eq!(gpu.health(), Health::Lost);
    // After 1 s, 2 s, 4 s …
    let mut at = second(10);
    for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        let early = at + second(pause) - Duration::from_millis(1);
        assert!(gpu.signal(early, &Signal::Answered(None)).is_empty());
        at += second(pause);
        assert_eq!(gpu.signal(at, &Signal::Answered(None)), [Order::Test]);
        gpu.signal(at, &Signal::Tested(Err("no device")));
    }
    gpu.signal(at + second(300), &Signal::Answered(None));
    gpu.signal(at + second(301), &Signal::Tested(Ok(())));
    assert_eq!(gpu.state(), State::Ready);
    assert_eq!(gpu.since(), at + second(301));
}

#[test]
fn a_gpu_that_was_lost_before_it_passed_anything_is_as_good_as_none() {
    let mut gpu = Condition::new(second(0));
    gpu.signal(second(0), &Signal::Failed(Failure::Lost, "lost"));
    assert_eq!(gpu.state(), State::Unable("lost".to_owned()));
    let mut gpu = Condition::new(second(0));
    gpu.signal(second(0), &Signal::Answered(None));
    gpu.signal(second(1), &Signal::Tested(Err("too old")));
    assert_eq!(gpu.state(), State::Unable("too old".to_owned()));
    assert_eq!(gpu.health(), Health::Healthy);
}

#[test]
fn silence_makes_suspect_at_once_and_ends_leases_after_a_while() {
    let mut gpu = healthy();
    let silent = |seconds| Signal::Failed(Failure::Silent(second(seconds)), "silent");
    assert!(gpu.signal(second(2), &silent(2)).is_empty());
    assert_eq!(gpu.health(), Health::Suspect);
    assert_eq!(
        fails(&gpu.signal(second(3), &silent(3))),
        Some("device.silent")
    );
    assert_eq!(
        gpu.signal(second(9), &Signal::Answered(None)),
        [Order::Test]
    );
}

#[test]
fn a_gpu_that_is_split_or_put_together_is_tested_again() {
    let mut gpu = healthy();
    let split = Signal::Changed("it is split");
    assert_eq!(gpu.signal(second(1), &split), [Order::Test]);
    gpu.signal(second(1), &Signal::Tested(Err("it is split")));
    assert!(matches!(gpu.state(), State::Unwell(_)));
    // Whatever pause there would be.
    let whole = Signal::Changed("it is whole");
    assert_eq!(gpu.signal(second(1), &whole), [Order::Test]);
    gpu.signal(second(2), &Signal::Tested(Ok(())));
    assert_eq!(gpu.state(), State::Ready);
}

#[test]
fn three_failed_samples_make_suspect() {
    let mut gpu = healthy();
    let failed = Signal::Failed(Failure::Unknown, "Unknown Error");
    gpu.signal(second(1), &failed);
    gpu.signal(second(2), &failed);
    gpu.signal(second(3), &Signal::Answered(None));
    gpu.signal(second(4), &failed);
    gpu.signal(second(5), &failed);
    assert_eq!(gpu.state(), State::Ready);
    gpu.signal(second(6), &failed);
    assert_eq!(gpu.health(), Health::Suspect);
}

#[test]
fn a_reset_is_waited_for() {
    let mut gpu = healthy();
    gpu.signal(second(1), &xid(119));
    assert!(gpu.signal(second(9), &Signal::Answered(None)).is_empty());
    // While it is reset it does not answer.
    gpu.signal(second(10), &Signal::Failed(Failure::Unknown, "?"));
    assert_eq!(
        gpu.signal(second(11), &Signal::Answered(None)),
        [Order::Test]
    );
    gpu.signal(second(12), &Signal::Tested(Ok(())));
    assert_eq!(gpu.health(), Health::Healthy);
    // By NVML's word, which also says when it is done.
    let reset = Signal::Answered(Some(Recovery::GpuReset));
    assert_eq!(
        fails(&gpu.signal(second(20), &reset)),
        Some("device.reset-required")
    );
    assert!(gpu.signal(second(21), &reset).is_empty());
    assert_eq!(
        gpu.signal(second(22), &Signal::Answered(None)),
        [Order::Test]
    );
    // Bad news during a self-test make it worthless.
    gpu.signal(second(23), &xid(95));
    gpu.signal(second(24), &Signal::Tested(Ok(())));
    assert_eq!(gpu.health(), Health::ResetRequired);
    assert_eq!(gpu.signal(second(25), &Signal::Enabled), [Order::Test]);
}

#[test]
fn a_quarantined_gpu_that_was_lost_is_quarantined_again() {
    let mut gpu = healthy();
    gpu.signal(second(1), &xid(48));
    gpu.signal(second(2), &Signal::Failed(Failure::Lost, "lost"));
    assert_eq!(gpu.health(), Health::Lost);
    gpu.signal(second(9), &Signal::Answered(None));
    gpu.signal(second(10), &Signal::Tested(Ok(())));
    assert_eq!(gpu.health(), Health::Quarantined);
    assert!(gpu.reason().unwrap().contains("Xid 48"));
}

fn signals() -> impl Strategy<Value = Signal<'static>> {
    let codes = prop::sample::select(vec![13, 31, 43, 48, 63, 74, 79, 94, 95, 119, 154, 999]);
    let failures = prop::sample::select(vec![
        Failure::Lost,
        Failure::ResetRequired,
        Failure::NoPermission,
        Failure::Unknown,
        Failure::Silent(second(2)),
        Failure::Silent(second(4)),
    ]);
    let recoveries = prop::sample::select(vec![
        Recovery::GpuReset,
        Recovery::NodeReboot,
        Recovery::DrainP2p,
        Recovery::DrainAndReset,
    ]);
    prop_oneof![
        6 => Just(Signal::Answered(None)),
        1 => recoveries.prop_map(|recovery| Signal::Answered(Some(recovery))),
        3 => failures.prop_map(|failure| Signal::Failed(failure, "failed")),
        2 => (codes, 0usize..3).prop_map(|(code, leases)| xid_among(code, leases)),
        1 => Just(Signal::Fault("fault")),
        1 => Just(Signal::Changed("split")),
        5 => Just(Signal::Tested(Ok(()))),
        1 => Just(Signal::Tested(Err("failed"))),
        1 => Just(Signal::Enabled),
    ]
}

proptest! {
    /// Whatever happens: nothing but a passed self-test, ordered after the last bad news, leads to
    /// ready; one self-test runs at a time; what ends leases never leaves the GPU ready; a quarantine
    /// ends by the operator's word alone.
    #[test]
    fn only_a_passed_self_test_admits(events in prop::collection::vec((0u64..400, signals()), 1..80)) {
        let mut gpu = Condition::new(Duration::ZERO);
        let (mut now, mut running, mut enabled) = (Duration::ZERO, false, false);
        for (pause, signal) in events {
            now += second(pause);
            let (before, was) = (gpu.state(), gpu.health());
            let passes = signal == Signal::Tested(Ok(())) && running;
            if matches!(signal, Signal::Tested(_)) {
                running = false;
            }
            enabled |= signal == Signal::Enabled;
            let orders = gpu.signal(now, &signal);
            let tests = orders.iter().filter(|order| **order == Order::Test).count();
            prop_assert!(tests <= usize::from(!running));
            running |= tests > 0;
            let ready = gpu.state() == State::Ready;
            prop_assert!(!ready || before == State::Ready || passes);
            prop_assert!(fails(&orders).is_none() || !ready);
            prop_assert_eq!(ready, gpu.health() == Health::Healthy && gpu.reason().is_none() && gpu.state() != State::Probing);
            if was == Health::Quarantined {
                let out = [Health::Lost, Health::ResetRequired, Health::Quarantined];
                prop_assert!(out.contains(&gpu.health()) || (enabled && passes));
            } else if gpu.health() == Health::Quarantined {
                enabled = false;
            }
        }
    }
}
