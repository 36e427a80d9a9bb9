//! One model on several GPUs of a simulated machine.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod emulator;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use compute::builder::{Conv2d, Target};
use compute::cpu::CpuBackend;
use compute::cuda::{self, CudaBackend};
use compute::replicas::{self, Share};
use compute::{Backend, Builder, DType, Dim, Graph, HostTensor, Plan, Session};
use emulator::{emulated, uuid};

const GPU: &str = "[[gpu]]\nprofile = \"h100\"\n";
const BATCH: u32 = 8;

/// A convolution with batch normalisation, and a classifier on top of it.
fn graph() -> Graph {
    let mut b = Builder::new();
    let x = [Dim::Batch(1), Dim::Fixed(1), Dim::Fixed(6), Dim::Fixed(6)];
    let x = b.input("x", DType::F32, &x).unwrap();
    let y = b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
    let kernel = b
        .parameter("kernel", &[4, 1, 3, 3], "kaiming-uniform", 1)
        .unwrap();
    let [scale, bias] = [("scale", "ones"), ("bias", "zeros")]
        .map(|(name, initializer)| b.parameter(name, &[4], initializer, 0).unwrap());
    let [mean, variance] = [("mean", "zeros"), ("variance", "ones")]
        .map(|(name, initializer)| b.buffer(name, &[4], initializer).unwrap());
    let weight = b
        .parameter("weight", &[3, 64], "kaiming-uniform", 2)
        .unwrap();
    let conv = b.conv2d(x, kernel, None, Conv2d::default()).unwrap();
    let normed = b
        .batch_norm_train(conv, scale, bias, mean, variance, 0.1, 1e-5)
        .unwrap();
    let hidden = b.relu(normed).unwrap();
    let flat = [Target::Size(Dim::Batch(1)), Target::Size(Dim::Fixed(64))];
    let flat = b.reshape(hidden, &flat).unwrap();
    let logits = b.linear(flat, weight, None).unwrap();
    let loss = b.cross_entropy(logits, y, 0.0).unwrap();
    let parameters = [kernel, scale, bias, weight];
    let gradients = b.gradients(loss, &parameters).unwrap();
    let clipped = b.clip_gradients(&gradients, 1.0).unwrap();
    b.adamw(&parameters, &clipped, (0.9, 0.999), 1e-8, 0.01)
        .unwrap();
    b.output("loss", loss).unwrap();
    b.output("logits", logits).unwrap();
    b.graph()
}

/// Trains on batches of changing sizes; the loss, then every variable.
fn train(session: &mut dyn Session) -> (f64, Vec<f32>) {
    for (number, size) in [8, 8, 5, 1, 8, 8, 8].into_iter().enumerate() {
        let value = |i: usize| ((i * 7 + number) as f32 * 0.37).sin();
        let x: Vec<f32> = (0..size * 36).map(value).collect();
        let labels: Vec<i64> = (0..size as i64).map(|i| i % 3).collect();
        let x = HostTensor::from_f32(&[size, 1, 6, 6], &x).unwrap();
        let y = HostTensor::from_i64(&[size], &labels).unwrap();
        session
            .run(0, size, &[("x", &x), ("y", &y)], &AtomicBool::new(false))
            .unwrap();
        assert_eq!(session.output(0, "logits").unwrap().shape(), [size, 3]);
    }
    let infos = session.parameters().into_iter();
    let values = infos.flat_map(|info| session.download(&info.name).unwrap().to_f32().unwrap());
    let values = values.collect();
    (session.mean(0, "loss").unwrap(), values)
}

#[test]
fn gpus_train_together_as_processors_do_and_take_what_was_planned() {
    let test = "gpus_train_together_as_processors_do_and_take_what_was_planned";
    emulated(test, &["forward"], &GPU.repeat(3), || {
        let graph = graph();
        let whole = Plan::new(&graph, BATCH).unwrap();
        for count in [2, 3] {
            let shares = [Share::new(&whole, &graph, count).unwrap()];
            let plans: Vec<&Plan> = shares[0].plans().collect();
            let planned = cuda::session_bytes(&plans).unwrap();
            let gpu = |number: u32| -> Arc<dyn Backend> {
                // On hardware all replicas share the one GPU.
                let first = uuid();
                let uuid = match first.strip_suffix('1') {
                    Some(start) if first.starts_with("GPU-00000000-") => {
                        format!("{start}{}", number + 1)
                    }
                    _ => first,
                };
                let device = format!("cuda:{number}");
                Arc::new(CudaBackend::new(&uuid, &device, cuda::Options::default()).unwrap())
            };
            let gpus: Vec<_> = (0..count).map(gpu).collect();
            let refused = replicas::open(&gpus, &shares, planned - 1).err().unwrap();
            assert_eq!(
                (refused.code(), refused.device()),
                ("memory.exceeds-lease", Some("cuda:0"))
            );
            let mut session = replicas::open(&gpus, &shares, planned).unwrap();
            assert_eq!(session.used_bytes(), planned);
            let (loss, values) = train(&mut *session);
            let again = train(&mut *replicas::open(&gpus, &shares, planned).unwrap());
            assert!(
                (loss, &values) == (again.0, &again.1),
                "other bits at the second time"
            );
            let cpu = |_| -> Arc<dyn Backend> { Arc::new(CpuBackend::new(1).unwrap()) };
            let cpus: Vec<_> = (0..count).map(cpu).collect();
            let expected = train(&mut *replicas::open(&cpus, &shares, u64::MAX).unwrap());
            assert!((loss - expected.0).abs() < 1e-5, "{loss} {}", expected.0);
            let pairs = values.iter().zip(&expected.1);
            let farthest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{count} GPUs: {farthest:e}");
            assert!(farthest < 1e-4, "{farthest}");
        }
    });
}
