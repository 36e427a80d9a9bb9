//! Measures one training step or inference of a model on inputs drawn once, on the CPU or a GPU,
//! and prints one JSON line: median seconds, samples a second, bytes. Its peer in PyTorch is
//! tests/hardware/torch_step.py.
//!
//! usage: step mlp|digits|spoken-digits|vit|copy|chain|chain-apart|mean|mean-apart|product train|infer
//!             BATCH cpu[:THREADS]|UUID [f32|tf32] [STEPS] [launches] [own]
//!
//! `vit` is a block of ViT-B/16; `copy` moves BATCH MiB through an element-wise kernel, `chain` through
//! six operators, of which `chain-apart` keeps every result, so that they are not one program; `mean` is
//! the mean of the square of a difference, which `mean-apart` keeps; `product` multiplies matrices of
//! BATCH × BATCH; `launches` launches every kernel instead of replaying a graph; `own` leaves cuDNN out.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use compute::builder::{Conv2d, Target, Window};
use compute::cpu::CpuBackend;
use compute::cuda::{self, CudaBackend};
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Value};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: step mlp|digits|spoken-digits|vit|copy|chain|chain-apart|mean|mean-apart|product \
                     train|infer BATCH cpu[:THREADS]|UUID [f32|tf32] [STEPS] [launches] [own]";
/// Runs before the clock starts, at most as many as are timed.
const WARM_UP: usize = 20;
/// The plugin `spoken-digits`'s input.
const SAMPLES: u64 = 6144;
/// Patches of 16 × 16 of an image of 224 × 224, and a class token.
const TOKENS: u64 = 197;
/// Features of a token, in 12 heads of 64.
const HIDDEN: u64 = 768;

/// A model under construction.
struct Model {
    b: Builder,
    parameters: Vec<Value>,
    trains: bool,
}

impl Model {
    fn parameter(&mut self, name: &str, shape: &[u64], how: &str) -> Result<Value> {
        let value = self.b.parameter(name, shape, how, 0)?;
        self.parameters.push(value);
        Ok(value)
    }

    fn linear(&mut self, x: Value, name: &str, inputs: u64, outputs: u64) -> Result<Value> {
        let weight = self.parameter(
            &format!("{name}.weight"),
            &[outputs, inputs],
            "torch-uniform",
        )?;
        let bias = self.parameter(&format!("{name}.bias"), &[outputs], "zeros")?;
        Ok(self.b.linear(x, weight, Some(bias))?)
    }

    fn conv(
        &mut self,
        x: Value,
        name: &str,
        shape: &[u64; 4],
        stride: u32,
        padding: u32,
    ) -> Result<Value> {
        let weight = self.parameter(&format!("{name}.weight"), shape, "torch-uniform")?;
        let attributes = Conv2d {
            stride: (stride, stride),
            padding: (padding, padding),
            ..Conv2d::default()
        };
        Ok(self.b.conv2d(x, weight, None, attributes)?)
    }

    fn norm(&mut self, x: Value, name: &str, channels: u64) -> Result<Value> {
        let scale = self.parameter(&format!("{name}.weight"), &[channels], "ones")?;
        let bias = self.parameter(&format!("{name}.bias"), &[channels], "zeros")?;
        let mean = self
            .b
            .buffer(&format!("{name}.mean"), &[channels], "zeros")?;
        let variance = self
            .b
            .buffer(&format!("{name}.variance"), &[channels], "ones")?;
        Ok(if self.trains {
            self.b
                .batch_norm_train(x, scale, bias, mean, variance, 0.1, 1e-5)?
        } else {
            self.b
                .batch_norm_eval(x, scale, bias, mean, variance, 1e-5)?
        })
    }

    fn flatten(&mut self, x: Value) -> Result<Value> {
        Ok(self
            .b
            .reshape(x, &[Target::Size(Dim::Batch(1)), Target::Rest])?)
    }

    fn mlp(&mut self, x: Value) -> Result<Value> {
        let x = self.linear(x, "fc1", 784, 512)?;
        let x = self.b.relu(x)?;
        let x = self.linear(x, "fc2", 512, 512)?;
        let x = self.b.relu(x)?;
        self.linear(x, "fc3", 512, 10)
    }

    fn digits(&mut self, mut x: Value) -> Result<Value> {
        for (name, inputs, outputs) in [("conv1", 1, 16), ("conv2", 16, 32)] {
            let weight = self.parameter(
                &format!("{name}.weight"),
                &[outputs, inputs, 3, 3],
                "torch-uniform",
            )?;
            let bias = self.parameter(&format!("{name}.bias"), &[outputs], "zeros")?;
            x = self.b.conv2d(x, weight, Some(bias), Conv2d::default())?;
            x = self.b.relu(x)?;
            x = self.b.max_pool2d(x, (2, 2), (2, 2), (0, 0))?;
        }
        let x = self.flatten(x)?;
        let x = self.linear(x, "fc1", 800, 64)?;
        let x = self.b.relu(x)?;
        self.linear(x, "fc2", 64, 10)
    }

    fn block(
        &mut self,
        x: Value,
        name: &str,
        inputs: u64,
        outputs: u64,
        stride: u32,
    ) -> Result<Value> {
        let y = self.conv(
            x,
            &format!("{name}.conv1"),
            &[outputs, inputs, 3, 3],
            stride,
            1,
        )?;
        let y = self.norm(y, &format!("{name}.bn1"), outputs)?;
        let y = self.b.relu(y)?;
        let y = self.conv(y, &format!("{name}.conv2"), &[outputs, outputs, 3, 3], 1, 1)?;
        let y = self.norm(y, &format!("{name}.bn2"), outputs)?;
        let shortcut = if stride == 1 && inputs == outputs {
            x
        } else {
            let x = self.conv(
                x,
                &format!("{name}.down"),
                &[outputs, inputs, 1, 1],
                stride,
                0,
            )?;
            self.norm(x, &format!("{name}.bn3"), outputs)?
        };
        let sum = self.b.add(y, shortcut)?;
        Ok(self.b.relu(sum)?)
    }

    fn spoken_digits(&mut self, x: Value) -> Result<Value> {
        let power = self.b.stft_power(x, 128, 64, Window::Hann)?;
        let power = self.b.affine(power, 1.0, 1e-3)?;
        let x = self.b.log(power)?;
        let image = [Dim::Batch(1), Dim::Fixed(1), Dim::Fixed(65), Dim::Fixed(95)];
        let x = self.b.reshape(x, &image.map(Target::Size))?;
        let x = self.norm(x, "norm", 1)?;
        let x = self.conv(x, "conv1", &[16, 1, 3, 3], 2, 1)?;
        let x = self.norm(x, "bn1", 16)?;
        let mut x = self.b.relu(x)?;
        for (name, inputs, outputs, stride) in [
            ("layer1", 16, 16, 1),
            ("layer2", 16, 32, 2),
            ("layer3", 32, 64, 2),
        ] {
            x = self.block(x, name, inputs, outputs, stride)?;
        }
        let x = self.b.mean(x, &[2, 3], false)?;
        self.linear(x, "fc", 64, 10)
    }

    fn layer_norm(&mut self, x: Value, name: &str) -> Result<Value> {
        let scale = self.parameter(&format!("{name}.weight"), &[HIDDEN], "ones")?;
        let bias = self.parameter(&format!("{name}.bias"), &[HIDDEN], "zeros")?;
        Ok(self.b.layer_norm(x, scale, bias, 1e-6)?)
    }

    /// A block (Dosovitskiy et al. 2021), as the plugins' SDK builds it, and the mean's classes.
    fn vit(&mut self, x: Value) -> Result<Value> {
        let y = self.layer_norm(x, "ln_1")?;
        let y = self.linear(y, "in_proj", HIDDEN, 3 * HIDDEN)?;
        let heads = [0, TOKENS, 3, 12, 64].map(Dim::Fixed);
        let heads = [&[Dim::Batch(1)], &heads[1..]].concat();
        let sizes: Vec<Target> = heads.into_iter().map(Target::Size).collect();
        let y = self.b.reshape(y, &sizes)?;
        let y = self.b.permute(y, &[0, 2, 3, 1, 4])?;
        let mut parts = Vec::new();
        for i in 0..3 {
            let most = u64::from(u32::MAX);
            let (starts, ends) = ([0, i, 0, 0, 0], [most, i + 1, most, most, most]);
            let part = self.b.slice(y, &starts, &ends, &[1; 5])?;
            let sizes = [12, TOKENS, 64].map(|size| Target::Size(Dim::Fixed(size)));
            let sizes = [&[Target::Size(Dim::Batch(1))], &sizes[..]].concat();
            parts.push(self.b.reshape(part, &sizes)?);
        }
        let heads = (parts[0], parts[1], parts[2]);
        let y = self.b.attention(heads, None, false, None)?;
        let y = self.b.permute(y, &[0, 2, 1, 3])?;
        let sizes = [Dim::Batch(1), Dim::Fixed(TOKENS), Dim::Fixed(HIDDEN)].map(Target::Size);
        let y = self.b.reshape(y, &sizes)?;
        let y = self.linear(y, "out_proj", HIDDEN, HIDDEN)?;
        let x = self.b.add(x, y)?;
        let y = self.layer_norm(x, "ln_2")?;
        let y = self.linear(y, "mlp.0", HIDDEN, 4 * HIDDEN)?;
        let y = self.b.gelu(y, false)?;
        let y = self.linear(y, "mlp.3", 4 * HIDDEN, HIDDEN)?;
        let x = self.b.add(x, y)?;
        let x = self.b.mean(x, &[1], false)?;
        self.linear(x, "head", HIDDEN, 37)
    }

    /// The mean of (x − 2)²; `apart` keeps the squares.
    fn mean(&mut self, x: Value, apart: bool) -> Result<Value> {
        let y = self.b.affine(x, 1.0, -2.0)?;
        let square = self.b.mul(y, y)?;
        if apart {
            self.b.output("kept", square)?;
        }
        Ok(self.b.mean(square, &[], false)?)
    }

    /// Six operators in a row; `apart` keeps what each gives.
    fn chain(&mut self, x: Value, apart: bool) -> Result<Value> {
        type Operator =
            fn(&mut Builder, Value, Value) -> std::result::Result<Value, compute::Error>;
        let operators: [Operator; 6] = [
            |b, _, y| b.affine(y, 0.5, 1.0),
            |b, _, y| b.relu(y),
            |b, x, y| b.mul(y, x),
            |b, x, y| b.add(y, x),
            |b, _, y| b.abs(y),
            |b, _, y| b.affine(y, 2.0, 1.0),
        ];
        let mut y = x;
        for (i, operator) in operators.iter().enumerate() {
            y = operator(&mut self.b, x, y)?;
            if apart && i + 1 < operators.len() {
                self.b.output(&format!("kept.{i}"), y)?;
            }
        }
        Ok(y)
    }
}

/// The plan of a model, and the sizes of its input.
fn plan(name: &str, trains: bool, batch: u64) -> Result<(Plan, Vec<usize>)> {
    let mut m = Model {
        b: Builder::new(),
        parameters: Vec::new(),
        trains,
    };
    let shape = match name {
        "mlp" => vec![Dim::Batch(1), Dim::Fixed(784)],
        "digits" => vec![Dim::Batch(1), Dim::Fixed(1), Dim::Fixed(28), Dim::Fixed(28)],
        "spoken-digits" => vec![Dim::Batch(1), Dim::Fixed(SAMPLES)],
        "vit" => vec![Dim::Batch(1), Dim::Fixed(TOKENS), Dim::Fixed(HIDDEN)],
        "copy" | "chain" | "chain-apart" | "mean" | "mean-apart" | "product" => vec![Dim::Fixed(1)],
        _ => return Err(USAGE.into()),
    };
    let x = m.b.input("x", DType::F32, &shape)?;
    let out = match name {
        "mlp" => m.mlp(x)?,
        "digits" => m.digits(x)?,
        "spoken-digits" => m.spoken_digits(x)?,
        "vit" => m.vit(x)?,
        "copy" => {
            let memory = m.parameter("memory", &[batch << 18], "zeros")?;
            m.b.affine(memory, 2.0, 1.0)?
        }
        "chain" | "chain-apart" => {
            let memory = m.parameter("memory", &[batch << 18], "zeros")?;
            m.chain(memory, name == "chain-apart")?
        }
        "mean" | "mean-apart" => {
            let memory = m.parameter("memory", &[batch << 18], "zeros")?;
            m.mean(memory, name == "mean-apart")?
        }
        _ => {
            let matrix = m.parameter("matrix", &[batch, batch], "torch-uniform")?;
            m.b.matmul(matrix, matrix)?
        }
    };
    let models = ["mlp", "digits", "spoken-digits", "vit"].contains(&name);
    if trains && models {
        let y = m.b.input("y", DType::I64, &[Dim::Batch(1)])?;
        let loss = m.b.cross_entropy(out, y, 0.0)?;
        let gradients = m.b.gradients(loss, &m.parameters)?;
        m.b.adamw(&m.parameters, &gradients, (0.9, 0.999), 1e-8, 0.01)?;
        m.b.output("loss", loss)?;
    } else {
        m.b.output("out", out)?;
        if !models {
            // What depends on variables alone is computed each time only where variables change.
            let steps = m.b.parameter("steps", &[1], "zeros", 0)?;
            m.b.sgd(&[steps], &[steps], 0.0, false, 0.0)?;
        }
        // Waiting for a number is waiting for the run, without reading the result.
        let done = m.b.constant(DType::F32, &[], &1.0f32.to_le_bytes())?;
        m.b.output("done", done)?;
    }
    let samples = if models { batch } else { 1 };
    let sizes = shape.iter().map(|size| size.at(samples) as usize).collect();
    Ok((Plan::new(&m.b.graph(), u32::try_from(samples)?)?, sizes))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, mode, batch, device, rest @ ..] = &*arguments else {
        return Err(USAGE.into());
    };
    let (trains, batch) = (mode == "train", batch.parse::<u64>()?);
    let tf32 = rest.iter().any(|word| word == "tf32");
    let cudnn = !rest.iter().any(|word| word == "own");
    let graphs = !rest.iter().any(|word| word == "launches");
    let steps = rest
        .iter()
        .find_map(|word| word.parse().ok())
        .unwrap_or(200usize);
    let backend: Box<dyn Backend> = match device.strip_prefix("cpu") {
        Some(threads) => {
            let threads = threads.trim_start_matches(':').parse().unwrap_or(2);
            Box::new(CpuBackend::new(threads)?)
        }
        None => Box::new(CudaBackend::new(
            device,
            "cuda",
            cuda::Options {
                tf32,
                graphs,
                cudnn,
            },
        )?),
    };
    let (plan, sizes) = plan(name, trains, batch)?;
    let takes = |name: &str| plan.inputs().iter().any(|port| port.name == name);
    let (takes_samples, takes_labels) = (takes("x"), takes("y"));
    let samples = plan.max_batch() as usize;
    let mut session = backend.open(vec![plan], u64::MAX)?;
    let values: Vec<f32> = (0..sizes.iter().product())
        .map(|i: usize| (i as f32 * 0.61).sin())
        .collect();
    let x = HostTensor::from_f32(&sizes, &values)?;
    let labels: Vec<i64> = (0..samples as i64).map(|i| i % 10).collect();
    let y = HostTensor::from_i64(&[samples], &labels)?;
    let mut inputs = Vec::new();
    if takes_samples {
        inputs.push(("x", &x));
    }
    if takes_labels {
        inputs.push(("y", &y));
    }
    let running = AtomicBool::new(false);
    let mut times = Vec::new();
    // Training steps are timed in tens, as a training waits for results once in many steps; an
    // inference is timed with its answer.
    let group = if trains && name != "vit" { 10 } else { 1 };
    let warm_up = WARM_UP.min(steps);
    for round in 0..warm_up + steps {
        let began = Instant::now();
        for _ in 0..group {
            session.run(0, samples, &inputs, &running)?;
        }
        if takes_labels {
            session.mean(0, "loss")?;
        } else if !takes_samples {
            session.mean(0, "done")?;
        } else {
            session.output(0, "out")?;
        }
        if round >= warm_up {
            times.push(began.elapsed().as_secs_f64() / group as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2];
    println!(
        "{{\"model\":\"{name}\",\"mode\":\"{mode}\",\"batch\":{batch},\"device\":\"{device}\",\"tf32\":{tf32},\
         \"graphs\":{graphs},\"seconds\":{seconds:e},\"per_second\":{:.1},\"bytes\":{}}}",
        samples as f64 / seconds,
        session.used_bytes()
    );
    Ok(())
}
