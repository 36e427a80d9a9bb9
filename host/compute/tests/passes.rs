//! What a plan's passes must not change, and what they save.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod emulator;

use std::sync::atomic::AtomicBool;

use compute::builder::Conv2d;
use compute::cpu::CpuBackend;
use compute::cuda::{CudaBackend, Options};
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Session, peak_bytes_of};

fn numbers(shape: &[usize], seed: u64) -> HostTensor {
    let count: usize = shape.iter().product();
    let value = |i| compute::random::unit(seed.wrapping_mul(1 << 32).wrapping_add(i)) as f32 - 0.5;
    HostTensor::from_f32(shape, &(0..count as u64).map(value).collect::<Vec<_>>()).unwrap()
}

fn norm(difference: &[f32]) -> f64 {
    difference
        .iter()
        .map(|&x| f64::from(x).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// A normalised convolution: plans of a training step, of an inference, and of an inference whose
/// normalisation cannot be folded, as what it normalises is an output too.
fn normalised() -> [Plan; 3] {
    [(true, false), (false, false), (false, true)].map(|(train, shown)| {
        let mut b = Builder::new();
        let dims = [Dim::Batch(1), Dim::Fixed(3), Dim::Fixed(6), Dim::Fixed(6)];
        let x = b.input("x", DType::F32, &dims).unwrap();
        let weight = b
            .parameter("weight", &[4, 3, 3, 3], "torch-uniform", 1)
            .unwrap();
        let [scale, bias] =
            ["scale", "bias"].map(|n| b.parameter(n, &[4], "normal:1:0.2", 2).unwrap());
        let [mean, variance] = ["mean", "variance"].map(|n| b.buffer(n, &[4], "ones").unwrap());
        let h = b.conv2d(x, weight, None, Conv2d::default()).unwrap();
        let y = if train {
            b.batch_norm_train(h, scale, bias, mean, variance, 0.1, 1e-5)
        } else {
            b.batch_norm_eval(h, scale, bias, mean, variance, 1e-5)
        };
        let y = b.relu(y.unwrap()).unwrap();
        b.output("y", y).unwrap();
        if shown {
            b.output("h", h).unwrap();
        }
        if train {
            let square = b.mul(y, y).unwrap();
            let loss = b.sum(square, &[], false).unwrap();
            let parameters = [weight, scale, bias];
            let gradients = b.gradients(loss, &parameters).unwrap();
            b.sgd(&parameters, &gradients, 0.0, false, 0.0).unwrap();
        }
        Plan::new(&b.graph(), 5).unwrap()
    })
}

/// Runs both inferences, which have to agree, before and after variables change.
fn check_folding(backend: &dyn Backend) {
    let plans = normalised();
    let [_, folded, shown] = &plans;
    assert!(
        !folded.describe().contains("BatchNorm"),
        "{}",
        folded.describe()
    );
    assert!(
        folded.describe().contains("once: "),
        "{}",
        folded.describe()
    );
    assert!(
        shown.describe().contains("BatchNorm"),
        "{}",
        shown.describe()
    );
    let mut session = backend.open(plans.to_vec(), u64::MAX).unwrap();
    let x = numbers(&[5, 3, 6, 6], 3);
    let mut last = Vec::new();
    let mut changed = |session: &mut dyn Session| {
        let mut run = |plan: usize, batch: usize| {
            let x = HostTensor::from_f32(&[batch, 3, 6, 6], &x.to_f32().unwrap()[..batch * 108]);
            let run = session.run(plan, batch, &[("x", &x.unwrap())], &AtomicBool::new(false));
            run.unwrap();
            session.output(plan, "y").unwrap().to_f32().unwrap()
        };
        for batch in [5, 2] {
            let (y, expected) = (run(1, batch), run(2, batch));
            let difference: Vec<f32> = y.iter().zip(&expected).map(|(a, b)| a - b).collect();
            assert!(norm(&difference) < 1e-6 * norm(&expected));
        }
        let y = run(1, 5);
        assert_ne!(y, last, "the prologue did not run again");
        assert_eq!(run(1, 5), y);
        last = y;
        // A training step moves weights and statistics.
        run(0, 5);
    };
    changed(&mut *session);
    changed(&mut *session);
    let half = session.download("weight").unwrap().to_f32().unwrap();
    let half: Vec<f32> = half.iter().map(|w| w / 2.0).collect();
    let half = HostTensor::from_f32(&[4, 3, 3, 3], &half).unwrap();
    session.upload("weight", &half).unwrap();
    changed(&mut *session);
}

#[test]
fn folded_norms_follow_the_variables() {
    check_folding(&CpuBackend::new(2).unwrap());
    let plans = normalised();
    let bytes = peak_bytes_of(&plans.iter().collect::<Vec<_>>());
    let session = CpuBackend::new(1)
        .unwrap()
        .open(plans.to_vec(), bytes)
        .unwrap();
    assert_eq!(session.used_bytes(), bytes);
}

#[test]
fn folded_norms_follow_the_variables_on_cuda() {
    let test = "folded_norms_follow_the_variables_on_cuda";
    emulator::emulated(test, &["forward"], "[[gpu]]\nprofile = \"h100\"\n", || {
        let backend = CudaBackend::new(&emulator::uuid(), "cuda:0", Options::default()).unwrap();
        check_folding(&backend);
    });
}

/// Plans of a convolution and a product, each followed by element-wise operators: applied to parts of
/// the result as they are finished, or, as what they are applied to is an output too, afterwards.
fn followed() -> [Plan; 2] {
    [false, true].map(|shown| {
        let mut b = Builder::new();
        let batched = |sizes: &[u64]| -> Vec<Dim> {
            let sizes = sizes.iter().map(|&size| Dim::Fixed(size));
            std::iter::once(Dim::Batch(1)).chain(sizes).collect()
        };
        let x = b.input("x", DType::F32, &batched(&[5, 23, 29])).unwrap();
        let rest = b.input("rest", DType::F32, &batched(&[7, 21, 27])).unwrap();
        let weight = b
            .parameter("weight", &[7, 5, 3, 3], "torch-uniform", 1)
            .unwrap();
        let bias = b.parameter("bias", &[7], "normal:0:1", 2).unwrap();
        let conv = b.conv2d(x, weight, Some(bias), Conv2d::default()).unwrap();
        let y = b.add(rest, conv).unwrap();
        let y = b.relu(y).unwrap();
        b.output("convolution", y).unwrap();
        let matrix = b
            .parameter("matrix", &[31, 27], "torch-uniform", 3)
            .unwrap();
        let row = b.parameter("row", &[31], "normal:0:1", 4).unwrap();
        let product = b.linear(rest, matrix, Some(row)).unwrap();
        let y = b.gelu(product, false).unwrap();
        let y = b.mul(y, row).unwrap();
        b.output("product", y).unwrap();
        if shown {
            b.output("conv", conv).unwrap();
            b.output("linear", product).unwrap();
        }
        Plan::new(&b.graph(), 4).unwrap()
    })
}

#[test]
fn what_is_applied_to_finished_parts_gives_the_same_bits_on_any_number_of_threads() {
    let [joined, apart] = followed();
    let count = |plan: &Plan| plan.describe().matches("as it is finished").count();
    assert_eq!(
        [count(&joined), count(&apart)],
        [2, 0],
        "{}",
        joined.describe()
    );
    let (x, rest) = (numbers(&[4, 5, 23, 29], 1), numbers(&[4, 7, 21, 27], 2));
    let mut results = Vec::new();
    for threads in [1, 2, 3] {
        for plan in [&joined, &apart] {
            let backend = CpuBackend::new(threads).unwrap();
            let mut session = backend.open(vec![plan.clone()], u64::MAX).unwrap();
            let feeds = [("x", &x), ("rest", &rest)];
            session.run(0, 4, &feeds, &AtomicBool::new(false)).unwrap();
            results.push(["convolution", "product"].map(|name| session.output(0, name).unwrap()));
        }
    }
    assert!(results.iter().all(|result| *result == results[0]));
}
