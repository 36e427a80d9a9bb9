//! The error of every host call and of every function here.

pub use crate::bindings::hangar::pipeline::types::Error;

/// The result of a host call.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the plugin's own, with a dotted code and a message that says how to mend it.
pub fn error(code: &str, message: impl Into<String>) -> Error {
    Error {
        code: code.to_owned(),
        message: message.into(),
        node: None,
    }
}
