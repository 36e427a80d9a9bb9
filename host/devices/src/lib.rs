//! The machine's devices: what NVML tells about its GPUs, device strings, and who holds what.
//!
//! [`Monitor`] samples NVML off the request path → [`Snapshot`]. [`Selector`] is a device string,
//! parsed once. [`Condition`] is how well a GPU is, and what follows. [`Allocator`] is one lock around
//! pure parts: the ledger (what each device has and who holds it), [`Pool`]s, the [`Policy`] among free
//! devices, the set of GPUs that a task on several gets, and [`Place`]s in the queue. Deciding and
//! recording is one step, and a [`Lease`] ends exactly once.

mod allocator;
mod gang;
mod gpu;
mod health;
mod heat;
mod history;
mod ledger;
mod memory;
mod monitor;
mod nvml;
mod policy;
mod pool;
mod queue;
mod request;
mod scheduler;
mod selector;
mod visible;

pub use allocator::{Allocator, Lease, PoolUsage, Returning, Ticket, Usage};
pub use gpu::{Failure, Gpu, Peer, Process, Recovery, Snapshot, Source};
pub use health::{Action, Condition, Health, InvalidXid, LastXid, Order, Signal, XidTable};
pub use heat::COOL;
pub use history::{HISTORY, History, Point};
pub use ledger::{Cause, DeviceEntry, Measurement, State, Taken};
pub use monitor::{Listing, Monitor, News};
pub use nvml::memory_used;
pub use policy::{InvalidPolicy, Policy};
pub use pool::{GpuFacts, InvalidPool, Pool};
pub use queue::Place;
pub use request::{Kind, Limits, PartialLimits, PerKind, Refusal, Request};
pub use selector::{DeviceId, InvalidSelector, PoolName, Selector};
