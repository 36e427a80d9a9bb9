//! The SDK's models on random numbers, timed: what `hangar bench` runs.

use std::time::Instant;

use hangar_sdk::bindings::Guest;
use hangar_sdk::host::model::{Plan, Session};
use hangar_sdk::host::task;
use hangar_sdk::host::types::Dtype;
use hangar_sdk::train::lease;
use hangar_sdk::{Graph, Mode, Optimizer, Parameters, Property, Result, Tensor, error, models};
use serde_json::{Value, json};

type Build = fn(&Tensor, u32) -> Result<Tensor>;

/// Steps of a training on a GPU that are timed together.
const GROUP: usize = 5;
const GPT2: &str = "gpt2";
const MLP: &str = "mlp";
/// Tokens of a text, and tokens that occur.
const LENGTH: u32 = 1024;
const TOKENS: u64 = 50_257;
/// The perceptron's inputs and classes.
const PIXELS: u32 = 784;
const DIGITS: u32 = 10;

const IMAGE_MODELS: [(&str, Build); 14] = [
    ("resnet18", models::resnet18),
    ("resnet34", models::resnet34),
    ("resnet50", models::resnet50),
    ("resnet101", models::resnet101),
    ("resnet152", models::resnet152),
    ("mobilenet_v3_small", models::mobilenet_v3_small),
    ("mobilenet_v3_large", models::mobilenet_v3_large),
    ("vit_b_16", models::vit_b_16),
    ("vit_b_32", models::vit_b_32),
    ("vit_l_16", models::vit_l_16),
    ("vit_l_32", models::vit_l_32),
    ("swin_v2_t", models::swin_v2_t),
    ("swin_v2_s", models::swin_v2_s),
    ("swin_v2_b", models::swin_v2_b),
];

/// What is measured.
struct Settings {
    model: String,
    train: bool,
    batch: u32,
    size: u32,
    classes: u32,
    steps: usize,
    recompute: bool,
    precision: String,
}

impl Settings {
    fn read(kind: &str) -> Result<Self> {
        let parameters = Parameters::parse(&task::parameters())?;
        let number = |name: &str| -> Result<u32> {
            Ok(u32::try_from(parameters.integer(name)?).unwrap_or(u32::MAX))
        };
        Ok(Self {
            model: parameters.text("model")?.to_owned(),
            train: kind == "training",
            batch: number("batch")?,
            size: number("size")?,
            classes: number("classes")?,
            steps: number("steps")? as usize,
            recompute: parameters.boolean("recompute")?,
            precision: parameters.text("precision")?.to_owned(),
        })
    }

    /// The sizes of a sample.
    fn sample(&self) -> Vec<u32> {
        match &*self.model {
            GPT2 => vec![LENGTH],
            MLP => vec![PIXELS],
            _ => vec![3, self.size, self.size],
        }
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        match &*self.model {
            GPT2 => models::gpt2(x),
            MLP => models::mlp(x, &[512, 512], DIGITS),
            name => {
                let found = IMAGE_MODELS.iter().find(|(known, _)| *known == name);
                let Some((_, build)) = found else {
                    return Err(error("model.unknown", name));
                };
                build(x, self.classes)
            }
        }
    }

    /// The graph: `loss` and an optimizer's step, or `logits`.
    fn graph(&self) -> Result<Graph> {
        let mode = if self.train {
            Mode::Train
        } else {
            Mode::Evaluate
        };
        let graph = Graph::new(mode, 0);
        graph.recompute_blocks(self.recompute);
        let batch: Vec<u32> = std::iter::once(0).chain(self.sample()).collect();
        let text = self.model == GPT2;
        let element = if text { Dtype::Int64 } else { Dtype::Float32 };
        let logits = self.logits(&graph.input("x", element, &batch)?)?;
        if !self.train {
            graph.output("result", &logits)?;
            return Ok(graph);
        }
        let labels = if text { vec![0, LENGTH] } else { vec![0] };
        let y = graph.input("y", Dtype::Int64, &labels)?;
        let classes = logits.size(logits.shape()?.len().saturating_sub(1))?;
        let rows = logits.reshape(&[u32::MAX, classes])?;
        let loss = rows.cross_entropy(&y.reshape(&[u32::MAX])?, 0.0)?;
        graph.minimize(&loss, &Optimizer::AdamW { weight_decay: 0.01 })?;
        graph.output("result", &loss)?;
        Ok(graph)
    }

    /// Random numbers for every input, drawn once.
    fn inputs(&self) -> Vec<(String, Vec<u8>)> {
        let count = u64::from(self.sample().iter().product::<u32>()) * u64::from(self.batch);
        // xorshift64 (Marsaglia 2003).
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut draw = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let text = self.model == GPT2;
        // Grown step by step, a large batch would need its memory twice for a moment.
        let bytes = count * if text { 8 } else { 4 };
        let mut x = Vec::with_capacity(usize::try_from(bytes).unwrap_or(usize::MAX));
        for _ in 0..count {
            if text {
                x.extend((draw() % TOKENS).to_le_bytes());
            } else {
                let value = (draw() >> 40) as f32 / 8_388_608.0 - 1.0;
                x.extend(value.to_le_bytes());
            }
        }
        let mut inputs = vec![("x".to_owned(), x)];
        if self.train {
            let (labels, classes) = match &*self.model {
                GPT2 => (count, TOKENS),
                MLP => (u64::from(self.batch), u64::from(DIGITS)),
                _ => (u64::from(self.batch), u64::from(self.classes)),
            };
            let y = (0..labels).flat_map(|_| (draw() % classes.max(1)).to_le_bytes());
            inputs.push(("y".to_owned(), y.collect()));
        }
        inputs
    }
}

fn run(kind: &str) -> Result<()> {
    let settings = Settings::read(kind)?;
    let graph = settings.graph()?;
    let options = [("precision".to_owned(), settings.precision.clone())];
    let plan = Plan::create(graph.builder(), settings.batch, &options)?;
    let lease = lease(&[&plan])?;
    let session = Session::open(&[&plan], &lease)?;
    session.learning_rate(1e-4, "constant", &[])?;
    let inputs = settings.inputs();
    // Seconds a step, where the last of `count` ends when its result is there.
    let steps = |count: usize| -> Result<f64> {
        let began = Instant::now();
        for _ in 0..count {
            session.run(0, settings.batch, &inputs)?;
        }
        session.read(0, "result", 0, 4)?;
        Ok(began.elapsed().as_secs_f64() / count as f64)
    };
    let first = steps(1)?;
    let gpu = lease.device() != "cpu";
    for _ in 0..if gpu { 10 } else { 1 } {
        steps(1)?;
    }
    // A training does not wait for every step, so that a GPU computes while the next batch is copied to it.
    let group = if gpu && settings.train { GROUP } else { 1 };
    let mut seconds = Vec::with_capacity(settings.steps.div_ceil(group));
    for _ in 0..settings.steps.div_ceil(group) {
        seconds.push(steps(group)?);
    }
    seconds.sort_by(f64::total_cmp);
    let at = |i: usize| seconds.get(i).copied().unwrap_or(f64::NAN);
    let values = [
        ("seconds", at(seconds.len() / 2)),
        ("fastest", at(0)),
        ("slowest", at(seconds.len().saturating_sub(1))),
        ("first_seconds", first),
    ];
    let values = values.map(|(name, value)| (name.to_owned(), value));
    task::metrics(1, 1, "completed", &values);
    Ok(())
}

struct Reference;

impl Guest for Reference {
    fn describe() -> String {
        let names = IMAGE_MODELS.iter().map(|(name, _)| *name);
        let models: Vec<Value> = names
            .chain([MLP, GPT2])
            .map(|name| json!({ "name": name, "description": "A model of the SDK" }))
            .collect();
        let number = |name, default, description| {
            Property::integer(name, default, description)
                .minimum(1)
                .maximum(65_536)
        };
        let parameters = hangar_sdk::schema(vec![
            number("batch", 16, "Samples in a step"),
            number("size", 224, "Height and width of images, pixels"),
            number("classes", 37, "Classes"),
            number("steps", 7, "Steps that are timed"),
            Property::boolean("recompute", false, "Whether blocks are computed again"),
            Property::choice(
                "precision",
                "float32",
                &["float32", "bfloat16"],
                "How activations are stored",
            ),
        ]);
        json!({
            "name": "reference-models",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The SDK's models on random numbers, timed",
            "kinds": ["training", "inference"],
            "models": models,
            "parameters": { "training": parameters, "inference": parameters },
        })
        .to_string()
    }

    fn run(kind: String) -> Result<()> {
        run(&kind)
    }
}

hangar_sdk::bindings::export_plugin!(Reference with_types_in hangar_sdk::bindings);
