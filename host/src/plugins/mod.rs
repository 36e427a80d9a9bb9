//! Plugins: from a file in a folder to an instance that runs one task.
//!
//! ```text
//! folder ─▶ registry ─▶ inspect (a process of its own) ─▶ description
//!                                                    file, by hash
//! worker ─▶ instance (engine, limiter, standard_error) ─▶ host (the contract) ─▶ compute, data
//! ```

mod bindings;
mod description;
mod engine;
mod error;
pub mod host;
pub mod inspect;
mod instance;
mod limiter;
mod registry;
mod standard_error;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::description::{Description, ModelDescription, ParameterError, Schema};
pub use self::error::PluginError;
pub use self::host::{Grants, Supervisor};
pub use self::inspect::inspect;
pub use self::registry::{ModelError, PluginEntry, PluginState, Registry, RegistrySettings};
use crate::worker::protocol::Failure;

/// A plugin that this host can run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plugin {
    /// What it says of itself.
    pub description: Description,
    /// SHA-256 of its file, in hexadecimal.
    pub hash: String,
    /// Its file.
    pub file: PathBuf,
}

/// Runs one task with the plugin in `file`, to its end, on this thread.
pub fn run(file: &Path, cache: &Path, kind: &str, grants: Grants) -> Result<(), Failure> {
    let failed = |message: String| error::failure("worker.failed", message);
    let engine = engine::engine(cache)
        .map_err(|error| failed(format!("cannot start the engine: {error:#}")))?;
    let linked = instance::Linked::new(&engine, file)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    runtime.block_on(linked.run(kind, grants))
}
