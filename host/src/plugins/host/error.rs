//! How a host function fails: with an error that the plugin sees, or by ending the plugin.

use wasmtime::component::ResourceTableError;

use crate::plugins::bindings::hangar::pipeline::types;
use crate::worker::protocol::Failure;

/// Why a host function failed.
#[derive(Debug)]
pub enum HostError {
    /// The plugin is told, by a code and a message.
    Told(types::Error),
    /// The plugin broke the contract or a limit, and ends.
    Trap(wasmtime::Error),
}

/// What a host function gives.
pub(super) type Result<T> = std::result::Result<T, HostError>;

impl HostError {
    /// An error for the plugin.
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self::Told(types::Error {
            code: code.to_owned(),
            message: message.into(),
            node: None,
        })
    }

    /// What every call that works or waits answers once the user has cancelled the task.
    pub(super) fn cancelled() -> Self {
        Self::new("task.cancelled", "the task was cancelled")
    }
}

impl From<compute::Error> for HostError {
    fn from(error: compute::Error) -> Self {
        Self::Told(types::Error {
            code: error.code().to_owned(),
            message: error.to_string(),
            node: error.node(),
        })
    }
}

impl From<data::Error> for HostError {
    fn from(error: data::Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<Failure> for HostError {
    fn from(failure: Failure) -> Self {
        Self::new(&failure.code, failure.message)
    }
}

impl From<ResourceTableError> for HostError {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}
