//! The machine's devices: what NVML tells about its GPUs, device strings, and who holds what.
//!
//! [`Monitor`] samples NVML off the request path → [`Snapshot`]. [`Selector`] is a device string,
//! parsed once. [`Allocator`] is one lock around a ledger: deciding and recording is one step, and a
//! [`Lease`] ends exactly once.

mod allocator;
mod gpu;
mod monitor;
mod nvml;
mod selector;

pub use allocator::{
    Allocator, DeviceEntry, Kind, Lease, Limits, Outcome, PartialLimits, Refusal, Request, State,
    Usage,
};
pub use gpu::{Gpu, Snapshot};
pub use monitor::Monitor;
pub use nvml::memory_used;
pub use selector::{DeviceId, InvalidSelector, Selector};
