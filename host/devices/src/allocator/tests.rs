use std::sync::atomic::AtomicU32;
use std::task::Wake;
use std::thread::Thread;
use std::time::Duration;

use super::*;
use crate::Place;

fn device(id: DeviceId) -> DeviceEntry {
    DeviceEntry {
        id,
        uuid: None,
        model: "GPU".to_owned(),
        compute_capability: None,
        memory_bytes: 24,
        headroom_bytes: 0,
        overhead_bytes: 0,
        limits: Limits {
            training: 1,
            inference: 3,
        },
        state: State::Ready,
        draining: false,
        peers: Vec::new(),
    }
}

fn machine(gpus: u32) -> Arc<Allocator> {
    let gpus = (0..gpus).map(DeviceId::Cuda);
    let all = std::iter::once(DeviceId::Cpu).chain(gpus);
    Allocator::new(all.map(device).collect(), Policy::default())
}

fn training(bytes: u64, number: u64) -> Request {
    Request {
        selector: Selector::AnyGpu,
        kind: Kind::Training,
        gpus: 1,
        bytes,
        gpu_bytes: bytes,
        task: "t".to_owned(),
        plugin: "p".to_owned(),
        policy: None,
        place: Place::new(Duration::ZERO, 5, number),
    }
}

struct Parked(Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread for a lease, a minute at most.
fn wait(mut ticket: Ticket) -> Option<Lease> {
    let waker = Waker::from(Arc::new(Parked(std::thread::current())));
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(lease) => return lease.ok(),
            Poll::Pending if std::time::Instant::now() > end => return None,
            Poll::Pending => std::thread::park_timeout(Duration::from_secs(60)),
        }
    }
}

fn counts(allocator: &Allocator) -> Vec<u32> {
    let usage = allocator.usage();
    usage
        .iter()
        .map(|usage| usage.count(Kind::Training))
        .collect()
}

#[test]
fn a_lease_ends_when_it_is_dropped_and_wakes_who_waits() {
    let allocator = machine(1);
    let first = wait(allocator.submit(training(1, 0)).unwrap()).unwrap();
    let second = allocator.submit(training(1, 1)).unwrap();
    assert!(second.reason().unwrap().contains("1 of 1 trainings"));
    assert_eq!((counts(&allocator), allocator.waiting()), (vec![0, 1], 1));
    let waiting = std::thread::spawn(move || wait(second).map(|lease| lease.device()));
    drop(first);
    assert_eq!(waiting.join().unwrap(), Some(DeviceId::Cuda(0)));
    assert_eq!((counts(&allocator), allocator.waiting()), (vec![0, 0], 0));
}

#[test]
fn a_lease_that_ends_is_watched_until_its_memory_returns_or_has_leaked() {
    let (allocator, gpu) = (machine(1), DeviceId::Cuda(0));
    let measure = |used| {
        let measurement = Measurement {
            used_bytes: Some(used),
            ..Measurement::default()
        };
        allocator.measured(&[(gpu, measurement)]);
    };
    let figures = || {
        let usage = allocator.usage();
        let gpu = usage.iter().find(|usage| usage.device == gpu).unwrap();
        (
            gpu.observed_bytes,
            gpu.returning_bytes,
            gpu.leaked_bytes,
            gpu.foreign_bytes,
        )
    };
    let taken = Taken {
        context: true,
        session_bytes: 10,
    };
    measure(4);
    for watched in [true, false] {
        let version = allocator.version();
        let lease = wait(allocator.submit(training(10, 0)).unwrap()).unwrap();
        assert_eq!(lease.observed(taken), 10);
        measure(14);
        assert_eq!(figures(), (10, 0, 0, 4));
        assert!(allocator.version() > version);
        if watched {
            let returning = lease.release().remove(0);
            assert_eq!(figures(), (0, 10, 0, 4));
            assert_eq!((returning.seen(None), returning.seen(Some(12))), (10, 8));
            assert_eq!(returning.write_off(), 8);
            assert_eq!(figures(), (0, 0, 8, 12));
        } else {
            drop(lease);
            // What was taken all the same is seen by the next measurement.
            assert_eq!(figures(), (0, 0, 0, 4));
        }
        measure(4);
        assert_eq!(figures(), (0, 0, 0, 4));
    }
    // A grant that is never fetched holds up nobody, nor does one whose end cannot be seen.
    drop(allocator.submit(training(20, 1)).unwrap());
    let lease = wait(allocator.submit(training(20, 2)).unwrap()).unwrap();
    let next = allocator.submit(training(20, 3)).unwrap();
    let returning = lease.release().remove(0);
    assert!(next.reason().is_some());
    returning.forget();
    assert_eq!(next.reason(), None);
}

#[test]
fn a_ticket_that_is_dropped_takes_its_wish_back_granted_or_not() {
    let allocator = machine(1);
    let granted = allocator.submit(training(1, 0)).unwrap();
    let waiting = allocator.submit(training(1, 1)).unwrap();
    let last = allocator.submit(training(1, 2)).unwrap();
    drop(waiting);
    assert_eq!(allocator.waiting(), 1);
    drop(granted);
    assert_eq!((counts(&allocator), last.reason()), (vec![0, 1], None));
    drop(last);
    assert_eq!(
        (counts(&allocator), allocator.core().slots.len()),
        (vec![0, 0], 0)
    );
}

#[test]
fn leases_of_a_gpu_that_fails_are_told_why_they_end() {
    let allocator = machine(1);
    let lease = || {
        let mut request = training(1, 0);
        request.kind = Kind::Inference;
        wait(allocator.submit(request).unwrap()).unwrap()
    };
    let cause = |code| Cause {
        code,
        reason: code.to_owned(),
    };
    let gpu = DeviceId::Cuda(0);
    let first = lease();
    allocator.fail(gpu, &cause("device.fault"), true);
    assert_eq!(first.failure(), Some(cause("device.fault")));
    // Nobody knows which of several did it, so that all go on.
    drop(first);
    let (first, second) = (lease(), lease());
    allocator.fail(gpu, &cause("device.fault"), true);
    assert_eq!((first.failure(), second.failure()), (None, None));
    allocator.fail(gpu, &cause("device.lost"), false);
    allocator.fail(gpu, &cause("device.silent"), false);
    for lease in [first, second] {
        assert_eq!(lease.failure(), Some(cause("device.lost")));
    }
    assert_eq!(lease().failure(), None);
}

#[test]
fn a_wish_that_can_never_be_granted_any_more_is_refused_while_it_waits() {
    let allocator = machine(1);
    let _held = wait(allocator.submit(training(1, 0)).unwrap());
    let mut pinned = allocator
        .submit(Request {
            selector: Selector::Device(DeviceId::Cuda(0)),
            ..training(1, 1)
        })
        .unwrap();
    allocator.update(DeviceId::Cuda(0), |gpu| {
        gpu.state = State::Unable("it fell off".to_owned());
    });
    let polled = Pin::new(&mut pinned).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Err(refusal)) = polled else {
        panic!("{polled:?}");
    };
    assert_eq!(refusal.code(), "device.unschedulable");
}

#[test]
fn those_that_wait_are_told_that_a_gpu_has_become_too_hot() {
    let allocator = machine(1);
    let changes = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&changes);
    allocator.on_change(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let at = |margin| {
        let measurement = Measurement {
            thermal_margin_c: Some(margin),
            ..Measurement::default()
        };
        allocator.measured(&[(DeviceId::Cuda(0), measurement)]);
        changes.swap(0, Ordering::Relaxed)
    };
    assert_eq!([60, 50, 3, 2].map(at), [0, 0, 1, 0]);
}

#[test]
fn threads_that_race_never_hold_more_than_the_limit_and_none_is_forgotten() {
    let allocator = machine(2);
    let (held, most, changes) = (
        AtomicU32::new(0),
        AtomicU32::new(0),
        Arc::new(AtomicU32::new(0)),
    );
    let counted = Arc::clone(&changes);
    allocator.on_change(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let grants = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (allocator, held, most, grants) = (&allocator, &held, &most, &grants);
            scope.spawn(move || {
                for round in 0..200 {
                    let ticket = allocator
                        .submit(training(1, thread * 1000 + round))
                        .unwrap();
                    if (thread + round) % 5 == 0 {
                        drop(ticket);
                        continue;
                    }
                    let lease = wait(ticket).unwrap();
                    let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    std::thread::yield_now();
                    held.fetch_sub(1, Ordering::SeqCst);
                    grants.fetch_add(1, Ordering::Relaxed);
                    drop(lease);
                }
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= 2);
    assert_eq!(grants.load(Ordering::Relaxed), 8 * 160);
    assert!(changes.load(Ordering::Relaxed) >= 2 * 8 * 160);
    assert_eq!(counts(&allocator), [0, 0, 0]);
    assert!(allocator.core().slots.is_empty());
}
