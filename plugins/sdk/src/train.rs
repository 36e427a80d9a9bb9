//! Training a classifier: epochs of steps, validation, metrics, checkpoints.

use serde_json::json;

use crate::error::{Error, Result, error};
use crate::graph::{Graph, Mode, Tensor};
use crate::host::data::{Dataset, Loader, granted};
use crate::host::devices::{Lease, Request};
use crate::host::model::{Plan, Session, reserve, weights_metadata};
use crate::host::task;
use crate::host::types::Dtype;
use crate::parameters::Parameters;
use crate::pipeline::{Model, Optimizer, Pipeline};
use crate::schedule::Schedule;

/// The plans of a training session, in the order of [`Session::open`].
const TRAIN: u32 = 0;
const EVALUATE: u32 = 1;

/// Progress is reported this many times in a training, at most.
const PROGRESS_REPORTS: u64 = 200;

/// What the user set, read once.
struct Settings {
    epochs: u64,
    batch_size: u32,
    learning_rate: f64,
    optimizer: Optimizer,
    schedule: Schedule,
    label_smoothing: f64,
    validation_fraction: f64,
    seed: u64,
    shuffle: bool,
    head: String,
}

impl Settings {
    fn read(pipeline: &Pipeline, parameters: &Parameters) -> Result<Self> {
        let epochs = parameters.integer("epochs")?;
        let unknown = |what: &str, name: &str, known: &[&str]| {
            error(
                "parameters.value",
                format!(
                    "the {what} {name} does not exist: choose one of {}",
                    known.join(", ")
                ),
            )
        };
        let optimizer = parameters.text("optimizer")?;
        let schedule = parameters.text("schedule")?;
        let training = &pipeline.training;
        Ok(Self {
            epochs,
            batch_size: batch_size(parameters)?,
            learning_rate: parameters.number("learning_rate")?,
            optimizer: training
                .optimizer
                .named(optimizer, parameters.number("weight_decay")?)
                .ok_or_else(|| unknown("optimizer", optimizer, &Optimizer::NAMES))?,
            schedule: training
                .schedule
                .named(schedule, epochs)
                .ok_or_else(|| unknown("schedule", schedule, &Schedule::NAMES))?,
            label_smoothing: parameters.number("label_smoothing")?,
            validation_fraction: parameters.number("validation_fraction")?,
            seed: parameters.integer("seed")?,
            shuffle: parameters.boolean("shuffle")?,
            head: parameters.text("head")?.to_owned(),
        })
    }
}

/// The parameter `batch_size` as the host takes it.
pub(crate) fn batch_size(parameters: &Parameters) -> Result<u32> {
    let size = parameters.integer("batch_size")?;
    u32::try_from(size).map_err(|_| {
        error(
            "parameters.value",
            format!("the batch size {size} is above the largest, {}", u32::MAX),
        )
    })
}

/// The training data and the validation data: what the user granted, or a part of each class.
fn datasets(pipeline: &Pipeline, settings: &Settings) -> Result<(Dataset, Dataset)> {
    let training = pipeline.input.open("train")?;
    if granted().iter().any(|name| name == "validation") {
        let validation = pipeline.input.open("validation")?;
        if validation.classes() != training.classes() {
            let message = format!(
                "the validation data has the classes {:?}, the training data {:?}: give both the same",
                validation.classes(),
                training.classes()
            );
            return Err(error("data.classes", message));
        }
        return Ok((training, validation));
    }
    training.split(1.0 - settings.validation_fraction, settings.seed)
}

/// Builds the graph of a model with the scalar outputs `loss` and `correct`.
fn classifier(
    graph: &Graph,
    model: Model,
    shape: &[u32],
    classes: u32,
    label_smoothing: f64,
) -> Result<Tensor> {
    let batch: Vec<u32> = std::iter::once(0).chain(shape.iter().copied()).collect();
    let x = graph.input("x", Dtype::Float32, &batch)?;
    let y = graph.input("y", Dtype::Int64, &[0])?;
    let logits = (model.build)(&x, classes)?;
    let loss = logits.cross_entropy(&y, label_smoothing)?;
    graph.output("loss", &loss)?;
    graph.output("correct", &logits.correct(&y)?)?;
    Ok(loss)
}

/// Tensors that PyTorch saves beside parameters: counters, and tables that are computed here.
const NOT_PARAMETERS: [&str; 3] = [
    "num_batches_tracked",
    "relative_coords_table",
    "relative_position_index",
];

/// Loads the weights that the user gave to the task, if any. Parameters whose names begin with
/// `head` start anew where the weights have none of their shape. Errors: as of
/// [`Session::load_adapted`].
pub fn start_from_weights(session: &Session, head: &str) -> Result<()> {
    match weights_metadata() {
        Err(error) if error.code == "weights.none" => return Ok(()),
        other => other?,
    };
    let mut options: Vec<_> = NOT_PARAMETERS
        .map(|name| ("ignore".to_owned(), name.to_owned()))
        .to_vec();
    if !head.is_empty() {
        options.push(("replace".to_owned(), head.to_owned()));
    }
    let anew = session.load_adapted(&options)?;
    let message = match anew.is_empty() {
        true => "starting from the weights given".to_owned(),
        false => format!(
            "starting from the weights given, but for {}",
            anew.join(", ")
        ),
    };
    task::log("info", &message);
    Ok(())
}

/// Asks for the task's device with the memory that a session of these plans needs, and says in the
/// log what was granted.
pub fn lease(plans: &[&Plan]) -> Result<Lease> {
    let request = Request::new();
    reserve(&request, plans);
    let lease = request.acquire()?;
    task::log(
        "info",
        &format!("device {}, {} bytes", lease.device(), lease.budget_bytes()),
    );
    if let Some(reason) = lease.fallback_reason() {
        task::log(
            "warning",
            &format!("{} instead of a GPU: {reason}", lease.device()),
        );
    }
    Ok(lease)
}

/// The figures of one pass over a data set.
#[derive(Debug, Clone, Copy)]
struct Figures {
    loss: f64,
    accuracy: f64,
}

impl Figures {
    fn take(session: &Session, plan: u32) -> Result<Self> {
        Ok(Self {
            loss: session.mean(plan, "loss")?,
            accuracy: 100.0 * session.mean(plan, "correct")?,
        })
    }
}

fn metrics(epoch: u64, epochs: u64, stage: &str, values: &[(&str, f64)]) {
    let values: Vec<_> = values
        .iter()
        .map(|&(name, value)| (name.to_owned(), value))
        .collect();
    task::metrics(epoch, epochs, stage, &values);
}

/// A training under way.
struct Trainer<'a> {
    settings: &'a Settings,
    session: Session,
    training: Loader,
    validation: Loader,
    metadata: Vec<(String, String)>,
    best: f64,
}

impl Trainer<'_> {
    /// One epoch, numbered from 1: training, validation, metrics, checkpoints. Gives its metrics.
    fn epoch(&mut self, epoch: u64) -> Result<Vec<(&'static str, f64)>> {
        let epochs = self.settings.epochs;
        let rate = self.session.current_learning_rate();
        metrics(epoch, epochs, "epoch_start", &[("learning_rate", rate)]);
        let train = self.pass(TRAIN, epoch)?;
        if !train.loss.is_finite() {
            let message = format!(
                "the loss is {} in epoch {epoch}: lower learning_rate, now {}",
                train.loss, self.settings.learning_rate
            );
            return Err(error("training.diverged", message));
        }
        let trained = [("train_loss", train.loss), ("train_acc", train.accuracy)];
        metrics(epoch, epochs, "training", &trained);
        let validation = self.pass(EVALUATE, epoch)?;
        let validated = [
            ("val_loss", validation.loss),
            ("val_acc", validation.accuracy),
        ];
        metrics(epoch, epochs, "validation", &validated);
        self.save("last", epoch, validation)?;
        if validation.accuracy > self.best {
            self.best = validation.accuracy;
            self.save("best", epoch, validation)?;
        }
        let all = [
            &trained[..],
            &validated,
            &[("learning_rate", rate), ("best_acc", self.best)],
        ]
        .concat();
        metrics(epoch, epochs, "epoch_end", &all);
        task::log(
            "info",
            &format!(
                "epoch {epoch} of {epochs}: training loss {:.4}, accuracy {:.2} %; validation loss {:.4}, accuracy {:.2} %",
                train.loss, train.accuracy, validation.loss, validation.accuracy
            ),
        );
        Ok(all)
    }

    /// Runs a plan over all batches of its data.
    fn pass(&self, plan: u32, epoch: u64) -> Result<Figures> {
        let loader = if plan == TRAIN {
            &self.training
        } else {
            &self.validation
        };
        loader.start(epoch - 1)?;
        let (steps, epochs) = (self.training.steps().max(1), self.settings.epochs);
        let period = (steps.saturating_mul(epochs) / PROGRESS_REPORTS).max(1);
        let message = format!("epoch {epoch} of {epochs}");
        let mut step = 0;
        while self.session.step(plan, loader)? > 0 {
            step += 1;
            if plan == TRAIN && step % period == 0 {
                task::progress(fraction(epoch, epochs, step, steps), &message);
            }
        }
        Figures::take(&self.session, plan)
    }

    fn save(&self, name: &str, epoch: u64, figures: Figures) -> Result<()> {
        let mut metadata = self.metadata.clone();
        metadata.push(("epoch".to_owned(), epoch.to_string()));
        metadata.push(("val_acc".to_owned(), figures.accuracy.to_string()));
        self.session.save(name, &metadata)
    }
}

/// How much of a training is done after `step` of `steps` in `epoch` (from 1) of `epochs`, 0 to 1.
fn fraction(epoch: u64, epochs: u64, step: u64, steps: u64) -> f64 {
    let done = epoch.saturating_sub(1) as f64 + step as f64 / steps.max(1) as f64;
    (done / epochs.max(1) as f64).min(1.0)
}

/// Trains the chosen model and keeps the checkpoints `best` (highest validation accuracy) and
/// `last`.
pub(crate) fn run(pipeline: &Pipeline, parameters: &Parameters) -> Result<()> {
    let settings = Settings::read(pipeline, parameters)?;
    let model = pipeline.chosen(parameters)?;
    let (training, validation) = datasets(pipeline, &settings)?;
    let classes = training.classes();
    let count = u32::try_from(classes.len())
        .ok()
        .filter(|&count| count >= 2);
    let Some(count) = count else {
        let message = format!(
            "the training data has {} classes: give data with two or more",
            classes.len()
        );
        return Err(error("data.classes", message));
    };
    let metadata = [
        ("plugin", pipeline.name.to_owned()),
        ("plugin_version", pipeline.version.to_owned()),
        ("model", model.name.to_owned()),
        ("classes", json!(classes).to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    task::log(
        "info",
        &format!(
            "{} training and {} validation samples of {count} classes",
            training.length(),
            validation.length()
        ),
    );

    let training = pipeline
        .input
        .loader(&training, settings.batch_size, true)?;
    if settings.shuffle {
        training.shuffle(settings.seed);
    }
    let validation = pipeline
        .input
        .loader(&validation, settings.batch_size, false)?;
    let shape = training.sample_shape()?;
    let train = Graph::new(Mode::Train, settings.seed);
    let loss = classifier(&train, model, &shape, count, settings.label_smoothing)?;
    train.minimize(&loss, &settings.optimizer)?;
    let evaluate = Graph::new(Mode::Evaluate, settings.seed);
    classifier(&evaluate, model, &shape, count, 0.0)?;
    let train = Plan::create(train.builder(), settings.batch_size, &[])?;
    let evaluate = Plan::create(evaluate.builder(), settings.batch_size, &[])?;

    let plans = [&train, &evaluate];
    let lease = lease(&plans)?;
    let session = Session::open(&plans, &lease)?;
    start_from_weights(&session, &settings.head)?;
    let options = settings.schedule.options(settings.epochs, training.steps());
    session.learning_rate(settings.learning_rate, settings.schedule.name(), &options)?;
    let best = f64::NEG_INFINITY;
    let mut trainer = Trainer {
        settings: &settings,
        session,
        training,
        validation,
        metadata,
        best,
    };
    let mut last = Vec::new();
    for epoch in 1..=settings.epochs {
        last = trainer
            .epoch(epoch)
            .inspect_err(|error| say_if_cancelled(error, epoch))?;
    }
    metrics(settings.epochs, settings.epochs, "completed", &last);
    task::progress(1.0, "completed");
    Ok(())
}

fn say_if_cancelled(error: &Error, epoch: u64) {
    if error.code == "task.cancelled" {
        task::log(
            "warning",
            &format!("cancelled in epoch {epoch}; the checkpoints of earlier epochs are kept"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{batch_size, fraction};
    use crate::parameters::Parameters;

    #[test]
    fn progress_counts_epochs_and_steps() {
        assert_eq!(fraction(1, 4, 0, 10), 0.0);
        assert_eq!(fraction(3, 4, 5, 10), 0.625);
        assert_eq!(fraction(4, 4, 10, 10), 1.0);
    }

    #[test]
    fn progress_of_nothing_is_a_number() {
        assert!(fraction(0, 0, 0, 0).is_finite());
    }

    #[test]
    fn a_batch_size_beyond_32_bits_is_refused_with_the_largest() {
        let parameters = Parameters::parse(r#"{"batch_size": 4294967296}"#).unwrap();
        let refusal = batch_size(&parameters).unwrap_err();
        assert_eq!(refusal.code, "parameters.value");
        assert!(refusal.message.contains("4294967295"));
    }
}
