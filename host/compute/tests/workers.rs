//! How the CPU backend divides work: results are the same bit for bit on any number of threads, and
//! a cancelled run ends within its operator.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use compute::builder::{Conv2d, Target};
use compute::cpu::CpuBackend;
use compute::schedule::ScheduleKind;
use compute::{Backend, Builder, DType, Dim, Error, HostTensor, Plan, Schedule, Session, Value};

const THREADS: [usize; 5] = [1, 2, 3, 5, 8];

fn numbers(shape: &[u64], seed: u64) -> HostTensor {
    let sizes: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
    let count = sizes.iter().product::<usize>() as u64;
    let value = |i| compute::random::unit(seed.wrapping_mul(1 << 32).wrapping_add(i)) as f32 - 0.5;
    HostTensor::from_f32(&sizes, &(0..count).map(value).collect::<Vec<_>>()).unwrap()
}

/// What an operator gives for inputs of these shapes.
type Build = fn(&mut Builder, &[Value]) -> Result<Value, Error>;
/// A name, the shapes of float32 inputs, and the operator.
type Case = (&'static str, &'static [&'static [u64]], Build);

/// The plan of a case, with the gradients of its inputs.
fn plan(&(_, shapes, build): &Case, gradients: bool) -> Plan {
    let mut b = Builder::new();
    let mut inputs = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let dims: Vec<Dim> = shape.iter().map(|&size| Dim::Fixed(size)).collect();
        inputs.push(b.input(&format!("{i}"), DType::F32, &dims).unwrap());
    }
    let y = build(&mut b, &inputs).unwrap();
    b.output("y", y).unwrap();
    if gradients {
        let square = b.mul(y, y).unwrap();
        let loss = b.sum(square, &[], false).unwrap();
        let gradients = b.gradients(loss, &inputs).unwrap();
        for (i, gradient) in gradients.into_iter().enumerate() {
            b.output(&format!("gradient.{i}"), gradient).unwrap();
        }
    }
    Plan::new(&b.graph(), 1).unwrap()
}

fn open(plan: Plan, threads: usize) -> Box<dyn Session> {
    let backend = CpuBackend::new(threads).unwrap();
    backend.open(vec![plan], u64::MAX).unwrap()
}

fn feeds(case: &Case) -> Vec<(String, HostTensor)> {
    let feed = |(i, shape): (usize, &&[u64])| (i.to_string(), numbers(shape, i as u64 + 1));
    case.1.iter().enumerate().map(feed).collect()
}

fn run(
    session: &mut dyn Session,
    feeds: &[(String, HostTensor)],
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let feeds: Vec<_> = feeds.iter().map(|(name, x)| (&**name, x)).collect();
    session.run(0, 1, &feeds, cancel)
}

fn convolve(
    b: &mut Builder,
    x: &[Value],
    stride: u32,
    padding: u32,
    groups: u32,
) -> Result<Value, Error> {
    let attributes = Conv2d {
        stride: (stride, stride),
        padding: (padding, padding),
        groups,
        ..Conv2d::default()
    };
    b.conv2d(x[0], x[1], None, attributes)
}

/// Work that is worth dividing, of sizes that divide evenly among no number of threads.
const DIVIDED: &[Case] = &[
    ("product", &[&[301, 257], &[257, 403]], |b, x| {
        b.matmul(x[0], x[1])
    }),
    (
        "product by a transpose",
        &[&[301, 257], &[403, 257]],
        |b, x| b.linear(x[0], x[1], None),
    ),
    ("deep product", &[&[37, 9001], &[9001, 41]], |b, x| {
        b.matmul(x[0], x[1])
    }),
    ("products", &[&[7, 131, 129], &[7, 129, 133]], |b, x| {
        b.matmul(x[0], x[1])
    }),
    (
        "product with a vector",
        &[&[1, 2003], &[2003, 1501]],
        |b, x| b.matmul(x[0], x[1]),
    ),
    ("wide product", &[&[3, 511], &[511, 5003]], |b, x| {
        b.matmul(x[0], x[1])
    }),
    (
        "convolution",
        &[&[3, 17, 33, 31], &[29, 17, 3, 3]],
        |b, x| convolve(b, x, 1, 1, 1),
    ),
    (
        "strided convolution",
        &[&[5, 3, 65, 63], &[24, 3, 7, 7]],
        |b, x| convolve(b, x, 2, 3, 1),
    ),
    (
        "pointwise convolution",
        &[&[3, 65, 29, 31], &[67, 65, 1, 1]],
        |b, x| convolve(b, x, 1, 0, 1),
    ),
    (
        "depthwise convolution",
        &[&[3, 37, 29, 31], &[37, 1, 3, 3]],
        |b, x| convolve(b, x, 1, 1, 37),
    ),
    (
        "grouped convolution",
        &[&[9, 12, 29, 31], &[18, 4, 3, 3]],
        |b, x| convolve(b, x, 1, 1, 3),
    ),
    ("sum", &[&[313, 29, 31]], |b, x| b.sum(x[0], &[], false)),
    ("sum of columns", &[&[3001, 101]], |b, x| {
        b.sum(x[0], &[0], false)
    }),
    ("mean of rows", &[&[101, 3001]], |b, x| {
        b.mean(x[0], &[1], true)
    }),
    ("variance", &[&[31, 29, 301]], |b, x| {
        b.variance(x[0], &[0, 2], false, true)
    }),
    ("layer norm", &[&[701, 131], &[131], &[131]], |b, x| {
        b.layer_norm(x[0], x[1], x[2], 1e-5)
    }),
    ("softmax", &[&[331, 257]], |b, x| b.softmax(x[0], 1)),
    ("gelu", &[&[100_003]], |b, x| b.gelu(x[0], false)),
    (
        "attention",
        &[&[2, 3, 129, 32], &[2, 3, 131, 32], &[2, 3, 131, 32]],
        |b, x| b.attention((x[0], x[1], x[2]), None, false, None),
    ),
];

#[test]
fn operators_give_the_same_bits_on_any_number_of_threads() {
    for case in DIVIDED {
        let plan = plan(case, true);
        let results = THREADS.map(|threads| {
            let mut session = open(plan.clone(), threads);
            run(&mut *session, &feeds(case), &AtomicBool::new(false)).unwrap();
            let names = plan.outputs().iter().map(|port| &port.name);
            let results = names.map(|name| session.output(0, name).unwrap());
            results.collect::<Vec<_>>()
        });
        for (result, threads) in results.iter().zip(THREADS) {
            assert!(*result == results[0], "{} on {threads} threads", case.0);
        }
    }
}

/// A graph under construction with the parameters it trains.
struct Model {
    b: Builder,
    parameters: Vec<Value>,
}

impl Model {
    fn parameter(&mut self, shape: &[u64], initializer: &str) -> Value {
        let name = format!("p{}", self.parameters.len());
        let value = self.b.parameter(&name, shape, initializer, 3).unwrap();
        self.parameters.push(value);
        value
    }

    fn linear(&mut self, x: Value, inputs: u64, outputs: u64) -> Value {
        let weight = self.parameter(&[outputs, inputs], "torch-uniform");
        let bias = self.parameter(&[outputs], "zeros");
        self.b.linear(x, weight, Some(bias)).unwrap()
    }

    fn layer_norm(&mut self, x: Value, size: u64) -> Value {
        let (scale, bias) = (
            self.parameter(&[size], "ones"),
            self.parameter(&[size], "zeros"),
        );
        self.b.layer_norm(x, scale, bias, 1e-5).unwrap()
    }

    fn convolution(&mut self, x: Value, weight: [u64; 4], stride: u32, groups: u32) -> Value {
        let w = self.parameter(&weight, "torch-uniform");
        let padding = weight[2] as u32 / 2;
        let h = convolve(&mut self.b, &[x, w], stride, padding, groups).unwrap();
        let (scale, bias) = (
            self.parameter(&weight[..1], "ones"),
            self.parameter(&weight[..1], "zeros"),
        );
        let name = |what: &str| format!("{what}{}", self.parameters.len());
        let (mean, variance) = (name("mean"), name("variance"));
        let mean = self.b.buffer(&mean, &weight[..1], "zeros").unwrap();
        let variance = self.b.buffer(&variance, &weight[..1], "ones").unwrap();
        let h = self
            .b
            .batch_norm_train(h, scale, bias, mean, variance, 0.1, 1e-5);
        self.b.hard_swish(h.unwrap()).unwrap()
    }

    fn reshape(&mut self, x: Value, sizes: &[u64]) -> Value {
        let mut target = vec![Target::Size(Dim::Batch(1))];
        target.extend(sizes.iter().map(|&size| Target::Size(Dim::Fixed(size))));
        self.b.reshape(x, &target).unwrap()
    }

    /// The training plan of a classifier with these logits.
    fn finish(mut self, logits: Value) -> Plan {
        let y = self.b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
        let loss = self.b.cross_entropy(logits, y, 0.1).unwrap();
        self.b.output("loss", loss).unwrap();
        self.b.output("logits", logits).unwrap();
        let gradients = self.b.gradients(loss, &self.parameters).unwrap();
        let clipped = self.b.clip_gradients(&gradients, 1.0).unwrap();
        let betas = (0.9, 0.999);
        self.b
            .adamw(&self.parameters, &clipped, betas, 1e-8, 0.01)
            .unwrap();
        Plan::new(&self.b.graph(), BATCH as u32).unwrap()
    }
}

const BATCH: usize = 6;
const CLASSES: usize = 11;

fn model(input: &[u64]) -> (Model, Value) {
    let mut b = Builder::new();
    let mut dims = vec![Dim::Batch(1)];
    dims.extend(input.iter().map(|&size| Dim::Fixed(size)));
    let x = b.input("x", DType::F32, &dims).unwrap();
    let model = Model {
        b,
        parameters: Vec::new(),
    };
    (model, x)
}

/// A residual network with a stem, a bottleneck, a depthwise convolution and dropout.
fn convolutional() -> (Plan, &'static [u64]) {
    let (mut m, x) = model(&[3, 37, 35]);
    let stem = m.convolution(x, [24, 3, 7, 7], 2, 1);
    let stem = m.b.max_pool2d(stem, (3, 3), (2, 2), (1, 1)).unwrap();
    let h = m.convolution(stem, [32, 24, 1, 1], 1, 1);
    let h = m.convolution(h, [32, 1, 3, 3], 1, 32);
    let h = m.convolution(h, [24, 32, 3, 3], 1, 1);
    let h = m.b.drop_path(h, 0.2, 5).unwrap();
    let h = m.b.add(h, stem).unwrap();
    let h = m.b.mean(h, &[2, 3], false).unwrap();
    let h = m.b.dropout(h, 0.3, 6).unwrap();
    let logits = m.linear(h, 24, CLASSES as u64);
    (m.finish(logits), &[3, 37, 35])
}

/// A block of a transformer on 33 tokens of 40 numbers, with dropout.
fn transformer() -> (Plan, &'static [u64]) {
    let (tokens, width, heads) = (33, 40, 5);
    let (mut m, x) = model(&[tokens, width]);
    let places = m.parameter(&[tokens, width], "normal:0:0.02");
    let x = m.b.add(x, places).unwrap();
    let h = m.layer_norm(x, width);
    let heads_of = |m: &mut Model| {
        let h = m.linear(h, width, width);
        let h = m.reshape(h, &[tokens, heads, width / heads]);
        m.b.permute(h, &[0, 2, 1, 3]).unwrap()
    };
    let (q, k, v) = (heads_of(&mut m), heads_of(&mut m), heads_of(&mut m));
    let h = m.b.attention((q, k, v), None, true, None).unwrap();
    let h = m.b.permute(h, &[0, 2, 1, 3]).unwrap();
    let h = m.reshape(h, &[tokens, width]);
    let h = m.linear(h, width, width);
    let h = m.b.dropout(h, 0.1, 7).unwrap();
    let x = m.b.add(x, h).unwrap();
    let h = m.layer_norm(x, width);
    let h = m.linear(h, width, 4 * width);
    let h = m.b.gelu(h, false).unwrap();
    let h = m.linear(h, 4 * width, width);
    let x = m.b.add(x, h).unwrap();
    let h = m.b.mean(x, &[1], false).unwrap();
    let logits = m.linear(h, width, CLASSES as u64);
    (m.finish(logits), &[33, 40])
}

/// Outputs of every step, then all variables, after steps on batches of 6, 1 and 5 samples.
fn trained(plan: &Plan, input: &[u64], threads: usize) -> Vec<HostTensor> {
    let mut session = open(plan.clone(), threads);
    session.set_schedule(Schedule::new(1e-2, 0, ScheduleKind::Constant).unwrap());
    let mut results = Vec::new();
    for (step, batch) in [BATCH, 1, 5].into_iter().enumerate() {
        let shape = [&[batch as u64], input].concat();
        let labels: Vec<i64> = (0..batch).map(|i| (i % CLASSES) as i64).collect();
        let y = HostTensor::from_i64(&[batch], &labels).unwrap();
        let inputs = [("x", &numbers(&shape, step as u64)), ("y", &y)];
        session
            .run(0, batch, &inputs, &AtomicBool::new(false))
            .unwrap();
        results.extend(["loss", "logits"].map(|name| session.output(0, name).unwrap()));
    }
    for info in session.parameters() {
        results.push(session.download(&info.name).unwrap());
    }
    results
}

#[test]
fn models_train_to_the_same_bits_on_any_number_of_threads() {
    for (name, (plan, input)) in [
        ("convolutional", convolutional()),
        ("transformer", transformer()),
    ] {
        let results = THREADS.map(|threads| trained(&plan, input, threads));
        for (result, threads) in results.iter().zip(THREADS) {
            assert!(*result == results[0], "{name} on {threads} threads");
        }
        let untrained = open(plan, 1).download("p0").unwrap();
        assert!(!results[0].contains(&untrained), "{name} has not trained");
    }
}

/// Single operators that take about a second on one core.
const LONG: &[Case] = &[
    ("product", &[&[3001, 3000], &[3000, 3002]], |b, x| {
        b.matmul(x[0], x[1])
    }),
    (
        "convolution",
        &[&[1, 256, 128, 128], &[384, 256, 3, 3]],
        |b, x| convolve(b, x, 1, 1, 1),
    ),
    (
        "batched convolution",
        &[&[24, 256, 32, 32], &[256, 256, 3, 3]],
        |b, x| convolve(b, x, 1, 1, 1),
    ),
    ("elementwise", &[&[1 << 25]], |b, x| b.atanh(x[0])),
    ("reduction", &[&[1 << 10, 1 << 13]], |b, x| {
        b.top_k(x[0], 3, 1, false)
    }),
    (
        "attention",
        &[&[8, 2048, 96], &[8, 2048, 96], &[8, 2048, 96]],
        |b, x| b.attention((x[0], x[1], x[2]), None, true, None),
    ),
];

/// How long a run goes on after a cancel, and how long it takes without one.
fn cancelled(session: &mut dyn Session, feeds: &[(String, HostTensor)]) -> (Duration, Duration) {
    let cancel = AtomicBool::new(false);
    let started = Instant::now();
    run(session, feeds, &cancel).unwrap();
    let whole = started.elapsed();
    std::thread::scope(|scope| {
        let cancelling = scope.spawn(|| {
            std::thread::sleep(whole / 20);
            cancel.store(true, Ordering::Relaxed);
            Instant::now()
        });
        let ended = run(session, feeds, &cancel);
        let after = Instant::now();
        assert_eq!(ended.unwrap_err().code(), "task.cancelled");
        (
            after.saturating_duration_since(cancelling.join().unwrap()),
            whole,
        )
    })
}

#[test]
fn a_cancel_ends_within_an_operator() {
    for case in LONG {
        let feeds = feeds(case);
        let mut session = open(plan(case, false), 1);
        // Other load may hit either run: some attempt shows what the operator does.
        let attempts: Vec<_> = (0..4)
            .map(|_| cancelled(&mut *session, &feeds))
            .take_while(|(after, whole)| *after > (*whole / 4).max(Duration::from_millis(50)))
            .collect();
        assert!(attempts.len() < 4, "{}: {attempts:?}", case.0);
    }
}

#[test]
fn a_session_goes_on_after_a_cancel() {
    let case: &Case = &DIVIDED[0];
    let mut session = open(plan(case, false), 2);
    let first = feeds(case);
    run(&mut *session, &first, &AtomicBool::new(false)).unwrap();
    let expected = session.output(0, "y").unwrap();
    let ended = run(&mut *session, &first, &AtomicBool::new(true));
    assert_eq!(ended.unwrap_err().code(), "task.cancelled");
    assert_eq!(session.output(0, "y").unwrap_err().code(), "model.output");
    run(&mut *session, &first, &AtomicBool::new(false)).unwrap();
    assert!(session.output(0, "y").unwrap() == expected);
}

#[test]
fn a_step_that_is_cancelled_at_any_time_is_taken_whole_or_not_at_all() {
    let (plan, input) = convolutional();
    let shape = [&[BATCH as u64], input].concat();
    let labels: Vec<i64> = (0..BATCH as i64).collect();
    let (x, y) = (
        numbers(&shape, 1),
        HostTensor::from_i64(&[BATCH], &labels).unwrap(),
    );
    let inputs = [("x", &x), ("y", &y)];
    let state = |session: &mut dyn Session| -> Vec<HostTensor> {
        let names: Vec<String> = session
            .parameters()
            .into_iter()
            .map(|info| info.name)
            .collect();
        names
            .iter()
            .map(|name| session.download(name).unwrap())
            .collect()
    };
    let running = AtomicBool::new(false);
    let mut session = open(plan.clone(), 2);
    let before = state(&mut *session);
    session.run(0, BATCH, &inputs, &running).unwrap();
    let after = state(&mut *session);
    let started = Instant::now();
    session.run(0, BATCH, &inputs, &running).unwrap();
    let whole = started.elapsed();
    let mut ends = [0, 0];
    for attempt in 0..40 {
        let mut session = open(plan.clone(), 2);
        let cancel = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(whole * attempt / 30);
                cancel.store(true, Ordering::Relaxed);
            });
            session.run(0, BATCH, &inputs, &cancel)
        });
        let expected = if ended.is_ok() { &after } else { &before };
        assert!(state(&mut *session) == *expected, "{ended:?}");
        assert_eq!(session.steps(), u64::from(ended.is_ok()));
        ends[usize::from(ended.is_ok())] += 1;
        if ended.is_err() {
            session.run(0, BATCH, &inputs, &running).unwrap();
            assert!(
                state(&mut *session) == after,
                "the step after a cancelled one"
            );
        }
    }
    assert!(ends[0] > 0, "no step was cancelled: {ends:?}");
}
