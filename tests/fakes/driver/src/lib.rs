//! A simulated NVIDIA machine: a library that takes the place of `libnvidia-ml.so.1` through the
//! library path, with GPUs from the scenario file that `HANGAR_FAKE_SCENARIO` names.
//!
//! [`scenario`] says which GPUs there are, from captures of real ones, and what goes wrong; [`nvml`]
//! shows them through NVML's functions. The file is read at every call, so that a test changes the
//! machine while a program looks at it.

pub mod nvml;
pub mod scenario;
