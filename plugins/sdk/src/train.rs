//! Training a classifier: epochs of steps, validation, metrics, checkpoints.

use serde_json::json;

use crate::checkpoint::{self, Progress};
use crate::error::{Error, Result, error};
use crate::graph::{Graph, Mode, Tensor};
use crate::host::data::{Dataset, Loader, granted};
use crate::host::devices::{Lease, Request};
use crate::host::model::{Plan, Session, reserve, resume_metadata, weights_metadata};
use crate::host::task;
use crate::host::types::Dtype;
use crate::infer::read;
use crate::input::Input;
use crate::metrics::ConfusionMatrix;
use crate::parameters::Parameters;
use crate::pipeline::{Model, Optimizer, Pipeline, plan_options};
use crate::schedule::Schedule;
use crate::scores::Scores;

/// The plans of a training session, in the order of [`Session::open`].
const TRAIN: u32 = 0;
const EVALUATE: u32 = 1;

/// Progress is reported this many times in a training, at most.
const PROGRESS_REPORTS: u64 = 200;

/// The file of the best epoch's confusion matrix, beside the weights of that epoch.
const CONFUSION: &str = "confusion.json";
/// Confusion matrices of more classes are too wide for the log.
const LOGGED_CLASSES: usize = 20;

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
    recompute: bool,
    plan: Vec<(String, String)>,
    head: String,
    patience: u64,
    min_delta: f64,
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
            recompute: parameters.boolean("recompute")?,
            plan: plan_options(parameters)?,
            head: parameters.text("head")?.to_owned(),
            patience: parameters.integer("patience")?,
            min_delta: parameters.number("min_delta")?,
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
fn datasets(input: &Input, settings: &Settings) -> Result<(Dataset, Dataset)> {
    let training = input.open("train")?;
    if granted().iter().any(|name| name == "validation") {
        // A class may have no validation sample; one that training lacks is refused.
        let validation = input
            .open("validation")?
            .with_classes(&training.classes())?;
        return Ok((training, validation));
    }
    training.split(1.0 - settings.validation_fraction, settings.seed)
}

/// The class names, of which there are two or more: as many as the parameter `classes` says, where a
/// plugin has one and it is not 0.
fn classes(training: &Dataset, parameters: &Parameters) -> Result<(Vec<String>, u32)> {
    let classes = training.classes();
    let refuse = |message: String| Err(error("data.classes", message));
    let count = u32::try_from(classes.len()).unwrap_or(u32::MAX);
    if count < 2 {
        let message = format!("the training data has {count} classes: give data with two or more");
        return refuse(message);
    }
    let wanted = parameters.integer("classes").unwrap_or(0);
    if wanted > 0 && wanted != u64::from(count) {
        const LISTED: usize = 10;
        let listed: Vec<&str> = classes.iter().take(LISTED).map(String::as_str).collect();
        let more = if classes.len() > LISTED { ", …" } else { "" };
        return refuse(format!(
            "{wanted} classes are asked for, and the training data has {count}: {}{more}",
            listed.join(", ")
        ));
    }
    Ok((classes, count))
}

/// Builds the graph of a model: the scalar output `loss`, and in training `correct`, else `scores`
/// `[batch, classes + 1]`, the probabilities and then the label.
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
    if graph.mode() == Mode::Train {
        graph.output("correct", &logits.correct(&y)?)?;
    } else {
        let label = y.cast(Dtype::Float32)?.reshape(&[0, 1])?;
        graph.output("scores", &logits.softmax(1)?.concat(&[&label], 1)?)?;
    }
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

fn named(values: &[(&str, f64)]) -> Vec<(String, f64)> {
    let owned = |&(name, value): &(&str, f64)| (name.to_owned(), value);
    values.iter().map(owned).collect()
}

/// The lines of a confusion matrix for the log; none where it is too wide.
fn confusion_lines(matrix: &ConfusionMatrix, classes: &[String]) -> Vec<String> {
    if classes.len() > LOGGED_CLASSES {
        return Vec::new();
    }
    let line = |(row, class): (&[u64], &String)| {
        let counts: Vec<String> = row.iter().map(u64::to_string).collect();
        // A class name with line ends would not be read back from a state.
        let class: String = class
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("{class}: {}", counts.join(" "))
    };
    matrix.rows().zip(classes).map(line).collect()
}

/// A training under way.
struct Trainer<'a> {
    settings: &'a Settings,
    session: Session,
    training: Loader,
    validation: Loader,
    validation_samples: u64,
    classes: &'a [String],
    /// Facts of the training, which every checkpoint has.
    facts: Vec<(String, String)>,
    progress: Progress,
}

impl Trainer<'_> {
    /// One epoch, numbered from 1: training, validation, metrics, checkpoints.
    fn epoch(&mut self, epoch: u64) -> Result<()> {
        let epochs = self.settings.epochs;
        let rate = self.session.current_learning_rate();
        let rates = named(&[("learning_rate", rate)]);
        task::metrics(epoch, epochs, "epoch_start", &rates);
        let (train_loss, train_accuracy) = self.train(epoch)?;
        let trained = named(&[("train_loss", train_loss), ("train_acc", train_accuracy)]);
        task::metrics(epoch, epochs, "training", &trained);
        let (loss, scores) = self.validate(epoch)?;
        let accuracy = 100.0 * scores.matrix().accuracy().unwrap_or(0.0);
        let mut validated = named(&[("val_loss", loss)]);
        // The host counts calls to see that the plugin is alive.
        validated.extend(named(&scores.values(|| {
            task::cancelled();
        })));
        task::metrics(epoch, epochs, "validation", &validated);
        let better = self.progress.note(epoch, accuracy, self.settings.min_delta);
        let best = named(&[("best_acc", self.progress.best)]);
        self.progress.metrics = [trained, validated, rates, best].concat();
        if better {
            self.progress.confusion = confusion_lines(scores.matrix(), self.classes);
        }
        self.save(better.then(|| scores.matrix()), accuracy)?;
        task::metrics(epoch, epochs, "epoch_end", &self.progress.metrics);
        task::log(
            "info",
            &format!(
                "epoch {epoch} of {epochs}: training loss {train_loss:.4}, accuracy {train_accuracy:.2} %; validation loss {loss:.4}, accuracy {accuracy:.2} %"
            ),
        );
        Ok(())
    }

    /// Trains on all batches: the mean loss, and the accuracy in percent.
    fn train(&self, epoch: u64) -> Result<(f64, f64)> {
        self.training.start(epoch - 1)?;
        let (steps, epochs) = (self.training.steps().max(1), self.settings.epochs);
        let period = (steps.saturating_mul(epochs) / PROGRESS_REPORTS).max(1);
        let message = format!("epoch {epoch} of {epochs}");
        let mut step = 0;
        while self.session.step(TRAIN, &self.training)? > 0 {
            step += 1;
            if step % period == 0 {
                task::progress(fraction(epoch, epochs, step, steps), &message);
            }
        }
        let loss = self.session.mean(TRAIN, "loss")?;
        if !loss.is_finite() {
            let message = format!(
                "the loss is {loss} in epoch {epoch}: lower learning_rate, now {}",
                self.settings.learning_rate
            );
            return Err(error("training.diverged", message));
        }
        Ok((loss, 100.0 * self.session.mean(TRAIN, "correct")?))
    }

    /// The mean loss and the scores on the validation data.
    fn validate(&self, epoch: u64) -> Result<(f64, Scores)> {
        let mut scores = Scores::new(self.classes.len(), self.validation_samples);
        if scores.too_many() && epoch == 1 {
            let message = "so many validation samples and classes have no mAP";
            task::log("warning", message);
        }
        self.validation.start(epoch - 1)?;
        while self.session.step(EVALUATE, &self.validation)? > 0 {
            let values = read(&self.session, EVALUATE, "scores")?;
            for row in values.chunks_exact(self.classes.len() + 1) {
                if let Some((label, probabilities)) = row.split_last() {
                    scores.add(probabilities, *label as usize);
                }
            }
        }
        Ok((self.session.mean(EVALUATE, "loss")?, scores))
    }

    /// Saves the checkpoints of an epoch, and its confusion matrix where it is the best. The state
    /// comes last: what is there before it is made again where the training goes on from an earlier
    /// one.
    fn save(&self, best: Option<&ConfusionMatrix>, accuracy: f64) -> Result<()> {
        let epoch = self.progress.epochs;
        let mut metadata = self.facts.clone();
        metadata.push(("epoch".to_owned(), epoch.to_string()));
        metadata.push(("val_acc".to_owned(), accuracy.to_string()));
        if let Some(matrix) = best {
            self.session.save("best", &metadata)?;
            let rows: Vec<&[u64]> = matrix.rows().collect();
            let confusion = json!({ "epoch": epoch, "classes": self.classes, "matrix": rows });
            task::replace_artifact(CONFUSION, confusion.to_string().as_bytes())?;
        }
        self.session.save("last", &metadata)?;
        let state = [self.facts.clone(), self.progress.metadata()].concat();
        self.session.save_state("last", &state)
    }

    /// Epochs up to the last, or until early stopping.
    fn run(&mut self) -> Result<()> {
        let (epochs, patience) = (self.settings.epochs, self.settings.patience);
        while self.progress.epochs < epochs && !self.progress.is_stopped(patience) {
            let epoch = self.progress.epochs + 1;
            self.epoch(epoch)
                .inspect_err(|error| say_if_cancelled(error, epoch))?;
        }
        let Progress {
            epochs: done,
            best,
            best_epoch,
            ..
        } = self.progress;
        if done < epochs {
            let message = format!(
                "stopped early after epoch {done}: no accuracy above {best:.2} % in {patience} epochs"
            );
            task::log("info", &message);
        }
        task::metrics(done, epochs, "completed", &self.progress.metrics);
        task::log(
            "info",
            &format!("the best is epoch {best_epoch}, with a validation accuracy of {best:.2} %"),
        );
        if !self.progress.confusion.is_empty() {
            let message = "its confusion matrix: a line for each true class, a column for each \
                           predicted one in the same order";
            task::log("info", message);
        }
        for line in &self.progress.confusion {
            task::log("info", line);
        }
        task::progress(1.0, "completed");
        Ok(())
    }
}

/// How much of a training is done after `step` of `steps` in `epoch` (from 1) of `epochs`, 0 to 1.
fn fraction(epoch: u64, epochs: u64, step: u64, steps: u64) -> f64 {
    let done = epoch.saturating_sub(1) as f64 + step as f64 / steps.max(1) as f64;
    (done / epochs.max(1) as f64).min(1.0)
}

/// What every checkpoint says of the training, and what one that goes on must have in common with it.
fn facts(
    pipeline: &Pipeline,
    model: Model,
    classes: &[String],
    data: [&Dataset; 2],
) -> Vec<(String, String)> {
    let fingerprint = |data: &Dataset| data.property("fingerprint").unwrap_or_default();
    [
        ("plugin", pipeline.name.to_owned()),
        ("model", model.name.to_owned()),
        ("classes", json!(classes).to_string()),
        ("data", data.map(fingerprint).join(" ")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// The state that the task resumes from, by its metadata; none where it begins anew.
fn resumed(facts: &[(String, String)]) -> Result<Option<Progress>> {
    let stored = match resume_metadata() {
        Err(error) if error.code == "resume.none" => return Ok(None),
        other => other?,
    };
    // As the host has them, which is how they were saved.
    let parameters = Parameters::parse(&task::parameters())?;
    checkpoint::check(&stored, facts, parameters.members())?;
    Progress::parse(&stored).map(Some)
}

/// Trains the chosen model. After each epoch there are the checkpoints `best` (highest validation
/// accuracy) and `last`, and the state that a later training goes on from.
pub(crate) fn run(pipeline: &Pipeline, parameters: &Parameters) -> Result<()> {
    let settings = Settings::read(pipeline, parameters)?;
    let model = pipeline.chosen(parameters)?;
    let input = pipeline.input.for_training(parameters)?;
    let (training, validation) = datasets(&input, &settings)?;
    let (classes, count) = classes(&training, parameters)?;
    let mut facts = facts(pipeline, model, &classes, [&training, &validation]);
    let resumed = resumed(&facts)?;
    facts.push(("plugin_version".to_owned(), pipeline.version.to_owned()));
    facts.push(("parameters".to_owned(), task::parameters()));
    facts.extend(input.metadata());
    task::log(
        "info",
        &format!(
            "{} training and {} validation samples of {count} classes",
            training.length(),
            validation.length()
        ),
    );

    let validation_samples = validation.length();
    let training = input.loader(&training, settings.batch_size, true)?;
    if settings.shuffle {
        training.shuffle(settings.seed);
    }
    let validation = input.loader(&validation, settings.batch_size, false)?;
    let shape = training.sample_shape()?;
    let train = Graph::new(Mode::Train, settings.seed);
    train.recompute_blocks(settings.recompute);
    let loss = classifier(&train, model, &shape, count, settings.label_smoothing)?;
    train.minimize(&loss, &settings.optimizer)?;
    let evaluate = Graph::new(Mode::Evaluate, settings.seed);
    classifier(&evaluate, model, &shape, count, 0.0)?;
    let train = Plan::create(train.builder(), settings.batch_size, &settings.plan)?;
    let evaluate = Plan::create(evaluate.builder(), settings.batch_size, &settings.plan)?;

    let plans = [&train, &evaluate];
    let lease = lease(&plans)?;
    let session = Session::open(&plans, &lease)?;
    let progress = match resumed {
        None => {
            start_from_weights(&session, &settings.head)?;
            Progress::none()
        }
        Some(progress) => {
            session.load_state()?;
            let message = format!("goes on after epoch {}", progress.epochs);
            task::log("info", &message);
            progress
        }
    };
    let options = settings.schedule.options(settings.epochs, training.steps());
    session.learning_rate(settings.learning_rate, settings.schedule.name(), &options)?;
    let mut trainer = Trainer {
        settings: &settings,
        session,
        training,
        validation,
        validation_samples,
        classes: &classes,
        facts,
        progress,
    };
    trainer.run()
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
    use super::{batch_size, confusion_lines, fraction};
    use crate::metrics::ConfusionMatrix;
    use crate::parameters::Parameters;

    #[test]
    fn a_confusion_matrix_is_a_line_a_class_where_it_is_not_too_wide() {
        let mut matrix = ConfusionMatrix::new(2);
        matrix.add(0, 1);
        matrix.add(1, 1);
        let classes = ["no\n".to_owned(), "yes".to_owned()];
        assert_eq!(confusion_lines(&matrix, &classes), ["no : 0 1", "yes: 0 1"]);
        let many: Vec<String> = (0..21).map(|class| class.to_string()).collect();
        assert!(confusion_lines(&ConfusionMatrix::new(21), &many).is_empty());
    }

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
