//! Times decisions: 1,024 GPUs, all taken, and 100,000 tasks that wait. A lease ends, and whoever gets
//! its place is decided; then a task comes and one that waits is withdrawn, so that as many wait
//! again. What one end gives to several tasks is as many decisions, timed together: each is counted
//! with its part of the time, and the whole is told as well.
//!
//!     cargo run --release --package devices --example decisions

#![allow(clippy::expect_used, reason = "a benchmark fails by panicking")]

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use devices::{
    Allocator, DeviceEntry, DeviceId, Kind, Lease, Limits, Place, Policy, Request, State, Ticket,
};

const GPUS: u32 = 1024;
const WAITING: usize = 100_000;
const DECISIONS: usize = 100_000;
const GB: u64 = 1 << 30;

/// The next of a fixed sequence (SplitMix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Mostly any GPU, some a certain one or a pool; of 1 to 64 GB.
fn request(number: u64, state: &mut u64) -> Request {
    let selector = match random(state) % 20 {
        0..2 => format!("cuda:{}", random(state) % u64::from(GPUS)),
        2..5 => format!("pool-{}", random(state) % 8),
        _ => "cuda".to_owned(),
    };
    let training = random(state).is_multiple_of(3);
    let bytes = GB << (random(state) % 7);
    let priority = 1 + (random(state) % 10) as u8;
    Request {
        selector: selector.parse().expect("a device string"),
        kind: if training {
            Kind::Training
        } else {
            Kind::Inference
        },
        gpus: 1,
        bytes,
        gpu_bytes: bytes,
        task: format!("task-{number}"),
        plugin: "plugin".to_owned(),
        policy: None,
        place: Place::new(Duration::from_millis(number), priority, number),
    }
}

fn gpu(ordinal: u32) -> DeviceEntry {
    DeviceEntry {
        id: DeviceId::Cuda(ordinal),
        uuid: Some(format!("GPU-{ordinal:08x}")),
        model: "GPU".to_owned(),
        compute_capability: Some("9.0".to_owned()),
        memory_bytes: 80 * GB,
        headroom_bytes: GB,
        overhead_bytes: GB / 2,
        limits: Limits {
            training: 1,
            inference: 3,
        },
        state: State::Ready,
        draining: false,
        peers: Vec::new(),
    }
}

/// The tickets that are decided become leases; the others go on waiting.
fn fetch(tickets: &mut VecDeque<Ticket>, leases: &mut Vec<Lease>) {
    let mut context = Context::from_waker(Waker::noop());
    tickets.retain_mut(|ticket| match Pin::new(ticket).poll(&mut context) {
        Poll::Ready(Ok(lease)) => {
            leases.push(lease);
            false
        }
        Poll::Ready(Err(_)) => false,
        Poll::Pending => true,
    });
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!(
        "{what}: p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs, most {:.1} µs ({} times)",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        times.len()
    );
}

fn main() {
    let allocator = Allocator::new((0..GPUS).map(gpu).collect(), Policy::default());
    let pools = (0..8u32).map(|pool| {
        let gpus = (0..GPUS)
            .filter(|ordinal| ordinal % 8 == pool)
            .map(|ordinal| format!("cuda:{ordinal}"));
        let pool_of = devices::Pool {
            gpus: gpus.collect(),
            ..devices::Pool::default()
        };
        (
            format!("pool-{pool}").parse().expect("a pool's name"),
            pool_of,
        )
    });
    allocator.set_pools(pools.collect());
    let (mut state, mut number) = (7, 0);
    let (mut tickets, mut leases) = (VecDeque::new(), Vec::new());
    let mut arrivals = Vec::new();
    while tickets.len() < WAITING {
        while allocator.waiting() < WAITING {
            let request = request(number, &mut state);
            number += 1;
            let begun = Instant::now();
            let ticket = allocator.submit(request).expect("it fits a GPU");
            arrivals.push(begun.elapsed());
            tickets.push_back(ticket);
        }
        fetch(&mut tickets, &mut leases);
    }
    println!(
        "{GPUS} GPUs, {} leases, {} tasks wait",
        leases.len(),
        allocator.waiting()
    );
    report("a task comes, while the queue fills", arrivals);
    let (mut ends, mut decisions) = (Vec::new(), Vec::new());
    let (mut arrivals, mut cancels) = (Vec::new(), Vec::new());
    for decision in 0..DECISIONS {
        if leases.is_empty() {
            fetch(&mut tickets, &mut leases);
        }
        let at = (random(&mut state) % leases.len() as u64) as usize;
        let lease = leases.swap_remove(at);
        let begun = Instant::now();
        drop(lease);
        let time = begun.elapsed();
        let granted = WAITING.saturating_sub(allocator.waiting());
        ends.push(time);
        let each = granted.max(1);
        decisions.extend(std::iter::repeat_n(time / each as u32, each));
        // Every grant that this caused is a task less; as many come.
        while allocator.waiting() < WAITING {
            let request = request(number, &mut state);
            number += 1;
            let begun = Instant::now();
            let ticket = allocator.submit(request).expect("it fits a GPU");
            arrivals.push(begun.elapsed());
            tickets.push_back(ticket);
        }
        if decision % 10 == 0
            && let Some(ticket) = tickets.pop_back()
        {
            let begun = Instant::now();
            drop(ticket);
            cancels.push(begun.elapsed());
        }
        if decision % 500 == 0 {
            fetch(&mut tickets, &mut leases);
        }
    }
    report(
        "a lease ends and its place is given away, each decision",
        decisions,
    );
    report("  all that one end gives away", ends);
    report("a task comes", arrivals);
    report("a task is withdrawn", cancels);
}
