//! One device: what there is of it, and who holds how much of it.

use std::cmp::Reverse;
use std::time::Duration;

use crate::gpu::Peer;
use crate::heat::Heat;
use crate::memory::{Average, Memory};
use crate::policy::Candidate;
use crate::pool::GpuFacts;
use crate::queue::Place;
use crate::request::{Kind, Limits, PerKind, Request};
use crate::selector::DeviceId;

/// A device as the allocator is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceEntry {
    /// Its name in device strings.
    pub id: DeviceId,
    /// NVML's identity; none for the processor.
    pub uuid: Option<String>,
    /// The product name.
    pub model: String,
    /// Such as `8.6`.
    pub compute_capability: Option<String>,
    /// Memory that leases and other programs may take together, in bytes: what the driver reserves for
    /// itself is not in it.
    pub memory_bytes: u64,
    /// Memory that no lease takes, in bytes.
    pub headroom_bytes: u64,
    /// Memory that every lease takes besides what its task needs, in bytes: on a GPU, what a context
    /// and the libraries cost.
    pub overhead_bytes: u64,
    /// Tasks at once.
    pub limits: Limits,
    /// Whether tasks can run on it.
    pub state: State,
    /// Whether the operator keeps new tasks away from it.
    pub draining: bool,
    /// How it is linked to other GPUs, where NVML tells.
    pub peers: Vec<Peer>,
}

/// Whether tasks can run on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// They can.
    Ready,
    /// It is not known yet: tasks wait.
    Probing,
    /// They cannot, for this reason.
    Unable(String),
    /// They could, and cannot for now, for this reason: tasks wait.
    Unwell(String),
}

impl State {
    /// Why no task can run now.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Probing => Some("it is being probed"),
            Self::Unable(reason) | Self::Unwell(reason) => Some(reason),
        }
    }
}

/// Why leases end before their tasks do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The stable dotted code.
    pub code: &'static str,
    /// For people.
    pub reason: String,
}

/// What was measured on a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measurement {
    /// When, since any beginning.
    pub at: Duration,
    /// Memory in use by all programs, in bytes; none where NVML does not tell.
    pub used_bytes: Option<u64>,
    /// Percent of the last sample period in which a kernel ran.
    pub utilization_percent: Option<u32>,
    /// °C to its slowdown temperature.
    pub thermal_margin_c: Option<i32>,
    /// °C.
    pub temperature_c: Option<u32>,
    /// Whether it slows its clocks down for heat.
    pub slowed_by_heat: bool,
}

/// What a worker has taken of its lease.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Whether it has made a context.
    pub context: bool,
    /// What its sessions hold, in bytes.
    pub session_bytes: u64,
}

/// A lease as the ledger has it.
#[derive(Debug, Clone)]
pub(crate) struct Holding {
    pub(crate) lease: u64,
    pub(crate) task: String,
    pub(crate) kind: Kind,
    /// Why it ends before its task does.
    pub(crate) failure: Option<Cause>,
}

/// A device that is kept for a wish which others have passed often enough.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hold {
    pub(crate) wish: u64,
    pub(crate) place: Place,
    pub(crate) kind: Kind,
}

/// In what order devices are kept: those kept for nobody first, then those with a free slot, then those
/// with the most memory for leases now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(super) held: bool,
    pub(super) full: bool,
    pub(super) allocatable: Reverse<u64>,
}

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) entry: DeviceEntry,
    pub(crate) holdings: Vec<Holding>,
    pub(crate) counts: PerKind<u32>,
    pub(crate) pools: Vec<usize>,
    pub(super) hold: Option<Hold>,
    pub(crate) memory: Memory,
    utilization: Option<f64>,
    pub(super) heat: Heat,
    temperature_c: Option<u32>,
    pub(super) last_grant: u64,
}

impl Device {
    pub(super) fn new(entry: DeviceEntry) -> Self {
        Self {
            entry,
            holdings: Vec::new(),
            counts: PerKind::default(),
            pools: Vec::new(),
            hold: None,
            memory: Memory::default(),
            utilization: None,
            heat: Heat::default(),
            temperature_c: None,
            last_grant: 0,
        }
    }

    /// Whether it is too hot for a new task, or has not been cool for long enough since.
    pub(crate) fn hot(&self) -> bool {
        self.heat.is_hot()
    }

    /// Bytes that a lease for the request takes here.
    pub(crate) fn need(&self, request: &Request) -> u64 {
        match self.entry.id {
            DeviceId::Cpu => request.bytes,
            DeviceId::Cuda(_) => request.gpu_bytes.saturating_add(self.entry.overhead_bytes),
        }
    }

    /// Whether a task on several GPUs can have it as one of them. A process that sees an instance of a
    /// GPU sees no other device.
    pub(crate) fn joins(&self) -> bool {
        let instance = |uuid: &String| uuid.starts_with("MIG-");
        self.entry.id != DeviceId::Cpu && !self.entry.uuid.as_ref().is_some_and(instance)
    }

    /// How it is linked to another GPU; none where that is not known.
    pub(crate) fn peer(&self, other: &Self) -> Option<&Peer> {
        let uuid = other.entry.uuid.as_ref()?;
        self.entry.peers.iter().find(|peer| peer.uuid == *uuid)
    }

    /// Bytes that leases could take together if no other program held any.
    pub(crate) fn most(&self) -> u64 {
        self.entry
            .memory_bytes
            .saturating_sub(self.entry.headroom_bytes)
    }

    /// Percent of the time in which kernels ran, averaged over some samples.
    pub(crate) fn utilization(&self) -> Option<f64> {
        self.utilization
    }

    /// Bytes that a lease can take now.
    pub(crate) fn allocatable(&self) -> u64 {
        self.memory
            .allocatable(self.entry.memory_bytes, self.entry.headroom_bytes)
    }

    /// Takes a measurement; true where it leaves more room than the last.
    pub(super) fn measure(&mut self, measurement: &Measurement, cool: Duration) -> bool {
        self.temperature_c = measurement.temperature_c;
        let (margin, slowed) = (measurement.thermal_margin_c, measurement.slowed_by_heat);
        let cooled = self.heat.sample(measurement.at, margin, slowed, cool);
        self.utilization = measurement.utilization_percent.map(|percent| {
            let now = f64::from(percent);
            self.utilization
                .map_or(now, |before| before + (now - before) / 3.0)
        });
        let before = self.allocatable();
        self.memory.measure(measurement.used_bytes, Average::Move);
        cooled || self.allocatable() > before
    }

    /// The wish that it is kept for.
    pub(crate) fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// Whether this wish is blocked by a hold: one for a wish before it that could take the device as
    /// soon as there is memory, or that waits for the end of a task of the same kind.
    pub(super) fn held_from(&self, kind: Kind, place: Place) -> bool {
        self.hold.is_some_and(|hold| {
            let full = self.counts.of(hold.kind) >= self.entry.limits.of(hold.kind);
            place > hold.place && (kind == hold.kind || !full)
        })
    }

    /// In what order it would be kept for a task of a kind, pools' limits aside.
    pub(super) fn rank(&self, kind: Kind) -> Rank {
        Rank {
            held: self.hold.is_some(),
            full: self.counts.of(kind) >= self.entry.limits.of(kind),
            allocatable: Reverse(self.allocatable()),
        }
    }

    pub(crate) fn candidate(&self, needed_bytes: u64) -> Candidate {
        Candidate {
            tasks: self.counts.training + self.counts.inference,
            slots: self
                .entry
                .limits
                .training
                .saturating_add(self.entry.limits.inference),
            usable_bytes: self.entry.memory_bytes,
            allocatable_bytes: self.allocatable(),
            needed_bytes,
            utilization_percent: self.utilization,
            thermal_margin_c: self.heat.margin_c(),
            temperature_c: self.temperature_c,
            last_grant: self.last_grant,
        }
    }

    pub(super) fn facts(&self) -> Option<GpuFacts<'_>> {
        let DeviceId::Cuda(index) = self.entry.id else {
            return None;
        };
        Some(GpuFacts {
            index,
            uuid: self.entry.uuid.as_deref(),
            model: &self.entry.model,
            memory_bytes: self.entry.memory_bytes,
            compute_capability: self.entry.compute_capability.as_deref(),
        })
    }
}
