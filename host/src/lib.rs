//! Hangar: one process owns a machine's devices and runs sandboxed plugins on them.

pub mod address;
pub mod cli;
pub mod client;
pub mod http;
pub mod inputs;
pub mod machine;
pub mod output;
pub mod plugins;
pub mod processor;
pub mod program;
pub mod settings;
pub mod tasks;
pub mod worker;
