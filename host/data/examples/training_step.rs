//! Measures training steps on MNIST's images without a plugin: `mlp` (784-512-512-10) or `cnn` (the
//! model of the plugin `digits`), AdamW.
//!
//! usage: training_step mlp|cnn FOLDER [BATCH [STEPS [THREADS]]]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use compute::builder::{Conv2d, Target};
use compute::cpu::CpuBackend;
use compute::schedule::ScheduleKind;
use compute::{Backend, Builder, DType, Dim, Plan, Schedule, Value};
use data::{Dataset, Loader};

/// Steps before the clock starts.
const WARM_UP: usize = 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A model under construction, with the parameters it has so far.
struct Model {
    b: Builder,
    parameters: Vec<Value>,
}

impl Model {
    fn parameter(&mut self, name: &str, shape: &[u64]) -> Result<Value> {
        let value = self.b.parameter(name, shape, "torch-uniform", 0)?;
        self.parameters.push(value);
        Ok(value)
    }

    fn linear(&mut self, x: Value, name: &str, inputs: u64, outputs: u64) -> Result<Value> {
        let weight = self.parameter(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.parameter(&format!("{name}.bias"), &[outputs])?;
        Ok(self.b.linear(x, weight, Some(bias))?)
    }

    /// A 3×3 convolution, ReLU, and the largest of every 2×2 window.
    fn block(&mut self, x: Value, name: &str, inputs: u64, outputs: u64) -> Result<Value> {
        let weight = self.parameter(&format!("{name}.weight"), &[outputs, inputs, 3, 3])?;
        let bias = self.parameter(&format!("{name}.bias"), &[outputs])?;
        let x = self.b.conv2d(x, weight, Some(bias), Conv2d::default())?;
        let x = self.b.relu(x)?;
        Ok(self.b.max_pool2d(x, (2, 2), (2, 2), (0, 0))?)
    }

    fn flatten(&mut self, x: Value) -> Result<Value> {
        let target = [Target::Size(Dim::Batch(1)), Target::Rest];
        Ok(self.b.reshape(x, &target)?)
    }
}

fn training(name: &str, batch: usize) -> Result<Plan> {
    let mut m = Model {
        b: Builder::new(),
        parameters: Vec::new(),
    };
    let image = [Dim::Batch(1), Dim::Fixed(1), Dim::Fixed(28), Dim::Fixed(28)];
    let x = m.b.input("x", DType::F32, &image)?;
    let y = m.b.input("y", DType::I64, &[Dim::Batch(1)])?;
    let logits = if name == "cnn" {
        let x = m.block(x, "conv1", 1, 16)?;
        let x = m.block(x, "conv2", 16, 32)?;
        let x = m.flatten(x)?;
        let x = m.linear(x, "fc1", 800, 64)?;
        let x = m.b.relu(x)?;
        m.linear(x, "fc2", 64, 10)?
    } else {
        let x = m.flatten(x)?;
        let x = m.linear(x, "fc1", 784, 512)?;
        let x = m.b.relu(x)?;
        let x = m.linear(x, "fc2", 512, 512)?;
        let x = m.b.relu(x)?;
        m.linear(x, "fc3", 512, 10)?
    };
    let loss = m.b.cross_entropy(logits, y, 0.0)?;
    let gradients = m.b.gradients(loss, &m.parameters)?;
    m.b.adamw(&m.parameters, &gradients, (0.9, 0.999), 1e-8, 0.01)?;
    m.b.output("loss", loss)?;
    Ok(Plan::new(&m.b.graph(), u32::try_from(batch)?)?)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder, numbers @ ..] = &*arguments else {
        return Err("usage: training_step mlp|cnn FOLDER [BATCH [STEPS [THREADS]]]".into());
    };
    let number = |at: usize, default: usize| -> Result<usize> {
        Ok(numbers
            .get(at)
            .map(|text| text.parse())
            .transpose()?
            .unwrap_or(default))
    };
    let (batch, steps, threads) = (number(0, 64)?, number(1, 500)?, number(2, 2)?);
    let mut loader = Loader::new(
        Dataset::open(Path::new(folder), Some("train"))?,
        batch,
        threads,
    )?;
    let mut session = CpuBackend::new(threads)?.open(vec![training(name, batch)?], u64::MAX)?;
    session.set_schedule(Schedule::new(1e-4, 0, ScheduleKind::Constant)?);
    let running = AtomicBool::new(false);
    let (mut epoch, mut done, mut began) = (0, 0, Instant::now());
    loader.start(epoch)?;
    while done < WARM_UP + steps {
        let Some(next) = loader.next(&running) else {
            epoch += 1;
            loader.start(epoch)?;
            continue;
        };
        let next = next?;
        let labels = next.labels.ok_or("the images have no labels")?;
        session.run(
            0,
            next.size,
            &[("x", &next.samples), ("y", &labels)],
            &running,
        )?;
        session.output(0, "loss")?;
        done += 1;
        if done == WARM_UP {
            began = Instant::now();
        }
    }
    let rate = steps as f64 / began.elapsed().as_secs_f64();
    println!(
        "{rate:.1} steps a second, {:.1} samples a second",
        rate * batch as f64
    );
    Ok(())
}
