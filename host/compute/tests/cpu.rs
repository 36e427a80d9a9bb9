//! The CPU backend: any batch, any number of threads, exact memory, clear errors.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::sync::atomic::AtomicBool;

use compute::builder::Conv2d;
use compute::cpu::CpuBackend;
use compute::schedule::ScheduleKind;
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Schedule, Session, peak_bytes_of};

fn running() -> AtomicBool {
    AtomicBool::new(false)
}

fn numbers(shape: &[usize], seed: u64) -> HostTensor {
    let count: usize = shape.iter().product();
    let value = |i| compute::random::unit(seed.wrapping_mul(1 << 32).wrapping_add(i)) as f32 - 0.5;
    HostTensor::from_f32(shape, &(0..count as u64).map(value).collect::<Vec<_>>()).unwrap()
}

/// A convolutional classifier of images `[batch, 3, 19, 17]` in 5 classes, and its training plan.
fn classifier(most: u32) -> (Plan, Plan) {
    let build = |train: bool| {
        let mut b = Builder::new();
        let x = b
            .input(
                "x",
                DType::F32,
                &[Dim::Batch(1), Dim::Fixed(3), Dim::Fixed(19), Dim::Fixed(17)],
            )
            .unwrap();
        let y = b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
        let mut parameters = Vec::new();
        let mut parameter = |b: &mut Builder, name: &str, shape: &[u64]| {
            let value = b.parameter(name, shape, "torch-uniform", 3).unwrap();
            parameters.push(value);
            value
        };
        let w = parameter(&mut b, "conv.weight", &[16, 3, 3, 3]);
        let c = parameter(&mut b, "conv.bias", &[16]);
        let attributes = Conv2d {
            padding: (1, 1),
            ..Conv2d::default()
        };
        let h = b.conv2d(x, w, Some(c), attributes).unwrap();
        let scale = parameter(&mut b, "norm.weight", &[16]);
        let bias = parameter(&mut b, "norm.bias", &[16]);
        let mean = b.buffer("norm.mean", &[16], "zeros").unwrap();
        let variance = b.buffer("norm.variance", &[16], "ones").unwrap();
        let h = if train {
            b.batch_norm_train(h, scale, bias, mean, variance, 0.1, 1e-5)
                .unwrap()
        } else {
            b.batch_norm_eval(h, scale, bias, mean, variance, 1e-5)
                .unwrap()
        };
        let h = b.relu(h).unwrap();
        let h = b.max_pool2d(h, (2, 2), (2, 2), (0, 0)).unwrap();
        let h = b
            .reshape(
                h,
                &[
                    compute::builder::Target::Size(Dim::Batch(1)),
                    compute::builder::Target::Rest,
                ],
            )
            .unwrap();
        let w = parameter(&mut b, "fc.weight", &[5, 16 * 9 * 8]);
        let h = b.linear(h, w, None).unwrap();
        let loss = b.cross_entropy(h, y, 0.1).unwrap();
        b.output("loss", loss).unwrap();
        b.output("logits", h).unwrap();
        if train {
            let gradients = b.gradients(loss, &parameters).unwrap();
            b.adamw(&parameters, &gradients, (0.9, 0.999), 1e-8, 0.01)
                .unwrap();
        }
        Plan::new(&b.graph(), most).unwrap()
    };
    (build(true), build(false))
}

fn run(session: &mut dyn Session, plan: usize, batch: usize, seed: u64) -> f32 {
    let x = numbers(&[batch, 3, 19, 17], seed);
    let labels: Vec<i64> = (0..batch as i64).map(|i| i % 5).collect();
    let y = HostTensor::from_i64(&[batch], &labels).unwrap();
    session
        .run(plan, batch, &[("x", &x), ("y", &y)], &running())
        .unwrap();
    session.output(plan, "loss").unwrap().to_f32().unwrap()[0]
}

fn trained(threads: usize, most: u32) -> (Vec<f32>, Vec<HostTensor>) {
    let (train, _) = classifier(most);
    let mut session = CpuBackend::new(threads)
        .unwrap()
        .open(vec![train], u64::MAX)
        .unwrap();
    let losses = [13, 32, 1]
        .iter()
        .map(|&batch| run(&mut *session, 0, batch, 7))
        .collect();
    let values = session
        .parameters()
        .iter()
        .map(|p| session.download(&p.name).unwrap())
        .collect();
    (losses, values)
}

#[test]
fn results_do_not_depend_on_threads_or_on_the_largest_batch() {
    let one = trained(1, 32);
    assert!(one == trained(2, 32), "one and two threads differ");
    assert!(
        one == trained(3, 45),
        "another largest batch changes results"
    );
}

#[test]
fn a_session_trains_evaluates_and_takes_the_bytes_planned() {
    let (train, evaluate) = classifier(32);
    let bytes = peak_bytes_of(&[&train, &evaluate]);
    let backend = CpuBackend::new(2).unwrap();
    let error = backend
        .open(vec![train.clone(), evaluate.clone()], bytes - 1)
        .err()
        .unwrap();
    assert_eq!(error.code(), "memory.exceeds-lease");
    assert!(error.to_string().contains(&bytes.to_string()), "{error}");
    let mut session = backend.open(vec![train, evaluate], bytes).unwrap();
    assert_eq!(session.used_bytes(), bytes);
    session.set_schedule(Schedule::new(3e-3, 0, ScheduleKind::Constant).unwrap());
    let before = run(&mut *session, 1, 32, 1);
    let mean = session.download("norm.mean").unwrap();
    for _ in 0..30 {
        run(&mut *session, 0, 32, 1);
    }
    assert_ne!(session.download("norm.mean").unwrap(), mean);
    let after = run(&mut *session, 1, 32, 1);
    assert!(after < before * 0.6, "{before} {after}");
    let state = session.download("fc.weight").unwrap();
    assert_eq!(run(&mut *session, 1, 32, 1), after);
    assert_eq!(
        session.download("fc.weight").unwrap(),
        state,
        "evaluation changes nothing"
    );
    assert_eq!(session.steps(), 30);
    assert_eq!(session.used_bytes(), bytes);
}

#[test]
fn wrong_runs_are_refused_and_change_nothing() {
    let (train, evaluate) = classifier(4);
    let mut session = CpuBackend::new(1)
        .unwrap()
        .open(vec![train, evaluate], u64::MAX)
        .unwrap();
    let (x, y) = (
        numbers(&[2, 3, 19, 17], 1),
        HostTensor::from_i64(&[2], &[0, 4]).unwrap(),
    );
    let before = session.download("fc.weight").unwrap();
    let mut refused = |batch: usize, inputs: &[(&str, &HostTensor)]| {
        let error = session.run(0, batch, inputs, &running()).unwrap_err();
        (error.code(), error.to_string())
    };
    assert!(refused(5, &[("x", &x), ("y", &y)]).1.contains("1 to 4"));
    assert!(refused(0, &[]).1.contains("1 to 4"));
    assert!(refused(2, &[("x", &x)]).1.contains("`y` is missing"));
    assert!(
        refused(2, &[("x", &x), ("y", &y), ("z", &y)])
            .1
            .contains("no input `z`")
    );
    assert!(
        refused(2, &[("x", &y), ("y", &y)])
            .1
            .contains("int64 [2], not float32 [2, 3, 19, 17]")
    );
    assert_eq!(refused(1, &[("x", &x), ("y", &y)]).0, "model.input");
    for label in [5, -1, i64::MAX] {
        let y = HostTensor::from_i64(&[2], &[0, label]).unwrap();
        let (code, message) = refused(2, &[("x", &x), ("y", &y)]);
        assert_eq!(code, "data.label");
        assert!(message.contains(&format!("label {label}")), "{message}");
    }
    assert_eq!(session.download("fc.weight").unwrap(), before);
    assert_eq!(session.steps(), 0);
    let cancelled = AtomicBool::new(true);
    let error = session
        .run(0, 2, &[("x", &x), ("y", &y)], &cancelled)
        .unwrap_err();
    assert_eq!(error.code(), "task.cancelled");
    assert_eq!(
        session.output(0, "loss").unwrap_err().code(),
        "model.output"
    );
    session
        .run(1, 2, &[("x", &x), ("y", &y)], &running())
        .unwrap();
    assert_eq!(
        session.output(0, "loss").unwrap_err().code(),
        "model.output"
    );
    assert_eq!(session.output(2, "loss").unwrap_err().code(), "model.plan");
    assert!(
        session
            .output(1, "lost")
            .unwrap_err()
            .to_string()
            .contains("loss, logits")
    );
    assert_eq!(
        session.download("fc").unwrap_err().code(),
        "model.parameter"
    );
    assert_eq!(
        session.upload("fc.weight", &x).unwrap_err().code(),
        "model.parameter"
    );
}

#[test]
fn plans_that_disagree_on_a_variable_are_refused() {
    let plan = |size: u64| {
        let mut b = Builder::new();
        let w = b.parameter("w", &[size], "ones", 0).unwrap();
        b.output("w", w).unwrap();
        Plan::new(&b.graph(), 1).unwrap()
    };
    let error = CpuBackend::new(1)
        .unwrap()
        .open(vec![plan(2), plan(3)], u64::MAX)
        .err()
        .unwrap();
    assert_eq!(error.code(), "model.parameter");
    assert!(error.to_string().contains("[2] and [3]"), "{error}");
}

#[test]
fn a_parameter_can_be_its_own_gradient() {
    let mut b = Builder::new();
    let w = b.parameter("w", &[3], "ones", 0).unwrap();
    b.sgd(&[w], &[w], 0.0, false, 0.0).unwrap();
    let plan = Plan::new(&b.graph(), 1).unwrap();
    let mut session = CpuBackend::new(1)
        .unwrap()
        .open(vec![plan], u64::MAX)
        .unwrap();
    session.set_schedule(Schedule::new(0.25, 0, ScheduleKind::Constant).unwrap());
    session.run(0, 1, &[], &running()).unwrap();
    assert_eq!(session.download("w").unwrap().to_f32().unwrap(), [0.75; 3]);
}

#[test]
fn running_statistics_are_two_buffers() {
    let mut b = Builder::new();
    let x = b
        .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(3)])
        .unwrap();
    let scale = b.parameter("scale", &[3], "ones", 0).unwrap();
    let running = b.buffer("running", &[3], "zeros").unwrap();
    let error = b
        .batch_norm_train(x, scale, scale, running, running, 0.1, 1e-5)
        .unwrap_err();
    assert!(error.to_string().contains("one buffer"), "{error}");
}

/// Attention's scores would take eight times what the whole plan does.
#[test]
fn attention_is_trained_without_a_matrix_of_its_scores() {
    let mut b = Builder::new();
    let shape = [
        Dim::Batch(1),
        Dim::Fixed(2),
        Dim::Fixed(1024),
        Dim::Fixed(8),
    ];
    let x = b.input("x", DType::F32, &shape).unwrap();
    let scale = b.parameter("scale", &[8], "ones", 1).unwrap();
    let q = b.mul(x, scale).unwrap();
    let y = b.attention((q, x, x), None, true, None).unwrap();
    let loss = b.mean(y, &[], false).unwrap();
    let gradients = b.gradients(loss, &[scale]).unwrap();
    b.sgd(&[scale], &gradients, 0.0, false, 0.0).unwrap();
    let plan = Plan::new(&b.graph(), 1).unwrap();
    let scores = 2 * 1024 * 1024 * 4;
    assert!(plan.peak_bytes() < scores / 8, "{}", plan.describe());
}
