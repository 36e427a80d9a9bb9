//! `hangar serve`: the host with its HTTP API.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use clap::Args;
use devices::Policy;
use tokio::signal::unix::{SignalKind, signal};

use super::folders::Folders;
use super::table;
use crate::address;
use crate::http::{self, Host};
use crate::machine::Machine;
use crate::output;
use crate::settings::Settings;
use crate::tasks::lock::Role;
use crate::tasks::{self, Tasks};
use crate::worker::probe::Depth;
use crate::worker::protocol::Limits;

#[derive(Args)]
pub(super) struct Arguments {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Tasks that may wait.
    #[arg(long, default_value_t = 100)]
    queue_size: usize,
    /// Which of several free GPUs a task gets, where neither it nor its pool says so: least-loaded,
    /// fewest-tasks, most-free-memory, least-utilized, round-robin, pack, spread or coolest
    /// [default: what was last set].
    #[arg(long)]
    policy: Option<Policy>,
    /// Milliseconds between two looks at the GPUs, 100 to 60000. What is lost or hangs is noticed
    /// within this time and 3 seconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    monitor_period: u64,
}

pub(super) fn serve(folders: &Folders, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::runtime()?.block_on(async {
        let listener = http::bind(arguments.listen).await?;
        let mut settings = Settings::read(&folders.state)?;
        if let Some(policy) = arguments.policy {
            settings.policy = policy;
        }
        let period = Duration::from_millis(arguments.monitor_period);
        let machine = Arc::new(Machine::look(settings, period, |_| Depth::Measure)?);
        output::message(format_args!("plugins: {}", folders.plugins.display()));
        output::message(format_args!("state:   {}", folders.state.display()));
        let registry = super::registry(folders).await?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let tasks = Tasks::start(tasks::Settings {
            role: Role::Server,
            state: folders.state.clone(),
            machine: Arc::clone(&machine),
            compile_cache: folders.compile_cache(),
            planners: cores,
            threads_per_worker: cores,
            queue_size: arguments.queue_size,
            limits: Limits::default(),
        })?;
        let address = listener.local_addr()?;
        let _published = address::publish(&folders.state, address)?;
        output::message(format_args!("listening on http://{address}"));
        introduce(&machine);
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        };
        let host = Arc::new(Host {
            machine,
            registry,
            tasks: tasks.clone(),
            state: folders.state.clone(),
            streams: AtomicUsize::new(0),
            gpus: http::Written::default(),
        });
        http::serve(listener, host, stop).await;
        tasks.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Shows the devices once each is known to be fit for tasks or not.
fn introduce(machine: &Arc<Machine>) {
    let machine = Arc::clone(machine);
    std::thread::spawn(move || {
        machine.probed();
        match table::start(&machine) {
            Ok(table) => output::message(table),
            Err(error) => output::message(format_args!("error: {error:#}")),
        }
    });
}
