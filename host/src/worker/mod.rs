//! A worker runs one task in a process of its own.

pub mod listing;
pub mod main;
pub mod probe;
pub mod protocol;
pub mod spawn;
