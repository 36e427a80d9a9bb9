//! Blocks that are computed again for their gradients: the same numbers from less memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod emulator;

use std::sync::atomic::AtomicBool;

use compute::builder::{Conv2d, Target};
use compute::cpu::CpuBackend;
use compute::cuda::{self, CudaBackend};
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Value};
use emulator::{emulated, uuid};

const TOKENS: u64 = 16;
const WIDTH: u64 = 24;
const BATCH: usize = 3;

struct Model {
    b: Builder,
    parameters: Vec<Value>,
    recompute: bool,
}

impl Model {
    fn new(recompute: bool) -> Self {
        Self {
            b: Builder::new(),
            parameters: Vec::new(),
            recompute,
        }
    }

    fn parameter(&mut self, name: &str, shape: &[u64], initializer: &str) -> Value {
        let value = self.b.parameter(name, shape, initializer, 7).unwrap();
        self.parameters.push(value);
        value
    }

    fn block(&mut self, x: Value, build: impl FnOnce(&mut Self, Value) -> Value) -> Value {
        if self.recompute {
            self.b.begin_recompute().unwrap();
        }
        let y = build(self, x);
        if self.recompute {
            self.b.end_recompute().unwrap();
        }
        y
    }

    fn linear(&mut self, x: Value, name: &str, from: u64, to: u64) -> Value {
        let weight = self.parameter(&format!("{name}.weight"), &[to, from], "torch-uniform");
        let bias = self.parameter(&format!("{name}.bias"), &[to], "zeros");
        self.b.linear(x, weight, Some(bias)).unwrap()
    }

    fn norm(&mut self, x: Value, name: &str) -> Value {
        let scale = self.parameter(&format!("{name}.scale"), &[WIDTH], "ones");
        let bias = self.parameter(&format!("{name}.bias"), &[WIDTH], "zeros");
        self.b.layer_norm(x, scale, bias, 1e-5).unwrap()
    }

    /// A transformer's block, with dropout.
    fn transformer(&mut self, x: Value, name: &str) -> Value {
        let y = self.norm(x, &format!("{name}.n1"));
        let [q, k, v] = ["q", "k", "v"].map(|part| {
            let y = self.linear(y, &format!("{name}.{part}"), WIDTH, WIDTH);
            let heads = [
                Dim::Batch(1),
                Dim::Fixed(TOKENS),
                Dim::Fixed(4),
                Dim::Fixed(WIDTH / 4),
            ];
            let y = self.b.reshape(y, &heads.map(Target::Size)).unwrap();
            self.b.permute(y, &[0, 2, 1, 3]).unwrap()
        });
        let y = self.b.attention((q, k, v), None, true, None).unwrap();
        let y = self.b.permute(y, &[0, 2, 1, 3]).unwrap();
        let rows = [Dim::Batch(1), Dim::Fixed(TOKENS), Dim::Fixed(WIDTH)];
        let y = self.b.reshape(y, &rows.map(Target::Size)).unwrap();
        let y = self.b.dropout(y, 0.2, 11).unwrap();
        let x = self.b.add(x, y).unwrap();
        let y = self.norm(x, &format!("{name}.n2"));
        let y = self.linear(y, &format!("{name}.f"), WIDTH, 4 * WIDTH);
        let y = self.b.gelu(y, true).unwrap();
        let y = self.linear(y, &format!("{name}.p"), 4 * WIDTH, WIDTH);
        self.b.add(x, y).unwrap()
    }

    /// A residual block with batch normalisation.
    fn residual(&mut self, x: Value, name: &str) -> Value {
        let mut y = x;
        for part in ["a", "b"] {
            let name = format!("{name}.{part}");
            let weight = self.parameter(&format!("{name}.conv"), &[6, 6, 3, 3], "kaiming-normal");
            let attributes = Conv2d {
                padding: (1, 1),
                ..Conv2d::default()
            };
            y = self.b.conv2d(y, weight, None, attributes).unwrap();
            let scale = self.parameter(&format!("{name}.scale"), &[6], "ones");
            let bias = self.parameter(&format!("{name}.bias"), &[6], "zeros");
            let mean = self
                .b
                .buffer(&format!("{name}.mean"), &[6], "zeros")
                .unwrap();
            let variance = self
                .b
                .buffer(&format!("{name}.variance"), &[6], "ones")
                .unwrap();
            y = self
                .b
                .batch_norm_train(y, scale, bias, mean, variance, 0.1, 1e-5)
                .unwrap();
            y = self.b.relu(y).unwrap();
        }
        self.b.add(x, y).unwrap()
    }

    fn finish(mut self, y: Value) -> Plan {
        let square = self.b.mul(y, y).unwrap();
        let loss = self.b.mean(square, &[], false).unwrap();
        let gradients = self.b.gradients(loss, &self.parameters).unwrap();
        self.b
            .adamw(&self.parameters, &gradients, (0.9, 0.999), 1e-8, 0.01)
            .unwrap();
        self.b.output("loss", loss).unwrap();
        Plan::new(&self.b.graph(), BATCH as u32).unwrap()
    }
}

fn text(recompute: bool, blocks: usize) -> Plan {
    let mut m = Model::new(recompute);
    let shape = [Dim::Batch(1), Dim::Fixed(TOKENS), Dim::Fixed(WIDTH)];
    let mut x = m.b.input("x", DType::F32, &shape).unwrap();
    for i in 0..blocks {
        x = m.block(x, |m, x| m.transformer(x, &format!("b{i}")));
    }
    m.finish(x)
}

fn image(recompute: bool, blocks: usize) -> Plan {
    let mut m = Model::new(recompute);
    let shape = [Dim::Batch(1), Dim::Fixed(6), Dim::Fixed(8), Dim::Fixed(8)];
    let mut x = m.b.input("x", DType::F32, &shape).unwrap();
    for i in 0..blocks {
        x = m.block(x, |m, x| m.residual(x, &format!("b{i}")));
    }
    m.finish(x)
}

/// The losses of two steps and every variable after them.
fn train(backend: &dyn Backend, plan: Plan) -> Vec<(String, Vec<u8>)> {
    let shape = plan.inputs()[0].shape.at(BATCH);
    let values = (0..shape.iter().product()).map(|i| (i as f32 * 0.7).sin());
    let x = HostTensor::from_f32(&shape, &values.collect::<Vec<_>>()).unwrap();
    let mut session = backend.open(vec![plan], u64::MAX).unwrap();
    let mut results = Vec::new();
    for _ in 0..2 {
        let never = AtomicBool::new(false);
        session.run(0, BATCH, &[("x", &x)], &never).unwrap();
        let loss = session.output(0, "loss").unwrap();
        results.push(("loss".to_owned(), loss.bytes().to_vec()));
    }
    for info in session.parameters() {
        let value = session.download(&info.name).unwrap();
        results.push((info.name, value.bytes().to_vec()));
    }
    results
}

fn check(backend: &dyn Backend) {
    for (model, blocks) in [(text as fn(bool, usize) -> Plan, 6), (image, 4)] {
        let [kept, again] = [false, true].map(|again| train(backend, model(again, blocks)));
        for (kept, again) in kept.iter().zip(&again) {
            assert_eq!(kept, again);
        }
        assert_eq!(kept.len(), again.len());
    }
}

#[test]
fn recomputed_blocks_give_the_same_bits() {
    check(&CpuBackend::new(1).unwrap());
}

#[test]
fn recomputed_blocks_give_the_same_bits_on_cuda() {
    let gpu = "[[gpu]]\nprofile = \"h100\"\n";
    emulated(
        "recomputed_blocks_give_the_same_bits_on_cuda",
        &["forward"],
        gpu,
        || {
            check(&CudaBackend::new(&uuid(), "cuda:0", cuda::Options::default()).unwrap());
        },
    );
}

#[test]
fn recomputed_blocks_take_less_memory() {
    // Beside what parameters and their optimizer take.
    let memory = |plan: Plan| plan.arena_bytes() + plan.workspace_bytes();
    for (model, most) in [(text as fn(bool, usize) -> Plan, 0.5), (image, 0.75)] {
        let (kept, again) = (memory(model(false, 24)), memory(model(true, 24)));
        let share = again as f64 / kept as f64;
        assert!(share < most, "{again} of {kept} bytes");
    }
}

#[test]
fn blocks_do_not_nest_and_gradients_are_taken_outside() {
    let mut b = Builder::new();
    let p = b.parameter("p", &[], "ones", 0).unwrap();
    assert_eq!(b.end_recompute().unwrap_err().code(), "graph.recompute");
    b.begin_recompute().unwrap();
    assert_eq!(b.begin_recompute().unwrap_err().code(), "graph.recompute");
    let y = b.exp(p).unwrap();
    assert_eq!(b.gradients(y, &[p]).unwrap_err().code(), "graph.recompute");
    b.end_recompute().unwrap();
    b.gradients(y, &[p]).unwrap();
}
