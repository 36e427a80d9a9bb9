//! `hangar run`: a supervisor for one task, without the HTTP.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use devices::Policy;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use super::folders::Folders;
use crate::inputs::{existing, source};
use crate::machine::{Machine, PERIOD};
use crate::output;
use crate::settings::Settings;
use crate::tasks::deadline::MOST_SECONDS;
use crate::tasks::lock::Role;
use crate::tasks::resume::Resume;
use crate::tasks::store::{Event, Store};
use crate::tasks::task::{Submission, TaskKind, TaskRecord, TaskState};
use crate::tasks::{self, Tasks};
use crate::worker::probe::Depth;

#[derive(Args)]
pub(super) struct Arguments {
    /// A plugin of the plugin folder.
    plugin: String,
    /// What to do.
    #[arg(value_enum)]
    kind: Kind,
    /// A model of the plugin [default: its first].
    #[arg(long)]
    model: Option<String>,
    /// The data set: a folder or a file. For train its part `train` is used where it has parts,
    /// and its part `validation`, else `test`, to validate; for infer its part `test`.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// The data set to validate on.
    #[arg(long, value_name = "PATH")]
    validation: Option<PathBuf>,
    /// The weights to start from or to infer with.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Goes on with an interrupted training, from a results folder or its last.state.safetensors;
    /// results stay in that folder. Parameters that are not given are those it had, and so are the
    /// device, the policy and the priority where the state folder knows it.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["weights", "output"])]
    resume: Option<PathBuf>,
    /// The device: cpu, cuda, cuda:N or a pool of the state folder's.
    #[arg(long)]
    device: Option<String>,
    /// Trains on so many GPUs at once, each with a part of every batch; --device is then cuda (the
    /// default) or a pool.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    gpus: Option<u32>,
    /// Which of several free GPUs: least-loaded, fewest-tasks, most-free-memory, least-utilized,
    /// round-robin, pack, spread or coolest [default: the pool's, else the host's].
    #[arg(long)]
    policy: Option<Policy>,
    /// Fails instead of waiting longer for a device; 0 starts at once or not at all [default: waits for
    /// ever].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=MOST_SECONDS))]
    wait: Option<u64>,
    /// Lets matrix products on a GPU round their inputs to TF32, which is faster.
    #[arg(long)]
    tf32: bool,
    /// A parameter of the plugin; may be given more than once.
    #[arg(long = "param", value_name = "KEY=VALUE")]
    parameters: Vec<String>,
    /// The folder of results [default: one of the task's own in the state folder].
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Threads for compute on the CPU [default: one for each core].
    #[arg(long)]
    threads: Option<usize>,
}

/// Of a task that is new.
const PRIORITY: u8 = 5;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Train,
    Infer,
}

pub(super) fn run(folders: &Folders, arguments: Arguments, json: bool) -> anyhow::Result<ExitCode> {
    super::runtime()?.block_on(async {
        let registry = super::registry(folders).await?;
        let plugin = registry.get(&arguments.plugin).with_context(|| {
            let known = registry.list().into_iter().map(|entry| match entry.state {
                crate::plugins::PluginState::Loaded(plugin) => plugin.description.name.clone(),
                crate::plugins::PluginState::Failed { reason } => {
                    format!("{} ({reason})", entry.file)
                }
            });
            let known: Vec<String> = known.collect();
            format!(
                "there is no plugin `{}` in {}; there are: {}",
                arguments.plugin,
                folders.plugins.display(),
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            )
        })?;
        let resume = arguments.resume.as_deref().map(Resume::open).transpose()?;
        let earlier = match &resume {
            Some(resume) => Store::open(&folders.state)?.training_in(&resume.folder)?,
            None => None,
        };
        let submission = submission(&arguments, &plugin, resume, earlier.as_ref())?;
        let device = submission.device.as_deref();
        let selector = device.map(str::parse::<devices::Selector>).transpose()?;
        // GPUs that the task cannot use are not woken up.
        let wanted = selector.unwrap_or(devices::Selector::AnyGpu);
        let named = wanted.clone();
        let depth = move |id| match &named {
            devices::Selector::AnyGpu | devices::Selector::Pool(_) => Depth::Measure,
            devices::Selector::Device(device) if *device == id => Depth::Measure,
            devices::Selector::Device(_) => Depth::Check,
        };
        let machine = Machine::look(Settings::read(&folders.state)?, PERIOD, depth)?;
        let machine = Arc::new(machine);
        if wanted != devices::Selector::Device(devices::DeviceId::Cpu) {
            machine.probed();
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let tasks = Tasks::start(tasks::Settings {
            role: Role::Single,
            state: folders.state.clone(),
            machine: Arc::clone(&machine),
            compile_cache: folders.compile_cache(),
            planners: 1,
            threads_per_worker: arguments.threads.unwrap_or(cores),
            queue_size: usize::MAX,
            limits: crate::worker::protocol::Limits::default(),
        })?;
        let record = tasks.submit(submission)?;
        let record = follow(&tasks, record, json).await?;
        if json {
            output::data(serde_json::to_string_pretty(&record)?)?;
        }
        Ok(if record.state == TaskState::Completed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

fn submission(
    arguments: &Arguments,
    plugin: &crate::plugins::Plugin,
    resume: Option<Resume>,
    earlier: Option<&TaskRecord>,
) -> anyhow::Result<Submission> {
    let (kind, name) = match arguments.kind {
        Kind::Train => (TaskKind::Training, "training"),
        Kind::Infer => (TaskKind::Inference, "inference"),
    };
    if arguments.kind == Kind::Infer && arguments.resume.is_some() {
        bail!("--resume is for train: infer takes --weights");
    }
    let models = &plugin.description.models;
    let chosen = arguments.model.as_ref();
    let model = match chosen.or(resume.as_ref().map(|resume| &resume.model)) {
        Some(model) => models
            .iter()
            .find(|known| known.name == *model)
            .with_context(|| {
                let known: Vec<&str> = models.iter().map(|model| &*model.name).collect();
                format!(
                    "{} has no model `{model}`; it has {}",
                    arguments.plugin,
                    known.join(", ")
                )
            })?,
        None => models.first().context("the plugin has no model")?,
    };
    let mut parameters = Map::new();
    for given in &arguments.parameters {
        let (key, value) = given
            .split_once('=')
            .with_context(|| format!("`{given}` is not KEY=VALUE"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        parameters.insert(key.to_owned(), value);
    }
    if let Some(resume) = &resume {
        resume.fill(&mut parameters);
    }
    let parameters = plugin.description.check(name, &parameters)?;
    let mut data = Vec::new();
    match arguments.kind {
        Kind::Train => {
            data.push(source("train", &arguments.data, &["train"])?);
            if let Some(path) = &arguments.validation {
                data.push(source("validation", path, &["validation", "test"])?);
            } else if data[0].part.is_some() {
                data.extend(source("validation", &arguments.data, &["validation", "test"]).ok());
            }
        }
        Kind::Infer => data.push(source("input", &arguments.data, &["test", "validation"])?),
    }
    if arguments.kind == Kind::Infer && arguments.weights.is_none() {
        bail!("infer needs --weights: a checkpoint that a training wrote");
    }
    let device = arguments.device.clone();
    let absolute = |path: &PathBuf| std::path::absolute(path).context("the path of --output");
    let output = arguments.output.as_ref().map(absolute).transpose()?;
    Ok(Submission {
        id: None,
        kind,
        plugin: plugin.description.name.clone(),
        plugin_hash: plugin.hash.clone(),
        plugin_file: plugin.file.clone(),
        model: model.name.clone(),
        parameters,
        // A device of another choice may be one alone.
        gpus: arguments.gpus.or(earlier
            .filter(|_| device.is_none())
            .and_then(|task| task.gpus)),
        device: device.or_else(|| earlier.and_then(|task| task.device_requested.clone())),
        tf32: arguments.tf32 || earlier.is_some_and(|task| task.tf32),
        policy: arguments.policy.or(earlier.and_then(|task| task.policy)),
        priority: earlier.map_or(PRIORITY, |task| task.priority),
        wait_seconds: arguments.wait,
        description: None,
        data,
        weights: arguments.weights.as_deref().map(existing).transpose()?,
        output: output.or(resume.as_ref().map(|resume| resume.folder.clone())),
        resume: resume.map(|resume| resume.state),
    })
}

/// Shows a task's events until it ends, or until the person interrupts it.
async fn follow(tasks: &Tasks, record: TaskRecord, json: bool) -> anyhow::Result<TaskRecord> {
    let id = record.id;
    let bar = if std::io::stderr().is_terminal() && !json {
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} % {msg}")?;
        ProgressBar::new(100).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let mut after = 0;
    let mut interrupted = false;
    let mut look = tokio::time::interval(std::time::Duration::from_millis(200));
    loop {
        tokio::select! {
            events = tasks.events(&id, after) => {
                let events = events?;
                for event in &events {
                    after = event.sequence;
                    if !json {
                        bar.suspend(|| output::message(line(event)));
                    }
                }
                if events.is_empty() || events.iter().any(|event| event.status.is_some()) {
                    bar.finish_and_clear();
                    let record = tasks.get(&id)?;
                    if !json && record.state == TaskState::Completed {
                        output::message(format_args!("results: {}", record.output.display()));
                    }
                    return Ok(record);
                }
            }
            _ = look.tick(), if !bar.is_hidden() => {
                let record = tasks.get(&id)?;
                bar.set_position(record.progress as u64);
                bar.set_message(record.message);
            }
            interrupt = tokio::signal::ctrl_c(), if !interrupted => {
                interrupt?;
                interrupted = true;
                // One that has just ended needs no cancelling.
                let _ended = tasks.cancel(&id);
            }
        }
    }
}

/// An event as one line.
fn line(event: &Event) -> String {
    let metrics = event.metrics.as_ref().map(|metrics| {
        let shown = metrics.iter().map(|(name, value)| match value.as_f64() {
            Some(number) if value.is_f64() => format!("{name} {number:.4}"),
            _ => format!("{name} {value}"),
        });
        format!(": {}", shown.collect::<Vec<_>>().join(", "))
    });
    let stage = event.stage.as_ref().filter(|_| metrics.is_some());
    let stage = stage.map(|stage| format!(" {stage}")).unwrap_or_default();
    let level = if event.level == "info" {
        String::new()
    } else {
        format!("{}: ", event.level)
    };
    format!(
        "{level}{}{stage}{}",
        event.message,
        metrics.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line_with_its_metrics() {
        let event: Event = serde_json::from_value(json!({
            "timestamp": "", "level": "info", "message": "epoch 1 of 2", "step": 1,
            "stage": "validation", "metrics": {"val_acc": 97.25}
        }))
        .unwrap();
        assert_eq!(line(&event), "epoch 1 of 2 validation: val_acc 97.2500");
    }
}
