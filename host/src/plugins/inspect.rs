//! Looking at a file that may be a plugin, in a process of its own: compiling code that nobody vouches
//! for takes what time and memory it likes.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::Plugin;
use super::description::Description;
use super::engine;
use super::error::{PluginError, failure};
use super::instance::Linked;
use crate::worker::protocol::{Failure, Limits};
use crate::{output, program};

/// The largest file, in bytes.
const FILE_BYTES: u64 = 64 << 20;
/// Memory of the process, in bytes, reserved address space not counted.
const MEMORY_BYTES: u64 = 4 << 30;
/// Processor time of the process, in seconds.
const PROCESSOR_SECONDS: u64 = 120;
/// Time until the process is ended.
const DEADLINE: Duration = Duration::from_secs(180);
/// Time that `describe` may compute, in milliseconds.
const DESCRIBE_MILLISECONDS: u64 = 2_000;

/// What the process prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Plugin(Box<Description>),
    Refused(Failure),
}

/// SHA-256 of a plugin's bytes, in hexadecimal.
pub(super) fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write;

    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}

/// Reads a file of at most the size that plugins have.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, PluginError> {
    let bytes = std::fs::metadata(file)?.len();
    if bytes > FILE_BYTES {
        return Err(PluginError::Size {
            bytes,
            limit: FILE_BYTES,
        });
    }
    Ok(std::fs::read(file)?)
}

/// Compiles, links and describes the plugin in a file, which must not change meanwhile. Compiled
/// code stays in `cache`.
pub async fn inspect(file: &Path, cache: &Path) -> Result<Plugin, PluginError> {
    let hash = hash(&read(file)?);
    let description = describe(file, cache).await?;
    Ok(Plugin {
        description,
        hash,
        file: file.to_owned(),
    })
}

/// The description that the process prints for a file.
pub(super) async fn describe(file: &Path, cache: &Path) -> Result<Description, PluginError> {
    let process = Command::new(program::PATH)
        .arg0("hangar")
        .arg("inspect")
        .args([file, cache])
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, process)
        .await
        .map_err(|_| {
            PluginError::Inspection(format!("compiling it took more than {DEADLINE:?}"))
        })??;
    match serde_json::from_slice(&output.stdout) {
        Ok(Answer::Plugin(description)) => Ok(*description),
        Ok(Answer::Refused(failure)) => Err(PluginError::Refused(failure)),
        Err(_) => Err(PluginError::Inspection(format!(
            "compiling it took more than {PROCESSOR_SECONDS} s of processor time or {MEMORY_BYTES} \
             bytes of memory ({})",
            output.status
        ))),
    }
}

/// The body of the process: `hangar inspect FILE CACHE`.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let [file, cache] = &arguments[..] else {
        output::message("`hangar inspect` is how the host looks at plugins; use `hangar plugins`");
        return ExitCode::FAILURE;
    };
    let answer = match look(Path::new(file), Path::new(cache)) {
        Ok(description) => Answer::Plugin(Box::new(description)),
        Err(failure) => Answer::Refused(failure),
    };
    match serde_json::to_string(&answer).map(output::data) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(_)) | Err(_) => ExitCode::FAILURE,
    }
}

fn look(file: &Path, cache: &Path) -> Result<Description, Failure> {
    for (resource, limit) in [
        (Resource::Data, MEMORY_BYTES),
        (Resource::Cpu, PROCESSOR_SECONDS),
        (Resource::Core, 0),
    ] {
        let limits = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, limits).map_err(|error| {
            failure(
                "plugin.inspection",
                format!("cannot limit this process: {error}"),
            )
        })?;
    }
    let engine = engine::engine(cache).map_err(|error| {
        failure(
            "plugin.inspection",
            format!("cannot start the engine: {error:#}"),
        )
    })?;
    let linked = Linked::new(&engine, file)?;
    let limits = Limits {
        compute_milliseconds: DESCRIBE_MILLISECONDS,
        ..Limits::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failure("plugin.inspection", error.to_string()))?;
    let described = runtime.block_on(linked.describe(limits)).map_err(|error| {
        failure(
            &error.code,
            format!("it does not describe itself: {}", error.message),
        )
    })?;
    Description::parse(&described).map_err(|error| {
        failure(
            "plugin.description",
            format!("its description is wrong: {error}"),
        )
    })
}
