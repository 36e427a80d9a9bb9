//! This program's own file, for its child processes.

/// The running program (proc(5)): it stays reachable where its file was replaced meanwhile, so that
/// an upgrade does not disturb a host that runs.
pub const PATH: &str = "/proc/self/exe";

/// What of the environment the program's children see: where libraries lie, and where the driver
/// keeps compiled kernels.
const VARIABLES: [&str; 4] = [
    "LD_LIBRARY_PATH",
    "CUDA_CACHE_PATH",
    "CUDA_CACHE_DISABLE",
    "HOME",
];

/// Gives a child that environment and no other, and shows it the GPUs of these UUIDs: a number in
/// `CUDA_VISIBLE_DEVICES` would mean another GPU to the driver, which counts in an order of its own.
pub fn environment<'a>(
    command: &'a mut std::process::Command,
    uuids: &[String],
) -> &'a mut std::process::Command {
    let known = VARIABLES
        .iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    command
        .env_clear()
        .envs(known)
        .env("CUDA_VISIBLE_DEVICES", uuids.join(","))
}
