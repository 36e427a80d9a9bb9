//! Why a model is refused.

/// Why a model is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are no ONNX model.
    #[error("no ONNX model: {0}")]
    Format(String),
    /// Operators that are not known, each once.
    #[error("operators that are not supported: {}", .0.join(", "))]
    Operators(Vec<String>),
    /// An operator is used in a way that is not supported.
    #[error("{node}: {why}")]
    Node {
        /// Which one: operator and name.
        node: String,
        /// What stands against it.
        why: String,
    },
    /// An input or output cannot be used.
    #[error("`{name}`: {why}")]
    Port {
        /// Its name.
        name: String,
        /// What stands against it.
        why: String,
    },
}

/// Why one operator is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the operator is not supported")]
    Operator,
    #[error("{0}")]
    Why(String),
    #[error(transparent)]
    Graph(#[from] compute::Error),
}

pub(crate) fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Why(why.into()))
}
