//! The crate's error: a stable code and a message that names the file.

use std::io;
use std::path::Path;

/// Why a data set, a sample or a file of weights could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: &'static str,
    message: String,
}

impl Error {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// `data.format`: what is at `path` is not a data set, for `reason`.
    pub(crate) fn format(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::new("data.format", format!("{}: {reason}", path.display()))
    }

    /// `data.sample`: the file of a sample cannot be read, for `reason`.
    pub(crate) fn sample(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::new("data.sample", format!("{}: {reason}", path.display()))
    }

    /// `weights.format`: what is at `path` are not weights, for `reason`.
    pub(crate) fn weights(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::new("weights.format", format!("{}: {reason}", path.display()))
    }

    /// `storage.full` or `storage.failed`: a file could not be written.
    pub(crate) fn storage(path: &Path, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "storage.full",
            _ => "storage.failed",
        };
        Self::new(code, format!("{}: {error}", path.display()))
    }

    /// The stable dotted code.
    pub fn code(&self) -> &'static str {
        self.code
    }
}
