//! This program's own file, for its child processes.

/// The running program (proc(5)): it stays reachable where its file was replaced meanwhile, so that
/// an upgrade does not disturb a host that runs.
pub const PATH: &str = "/proc/self/exe";
