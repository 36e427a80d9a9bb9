//! What is fuzzed: for each target a function that takes any bytes, and the bytes it starts from.
//!
//! A target must not panic, run out of memory or hang; what it makes of the bytes is not looked at
//! otherwise.

mod bytes;
mod calls;
pub mod graph;
pub mod messages;
pub mod onnx;
pub mod samples;
mod script;
pub mod weights;

/// What a plugin says of itself.
#[path = "../../host/src/plugins/description.rs"]
mod plugin;
/// What supervisor and worker say to each other.
#[path = "../../host/src/worker/protocol.rs"]
#[expect(dead_code, reason = "the host's own ends of the socket are not fuzzed")]
mod protocol;

pub mod description;

/// A target's name and what it starts from.
pub type Target = (&'static str, fn() -> Vec<Vec<u8>>);

/// Every target, by the name of its file in `fuzz_targets/`.
pub const TARGETS: &[Target] = &[
    ("graph", graph::seeds),
    ("onnx", onnx::seeds),
    ("weights", weights::seeds),
    ("samples", samples::seeds),
    ("description", description::seeds),
    ("messages", messages::seeds),
];
