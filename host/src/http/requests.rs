//! Requests as clients send them, checked and turned into submissions.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::inputs;
use crate::plugins::Registry;
use crate::tasks::Tasks;
use crate::tasks::deadline::MOST_SECONDS;
use crate::tasks::error::TaskError;
use crate::tasks::resume::Resume;
use crate::tasks::task::{Submission, TaskKind, TaskRecord};

/// A training, with the members of the old service and the plugin's own in `params`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Training {
    /// Required unless `resume` names a task.
    model: Option<String>,
    /// Required unless `resume` names a task.
    train_path: Option<PathBuf>,
    #[serde(default)]
    val_path: Option<PathBuf>,
    #[serde(default)]
    save_path: Option<PathBuf>,
    #[serde(default)]
    name: Option<String>,
    num_classes: Option<u64>,
    batch_size: Option<u64>,
    num_epochs: Option<u64>,
    learning_rate: Option<f64>,
    image_size: Option<u64>,
    device: Option<String>,
    gpus: Option<u32>,
    #[serde(default)]
    tf32: bool,
    /// A task that has ended, a results folder or a state file to go on from.
    #[serde(default)]
    resume: Option<String>,
    #[serde(default)]
    policy: Option<String>,
    #[serde(default)]
    weight_path: Option<PathBuf>,
    pretrained: Option<bool>,
    shuffle: Option<bool>,
    task_id: Option<String>,
    priority: Option<u8>,
    wait_seconds: Option<u64>,
    description: Option<String>,
    #[serde(default)]
    params: Map<String, Value>,
}

/// An inference.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inference {
    /// The plugin's model; the old service's configuration file named it.
    #[serde(alias = "cfg_path")]
    model: String,
    weight_path: PathBuf,
    source_path: PathBuf,
    #[serde(default)]
    save_path: Option<PathBuf>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default = "cuda")]
    device: String,
    gpus: Option<u32>,
    #[serde(default)]
    tf32: bool,
    #[serde(default)]
    policy: Option<String>,
    task_id: Option<String>,
    priority: Option<u8>,
    wait_seconds: Option<u64>,
    description: Option<String>,
    #[serde(default)]
    params: Map<String, Value>,
}

fn cuda() -> String {
    "cuda".to_owned()
}

/// Of a training that says none.
const TRAINING_PRIORITY: u8 = 5;
/// Of an inference that says none.
const INFERENCE_PRIORITY: u8 = 3;

impl Training {
    pub(super) fn submission(
        self,
        registry: &Registry,
        tasks: &Tasks,
    ) -> Result<Submission, Problem> {
        let resume = given(self.resume.map(PathBuf::from));
        let resumed = resume
            .map(|named| Resumed::find(&named, tasks))
            .transpose()?;
        let (weights, save) = (given(self.weight_path), folder(self.save_path, self.name)?);
        if resumed.is_some() && (weights.is_some() || save.is_some()) {
            return Err(Problem::invalid(
                "request.resume",
                "a training that goes on has its weights and its folder: leave out `weight_path` and \
                 `save_path`",
            ));
        }
        let earlier = resumed.as_ref().and_then(|resumed| resumed.task.as_ref());
        let missing =
            |name: &str| Problem::invalid("request.member", format!("missing field `{name}`"));
        let model = self
            .model
            .or(earlier.map(|task| format!("{}/{}", task.plugin, task.model)));
        let model = model.ok_or_else(|| missing("model"))?;
        let mut data = match (&self.train_path, earlier) {
            (Some(path), _) => vec![unusable(inputs::source("train", path, &["train"]))?],
            (None, Some(task)) => task.data.clone(),
            (None, None) => return Err(missing("train_path")),
        };
        if let Some(path) = given(self.val_path) {
            data.retain(|source| source.name != "validation");
            data.push(unusable(inputs::source(
                "validation",
                &path,
                &["validation", "test"],
            ))?);
        }
        let mut params = self.params;
        // The old members are parameters of the same meaning, where the plugin has them.
        let old = [
            ("epochs", self.num_epochs.map(Value::from)),
            ("batch-size", self.batch_size.map(Value::from)),
            ("learning-rate", self.learning_rate.map(Value::from)),
            ("image-size", self.image_size.map(Value::from)),
            ("classes", self.num_classes.map(Value::from)),
            ("pretrained", self.pretrained.map(Value::from)),
            ("shuffle", self.shuffle.map(Value::from)),
        ];
        let (plugin, model) = find(registry, &model)?;
        if let Some(schema) = plugin.description.parameters.get("training") {
            for (name, value) in old {
                let other = name.replace('-', "_");
                for name in [name, &other] {
                    if let Some(value) = &value
                        && schema.properties().contains_key(name)
                    {
                        params.entry(name).or_insert_with(|| value.clone());
                    }
                }
            }
        }
        if let Some(resumed) = &resumed {
            resumed.state.fill(&mut params);
        }
        common(Common {
            kind: TaskKind::Training,
            plugin,
            model,
            params,
            // A device of another choice may be one alone.
            gpus: self.gpus.or(earlier
                .filter(|_| self.device.is_none())
                .and_then(|task| task.gpus)),
            device: self
                .device
                .or(earlier.and_then(|task| task.device_requested.clone()))
                .unwrap_or_else(cuda),
            tf32: self.tf32 || earlier.is_some_and(|task| task.tf32),
            policy: policy(self.policy)?.or(earlier.and_then(|task| task.policy)),
            priority: self
                .priority
                .or(earlier.map(|task| task.priority))
                .unwrap_or(TRAINING_PRIORITY),
            wait_seconds: self.wait_seconds,
            data,
            weights,
            save: save.or(resumed.as_ref().map(|resumed| resumed.state.folder.clone())),
            resume: resumed.as_ref().map(|resumed| resumed.state.state.clone()),
            id: self.task_id,
            description: self.description,
        })
    }
}

/// What a training goes on from.
struct Resumed {
    state: Resume,
    /// The task, where the host knows it.
    task: Option<TaskRecord>,
}

impl Resumed {
    fn find(named: &Path, tasks: &Tasks) -> Result<Self, Problem> {
        let task = named.to_str().and_then(|id| tasks.get(id).ok());
        if let Some(task) = task.as_ref().filter(|task| !task.state.is_final()) {
            return Err(TaskError::Active {
                id: task.id.clone(),
            }
            .into());
        }
        let path = task.as_ref().map_or(named, |task| &task.output);
        let state = Resume::open(path).map_err(|error| Problem::invalid(error.code(), error))?;
        let task = match task {
            Some(task) => Some(task),
            None => tasks.training_in(&state.folder)?,
        };
        Ok(Self { state, task })
    }
}

impl Inference {
    pub(super) fn submission(self, registry: &Registry) -> Result<Submission, Problem> {
        let (plugin, model) = find(registry, &self.model)?;
        let data = vec![unusable(inputs::source(
            "input",
            &self.source_path,
            &["test", "validation"],
        ))?];
        common(Common {
            kind: TaskKind::Inference,
            plugin,
            model,
            params: self.params,
            device: self.device,
            gpus: self.gpus,
            tf32: self.tf32,
            policy: policy(self.policy)?,
            priority: self.priority.unwrap_or(INFERENCE_PRIORITY),
            wait_seconds: self.wait_seconds,
            data,
            weights: Some(self.weight_path),
            save: folder(self.save_path, self.name)?,
            resume: None,
            id: self.task_id,
            description: self.description,
        })
    }
}

/// What both kinds have.
struct Common {
    kind: TaskKind,
    plugin: std::sync::Arc<crate::plugins::Plugin>,
    model: String,
    params: Map<String, Value>,
    device: String,
    gpus: Option<u32>,
    tf32: bool,
    policy: Option<devices::Policy>,
    priority: u8,
    wait_seconds: Option<u64>,
    data: Vec<crate::tasks::task::DataSource>,
    weights: Option<PathBuf>,
    save: Option<PathBuf>,
    resume: Option<PathBuf>,
    id: Option<String>,
    description: Option<String>,
}

fn policy(named: Option<String>) -> Result<Option<devices::Policy>, Problem> {
    let parsed = named.as_deref().map(str::parse).transpose();
    parsed.map_err(|error: devices::InvalidPolicy| Problem::invalid("device.policy", error))
}

fn common(c: Common) -> Result<Submission, Problem> {
    if !(1..=10).contains(&c.priority) {
        return Err(Problem::invalid(
            "request.priority",
            "`priority` lies between 1 (first) and 10",
        ));
    }
    if c.wait_seconds > Some(MOST_SECONDS) {
        return Err(Problem::invalid(
            "request.wait",
            format!(
                "`wait_seconds` lies between 0 (start at once or not at all) and {MOST_SECONDS}"
            ),
        ));
    }
    let parsed: Result<devices::Selector, _> = c.device.parse();
    parsed.map_err(|error| Problem::invalid("device.invalid", error))?;
    if c.gpus == Some(0) {
        let why = "`gpus` is at least 1";
        return Err(Problem::invalid("device.replicas", why));
    }
    let kind = match c.kind {
        TaskKind::Training => "training",
        TaskKind::Inference => "inference",
    };
    let parameters = c.plugin.description.check(kind, &c.params);
    Ok(Submission {
        id: c.id,
        kind: c.kind,
        plugin: c.plugin.description.name.clone(),
        plugin_hash: c.plugin.hash.clone(),
        plugin_file: c.plugin.file.clone(),
        model: c.model,
        parameters: parameters.map_err(|error| Problem::invalid(error.code(), error))?,
        device: Some(c.device),
        gpus: c.gpus,
        tf32: c.tf32,
        policy: c.policy,
        priority: c.priority,
        wait_seconds: c.wait_seconds,
        description: c.description,
        data: c.data,
        weights: c
            .weights
            .map(|path| unusable(inputs::existing(&path)))
            .transpose()?,
        resume: c.resume,
        output: c.save,
    })
}

/// The plugin of the models that the old service had. Their bare names mean its models, whatever
/// other plugins have models of these names.
const CLASSIFIER: &str = "image-classifier";

/// A plugin's model by its name. The old service's clients name it by a configuration file, too.
fn find(
    registry: &Registry,
    name: &str,
) -> Result<(std::sync::Arc<crate::plugins::Plugin>, String), Problem> {
    let file = Path::new(name).file_name().and_then(|file| file.to_str());
    let stem = file.and_then(|file| file.strip_suffix(".yaml").or(file.strip_suffix(".yml")));
    let name = stem.unwrap_or(name);
    let classifier = registry.get(CLASSIFIER).filter(|plugin| {
        let mut models = plugin.description.models.iter();
        models.any(|model| model.name == name)
    });
    if let Some(plugin) = classifier {
        return Ok((plugin, name.to_owned()));
    }
    registry
        .model(name)
        .map_err(|error| Problem::invalid("model.unknown", error))
}

fn unusable<T>(result: anyhow::Result<T>) -> Result<T, Problem> {
    result.map_err(|error| Problem::invalid("request.path", format!("{error:#}")))
}

/// The old service's clients send an empty path for none.
fn given(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}

fn folder(save: Option<PathBuf>, name: Option<String>) -> Result<Option<PathBuf>, Problem> {
    let Some(save) = given(save) else {
        return Ok(None);
    };
    let name = name.unwrap_or_default();
    if Path::new(&name)
        .components()
        .any(|part| !matches!(part, std::path::Component::Normal(_)))
    {
        return Err(Problem::invalid(
            "request.path",
            "`name` is the name of a sub-folder",
        ));
    }
    unusable(
        std::path::absolute(save.join(name))
            .map(Some)
            .map_err(Into::into),
    )
}
