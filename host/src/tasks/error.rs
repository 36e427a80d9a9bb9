//! Why a request about a task fails.

/// An error that a caller decides on.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// `task.unknown`.
    #[error("there is no task `{id}`")]
    Unknown {
        /// Asked for.
        id: String,
    },
    /// `task.exists`.
    #[error("there is a task `{id}` already; choose another id, or none")]
    Exists {
        /// Asked for.
        id: String,
    },
    /// `task.id`.
    #[error("`{id}` is no task id: 1 to 128 letters, digits, `-`, `_` and `.`, no `.` first")]
    Id {
        /// Asked for.
        id: String,
    },
    /// `task.active`.
    #[error("the task `{id}` has not ended; cancel it first")]
    Active {
        /// Asked for.
        id: String,
    },
    /// `task.ended`.
    #[error("the task `{id}` has ended already: {state}")]
    Ended {
        /// Asked for.
        id: String,
        /// How.
        state: String,
    },
    /// `queue.full`.
    #[error("the queue holds {size} tasks, as many as it takes; try again later")]
    QueueFull {
        /// Its size.
        size: usize,
    },
    /// `host.shutting-down`.
    #[error("the host is shutting down")]
    ShuttingDown,
    /// `device.unknown`, `device.unschedulable`.
    #[error(transparent)]
    Device(#[from] devices::Refusal),
    /// `store.failed`.
    #[error("the task store: {0}")]
    Store(#[from] rusqlite::Error),
    /// `store.failed`.
    #[error("the task store holds what cannot be read: {0}")]
    Stored(serde_json::Error),
    /// `output.failed`.
    #[error("{path}: {error}")]
    Output {
        /// The folder that cannot be made or removed.
        path: String,
        /// Why.
        error: std::io::Error,
    },
}

impl TaskError {
    pub(super) fn stored(error: serde_json::Error) -> Self {
        Self::Stored(error)
    }

    /// The stable dotted code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "task.unknown",
            Self::Exists { .. } => "task.exists",
            Self::Id { .. } => "task.id",
            Self::Active { .. } => "task.active",
            Self::Ended { .. } => "task.ended",
            Self::QueueFull { .. } => "queue.full",
            Self::ShuttingDown => "host.shutting-down",
            Self::Device(refusal) => refusal.code(),
            Self::Store(_) | Self::Stored(_) => "store.failed",
            Self::Output { .. } => "output.failed",
        }
    }
}
