//! Wishes for several GPUs.

use super::*;

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

#[test]
fn gpus_are_had_as_soon_as_a_pool_takes_one_more_though_the_one_that_ended_its_task_takes_none() {
    let mut s = machine(3);
    let trio = pool(r#"{"gpus": ["cuda:0", "cuda:1", "cuda:2"], "limits": {"training": 2}}"#);
    s.set_pools(vec![("trio".parse().unwrap(), trio)]);
    let first = s.granted(training("cuda:0", 1, 0));
    let (waiting, _) = s.waits(gang("trio", 2, 1, 1));
    s.drain(DeviceId::Cuda(0), true).unwrap();
    assert_eq!(s.grants(), []);
    s.end(&first.places(), first.lease);
    let decided = s.decisions();
    let [(number, Ok(grant))] = &decided[..] else {
        panic!("{decided:?}");
    };
    assert_eq!((*number, ordinals(grant)), (waiting, vec![1, 2]));
}
