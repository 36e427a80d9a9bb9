//! What a task asks of the allocator, and why it can be refused.

use serde::{Deserialize, Serialize};

use crate::policy::Policy;
use crate::queue::Place;
use crate::selector::{DeviceId, Selector};

/// What a task does with a device; each kind has a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Trains a model.
    Training,
    /// Runs a trained model.
    Inference,
}

impl Kind {
    /// The two kinds, in the order of [`PerKind`].
    pub const ALL: [Self; 2] = [Self::Training, Self::Inference];

    /// Several tasks of the kind.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Training => "trainings",
            Self::Inference => "inferences",
        }
    }
}

/// A figure for each kind of task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerKind<T> {
    /// Of trainings.
    pub training: T,
    /// Of inferences.
    pub inference: T,
}

/// How many tasks of each kind a device takes at once.
pub type Limits = PerKind<u32>;

/// Limits of which some may be none: in a change, what stays as it is; of a pool, what has no limit.
pub type PartialLimits = PerKind<Option<u32>>;

impl<T> PerKind<T> {
    /// The figure of a kind.
    pub fn of(&self, kind: Kind) -> &T {
        match kind {
            Kind::Training => &self.training,
            Kind::Inference => &self.inference,
        }
    }

    /// The figure of a kind, to be changed.
    pub(crate) fn of_mut(&mut self, kind: Kind) -> &mut T {
        match kind {
            Kind::Training => &mut self.training,
            Kind::Inference => &mut self.inference,
        }
    }
}

impl Limits {
    /// With the figures of a change where it has some.
    #[must_use]
    pub fn with(self, change: PartialLimits) -> Self {
        Self {
            training: change.training.unwrap_or(self.training),
            inference: change.inference.unwrap_or(self.inference),
        }
    }
}

impl PartialLimits {
    /// With the figures of a change where it has some.
    #[must_use]
    pub fn with(self, change: Self) -> Self {
        Self {
            training: change.training.or(self.training),
            inference: change.inference.or(self.inference),
        }
    }
}

/// A wish for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The device.
    pub selector: Selector,
    /// For what.
    pub kind: Kind,
    /// On how many GPUs at once, each with the memory asked for; 1 for one device.
    pub gpus: u32,
    /// Memory on the processor, in bytes.
    pub bytes: u64,
    /// Memory on a GPU, in bytes, without what a context costs.
    pub gpu_bytes: u64,
    /// The task's identity.
    pub task: String,
    /// The plugin that runs it, which pools may ask for.
    pub plugin: String,
    /// Its rule where several devices are free; none for that of its pool, else of the host.
    pub policy: Option<Policy>,
    /// Its place among those that wait.
    pub place: Place,
}

/// Why a wish can never be granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `device.unknown`.
    #[error("there is no device `{selector}`; the devices are {exist}")]
    Unknown {
        /// The device asked for.
        selector: Selector,
        /// Those that exist, and the pools.
        exist: String,
    },
    /// `device.unschedulable`.
    #[error("`{device}` cannot run tasks: {reason}")]
    Unschedulable {
        /// The device or pool asked for.
        device: Selector,
        /// Why it cannot.
        reason: String,
    },
    /// `device.plugin`.
    #[error("`{selector}` takes no tasks of the plugin `{plugin}`: its GPUs are kept for others")]
    Plugin {
        /// The device or pool asked for.
        selector: Selector,
        /// The task's plugin.
        plugin: String,
    },
    /// `device.replicas`.
    #[error("the task asks for {wanted} GPUs, and {why}")]
    Replicas {
        /// GPUs asked for.
        wanted: u32,
        /// Why it can never have so many, with how many there are.
        why: String,
    },
    /// `memory.never-fits`.
    #[error(
        "the task needs {needed} bytes; `{device}` has {available} bytes, of which {headroom} are kept \
         free"
    )]
    NeverFits {
        /// Bytes asked for.
        needed: u64,
        /// The device with the most memory among those asked for.
        device: DeviceId,
        /// Its bytes.
        available: u64,
        /// Those of them that no lease takes.
        headroom: u64,
    },
}

impl Refusal {
    /// The stable dotted code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "device.unknown",
            Self::Unschedulable { .. } => "device.unschedulable",
            Self::Plugin { .. } => "device.plugin",
            Self::Replicas { .. } => "device.replicas",
            Self::NeverFits { .. } => "memory.never-fits",
        }
    }
}
