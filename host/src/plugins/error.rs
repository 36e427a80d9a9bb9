//! Why a file is no plugin, or a plugin's run failed.

use crate::worker::protocol::Failure;

/// Why a file is not a plugin that this host can run.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The file cannot be read.
    #[error("cannot read the file: {0}")]
    Read(#[from] std::io::Error),
    /// The file is larger than plugins may be.
    #[error("the file has {bytes} bytes; a plugin has at most {limit}")]
    Size {
        /// Of the file.
        bytes: u64,
        /// Allowed.
        limit: u64,
    },
    /// The file does not compile, link or describe itself; the text says which and why.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The process that inspects a file took more than it may, or failed.
    #[error("{0}")]
    Inspection(String),
}

impl PluginError {
    /// A stable dotted code.
    pub fn code(&self) -> &str {
        match self {
            Self::Read(_) => "plugin.read",
            Self::Size { .. } => "plugin.size",
            Self::Refused(failure) => &failure.code,
            Self::Inspection(_) => "plugin.inspection",
        }
    }
}

/// A failure by its code and message.
pub(super) fn failure(code: &str, message: impl Into<String>) -> Failure {
    Failure {
        code: code.to_owned(),
        message: message.into(),
    }
}
