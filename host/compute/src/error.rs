//! The crate's error: a stable code, a message with the figures, and the graph value it is about.

use crate::graph::Value;

/// Why a graph, a plan or a run was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: &'static str,
    message: String,
    node: Option<u32>,
    device: Option<String>,
}

impl Error {
    /// An error with a dotted code, such as `graph.shape`.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            node: None,
            device: None,
        }
    }

    /// The same error on one of several devices; one that is named stays.
    #[must_use]
    pub fn on(mut self, device: &str) -> Self {
        self.device.get_or_insert_with(|| device.to_owned());
        self
    }

    /// The device of several on which the error arose: `cuda:N`.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// The same error about a graph value.
    #[must_use]
    pub fn at(mut self, value: Value) -> Self {
        self.node = Some(value.0);
        self
    }

    /// The stable dotted code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The number of the graph value at which the error arose.
    pub fn node(&self) -> Option<u32> {
        self.node
    }

    pub(crate) fn shape(message: impl Into<String>) -> Self {
        Self::new("graph.shape", message)
    }

    pub(crate) fn dtype(message: impl Into<String>) -> Self {
        Self::new("graph.dtype", message)
    }

    pub(crate) fn attribute(message: impl Into<String>) -> Self {
        Self::new("graph.attribute", message)
    }

    /// A label that names none of `classes` classes.
    pub(crate) fn label(label: i64, classes: usize) -> Self {
        Self::new(
            "data.label",
            format!("label {label} does not name one of {classes} classes"),
        )
    }

    /// An index that names none of `size` elements.
    pub(crate) fn index(index: i64, size: usize) -> Self {
        Self::new(
            "data.index",
            format!("index {index} does not name one of {size} elements"),
        )
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new("graph.limit", message)
    }
}
