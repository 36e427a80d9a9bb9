//! Models that `hangar import` read: the graph is in the metadata of the weights, as calls of the
//! contract's builder, and is built again for each task.

mod replay;

use hangar_sdk::bindings::Guest;
use hangar_sdk::host::graph::Builder;
use hangar_sdk::host::model::{Plan, Session, weights_metadata};
use hangar_sdk::host::task;
use hangar_sdk::host::types::Dtype;
use hangar_sdk::metrics::{ConfusionMatrix, top};
use hangar_sdk::train::lease;
use hangar_sdk::{Input, Parameters, Result, error};
use serde_json::{Value, json};

use crate::replay::Call;

/// The file of results in the task's folder: one JSON object a sample.
const ARTIFACT: &str = "predictions.jsonl";
/// The host reads at most this many bytes of an output at once.
const READ_BYTES: u32 = 1 << 20;
/// The most numbers of a sample's output that are written.
const MOST_NUMBERS: usize = 65_536;
const FIRST: &str = "output.0";

/// The model as the weights' metadata tells it.
struct Model {
    builder: Builder,
    /// Of the input, the batch first: 0, or a number where the model has one batch size.
    shape: Vec<u32>,
    /// Empty where the model has none.
    classes: Vec<String>,
    first: u32,
}

impl Model {
    fn parse(metadata: &[(String, String)]) -> Result<Self> {
        let fact = |key: &str| {
            let pair = metadata.iter().find(|pair| pair.0 == key);
            pair.and_then(|pair| serde_json::from_str::<Value>(&pair.1).ok())
        };
        let Some(Value::Array(calls)) = fact("calls") else {
            let message =
                "the weights' metadata has no calls: give a file that `hangar import` wrote";
            return Err(error("weights.calls", message));
        };
        let builder = Builder::new();
        let (mut results, mut shape, mut first) = (Vec::new(), Vec::new(), None);
        for call in &calls {
            let call = Call::parse(call, &results)?;
            match call.op {
                "input" => shape = call.list(2)?,
                "output" if call.text(0)? == FIRST => first = call.operand(),
                _ => {}
            }
            results.extend(call.make(&builder)?);
        }
        let names = fact("classes").and_then(|names| serde_json::from_value(names).ok());
        let Some(first) = first else {
            return Err(error("weights.calls", "the imported model has no output"));
        };
        Ok(Self {
            builder,
            shape,
            classes: names.unwrap_or_default(),
            first,
        })
    }

    /// What it is fed: images `[batch, channels, height, width]`, recordings `[batch, samples]`.
    fn input(&self) -> Result<Input> {
        match self.shape.len() {
            4 => Ok(Input::image()),
            2 => Ok(Input::audio()),
            _ => {
                let message = format!("a model of inputs {:?} has no data to read", self.shape);
                Err(error("model.input", message))
            }
        }
    }
}

fn read(session: &Session, output: &str) -> Result<Vec<f32>> {
    let mut bytes = Vec::new();
    loop {
        let piece = session.read(0, output, bytes.len() as u64, READ_BYTES)?;
        let last = piece.len() < READ_BYTES as usize;
        bytes.extend(piece);
        if last {
            let values = bytes.as_chunks::<4>().0.iter();
            return Ok(values.map(|four| f32::from_le_bytes(*four)).collect());
        }
    }
}

/// One line of the artifact: the classes ranked where there are names, else the numbers.
fn line(name: &str, numbers: &[f32], classes: &[String], count: usize) -> String {
    if classes.len() != numbers.len() {
        return format!("{}\n", json!({ "name": name, "output": numbers }));
    }
    let ranked: Vec<Value> = top(numbers, count)
        .into_iter()
        .map(|(i, score)| json!({ "class": classes.get(i), "score": score }))
        .collect();
    let best = ranked.first().map(|best| &best["class"]);
    format!(
        "{}\n",
        json!({ "name": name, "class": best, "top": ranked })
    )
}

/// Runs every sample of the data set `input` through the model.
fn infer() -> Result<()> {
    let parameters = Parameters::parse(&task::parameters())?;
    let model = Model::parse(&weights_metadata()?)?;
    let wanted = u32::try_from(parameters.integer("batch_size")?).unwrap_or(u32::MAX);
    let count = usize::try_from(parameters.integer("top")?).unwrap_or(usize::MAX);
    // A model that was exported for one batch size takes only that.
    let size = match model.shape.first() {
        Some(0) | None => wanted,
        Some(1) => 1,
        Some(other) => {
            let message = format!("the model takes batches of exactly {other}: export it with 1");
            return Err(error("model.input", message));
        }
    };
    if model.builder.element(model.first)? != Dtype::Float32 {
        return Err(error(
            "model.output",
            "the model's first output is no float32",
        ));
    }
    let input = model.input()?;
    let dataset = input.open("input")?;
    let loader = input.loader(&dataset, size, false)?;
    let (given, expected) = (loader.sample_shape()?, model.shape.get(1..));
    if Some(&*given) != expected {
        let expected = expected.unwrap_or_default();
        let message = format!("samples are {given:?}, the model takes {expected:?}");
        return Err(error("model.input", message));
    }
    // Samples' own classes tell how often the model is right.
    let labels = dataset.classes();
    let judged = !labels.is_empty() && labels == model.classes;
    if judged {
        let y = model.builder.input("y", Dtype::Int64, &[0])?;
        let label = model.builder.cast(y, Dtype::Float32)?;
        model.builder.output("label", label)?;
    }
    let mut matrix = ConfusionMatrix::new(labels.len());
    let plan = Plan::create(&model.builder, size, &[])?;
    let lease = lease(&[&plan])?;
    let session = Session::open(&[&plan], &lease)?;
    session.load()?;
    let (total, mut done) = (dataset.length(), 0);
    loader.start(0)?;
    loop {
        let samples = session.step(0, &loader)?;
        if samples == 0 {
            break;
        }
        let numbers = read(&session, FIRST)?;
        let truths = if judged {
            read(&session, "label")?
        } else {
            Vec::new()
        };
        let each = numbers.len() / samples.max(1) as usize;
        if each == 0 || each > MOST_NUMBERS {
            let message = format!("{each} numbers a sample are not 1 to {MOST_NUMBERS}");
            return Err(error("model.output", message));
        }
        let mut lines = String::new();
        for (i, numbers) in (done..).zip(numbers.chunks_exact(each)) {
            lines += &line(&dataset.name(i)?, numbers, &model.classes, count);
        }
        for (numbers, truth) in numbers.chunks_exact(each).zip(truths) {
            if let Some(&(predicted, _)) = top(numbers, 1).first() {
                matrix.add(truth as usize, predicted);
            }
        }
        task::artifact(ARTIFACT, lines.as_bytes())?;
        done += u64::from(samples);
        let message = format!("{done} of {total} samples");
        task::progress(done as f64 / total.max(1) as f64, &message);
    }
    let mut values = vec![("samples".to_owned(), done as f64)];
    if let Some(accuracy) = matrix.accuracy() {
        values.push(("accuracy".to_owned(), 100.0 * accuracy));
    }
    task::metrics(1, 1, "completed", &values);
    task::log("info", &format!("{done} results in {ARTIFACT}"));
    Ok(())
}

struct Imported;

impl Guest for Imported {
    fn describe() -> String {
        let number = |default: u64, maximum: u64, description: &str| {
            json!({
                "type": "integer",
                "default": default,
                "minimum": 1,
                "maximum": maximum,
                "description": description,
            })
        };
        json!({
            "name": "imported",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Runs models that `hangar import` read",
            "kinds": ["inference"],
            "models": [{ "name": "imported", "description": "The model of the weights" }],
            "parameters": { "inference": { "type": "object", "properties": {
                "batch_size": number(16, 65_536, "Samples in a step"),
                "top": number(3, 1000, "Classes listed with each sample"),
            } } },
        })
        .to_string()
    }

    fn run(kind: String) -> Result<()> {
        match &*kind {
            "inference" => infer(),
            _ => Err(error("task.kind", "imported models only do inference")),
        }
    }
}

hangar_sdk::bindings::export_plugin!(Imported with_types_in hangar_sdk::bindings);
