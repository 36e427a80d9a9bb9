//! The CUDA backend on a simulated machine: what it finds out, what it survives, what it takes.

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
use compute::cuda::{self, CudaBackend};
use compute::schedule::ScheduleKind;
use compute::{Backend, Builder, DType, Dim, Error, HostTensor, Plan, Schedule, Session};
use emulator::{LIBRARIES, emulated, emulated_with, uuid};

const GPU: &str = "[[gpu]]\nprofile = \"h100\"\n";
/// What the simulated driver takes for a context, in bytes.
const CONTEXT_BYTES: u64 = 320 << 20;

fn open() -> Result<CudaBackend, Error> {
    CudaBackend::new(&uuid(), "cuda:0", cuda::Options::default())
}

/// A classifier of 3 classes: a plan that trains and one that predicts.
fn plans() -> Vec<Plan> {
    let mut b = Builder::new();
    let x = b
        .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(6)])
        .unwrap();
    let y = b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
    let weight = b
        .parameter("weight", &[3, 6], "kaiming-uniform", 1)
        .unwrap();
    let bias = b.parameter("bias", &[3], "zeros", 1).unwrap();
    let logits = b.linear(x, weight, Some(bias)).unwrap();
    let loss = b.cross_entropy(logits, y, 0.1).unwrap();
    let mut predict = Builder::new();
    let px = predict
        .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(6)])
        .unwrap();
    let pw = predict
        .parameter("weight", &[3, 6], "kaiming-uniform", 1)
        .unwrap();
    let pb = predict.parameter("bias", &[3], "zeros", 1).unwrap();
    let out = predict.linear(px, pw, Some(pb)).unwrap();
    predict.output("logits", out).unwrap();
    let gradients = b.gradients(loss, &[weight, bias]).unwrap();
    b.adamw(&[weight, bias], &gradients, (0.9, 0.999), 1e-8, 0.01)
        .unwrap();
    b.output("loss", loss).unwrap();
    vec![
        Plan::new(&b.graph(), 8).unwrap(),
        Plan::new(&predict.graph(), 8).unwrap(),
    ]
}

fn step(session: &mut dyn Session, batch: usize, label: i64) -> Result<(), Error> {
    let x: Vec<f32> = (0..batch * 6).map(|i| (i as f32 * 0.7).sin()).collect();
    let x = HostTensor::from_f32(&[batch, 6], &x).unwrap();
    let mut labels: Vec<i64> = (0..batch as i64).map(|i| i % 3).collect();
    labels[batch - 1] = label;
    let y = HostTensor::from_i64(&[batch], &labels).unwrap();
    session.run(0, batch, &[("x", &x), ("y", &y)], &AtomicBool::new(false))
}

/// Trains on batches of changing sizes; the mean loss, the weights, and a prediction.
fn train(backend: &dyn Backend) -> (f64, Vec<f32>, Vec<f32>) {
    let mut session = backend.open(plans(), u64::MAX).unwrap();
    let kind = ScheduleKind::Step {
        every: 3,
        gamma: 0.5,
    };
    session.set_schedule(Schedule::new(0.05, 2, kind).unwrap());
    for batch in [8, 3, 8, 5, 8, 8, 3, 1] {
        step(&mut *session, batch, 1).unwrap();
    }
    let x = HostTensor::from_f32(&[2, 6], &[0.5; 12]).unwrap();
    session
        .run(1, 2, &[("x", &x)], &AtomicBool::new(false))
        .unwrap();
    let logits = session.output(1, "logits").unwrap().to_f32().unwrap();
    let weights = session.download("weight").unwrap().to_f32().unwrap();
    let mean = session.mean(0, "loss").unwrap();
    assert!(session.mean(0, "loss").unwrap().is_nan());
    (mean, weights, logits)
}

#[test]
fn cuda_trains_as_the_cpu_does_on_batches_of_any_size() {
    let test = "cuda_trains_as_the_cpu_does_on_batches_of_any_size";
    emulated(test, &["forward", "3"], GPU, || {
        let (mean, weights, logits) = train(&open().unwrap());
        let (cpu_mean, cpu_weights, cpu_logits) = train(&CpuBackend::new(1).unwrap());
        assert!((mean - cpu_mean).abs() < 1e-6, "{mean} {cpu_mean}");
        let pairs = weights
            .iter()
            .chain(&logits)
            .zip(cpu_weights.iter().chain(&cpu_logits));
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} {b}"));
    });
}

#[test]
fn cuda_tf32_rounds_products_and_nothing_else_does() {
    let test = "cuda_tf32_rounds_products_and_nothing_else_does";
    emulated(test, &["forward"], GPU, || {
        let tf32 = cuda::Options {
            tf32: true,
            ..cuda::Options::default()
        };
        let rounded = train(&CudaBackend::new(&uuid(), "cuda:0", tf32).unwrap()).0;
        let exact = train(&open().unwrap()).0;
        assert!(
            rounded != exact && (rounded - exact).abs() < 3e-3,
            "{rounded} {exact}"
        );
    });
}

#[test]
fn cuda_labels_out_of_range_are_told_and_the_session_goes_on() {
    let test = "cuda_labels_out_of_range_are_told_and_the_session_goes_on";
    emulated(test, &["forward"], GPU, || {
        let mut session = open().unwrap().open(plans(), u64::MAX).unwrap();
        for label in [3, -1, i64::MIN] {
            step(&mut *session, 8, label).unwrap();
            let error = session.mean(0, "loss").unwrap_err();
            assert_eq!(error.code(), "data.label");
            assert!(
                error.to_string().contains(&format!("label {label} ")),
                "{error}"
            );
            assert!(error.node().is_some());
            session.mean(0, "loss").unwrap();
        }
        // A bad batch that runs ahead of a good one is told once.
        step(&mut *session, 8, 9).unwrap();
        let second = step(&mut *session, 8, 2);
        let told = second.and_then(|()| session.mean(0, "loss").map(drop));
        assert_eq!(told.unwrap_err().code(), "data.label");
        step(&mut *session, 8, 2).unwrap();
        assert!(session.mean(0, "loss").unwrap().is_finite());
    });
}

#[test]
fn cuda_takes_exactly_the_bytes_that_were_planned() {
    let needed = cuda::session_bytes(&plans().iter().collect::<Vec<_>>()).unwrap();
    let machine = |free: u64| format!("{GPU}free_bytes = {free}\n");
    let test = "cuda_takes_exactly_the_bytes_that_were_planned";
    emulated(test, &["forward"], &machine(CONTEXT_BYTES + needed), || {
        let backend = open().unwrap();
        let error = backend.open(plans(), needed - 1).err().unwrap();
        assert_eq!(error.code(), "memory.exceeds-lease");
        let mut session = backend.open(plans(), needed).unwrap();
        assert_eq!(session.used_bytes(), needed);
        for batch in 1..=8 {
            step(&mut *session, batch, 0).unwrap();
        }
        session.mean(0, "loss").unwrap();
        // Not a byte more than the limit is left, so that a second session cannot be.
        assert_eq!(
            backend.open(plans(), needed).err().unwrap().code(),
            "memory.exhausted"
        );
        drop(session);
        backend.open(plans(), needed).unwrap();
    });
}

/// The error of training where the scenario has a fault.
fn failing(test: &str, fault: &str, code: &str) {
    emulated(test, &["forward"], &format!("{GPU}{fault}"), || {
        let work = || -> Result<(), Error> {
            let mut session = open()?.open(plans(), u64::MAX)?;
            for _ in 0..20 {
                step(&mut *session, 8, 0)?;
            }
            session.mean(0, "loss").map(drop)
        };
        let error = work().unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    });
}

#[test]
fn cuda_tells_an_illegal_address_in_a_kernel() {
    let fault = "[[fault]]\nfunction = \"cuLaunchKernel\"\ncall = 40\ncode = 700\n";
    failing(
        "cuda_tells_an_illegal_address_in_a_kernel",
        fault,
        "device.fault",
    );
}

#[test]
fn cuda_tells_a_launch_that_failed() {
    let fault = "[[fault]]\nfunction = \"cuLaunchKernel\"\ncall = 3\ncode = 719\n";
    failing("cuda_tells_a_launch_that_failed", fault, "device.fault");
}

#[test]
fn cuda_tells_memory_that_is_exhausted() {
    let fault = "[[fault]]\nfunction = \"cuMemAlloc_v2\"\ncall = 1\ncode = 2\n";
    failing(
        "cuda_tells_memory_that_is_exhausted",
        fault,
        "memory.exhausted",
    );
}

#[test]
fn cuda_tells_a_gpu_that_is_lost() {
    failing(
        "cuda_tells_a_gpu_that_is_lost",
        "lost = true\n",
        "device.lost",
    );
}

/// Why the GPU cannot be opened on such a machine.
fn refused(test: &str, libraries: &[&str], machine: &str, code: &str, words: &str) {
    emulated_with(libraries, test, &["forward"], machine, || {
        let error = open().unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    });
}

#[test]
fn cuda_without_a_driver_is_a_clear_state() {
    let test = "cuda_without_a_driver_is_a_clear_state";
    refused(
        test,
        &[],
        GPU,
        "device.unsupported",
        "libcuda.so.1 is not installed",
    );
}

#[test]
fn cuda_without_cublas_is_a_clear_state() {
    let test = "cuda_without_cublas_is_a_clear_state";
    let libraries = &["libcuda.so.1"];
    refused(
        test,
        libraries,
        GPU,
        "device.unsupported",
        "libcublasLt.so.13 is not found",
    );
}

#[test]
fn cuda_on_an_old_driver_is_a_clear_state() {
    let machine = format!("cuda = 12080\n{GPU}");
    let test = "cuda_on_an_old_driver_is_a_clear_state";
    refused(
        test,
        LIBRARIES,
        &machine,
        "device.unsupported",
        "up to 12.8; kernels need 13.0",
    );
}

#[test]
fn cuda_without_a_gpu_is_a_clear_state() {
    let test = "cuda_without_a_gpu_is_a_clear_state";
    refused(test, LIBRARIES, "", "device.lost", "CUDA_ERROR_NO_DEVICE");
}

#[test]
fn cuda_on_an_old_gpu_is_a_clear_state() {
    let machine = "[[gpu]]\nprofile = \"v100\"\n";
    let test = "cuda_on_an_old_gpu_is_a_clear_state";
    refused(
        test,
        LIBRARIES,
        machine,
        "device.unsupported",
        "compute capability 7.0",
    );
}

#[test]
fn cuda_bfloat16_is_refused_where_matrix_units_do_not_take_it() {
    let machine = "[[gpu]]\nprofile = \"t4\"\n";
    let test = "cuda_bfloat16_is_refused_where_matrix_units_do_not_take_it";
    emulated(test, &["forward"], machine, || {
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[Dim::Batch(1)]).unwrap();
        let y = b.exp(x).unwrap();
        b.output("y", y).unwrap();
        let options = compute::plan::Options {
            precision: compute::plan::Precision::Bfloat16,
        };
        let plan = Plan::with(&b.graph(), 1, options).unwrap();
        let error = open().unwrap().open(vec![plan], u64::MAX).err().unwrap();
        assert_eq!(error.code(), "device.unsupported");
        assert!(
            error.to_string().contains("8.0 or newer; cuda:0 has 7.5"),
            "{error}"
        );
    });
}

#[test]
fn cuda_finds_its_gpu_by_uuid_whatever_the_order() {
    // The driver counts from the fastest, NVML as listed.
    let machine = "[[gpu]]\nprofile = \"t4\"\n[[gpu]]\nprofile = \"h100\"\n";
    let test = "cuda_finds_its_gpu_by_uuid_whatever_the_order";
    emulated(test, &["forward"], machine, || {
        train(&open().unwrap());
        let ran: Vec<usize> = fakedriver::processes::all()
            .iter()
            .flat_map(|(_, gpus)| {
                gpus.iter()
                    .filter(|(_, a)| a.kernels > 0)
                    .map(|(gpu, _)| *gpu)
            })
            .collect();
        assert_eq!(ran, [0]);
    });
}

#[test]
fn cuda_spectrograms_of_any_size_agree_with_the_cpu() {
    let test = "cuda_spectrograms_of_any_size_agree_with_the_cpu";
    emulated(test, &["forward", "reverse"], GPU, || {
        // Powers of two, mixed factors, a large prime factor, and more than shared memory holds.
        for (size, hop) in [(2, 1), (128, 64), (60, 17), (254, 100), (4096, 1000)] {
            let samples = 2 * size as usize + 77;
            let mut b = Builder::new();
            let x = b
                .input(
                    "x",
                    DType::F32,
                    &[Dim::Fixed(2), Dim::Fixed(samples as u64)],
                )
                .unwrap();
            let power = b
                .stft_power(x, size, hop, compute::builder::Window::Hamming)
                .unwrap();
            let shifted = b.affine(power, 0.5, 1e-2).unwrap();
            let logarithm = b.log(shifted).unwrap();
            b.output("log", logarithm).unwrap();
            let plain = b
                .stft_power(x, size, hop, compute::builder::Window::Hann)
                .unwrap();
            let loss = b.sum(plain, &[], false).unwrap();
            let dx = b.gradients(loss, &[x]).unwrap()[0];
            b.output("dx", dx).unwrap();
            b.output("power", plain).unwrap();
            let values: Vec<f32> = (0..2 * samples).map(|i| (i as f32 * 0.37).sin()).collect();
            let x = HostTensor::from_f32(&[2, samples], &values).unwrap();
            let plan = Plan::new(&b.graph(), 1).unwrap();
            let results = |backend: &dyn Backend| {
                let mut session = backend.open(vec![plan.clone()], u64::MAX).unwrap();
                session
                    .run(0, 1, &[("x", &x)], &AtomicBool::new(false))
                    .unwrap();
                ["log", "power", "dx"]
                    .map(|name| session.output(0, name).unwrap().to_f32().unwrap())
            };
            let (gpu, cpu) = (
                results(&open().unwrap()),
                results(&CpuBackend::new(1).unwrap()),
            );
            for (gpu, cpu) in gpu.iter().zip(&cpu) {
                let norm = |v: &mut dyn Iterator<Item = f32>| {
                    v.map(|x| f64::from(x * x)).sum::<f64>().sqrt()
                };
                let error = norm(&mut gpu.iter().zip(cpu).map(|(a, b)| a - b))
                    / norm(&mut cpu.iter().copied());
                assert!(error < 2e-5, "size {size}: {error:e}");
            }
        }
    });
}

#[test]
fn cuda_convolutions_go_through_cudnn_where_it_is_installed() {
    let test = "cuda_convolutions_go_through_cudnn_where_it_is_installed";
    let machine = format!("{GPU}[[fault]]\nfunction = \"cudnnConvolution\"\ncode = 1\n");
    for libraries in [LIBRARIES, &[LIBRARIES, &["libcudnn.so.9"]].concat()] {
        emulated_with(libraries, test, &["forward"], &machine, || {
            let installed = std::env::var("LD_LIBRARY_PATH")
                .is_ok_and(|folder| std::path::Path::new(&folder).join("libcudnn.so.9").exists());
            let mut b = Builder::new();
            let x = b
                .input("x", DType::F32, &[4, 3, 9, 9].map(Dim::Fixed))
                .unwrap();
            let weight = b.parameter("weight", &[8, 3, 3, 3], "ones", 0).unwrap();
            let y = b.conv2d(x, weight, None, Conv2d::default()).unwrap();
            b.output("y", y).unwrap();
            let plan = Plan::new(&b.graph(), 1).unwrap();
            let options = cuda::Options {
                graphs: false,
                ..cuda::Options::default()
            };
            let backend = CudaBackend::new(&uuid(), "cuda:0", options).unwrap();
            let mut session = backend.open(vec![plan], u64::MAX).unwrap();
            let x = HostTensor::from_f32(&[4, 3, 9, 9], &[0.5; 4 * 3 * 81]).unwrap();
            let ran = session.run(0, 1, &[("x", &x)], &AtomicBool::new(false));
            assert_eq!(ran.is_err(), installed, "{ran:?}");
        });
    }
}

#[test]
fn cuda_refuses_tensors_that_kernels_cannot_index() {
    let mut b = Builder::new();
    let x = b
        .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(1 << 20)])
        .unwrap();
    let y = b.affine(x, 2.0, 0.0).unwrap();
    b.output("y", y).unwrap();
    let bytes = |batch| cuda::session_bytes(&[&Plan::new(&b.graph(), batch).unwrap()]);
    assert!(bytes(2047).unwrap() > 2047 << 22);
    assert_eq!(bytes(2048).unwrap_err().code(), "graph.limit");
    // Overlapping frames are kept apart for the gradient.
    let mut b = Builder::new();
    let x = b
        .input("x", DType::F32, &[Dim::Fixed(8), Dim::Fixed(300_000)])
        .unwrap();
    let power = b
        .stft_power(x, 1024, 1, compute::builder::Window::Hann)
        .unwrap();
    let loss = b.sum(power, &[], false).unwrap();
    let dx = b.gradients(loss, &[x]).unwrap()[0];
    b.output("dx", dx).unwrap();
    let plan = Plan::new(&b.graph(), 1).unwrap();
    assert_eq!(
        cuda::session_bytes(&[&plan]).unwrap_err().code(),
        "graph.limit"
    );
}

/// Operators, dtypes and attributes that no reference case has, with gradients: every output's name.
fn rest(b: &mut Builder) -> Vec<&'static str> {
    let input = |b: &mut Builder, name, dtype, shape: &[u64]| {
        let shape: Vec<Dim> = shape.iter().map(|&size| Dim::Fixed(size)).collect();
        b.input(name, dtype, &shape).unwrap()
    };
    let x = input(b, "x", DType::F32, &[3, 4, 9, 11]);
    let v = input(b, "v", DType::F32, &[4, 1, 11]);
    let n = input(b, "n", DType::I64, &[5, 7]);
    let mut names = Vec::new();
    let mut out = |b: &mut Builder, name: &'static str, value| {
        b.output(name, value).unwrap();
        names.push(name);
    };
    // Integers and booleans.
    let turned = b.permute(n, &[1, 0]).unwrap();
    out(b, "turned", turned);
    let number = b.cast(n, DType::F32).unwrap();
    let flag = b.cast(n, DType::Bool).unwrap();
    let flags = b.permute(flag, &[1, 0]).unwrap();
    out(b, "flags", flags);
    let same = b.equal(flag, flag).unwrap();
    let back = b.cast(same, DType::I64).unwrap();
    out(b, "back", back);
    let ones = b.cast(flag, DType::F32).unwrap();
    out(b, "ones", ones);
    let equal = b.equal(n, n).unwrap();
    out(b, "equal", equal);
    let wide = b.affine(number, 0.37, -1.5).unwrap();
    let whole = b.cast(wide, DType::I64).unwrap();
    out(b, "whole", whole);
    let close = b.equal(x, v).unwrap();
    out(b, "close", close);
    let largest = b.argmax(x, 2).unwrap();
    out(b, "largest", largest);
    // Moves that are no transpose, and reductions along every pattern of axes.
    let mixed = b.permute(x, &[2, 0, 3, 1]).unwrap();
    out(b, "mixed", mixed);
    let mut losses = Vec::new();
    for (name, axes) in [
        ("r0", &[0u32][..]),
        ("r1", &[1]),
        ("r02", &[0, 2]),
        ("r13", &[1, 3]),
        ("r3", &[3]),
    ] {
        let sum = b.sum(mixed, axes, false).unwrap();
        out(b, name, sum);
    }
    // Convolutions with few channels in a group, and windows over every edge.
    let grouped = Conv2d {
        stride: (2, 1),
        padding: (3, 1),
        dilation: (1, 2),
        groups: 4,
    };
    let filter = b
        .parameter("filter", &[8, 1, 3, 2], "torch-uniform", 3)
        .unwrap();
    let bias = b.parameter("bias", &[8], "torch-uniform", 4).unwrap();
    let y = b.conv2d(x, filter, Some(bias), grouped).unwrap();
    let y = b.max_pool2d(y, (3, 2), (2, 1), (1, 1)).unwrap();
    let y = b.avg_pool2d(y, (2, 3), (1, 2), (1, 0)).unwrap();
    out(b, "y", y);
    losses.push(y);
    // Broadcasting, extremes and softmax along an inner axis.
    let high = b.maximum(x, v).unwrap();
    let low = b.minimum(high, v).unwrap();
    let soft = b.softmax(high, 1).unwrap();
    let log = b.log_softmax(x, 2).unwrap();
    let peak = b.amax(x, &[1, 3], true).unwrap();
    losses.extend([low, soft, log, peak]);
    let mut total = b.sum(v, &[], false).unwrap();
    for (i, value) in losses.into_iter().enumerate() {
        let weighted = b.affine(value, 0.3 + i as f64, 0.2).unwrap();
        let weighted = b.sin(weighted).unwrap();
        let sum = b.sum(weighted, &[], false).unwrap();
        total = b.add(total, sum).unwrap();
    }
    out(b, "total", total);
    let gradients = b.gradients(total, &[x, v, filter, bias]).unwrap();
    for (name, gradient) in ["dx", "dv", "dfilter", "dbias"].into_iter().zip(gradients) {
        out(b, name, gradient);
    }
    names
}

#[test]
fn cuda_agrees_with_the_cpu_where_there_is_no_reference() {
    let test = "cuda_agrees_with_the_cpu_where_there_is_no_reference";
    emulated(test, &["forward", "reverse", "11"], GPU, || {
        let mut b = Builder::new();
        let names = rest(&mut b);
        let plan = Plan::new(&b.graph(), 1).unwrap();
        let wave = |count: usize, step: f32| {
            (0..count)
                .map(|i| (i as f32 * step).sin())
                .collect::<Vec<_>>()
        };
        let x = HostTensor::from_f32(&[3, 4, 9, 11], &wave(1188, 0.73)).unwrap();
        let v = HostTensor::from_f32(&[4, 1, 11], &wave(44, 1.31)).unwrap();
        let n =
            HostTensor::from_i64(&[5, 7], &(0..35).map(|i| i % 5 - 2).collect::<Vec<_>>()).unwrap();
        let results = |backend: &dyn Backend| -> Vec<HostTensor> {
            let mut session = backend.open(vec![plan.clone()], u64::MAX).unwrap();
            let inputs = [("x", &x), ("v", &v), ("n", &n)];
            session.run(0, 1, &inputs, &AtomicBool::new(false)).unwrap();
            names
                .iter()
                .map(|name| session.output(0, name).unwrap())
                .collect()
        };
        let (gpu, cpu) = (
            results(&open().unwrap()),
            results(&CpuBackend::new(1).unwrap()),
        );
        for ((gpu, cpu), name) in gpu.iter().zip(&cpu).zip(&names) {
            assert_eq!(gpu.shape(), cpu.shape(), "{name}");
            match (gpu.to_f32(), cpu.to_f32()) {
                (Some(gpu), Some(cpu)) => {
                    let pairs = gpu.iter().zip(&cpu);
                    let largest = cpu.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                    pairs.for_each(|(a, b)| {
                        assert!((a - b).abs() < 2e-5 * largest, "{name}: {a} {b}")
                    });
                }
                _ => assert_eq!(gpu, cpu, "{name}"),
            }
        }
    });
}

/// Sizes of an attention: its leading axes, queries, keys, features, values, and its bias.
type AttentionCase = (
    &'static [u64],
    [u64; 4],
    Option<&'static [u64]>,
    &'static [bool],
);

/// The result of an attention and the gradients of its operands, by name.
fn attention_plan(
    (lead, [queries, keys, features, values], bias, _): AttentionCase,
    hidden_row: Option<u64>,
    causal: bool,
) -> (Plan, Vec<&'static str>) {
    let mut b = Builder::new();
    let shape = |rows: u64, columns: u64| [lead, &[rows, columns]].concat();
    let parameter = |b: &mut Builder, name: &str, shape: &[u64]| {
        b.parameter(name, shape, "normal:0:1", 5).unwrap()
    };
    let q = parameter(&mut b, "q", &shape(queries, features));
    let k = parameter(&mut b, "k", &shape(keys, features));
    let v = parameter(&mut b, "v", &shape(keys, values));
    let mut of = vec![q, k, v];
    let bias = match hidden_row {
        Some(row) => {
            let hides = |at: u64| {
                if at / keys == row {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            };
            let bytes: Vec<u8> = (0..queries * keys)
                .flat_map(|at| hides(at).to_le_bytes())
                .collect();
            let shape = [queries, keys];
            Some(b.constant(DType::F32, &shape, &bytes).unwrap())
        }
        None => bias.map(|bias| {
            of.push(parameter(&mut b, "bias", bias));
            of[3]
        }),
    };
    let y = b.attention((q, k, v), bias, causal, None).unwrap();
    let squares = b.mul(y, y).unwrap();
    let loss = b.sum(squares, &[], false).unwrap();
    b.output("y", y).unwrap();
    let names = &["y", "dq", "dk", "dv", "dbias"][..=of.len()];
    let gradients = b.gradients(loss, &of).unwrap();
    for (name, gradient) in names[1..].iter().zip(gradients) {
        b.output(name, gradient).unwrap();
    }
    (Plan::new(&b.graph(), 1).unwrap(), names.to_vec())
}

fn outputs(backend: &dyn Backend, plan: &Plan, names: &[&str]) -> Vec<Vec<f32>> {
    let mut session = backend.open(vec![plan.clone()], u64::MAX).unwrap();
    session.run(0, 1, &[], &AtomicBool::new(false)).unwrap();
    let output = |name: &&str| session.output(0, name).unwrap().to_f32().unwrap();
    names.iter().map(output).collect()
}

/// Whether numbers of both are the same but for rounding, and both have NaN at the same places.
fn assert_close(gpu: &[f32], cpu: &[f32], what: &str) {
    for (i, (a, b)) in gpu.iter().zip(cpu).enumerate() {
        assert_eq!(a.is_nan(), b.is_nan(), "{what}: {i} is {a}, not {b}");
    }
    let norm = |x: &mut dyn Iterator<Item = f32>| {
        let squares = x.filter(|x| !x.is_nan()).map(|x| x * x);
        squares.sum::<f32>().sqrt()
    };
    let difference = norm(&mut gpu.iter().zip(cpu).map(|(a, b)| a - b));
    // The gradient of a bias of whole rows is 0 but for rounding: what it sums is no smaller than this.
    let size = norm(&mut cpu.iter().copied()).max(10.0);
    assert!(difference <= 1e-5 * size, "{what}: {difference} of {size}");
}

/// Attention forward and backward: parts of tiles along every axis, features and values in one block
/// and in many, read by vectors and one by one, and biases that repeat.
#[test]
fn cuda_attention_of_many_tiles_agrees_with_the_cpu() {
    const CASES: [AttentionCase; 9] = [
        (&[2], [130, 70, 33, 67], Some(&[130, 70]), &[false, true]),
        (&[2], [66, 65, 64, 64], None, &[false, true]),
        (&[2, 2], [65, 130, 16, 16], Some(&[2, 1, 1, 130]), &[true]),
        (&[2], [67, 66, 80, 64], Some(&[67, 1]), &[false]),
        (&[1], [65, 64, 128, 128], None, &[true]),
        (&[3], [1, 70, 64, 32], Some(&[3, 1, 70]), &[false, true]),
        (&[2], [129, 3, 8, 80], None, &[true]),
        (&[1, 2], [64, 128, 32, 20], Some(&[2, 64, 128]), &[false]),
        (&[2], [64, 64, 5, 63], Some(&[1]), &[true]),
    ];
    let test = "cuda_attention_of_many_tiles_agrees_with_the_cpu";
    emulated(test, &["forward", "reverse", "11"], GPU, || {
        for case in CASES {
            for &causal in case.3 {
                let (plan, names) = attention_plan(case, None, causal);
                let gpu = outputs(&open().unwrap(), &plan, &names);
                let cpu = outputs(&CpuBackend::new(1).unwrap(), &plan, &names);
                for ((gpu, cpu), name) in gpu.iter().zip(&cpu).zip(names) {
                    assert_close(gpu, cpu, &format!("{name} of {case:?}, causal: {causal}"));
                }
            }
        }
    });
}

/// A query that sees no key has no result; the others' are what they are without it.
#[test]
fn cuda_attention_gives_nan_where_a_query_sees_no_key() {
    let test = "cuda_attention_gives_nan_where_a_query_sees_no_key";
    emulated(test, &["forward", "reverse", "11"], GPU, || {
        for sizes in [[70, 67, 64, 64], [66, 65, 33, 66]] {
            let case: AttentionCase = (&[2], sizes, None, &[false]);
            let (plan, names) = attention_plan(case, Some(65), false);
            let gpu = outputs(&open().unwrap(), &plan, &names);
            let cpu = outputs(&CpuBackend::new(1).unwrap(), &plan, &names);
            assert!(gpu[0].iter().any(|y| y.is_nan()) && gpu[0].iter().any(|y| !y.is_nan()));
            for ((gpu, cpu), name) in gpu.iter().zip(&cpu).zip(names) {
                assert_close(gpu, cpu, &format!("{name} of {case:?}"));
            }
        }
    });
}
