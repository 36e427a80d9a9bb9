//! A session on the processor allocates what its plans say, to the byte, and what libraries take
//! beside it stays below the bound that it tells.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use compute::builder::Conv2d;
use compute::cpu::CpuBackend;
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Value, peak_bytes_of};

/// Counts the bytes of tensors that are allocated.
struct Counting;

/// Names, shapes and lists are smaller, the parameters of these tests larger.
const LARGE: usize = 32 << 10;
/// Other tensors, however small, begin at multiples of so many bytes.
const ALIGNMENT: usize = 64;

static LIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

fn counts(layout: Layout) -> bool {
    layout.size() >= LARGE || layout.align() == ALIGNMENT
}

fn count(layout: Layout) {
    if counts(layout) {
        let bytes = layout.size() as u64;
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if counts(layout) {
            LIVE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BATCH: usize = 16;

fn weight(b: &mut Builder, name: &str, shape: &[u64]) -> Value {
    b.parameter(name, shape, "kaiming-uniform", 1).unwrap()
}

/// A convolution and products of every kind, trained.
fn plans() -> Vec<Plan> {
    let mut b = Builder::new();
    let image = [3, 64, 64].map(Dim::Fixed);
    let image = [&[Dim::Batch(1)], &image[..]].concat();
    let x = b.input("x", DType::F32, &image).unwrap();
    let y = b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
    let weights = [
        weight(&mut b, "stem", &[64, 3, 8, 8]),
        weight(&mut b, "middle", &[64, 64, 3, 3]),
        weight(&mut b, "point", &[256, 64, 1, 1]),
        weight(&mut b, "head", &[128, 256]),
    ];
    let conv = |b: &mut Builder, x, w, stride, padding| {
        let attributes = Conv2d {
            stride: (stride, stride),
            padding: (padding, padding),
            ..Conv2d::default()
        };
        let y = b.conv2d(x, w, None, attributes).unwrap();
        b.relu(y).unwrap()
    };
    let h = conv(&mut b, x, weights[0], 4, 2);
    let h = conv(&mut b, h, weights[1], 1, 1);
    let h = conv(&mut b, h, weights[2], 1, 0);
    let rows =
        [Dim::Batch(1), Dim::Fixed(256), Dim::Fixed(256)].map(compute::builder::Target::Size);
    let rows = b.reshape(h, &rows).unwrap();
    let turned = b.permute(rows, &[0, 2, 1]).unwrap();
    let scores = b.matmul(rows, turned).unwrap();
    let scores = b.softmax(scores, 2).unwrap();
    let mixed = b.matmul(scores, rows).unwrap();
    let pooled = b.mean(mixed, &[2], false).unwrap();
    let logits = b.linear(pooled, weights[3], None).unwrap();
    let loss = b.cross_entropy(logits, y, 0.0).unwrap();
    b.output("loss", loss).unwrap();
    let evaluate = Plan::new(&b.graph(), 2 * BATCH as u32).unwrap();
    let gradients = b.gradients(loss, &weights).unwrap();
    b.adamw(&weights, &gradients, (0.9, 0.999), 1e-8, 0.01)
        .unwrap();
    vec![Plan::new(&b.graph(), BATCH as u32).unwrap(), evaluate]
}

#[test]
fn a_session_allocates_what_its_plans_say_and_libraries_no_more_than_their_bound() {
    for threads in [1, 2] {
        let backend = CpuBackend::new(threads).unwrap();
        let plans = plans();
        let planned = peak_bytes_of(&plans.iter().collect::<Vec<_>>());
        let before = LIVE.load(Ordering::Relaxed);
        let mut session = backend.open(plans, planned).unwrap();
        let opened = LIVE.load(Ordering::Relaxed) - before;
        assert_eq!((opened, session.used_bytes()), (planned, planned));

        let samples = vec![0.5; BATCH * 3 * 64 * 64];
        let x = HostTensor::from_f32(&[BATCH, 3, 64, 64], &samples).unwrap();
        let y = HostTensor::from_i64(&[BATCH], &[3; BATCH]).unwrap();
        drop(samples);
        let start = LIVE.load(Ordering::Relaxed);
        PEAK.store(start, Ordering::Relaxed);
        for plan in [0, 1, 0] {
            let never = AtomicBool::new(false);
            session
                .run(plan, BATCH, &[("x", &x), ("y", &y)], &never)
                .unwrap();
        }
        let scratch = PEAK.load(Ordering::Relaxed) - start;
        let bound = session.scratch_bytes();
        println!("{scratch} bytes of scratch on {threads} threads");
        assert!(scratch <= bound, "{scratch} bytes, told {bound}");
        // The bound is of use: it is no multiple of what the plans take.
        assert!(bound < planned, "{bound} {planned}");
    }
}
