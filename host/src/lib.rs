//! Hangar: one process owns a machine's devices and runs sandboxed plugins on them.

pub mod tasks;
pub mod worker;
