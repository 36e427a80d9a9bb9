//! Those that wait: their order, and who may pass whom.

use super::*;

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
