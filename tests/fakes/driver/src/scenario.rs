//! Scenario files, in TOML:
//!
//! ```toml
//! driver = "580.105.08"        # the driver's version
//! cuda = 13000                 # as cuDriverGetVersion gives it
//! thread_order = "reverse"     # of a block's threads: forward, reverse or a seed
//! unloaded = true              # the driver is not there for NVML
//! failures_spread = true       # what ends a process's context on one GPU ends those on all others
//! restarts = 1                 # of the driver: NVML knows nothing any more until it is started anew
//!
//! [[gpu]]
//! profile = "h100"             # a capture of a real GPU, see PROFILES
//! bus = 0x53                   # PCI bus; a number of its own where none is given
//! used_mib = 1000              # memory taken by processes
//! temperature = 70             # °C
//! power = 300.5                # W
//! utilization = 95             # percent
//! throttle = 0x40              # reasons of slow clocks, as nvmlDeviceGetCurrentClocksThrottleReasons
//! ecc_errors = 3               # of each kind and count
//! total_mib = 400              # all memory, instead of the profile's, with no reserve
//! free_bytes = 100000000       # memory left to all processes together, instead of the profile's
//! keeps_mib = 100              # of what a process held that was killed, so much is never given back
//! lost = true                  # it fell off the bus: NVML_ERROR_GPU_IS_LOST, which a process that
//!                              # saw it sees until it starts NVML anew; none to a CUDA process
//! reset_required = true        # NVML_ERROR_RESET_REQUIRED; none to a CUDA process
//! recovery_action = 1          # as NVML_FI_DEV_GET_GPU_RECOVERY_ACTION gives it
//! mig = []                     # it is split into instances: none, or those of [[gpu.mig]]
//! nvlinks = 18                 # links that are there, of which so many are active
//! nvlinks_active = 18
//! switch = 1                   # GPUs with the same number are on one PCIe switch
//! pcie_kib = [120, 340]        # KiB/s sent and received
//!
//! [[gpu.mig]]                  # an instance
//! name = "1g.10gb"
//! memory_mib = 9856
//! sm_count = 16
//!
//! [[gpu.process]]              # a process of another program
//! pid = 4242
//! used_mib = 500
//! graphics = true              # instead of computing
//! sm_percent = 40              # of the multiprocessors
//!
//! [[fault]]
//! function = "nvmlDeviceGetName"
//! code = 999                   # what the function returns; 13 is NVML_ERROR_FUNCTION_NOT_FOUND
//! hang = true                  # or: it does not return, of NVML as long as the fault is there
//! call = 3                     # only a process's third call of it
//! once = true                  # of the driver: only in the first process that comes to it
//! gpu = 1                      # only of the GPU of this place in the file, from 0
//!
//! [[xid]]                      # an error that the driver reports of a GPU
//! number = 1                   # larger than those before: reported to who waits for events then
//! gpu = 0                      # the GPU's place in the file, from 0
//! code = 79
//! ```
//!
//! A fault of `cuLaunchKernel` counts the kernels that run, those of graphs among them, and shows
//! where the host next waits for the GPU, as on a real one. The codes of `cuda.h` after which a
//! process cannot go on (700, 719, …) stay.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::processes;
use crate::profiles::{PROFILES, Profile};

/// The scenario's file, in a folder of the library path, beside the links to this library: so a
/// process needs nothing of its environment but that path, as with the real libraries.
pub const FILE: &str = "machine.toml";

/// Where the scenario is; none where there is none.
pub fn path() -> Option<PathBuf> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Some(found.clone());
    }
    let folders = std::env::var_os("LD_LIBRARY_PATH")?;
    let mut files = std::env::split_paths(&folders).map(|folder| folder.join(FILE));
    let found = files.find(|file| file.exists())?;
    Some(FOUND.get_or_init(|| found).clone())
}

/// A machine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The driver's version.
    #[serde(default = "default_driver")]
    pub driver: String,
    /// 1000·major + 10·minor.
    #[serde(default = "default_cuda")]
    pub cuda: i32,
    /// Its GPUs, in NVML's order.
    #[serde(default, rename = "gpu")]
    pub gpus: Vec<Gpu>,
    /// The order in which a block's threads run: `forward`, `reverse` or a seed.
    #[serde(default)]
    pub thread_order: String,
    /// What goes wrong.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
    /// What the driver reports.
    #[serde(default, rename = "xid")]
    pub xids: Vec<Xid>,
    /// Whether the driver is not there.
    #[serde(default)]
    pub unloaded: bool,
    /// Whether what ends a context ends all of its process.
    #[serde(default)]
    pub failures_spread: bool,
    /// How often it was restarted.
    #[serde(default)]
    pub restarts: u32,
}

/// A GPU, and how it differs from its profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// A profile's key.
    pub profile: String,
    /// PCI bus.
    pub bus: Option<u32>,
    /// NVML's identity.
    pub uuid: Option<String>,
    /// Memory taken, in MiB.
    pub used_mib: Option<u64>,
    /// °C.
    pub temperature: Option<u32>,
    /// W.
    pub power: Option<f64>,
    /// Percent.
    #[serde(default)]
    pub utilization: u32,
    /// Why its clocks are slow.
    pub throttle: Option<u64>,
    /// Memory errors of each kind and count.
    #[serde(default)]
    pub ecc_errors: u64,
    /// All memory, in MiB, instead of the profile's; the driver reserves nothing of it.
    pub total_mib: Option<u64>,
    /// Memory left to all processes together, in bytes.
    pub free_bytes: Option<u64>,
    /// Memory that stays taken of what each killed process held, in MiB.
    #[serde(default)]
    pub keeps_mib: u64,
    /// Whether it fell off the bus.
    #[serde(default)]
    pub lost: bool,
    /// Whether it must be reset.
    #[serde(default)]
    pub reset_required: bool,
    /// `nvmlDeviceGpuRecoveryAction_t`.
    #[serde(default)]
    pub recovery_action: i32,
    /// Its instances, where it is split.
    pub mig: Option<Vec<Instance>>,
    /// Links to other GPUs.
    #[serde(default)]
    pub nvlinks: u32,
    /// Those that are active.
    #[serde(default)]
    pub nvlinks_active: u32,
    /// Its PCIe switch.
    pub switch: Option<u32>,
    /// KiB/s sent and received.
    #[serde(default)]
    pub pcie_kib: [u32; 2],
    /// Processes of other programs.
    #[serde(default, rename = "process")]
    pub processes: Vec<Process>,
}

/// An instance of a GPU that is split.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The profile's name.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Multiprocessors.
    pub sm_count: u32,
}

/// A process of another program on a GPU.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Memory it holds, in MiB.
    pub used_mib: u64,
    /// Whether it draws instead of computing.
    #[serde(default)]
    pub graphics: bool,
    /// What it uses of the multiprocessors, in percent.
    #[serde(default)]
    pub sm_percent: u32,
}

/// What a program can run on: a GPU by its place in the file, or an instance of one, by both places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// The GPU's place.
    pub gpu: usize,
    /// The instance's place.
    pub instance: Option<usize>,
}

impl Unit {
    /// More than there are GPUs.
    const GPUS: usize = 1 << 16;

    /// A GPU as a whole.
    pub fn gpu(gpu: usize) -> Self {
        let instance = None;
        Self { gpu, instance }
    }

    /// A number that stands for it alone: of a GPU its place.
    pub fn number(self) -> usize {
        self.gpu + self.instance.map_or(0, |place| (place + 1) * Self::GPUS)
    }

    /// What a number stands for.
    pub fn of(number: usize) -> Self {
        Self {
            gpu: number % Self::GPUS,
            instance: (number / Self::GPUS).checked_sub(1),
        }
    }
}

/// An error that the driver reports of a GPU.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xid {
    /// Larger than those before.
    pub number: u64,
    /// The GPU's place.
    pub gpu: usize,
    /// NVIDIA's number of the error.
    pub code: u64,
}

/// A function that fails.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its name.
    pub function: String,
    /// What it returns.
    #[serde(default)]
    pub code: u32,
    /// Whether it never returns.
    #[serde(default)]
    pub hang: bool,
    /// Which of a process's calls fails, from 1; every one where none is given.
    pub call: Option<u64>,
    /// Whether it fails in one process alone, the first that comes to it.
    #[serde(default)]
    pub once: bool,
    /// The place of the GPU whose calls fail; of every one where none is given.
    pub gpu: Option<usize>,
}

fn default_driver() -> String {
    "580.105.08".to_owned()
}

fn default_cuda() -> i32 {
    13000
}

impl Scenario {
    /// What goes wrong with a call, about a GPU where it is about one.
    pub fn fault(&self, function: &str, gpu: Option<usize>) -> Option<&Fault> {
        let same = |fault: &&Fault| {
            fault.function == function && fault.gpu.is_none_or(|number| gpu == Some(number))
        };
        self.faults.iter().find(same)
    }

    /// Reads the scenario file, anew where it has changed since it was last looked at, 2 ms ago at most.
    /// Errors: a reason.
    pub fn read() -> Result<Arc<Self>, String> {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && last.looked.elapsed() < GLANCE
        {
            return Ok(Arc::clone(&last.scenario));
        }
        let path = path().ok_or_else(|| format!("no {FILE} on the library path"))?;
        let looked = Instant::now();
        let metadata = std::fs::metadata(&path).map_err(|error| error.to_string())?;
        let version = Version {
            file: metadata.ino(),
            bytes: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        };
        if let Some(last) = &mut *last
            && last.version == version
        {
            last.looked = looked;
            return Ok(Arc::clone(&last.scenario));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let scenario: Self = toml::from_str(&text).map_err(|error| error.to_string())?;
        for gpu in &scenario.gpus {
            gpu.profile()?;
        }
        let scenario = Arc::new(scenario);
        *last = Some(Last {
            looked,
            version,
            scenario: Arc::clone(&scenario),
        });
        Ok(scenario)
    }

    /// The identity of a GPU, or `MIG-` and five groups of hexadecimal digits of an instance; none
    /// where there is no such unit.
    pub fn identity(&self, unit: Unit) -> Option<String> {
        let gpu = self.gpus.get(unit.gpu)?;
        let Some(place) = unit.instance else {
            return Some(gpu.identity(unit.gpu));
        };
        gpu.mig.as_ref()?.get(place)?;
        let (gpu, place) = (unit.gpu + 1, place + 1);
        Some(format!("MIG-00000000-0000-4000-8{place:03x}-{gpu:012x}"))
    }

    /// The GPUs and the instances of those that are split.
    pub fn units(&self) -> Vec<Unit> {
        let gpus = self.gpus.iter().enumerate();
        let units = gpus.flat_map(|(number, gpu)| {
            let instances = gpu.mig.as_ref().map_or(0, Vec::len);
            let instances = (0..instances).map(move |place| Unit {
                gpu: number,
                instance: Some(place),
            });
            std::iter::once(Unit::gpu(number)).chain(instances)
        });
        units.collect()
    }

    /// Memory of a unit in bytes: all of it, the driver's reserve, and what programs take.
    pub fn memory_bytes(&self, unit: Unit) -> Option<(u64, u64, u64)> {
        let gpu = self.gpus.get(unit.gpu)?;
        let (total, reserved, others) = match unit.instance {
            None => gpu.memory_bytes(gpu.profile().ok()?),
            Some(place) => (gpu.mig.as_ref()?.get(place)?.memory_mib << 20, 0, 0),
        };
        let own = processes::used_bytes(unit, gpu.keeps_mib << 20);
        Some((total, reserved, others + own))
    }
}

/// What tells one version of the file from another.
#[derive(PartialEq, Eq)]
struct Version {
    file: u64,
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// The machine that was last read.
struct Last {
    looked: Instant,
    version: Version,
    scenario: Arc<Scenario>,
}

static LAST: Mutex<Option<Last>> = Mutex::new(None);

/// The time between two looks at the file, so that what a call costs is not this.
const GLANCE: Duration = Duration::from_millis(2);

impl Gpu {
    /// Identity: `GPU-` and five groups of hexadecimal digits.
    pub fn identity(&self, number: usize) -> String {
        let own = || format!("GPU-00000000-0000-4000-8000-{:012x}", number + 1);
        self.uuid.clone().unwrap_or_else(own)
    }

    /// Memory in bytes: all of it, the driver's reserve, and what other programs take.
    pub fn memory_bytes(&self, profile: &Profile) -> (u64, u64, u64) {
        let (total, reserved, idle) = match self.total_mib {
            Some(total) => (total, 0, 0),
            None => profile.memory_mib,
        };
        let (total, reserved) = (total << 20, reserved << 20);
        let others: u64 = self.processes.iter().map(|other| other.used_mib).sum();
        let taken = self.free_bytes.map_or_else(
            || (self.used_mib.unwrap_or(idle) + others) << 20,
            |free| total.saturating_sub(reserved + free),
        );
        (total, reserved, taken)
    }

    /// The capture it is like. Errors: the profiles that exist.
    pub fn profile(&self) -> Result<&'static Profile, String> {
        PROFILES
            .iter()
            .find(|profile| profile.key == self.profile)
            .ok_or_else(|| {
                let keys: Vec<&str> = PROFILES.iter().map(|profile| profile.key).collect();
                format!(
                    "no profile `{}`; there are {}",
                    self.profile,
                    keys.join(", ")
                )
            })
    }
}
