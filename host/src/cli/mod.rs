//! The command line.

mod bench;
mod devices;
mod folders;
mod gpus;
mod import;
mod new;
mod run;
mod serve;
mod server;
mod table;
mod top;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::json;

use crate::output;
use crate::plugins::{self, PluginState, Registry, RegistrySettings};
use crate::tasks::store::{Store, TaskFilter};
use crate::worker::probe::Depth;
use folders::Folders;

/// Trains and runs models from sandboxed WebAssembly plugins on this machine's devices.
#[derive(Parser)]
#[command(name = "hangar", version)]
struct Cli {
    #[command(flatten)]
    folders: folders::Arguments,
    /// Prints JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the HTTP API.
    Serve(serve::Arguments),
    /// Shows the GPUs: of the server that runs on the state folder, else of the machine.
    Gpus(gpus::Arguments),
    /// Shows the GPUs and tasks of a server that runs, live; `q` quits.
    Top(top::Arguments),
    /// Changes how a server that runs gives its devices away.
    Devices(devices::Arguments),
    /// Shows the plugins of the plugin folder.
    Plugins,
    /// Shows the tasks, the newest first.
    Tasks {
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Writes a plugin project that builds.
    New {
        /// The plugin's name, and the folder's.
        name: String,
    },
    /// Times a model of the bundled plugin `reference-models`.
    Bench(bench::Arguments),
    /// Reads an ONNX model into a file of weights for the plugin `imported`.
    Import(import::Arguments),
    /// Runs one task of a plugin to its end, without a server.
    Run(run::Arguments),
    /// Runs the task that the host sends (used by the host itself).
    #[command(hide = true)]
    Worker,
    /// Finds out whether a GPU can run tasks (used by the host itself).
    #[command(hide = true)]
    Probe {
        uuid: String,
        /// Makes no context.
        #[arg(long)]
        check: bool,
    },
    /// Shows the GPUs by the CUDA driver alone (used by the host itself).
    #[command(hide = true)]
    ListGpus,
    /// Describes a plugin file (used by the host itself).
    #[command(hide = true)]
    Inspect {
        #[arg(num_args = 0..)]
        arguments: Vec<OsString>,
    },
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Worker => return crate::worker::main::run(),
        Command::Probe { uuid, check } => {
            let depth = if check { Depth::Check } else { Depth::Measure };
            return crate::worker::probe::run(&uuid, depth);
        }
        Command::ListGpus => return crate::worker::listing::run(),
        Command::Inspect { arguments } => return plugins::inspect::run(arguments),
        Command::Serve(arguments) => {
            Folders::new(&cli.folders).and_then(|folders| serve::serve(&folders, &arguments))
        }
        Command::New { name } => new::new(&name),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Import(arguments) => import::import(&arguments),
        Command::Gpus(arguments) => gpus::gpus(&cli.folders, &arguments, cli.json),
        Command::Top(arguments) => top::top(&cli.folders, &arguments, cli.json),
        Command::Devices(arguments) => devices::devices(&cli.folders, &arguments, cli.json),
        Command::Plugins => Folders::new(&cli.folders).and_then(|folders| list(&folders, cli.json)),
        Command::Tasks { limit } => {
            Folders::new(&cli.folders).and_then(|folders| tasks(&folders, limit, cli.json))
        }
        Command::Run(arguments) => {
            Folders::new(&cli.folders).and_then(|folders| run::run(&folders, arguments, cli.json))
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::message(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Looks at the plugin folder once.
async fn registry(folders: &Folders) -> anyhow::Result<Registry> {
    let registry = Registry::start(RegistrySettings {
        folder: folders.plugins.clone(),
        store: folders.plugin_store(),
        compile_cache: folders.compile_cache(),
    })?;
    registry.settled().await;
    Ok(registry)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

fn list(folders: &Folders, json: bool) -> anyhow::Result<ExitCode> {
    let entries = runtime()?.block_on(async { anyhow::Ok(registry(folders).await?.list()) })?;
    let mut failed = false;
    let mut objects = Vec::new();
    for entry in entries {
        match entry.state {
            PluginState::Loaded(plugin) if json => {
                objects.push(json!({ "file": entry.file, "plugin": *plugin }));
            }
            PluginState::Failed { reason } if json => {
                failed = true;
                objects.push(json!({ "file": entry.file, "error": reason }));
            }
            PluginState::Loaded(plugin) => {
                let d = &plugin.description;
                let models: Vec<&str> = d.models.iter().map(|model| &*model.name).collect();
                output::data(format_args!(
                    "{} {}: {} (models: {}; {})",
                    d.name,
                    d.version,
                    d.description,
                    models.join(", "),
                    d.kinds.join(", ")
                ))?;
            }
            PluginState::Failed { reason } => {
                failed = true;
                output::message(format_args!("{}: {reason}", entry.file));
            }
        }
    }
    if json {
        output::data(serde_json::to_string_pretty(&objects)?)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn tasks(folders: &Folders, limit: usize, json: bool) -> anyhow::Result<ExitCode> {
    let records = Store::open(&folders.state)?.list(&TaskFilter {
        state: None,
        kind: None,
        limit,
    })?;
    if json {
        output::data(serde_json::to_string_pretty(&records)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for record in records {
        let kind = serde_json::to_value(record.kind)?;
        let state = serde_json::to_value(record.state)?;
        output::data(format_args!(
            "{} {} {} {} on {}: {}",
            record.id,
            kind.as_str().unwrap_or_default(),
            record.plugin,
            state.as_str().unwrap_or_default(),
            match record.devices.len() {
                0 | 1 => record.device.as_deref().unwrap_or("no device").to_owned(),
                several => format!("{several} GPUs"),
            },
            record.message
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
