//! Inference of a classifier: predictions as an artifact, accuracy where samples have labels.

use serde_json::{Value, json};

use crate::error::{Result, error};
use crate::graph::{Graph, Mode};
use crate::host::data::Dataset;
use crate::host::model::{Plan, Session, weights_metadata};
use crate::host::task;
use crate::host::types::Dtype;
use crate::metrics::{ConfusionMatrix, top};
use crate::parameters::Parameters;
use crate::pipeline::{Model, Pipeline, plan_options};
use crate::train::{batch_size, lease};

/// The file of predictions in the task's folder: one JSON object a line.
const ARTIFACT: &str = "predictions.jsonl";
/// The host reads at most this many bytes of an output at once.
const READ_BYTES: u32 = 1 << 20;
/// The only plan of an inference session.
const PREDICT: u32 = 0;

/// What the weights' metadata says.
struct Weights {
    classes: Vec<String>,
    model: Option<String>,
}

impl Weights {
    fn parse(plugin: &str, metadata: &[(String, String)]) -> Result<Self> {
        let get = |key: &str| {
            metadata
                .iter()
                .find(|pair| pair.0 == key)
                .map(|pair| pair.1.as_str())
        };
        if let Some(other) = get("plugin").filter(|other| *other != plugin) {
            let message = format!(
                "these weights are of the plugin {other}, not of {plugin}: run that plugin"
            );
            return Err(error("weights.plugin", message));
        }
        let classes: Vec<String> = get("classes")
            .and_then(|text| serde_json::from_str(text).ok())
            .filter(|classes: &Vec<String>| !classes.is_empty())
            .ok_or_else(|| {
                let message = "the weights' metadata has no class names (`classes`, a JSON list): \
                               give weights that this plugin saved";
                error("weights.classes", message)
            })?;
        Ok(Self {
            classes,
            model: get("model").map(str::to_owned),
        })
    }
}

/// Little-endian float32 of an output of a plan's last run.
pub(crate) fn read(session: &Session, plan: u32, output: &str) -> Result<Vec<f32>> {
    let mut bytes = Vec::new();
    loop {
        let piece = session.read(plan, output, bytes.len() as u64, READ_BYTES)?;
        let last = piece.len() < READ_BYTES as usize;
        bytes.extend(piece);
        if last {
            let values = bytes.as_chunks::<4>().0.iter();
            return Ok(values.map(|four| f32::from_le_bytes(*four)).collect());
        }
    }
}

/// One line of the artifact. `label` is the true class, where it is known.
fn line(name: &str, ranked: &[(usize, f32)], classes: &[String], label: Option<&str>) -> String {
    let class = |index: usize| classes.get(index).map_or("", String::as_str);
    let top: Vec<Value> = ranked
        .iter()
        .map(|&(index, probability)| json!({ "class": class(index), "confidence": probability }))
        .collect();
    let (best, confidence) = ranked.first().copied().unwrap_or((usize::MAX, 0.0));
    let mut prediction = json!({ "name": name, "class": class(best), "confidence": confidence });
    if let (Some(label), Some(members)) = (label, prediction.as_object_mut()) {
        members.insert("label".to_owned(), label.into());
    }
    if let Some(members) = prediction.as_object_mut() {
        members.insert("top".to_owned(), top.into());
    }
    format!("{prediction}\n")
}

/// The graph: `probabilities` `[batch, classes]`, and `label` `[batch]` where samples have labels.
fn graph(model: Model, shape: &[u32], classes: u32, labelled: bool) -> Result<Graph> {
    let graph = Graph::new(Mode::Evaluate, 0);
    let batch: Vec<u32> = std::iter::once(0).chain(shape.iter().copied()).collect();
    let x = graph.input("x", Dtype::Float32, &batch)?;
    graph.output("probabilities", &(model.build)(&x, classes)?.softmax(1)?)?;
    if labelled {
        let y = graph.input("y", Dtype::Int64, &[0])?;
        graph.output("label", &y.cast(Dtype::Float32)?)?;
    }
    Ok(graph)
}

/// The predictions made so far.
struct Predictions<'a> {
    dataset: &'a Dataset,
    classes: Vec<String>,
    /// The class names of the data, in the order of its labels; empty where it has none.
    labels: Vec<String>,
    top: usize,
    done: u64,
    matrix: ConfusionMatrix,
}

impl Predictions<'_> {
    /// Writes the predictions of the session's last batch of `samples`.
    fn write(&mut self, session: &Session, samples: u32) -> Result<()> {
        let probabilities = read(session, PREDICT, "probabilities")?;
        let labels = if self.labels.is_empty() {
            Vec::new()
        } else {
            read(session, PREDICT, "label")?
        };
        let mut lines = String::new();
        for (row, probabilities) in probabilities.chunks_exact(self.classes.len()).enumerate() {
            let ranked = top(probabilities, self.top);
            let label = labels
                .get(row)
                .and_then(|label| self.labels.get(*label as usize));
            let truth =
                label.and_then(|label| self.classes.iter().position(|class| class == label));
            if let (Some(truth), Some(&(predicted, _))) = (truth, ranked.first()) {
                self.matrix.add(truth, predicted);
            }
            let name = self.dataset.name(self.done + row as u64)?;
            lines += &line(&name, &ranked, &self.classes, label.map(String::as_str));
        }
        self.done += u64::from(samples);
        task::artifact(ARTIFACT, lines.as_bytes())
    }

    /// Metrics and the last line of the log.
    fn summarize(&self) {
        let mut values = vec![("samples".to_owned(), self.done as f64)];
        let mut message = format!("{} predictions in {ARTIFACT}", self.done);
        if let (Some(accuracy), Some(f1)) = (self.matrix.accuracy(), self.matrix.macro_f1()) {
            values.push(("accuracy".to_owned(), 100.0 * accuracy));
            values.push(("macro_f1".to_owned(), f1));
            message += &format!(
                "; accuracy {:.2} %, macro F1 {:.2} % on {} labelled samples",
                100.0 * accuracy,
                100.0 * f1,
                self.matrix.total()
            );
        }
        task::metrics(1, 1, "completed", &values);
        task::log("info", &message);
    }
}

/// Predicts the class of every sample of the data set `input` with the weights given to the task.
pub(crate) fn run(pipeline: &Pipeline, parameters: &Parameters) -> Result<()> {
    let metadata = weights_metadata()?;
    let weights = Weights::parse(pipeline.name, &metadata)?;
    let input = pipeline.input.for_inference(parameters, &metadata)?;
    let model = match &weights.model {
        Some(name) => pipeline.model(name)?,
        None => pipeline.chosen(parameters)?,
    };
    let size = batch_size(parameters)?;
    let dataset = input.open("input")?;
    let loader = input.loader(&dataset, size, false)?;
    let labels = dataset.classes();
    let classes = u32::try_from(weights.classes.len()).unwrap_or(u32::MAX);
    let graph = graph(model, &loader.sample_shape()?, classes, !labels.is_empty())?;
    let plan = Plan::create(graph.builder(), size, &plan_options(parameters)?)?;
    let lease = lease(&[&plan])?;
    let session = Session::open(&[&plan], &lease)?;
    session.load()?;

    let mut predictions = Predictions {
        dataset: &dataset,
        matrix: ConfusionMatrix::new(weights.classes.len()),
        classes: weights.classes,
        labels,
        top: usize::try_from(parameters.integer("top")?).unwrap_or(usize::MAX),
        done: 0,
    };
    let total = dataset.length();
    loader.start(0)?;
    loop {
        let samples = session.step(PREDICT, &loader)?;
        if samples == 0 {
            break;
        }
        predictions.write(&session, samples)?;
        let message = format!("{} of {total} samples", predictions.done);
        task::progress(predictions.done as f64 / total.max(1) as f64, &message);
    }
    predictions.summarize();
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{Weights, line};

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn the_classes_and_the_model_come_from_the_weights() {
        let metadata = pairs(&[
            ("plugin", "digits"),
            ("model", "cnn"),
            ("classes", r#"["no","yes"]"#),
        ]);
        let weights = Weights::parse("digits", &metadata).unwrap();
        assert_eq!(
            (weights.classes.len(), weights.model.as_deref()),
            (2, Some("cnn"))
        );
    }

    #[test]
    fn weights_of_another_plugin_or_without_classes_are_refused() {
        let other = Weights::parse("digits", &pairs(&[("plugin", "birds")]))
            .err()
            .unwrap();
        assert_eq!(other.code, "weights.plugin");
        for classes in ["[]", "{}", "zero"] {
            let refusal = Weights::parse("digits", &pairs(&[("classes", classes)]))
                .err()
                .unwrap();
            assert_eq!(refusal.code, "weights.classes");
        }
    }

    #[test]
    fn a_line_holds_name_class_confidence_label_and_the_ranked_classes() {
        let classes = ["no".to_owned(), "yes".to_owned()];
        let text = line("a.wav", &[(1, 0.75), (0, 0.25)], &classes, Some("yes"));
        assert!(text.ends_with('\n'));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["name"], &value["class"], &value["label"]),
            (&"a.wav".into(), &"yes".into(), &"yes".into())
        );
        assert_eq!(value["confidence"], 0.75);
        assert_eq!(value["top"][1]["class"], "no");
    }

    #[test]
    fn a_line_of_an_unlabelled_sample_has_no_label() {
        let text = line("a.wav", &[(0, 1.0)], &["no".to_owned()], None);
        assert!(!text.contains("label"));
    }
}
