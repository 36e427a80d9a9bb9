//! Times matrix products of transformers on one thread, in its processor time, the best of several
//! runs. The rows of `tests/peer/torch_products.py` are of the same products.
//! usage: products [PART_OF_A_PRODUCT'S_NAME]

#![allow(clippy::unwrap_used, reason = "an example ends with the first error")]

use std::sync::atomic::AtomicBool;

use compute::cpu::CpuBackend;
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan};

/// Rows, terms, columns, and whether the left and the right operand are transposed.
const PRODUCTS: [[u64; 5]; 12] = [
    [1576, 768, 2304, 0, 1],
    [1576, 768, 768, 0, 1],
    [1576, 768, 3072, 0, 1],
    [1576, 3072, 768, 0, 1],
    [1576, 2304, 768, 0, 0],
    [1576, 768, 768, 0, 0],
    [1576, 3072, 768, 0, 0],
    [1576, 768, 3072, 0, 0],
    [2304, 1576, 768, 1, 0],
    [768, 1576, 768, 1, 0],
    [3072, 1576, 768, 1, 0],
    [768, 1576, 3072, 1, 0],
];

/// Nanoseconds that this thread has run.
fn processor_time() -> u64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    times.split(' ').next().unwrap().parse().unwrap()
}

/// Seconds of the best of several runs.
fn best([rows, terms, columns, ta, tb]: [u64; 5]) -> f64 {
    let mut b = Builder::new();
    let shape = |x: u64, y: u64, turned: u64| if turned == 1 { [y, x] } else { [x, y] };
    let shapes = [shape(rows, terms, ta), shape(terms, columns, tb)];
    let mut values = Vec::new();
    let mut tensors = Vec::new();
    for (name, shape) in ["a", "b"].into_iter().zip(shapes) {
        values.push(b.input(name, DType::F32, &shape.map(Dim::Fixed)).unwrap());
        let numbers: Vec<f32> = (0..shape.iter().product())
            .map(|i| compute::random::unit(i) as f32 - 0.5)
            .collect();
        let shape = shape.map(|size| size as usize);
        tensors.push((name, HostTensor::from_f32(&shape, &numbers).unwrap()));
    }
    let [left, right] = [(0, ta), (1, tb)].map(|(i, turned): (usize, u64)| {
        if turned == 1 {
            b.permute(values[i], &[1, 0]).unwrap()
        } else {
            values[i]
        }
    });
    let y = b.matmul(left, right).unwrap();
    b.output("y", y).unwrap();
    let plan = Plan::new(&b.graph(), 1).unwrap();
    let backend = CpuBackend::new(1).unwrap();
    let mut session = backend.open(vec![plan], u64::MAX).unwrap();
    let inputs: Vec<(&str, &HostTensor)> = tensors.iter().map(|(n, t)| (*n, t)).collect();
    let mut run = || {
        let start = processor_time();
        session.run(0, 1, &inputs, &AtomicBool::new(false)).unwrap();
        processor_time() - start
    };
    let best = (0..12).map(|_| run()).min().unwrap_or(0);
    best as f64 / 1e9
}

fn main() {
    let part = std::env::args().nth(1).unwrap_or_default();
    for product in PRODUCTS {
        let [rows, terms, columns, ta, tb] = product;
        let mark = |turned: u64| if turned == 1 { "ᵀ" } else { "" };
        let name = format!("{rows} x {terms}{} · {terms} x {columns}{}", mark(ta), mark(tb));
        if name.contains(&part) {
            let seconds = best(product);
            let rate = 2e-9 * (rows * terms * columns) as f64 / seconds;
            println!("{name}: {:.2} ms, {rate:.1} GFLOP/s", seconds * 1e3);
        }
    }
}
