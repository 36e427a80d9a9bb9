//! How far a training is: what its checkpoints say of it, and what it goes on from.

use serde_json::{Map, Value};

use crate::error::{Error, Result, error};

/// Parameters that may be others when a training goes on: no step depends on them.
const FREE: [&str; 3] = ["epochs", "patience", "min_delta"];
/// The parameters of the task that saved a state, as the host writes them.
const PARAMETERS: &str = "hangar.parameters";

type Metadata = [(String, String)];

/// What a training goes on from, besides what the host's state holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Progress {
    /// Epochs done.
    pub(crate) epochs: u64,
    /// The highest validation accuracy, percent; −∞ before the first epoch.
    pub(crate) best: f64,
    /// The epoch that had it.
    pub(crate) best_epoch: u64,
    /// The validation accuracy that early stopping compares with.
    watched: f64,
    /// Epochs since it was reached.
    waited: u64,
    /// The last epoch's metrics.
    pub(crate) metrics: Vec<(String, f64)>,
    /// The best epoch's confusion matrix, as the log has it.
    pub(crate) confusion: Vec<String>,
}

impl Progress {
    /// Of a training that begins.
    pub(crate) fn none() -> Self {
        Self {
            epochs: 0,
            best: f64::NEG_INFINITY,
            best_epoch: 0,
            watched: f64::NEG_INFINITY,
            waited: 0,
            metrics: Vec::new(),
            confusion: Vec::new(),
        }
    }

    /// Notes an epoch's validation accuracy, percent. Gives whether it is the best so far. Early
    /// stopping takes only what is better by more than `least` for better.
    pub(crate) fn note(&mut self, epoch: u64, accuracy: f64, least: f64) -> bool {
        self.epochs = epoch;
        if accuracy > self.watched + least {
            self.watched = accuracy;
            self.waited = 0;
        } else {
            self.waited += 1;
        }
        let better = accuracy > self.best;
        if better {
            self.best = accuracy;
            self.best_epoch = epoch;
        }
        better
    }

    /// Whether `patience` epochs in a row were not better. A patience of 0 has no end.
    pub(crate) fn is_stopped(&self, patience: u64) -> bool {
        patience > 0 && self.waited >= patience
    }

    /// As metadata. Rust writes numbers so that they are read back bit for bit.
    pub(crate) fn metadata(&self) -> Vec<(String, String)> {
        let metrics = self.metrics.iter();
        let metrics: Vec<String> = metrics
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        [
            ("epoch", self.epochs.to_string()),
            ("best_acc", self.best.to_string()),
            ("best_epoch", self.best_epoch.to_string()),
            ("watched_acc", self.watched.to_string()),
            ("epochs_waited", self.waited.to_string()),
            ("metrics", metrics.join("\n")),
            ("confusion", self.confusion.join("\n")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    }

    /// From a state's metadata. Errors: `resume.format`.
    pub(crate) fn parse(metadata: &Metadata) -> Result<Self> {
        fn read<T: std::str::FromStr>(metadata: &Metadata, key: &str) -> Result<T> {
            get(metadata, key)?.parse().map_err(|_| malformed(key))
        }
        let lines = |key: &str| -> Result<Vec<String>> {
            Ok(get(metadata, key)?.lines().map(str::to_owned).collect())
        };
        let metric = |line: String| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        let metrics: Option<Vec<_>> = lines("metrics")?.into_iter().map(metric).collect();
        Ok(Self {
            epochs: read(metadata, "epoch")?,
            best: read(metadata, "best_acc")?,
            best_epoch: read(metadata, "best_epoch")?,
            watched: read(metadata, "watched_acc")?,
            waited: read(metadata, "epochs_waited")?,
            metrics: metrics.ok_or_else(|| malformed("metrics"))?,
            confusion: lines("confusion")?,
        })
    }
}

fn malformed(key: &str) -> Error {
    let message = format!("the state to resume from has no usable `{key}` in its metadata");
    error("resume.format", message)
}

fn get<'a>(metadata: &'a Metadata, key: &str) -> Result<&'a str> {
    let found = metadata.iter().find(|(known, _)| known == key);
    found
        .map(|(_, value)| value.as_str())
        .ok_or_else(|| malformed(key))
}

/// Refuses to go on with another training than the one that saved the state: `facts` (plugin, model,
/// classes, data) and the parameters are as they were, but for those that no step depends on.
/// Errors: `resume.differs`, `resume.format`.
pub(crate) fn check(
    stored: &Metadata,
    facts: &Metadata,
    parameters: &Map<String, Value>,
) -> Result<()> {
    let mut differences = Vec::new();
    for (key, value) in facts {
        let before = get(stored, key)?;
        if before != value {
            differences.push(format!("{key} was {before}, is {value}"));
        }
    }
    let before: Map<String, Value> =
        serde_json::from_str(get(stored, PARAMETERS)?).map_err(|_| malformed(PARAMETERS))?;
    for (name, value) in parameters {
        // One that a newer version of the plugin has was not there before.
        let other = before.get(name).filter(|before| *before != value);
        let compared = !FREE.contains(&name.as_str()) && !facts.iter().any(|(key, _)| key == name);
        if let Some(before) = other.filter(|_| compared) {
            differences.push(format!("{name} was {before}, is {value}"));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the training to resume differs: {}; only {} may change: begin a new training instead",
        differences.join("; "),
        FREE.join(", ")
    );
    Err(error("resume.differs", message))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::{PARAMETERS, Progress, check};

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn progress_is_read_back_bit_for_bit() {
        let mut progress = Progress::none();
        assert_eq!(Progress::parse(&progress.metadata()).unwrap(), progress);
        progress.note(1, 100.0 / 3.0, 0.1);
        progress.note(2, 1e-300, 0.1);
        progress.metrics = vec![("train_loss".into(), 0.1 + 0.2), ("mAP".into(), 1.0 / 3.0)];
        progress.confusion = vec!["cats 1 2".into(), "grey dogs 3 4".into()];
        assert_eq!(Progress::parse(&progress.metadata()).unwrap(), progress);
        let refusal = Progress::parse(&progress.metadata()[1..]).unwrap_err();
        assert_eq!(refusal.code, "resume.format");
        assert!(refusal.message.contains("epoch"));
    }

    #[test]
    fn early_stopping_waits_for_what_is_better_by_more_than_the_least() {
        let mut progress = Progress::none();
        assert!(progress.note(1, 50.0, 1.0));
        assert!(
            progress.note(2, 50.5, 1.0),
            "the best weights are kept all the same"
        );
        assert!(!progress.is_stopped(2) && progress.is_stopped(1));
        assert!(!progress.note(3, 50.0, 1.0));
        assert!(progress.is_stopped(2) && !progress.is_stopped(0));
        assert_eq!((progress.best, progress.best_epoch), (50.5, 2));
        progress.note(4, 51.5, 1.0);
        assert!(!progress.is_stopped(1));
    }

    #[test]
    fn another_model_class_list_data_or_parameter_is_refused_and_named() {
        let facts = pairs(&[("model", "cnn"), ("classes", "[\"a\"]"), ("data", "1 2")]);
        let given = json!({"model": "cnn", "epochs": 4, "learning_rate": 0.1, "patience": 0});
        let mut stored = facts.clone();
        stored.push((PARAMETERS.to_owned(), given.to_string()));
        let more =
            json!({"model": "cnn", "epochs": 9, "learning_rate": 0.1, "patience": 3, "new": 1});
        check(&stored, &facts, &object(more)).unwrap();
        for (key, value) in [("model", "mlp"), ("classes", "[]"), ("data", "1 3")] {
            let mut other = facts.clone();
            other.iter_mut().find(|(known, _)| known == key).unwrap().1 = value.to_owned();
            let refusal = check(&stored, &other, &object(given.clone())).unwrap_err();
            assert_eq!(refusal.code, "resume.differs", "{key}");
            assert!(
                refusal.message.contains(&format!("{key} was ")),
                "{}",
                refusal.message
            );
        }
        let faster = json!({"model": "cnn", "epochs": 4, "learning_rate": 0.2});
        let refusal = check(&stored, &facts, &object(faster)).unwrap_err();
        assert!(
            refusal.message.contains("learning_rate was 0.1, is 0.2"),
            "{}",
            refusal.message
        );
    }
}
