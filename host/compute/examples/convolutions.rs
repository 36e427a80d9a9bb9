//! Times the convolutions of models on one thread, in its processor time: forward, and the gradients
//! of x and of the weights, each the best of several runs. The rows of
//! `tests/peer/torch_convolutions.py` are of the same layers.
//! usage: convolutions [PART_OF_A_LAYER'S_NAME]

#![allow(clippy::unwrap_used, reason = "an example ends with the first error")]

use std::sync::atomic::AtomicBool;

use compute::builder::Conv2d;
use compute::cpu::CpuBackend;
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Value};

/// Batch, channels, side, channels of results, kernel, stride, groups.
const LAYERS: [[u64; 7]; 24] = [
    [16, 3, 224, 64, 7, 2, 1],
    [16, 64, 56, 64, 3, 1, 1],
    [16, 64, 56, 128, 3, 2, 1],
    [16, 64, 56, 128, 1, 2, 1],
    [16, 128, 28, 128, 3, 1, 1],
    [16, 256, 14, 256, 3, 1, 1],
    [16, 512, 7, 512, 3, 1, 1],
    [1, 3, 224, 64, 7, 2, 1],
    [1, 64, 56, 64, 3, 1, 1],
    [1, 128, 28, 128, 3, 1, 1],
    [1, 256, 14, 256, 3, 1, 1],
    [1, 512, 7, 512, 3, 1, 1],
    [16, 64, 56, 256, 1, 1, 1],
    [16, 256, 14, 1024, 1, 1, 1],
    [16, 2048, 7, 512, 1, 1, 1],
    [16, 3, 224, 16, 3, 2, 1],
    [16, 16, 112, 16, 3, 2, 16],
    [16, 88, 28, 88, 3, 1, 88],
    [16, 96, 28, 96, 5, 2, 96],
    [16, 240, 14, 240, 5, 1, 240],
    [16, 576, 7, 576, 5, 1, 576],
    [16, 16, 56, 72, 1, 1, 1],
    [16, 240, 14, 40, 1, 1, 1],
    [16, 96, 7, 576, 1, 1, 1],
];

/// Nanoseconds that this thread has run.
fn processor_time() -> u64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    times.split(' ').next().unwrap().parse().unwrap()
}

/// Milliseconds of the best run of a graph of three tensors of which `build` makes a result.
fn best(shapes: &[[u64; 4]], build: impl Fn(&mut Builder, &[Value]) -> Value) -> f64 {
    let mut b = Builder::new();
    let (mut values, mut tensors) = (Vec::new(), Vec::new());
    for (i, shape) in shapes.iter().enumerate() {
        let name = i.to_string();
        values.push(b.input(&name, DType::F32, &shape.map(Dim::Fixed)).unwrap());
        let numbers: Vec<f32> = (0..shape.iter().product())
            .map(|i| compute::random::unit(i) as f32 - 0.5)
            .collect();
        let shape = shape.map(|size| size as usize);
        tensors.push((name, HostTensor::from_f32(&shape, &numbers).unwrap()));
    }
    let y = build(&mut b, &values);
    b.output("y", y).unwrap();
    let plan = Plan::new(&b.graph(), 1).unwrap();
    // A gradient may need none of an operand.
    tensors.retain(|(name, _)| plan.inputs().iter().any(|port| port.name == *name));
    let mut session = CpuBackend::new(1)
        .unwrap()
        .open(vec![plan], u64::MAX)
        .unwrap();
    let inputs: Vec<(&str, &HostTensor)> = tensors.iter().map(|(n, t)| (&**n, t)).collect();
    let mut runs = |count: u32| {
        let start = processor_time();
        for _ in 0..count {
            session.run(0, 1, &inputs, &AtomicBool::new(false)).unwrap();
        }
        processor_time() - start
    };
    // The system counts in steps of some milliseconds.
    let mut count = 1;
    while runs(count) < 100_000_000 {
        count *= 2;
    }
    let best = (0..3).map(|_| runs(count)).min().unwrap_or(0);
    best as f64 / 1e6 / f64::from(count)
}

fn main() {
    let part = std::env::args().nth(1).unwrap_or_default();
    for [batch, channels, side, out, kernel, stride, groups] in LAYERS {
        let name = format!(
            "batch {batch}, {channels} x {side} x {side} to {out}, {kernel} x {kernel}, stride {stride}, groups {groups}"
        );
        if !name.contains(&part) {
            continue;
        }
        let half = (kernel / 2) as u32;
        let attributes = Conv2d {
            stride: (stride as u32, stride as u32),
            padding: (half, half),
            groups: groups as u32,
            ..Conv2d::default()
        };
        let results = (side - 1) / stride + 1;
        let x = [batch, channels, side, side];
        let weight = [out, channels / groups, kernel, kernel];
        let dy = [batch, out, results, results];
        // Of an odd kernel and an even side the last row has no window.
        let rest = ((side - 1) % stride) as u32;
        let forward = best(&[x, weight], |b, v| {
            b.conv2d(v[0], v[1], None, attributes).unwrap()
        });
        let input = best(&[dy, weight], |b, v| {
            b.conv_transpose2d(v[0], v[1], None, attributes, (rest, rest))
                .unwrap()
        });
        let weights = best(&[x, weight, dy], |b, v| {
            let y = b.conv2d(v[0], v[1], None, attributes).unwrap();
            let product = b.mul(y, v[2]).unwrap();
            let loss = b.sum(product, &[], false).unwrap();
            b.gradients(loss, &[v[1]]).unwrap()[0]
        });
        println!("{name}: forward {forward:.2} ms, x {input:.2} ms, weights {weights:.2} ms");
    }
}
