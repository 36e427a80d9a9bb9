//! `hangar bench`: a model of the bundled plugin `reference-models` timed, as one line of JSON.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::machine::{Machine, PERIOD};
use crate::output;
use crate::plugins::{Registry, RegistrySettings};
use crate::settings::Settings;
use crate::tasks::lock::Role;
use crate::tasks::task::{Submission, TaskKind, TaskState};
use crate::tasks::{self, Tasks};
use crate::worker::probe::Depth;

/// The plugin that is run.
const PLUGIN: &str = "reference-models";
/// Tokens of a sample of the language model.
const TOKENS: f64 = 1024.0;

#[derive(Args)]
pub(super) struct Arguments {
    /// The model, such as resnet18.
    #[arg(long)]
    model: String,
    /// What to time.
    #[arg(long, value_enum)]
    mode: Mode,
    /// Samples in a step.
    #[arg(long)]
    batch: u32,
    /// Height and width of images, pixels.
    #[arg(long, default_value_t = 224)]
    size: u32,
    /// Classes of image models.
    #[arg(long, default_value_t = 37)]
    classes: u32,
    /// The device: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// The precision: of all, of a GPU's matrix products, or of what is stored.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Precision,
    /// Computes blocks again for their gradients instead of keeping them.
    #[arg(long)]
    recompute: bool,
    /// Threads for compute on the CPU [default: one for each core].
    #[arg(long)]
    threads: Option<usize>,
    /// Steps that are timed [default: 7, on a GPU 60].
    #[arg(long)]
    steps: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Train,
    Infer,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Precision {
    F32,
    Tf32,
    Bf16,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// The plugins that were built beside this program.
fn bundled() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let folder = own.with_file_name("plugins");
    ensure!(
        folder.join("reference_models.wasm").exists(),
        "there is no {}: `cargo xtask build` makes it",
        folder.join("reference_models.wasm").display()
    );
    Ok(folder)
}

/// The largest resident memory of this program's workers so far, in bytes (proc(5), `VmHWM`).
fn workers_peak_bytes() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let children = threads.flatten().filter_map(|thread| {
        let list = std::fs::read_to_string(thread.path().join("children")).ok()?;
        Some(
            list.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    });
    let peak = |process: String| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let peaks = children.flatten().filter_map(peak);
    peaks.max().unwrap_or(0) * 1024
}

/// Runs the model and prints the line.
pub(super) fn bench(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let plugins = bundled()?;
    let state = tempfile::tempdir().context("a folder for the task")?;
    let line = super::runtime()?.block_on(async {
        let registry = Registry::start(RegistrySettings {
            folder: plugins,
            store: state.path().join("plugins"),
            compile_cache: state.path().join("compiled"),
        })?;
        registry.settled().await;
        let plugin = registry
            .get(PLUGIN)
            .context("the bundled plugin does not load")?;
        let known = &plugin.description.models;
        ensure!(
            known.iter().any(|model| model.name == arguments.model),
            "there is no model `{}`; there are {}",
            arguments.model,
            known
                .iter()
                .map(|model| &*model.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
        let cpu = arguments.device == "cpu";
        let mut parameters = Map::new();
        for (name, value) in [
            ("batch", arguments.batch),
            ("size", arguments.size),
            ("classes", arguments.classes),
            ("steps", arguments.steps.unwrap_or(if cpu { 7 } else { 60 })),
        ] {
            parameters.insert(name.to_owned(), json!(value));
        }
        if arguments.dtype == Precision::Bf16 {
            parameters.insert("precision".to_owned(), json!("bfloat16"));
        }
        parameters.insert("recompute".to_owned(), json!(arguments.recompute));
        let (kind, name) = match arguments.mode {
            Mode::Train => (TaskKind::Training, "training"),
            Mode::Infer => (TaskKind::Inference, "inference"),
        };
        let depth = if cpu { Depth::Check } else { Depth::Measure };
        let machine = Arc::new(Machine::look(Settings::default(), PERIOD, move |_| depth)?);
        if !cpu {
            machine.probed();
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = arguments.threads.unwrap_or(cores);
        let tasks = Tasks::start(tasks::Settings {
            role: Role::Single,
            state: state.path().to_owned(),
            machine,
            compile_cache: state.path().join("compiled"),
            planners: 1,
            threads_per_worker: threads,
            queue_size: usize::MAX,
            limits: crate::worker::protocol::Limits::default(),
        })?;
        let submitted = tasks.submit(Submission {
            id: None,
            kind,
            plugin: plugin.description.name.clone(),
            plugin_hash: plugin.hash.clone(),
            plugin_file: plugin.file.clone(),
            model: arguments.model.clone(),
            parameters: plugin.description.check(name, &parameters)?,
            device: Some(arguments.device.clone()),
            gpus: None,
            tf32: arguments.dtype == Precision::Tf32,
            policy: None,
            priority: 5,
            wait_seconds: None,
            description: None,
            data: Vec::new(),
            weights: None,
            resume: None,
            output: None,
        })?;
        let (mut peak, mut looks) = (0, 0);
        let record = loop {
            peak = peak.max(workers_peak_bytes());
            // Often at first, for tasks that are short.
            let pause = if looks < 200 { 1 } else { 50 };
            looks += 1;
            let record = tasks.get(&submitted.id)?;
            match record.state {
                TaskState::Completed => break record,
                TaskState::Failed | TaskState::Cancelled => bail!("{}", record.message),
                _ => tokio::time::sleep(Duration::from_millis(pause)).await,
            }
        };
        let metric = |name: &str| record.latest_metrics.get(name).and_then(Value::as_f64);
        let (Some(seconds), Some(fastest), Some(slowest), Some(first)) = (
            metric("seconds"),
            metric("fastest"),
            metric("slowest"),
            metric("first_seconds"),
        ) else {
            bail!("the plugin told no times");
        };
        let tokens = if arguments.model == "gpt2" {
            TOKENS
        } else {
            1.0
        };
        let device = match record.device.as_deref() {
            Some("cpu") | None => format!("cpu x{threads}"),
            Some(device) => device.to_owned(),
        };
        // On a GPU what the lease holds there, with nothing beside it but the context.
        let peak_bytes = if cpu {
            (peak > 0).then_some(peak)
        } else {
            record.lease_bytes
        };
        anyhow::Ok(json!({
            "peer": format!("hangar {}", env!("CARGO_PKG_VERSION")),
            "model": arguments.model,
            "mode": if kind == TaskKind::Training { "train" } else { "infer" },
            "batch": arguments.batch,
            "dtype": arguments.dtype.name(),
            "recompute": arguments.recompute,
            "how": "plugin",
            "device": device,
            "seconds": seconds,
            "spread": [fastest, slowest],
            "per_second": f64::from(arguments.batch) * tokens / seconds,
            "first_seconds": first,
            "peak_bytes": peak_bytes,
        }))
    })?;
    output::data(line)?;
    Ok(ExitCode::SUCCESS)
}
