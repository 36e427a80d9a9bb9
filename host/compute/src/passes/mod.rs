//! Passes over graphs, each a function of the graph alone.

pub(crate) mod gradient;
pub(crate) mod memory;
pub(crate) mod reachable;
