//! What the processes of the simulated machine hold: each writes a file of its own in a folder
//! beside the scenario, and those of processes that are gone do not count, as a driver takes back
//! the memory of a killed process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::scenario::{self, Unit};

/// What a process does on a GPU.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Memory held, in bytes.
    pub bytes: u64,
    /// Kernels run, matrix products among them.
    pub kernels: u64,
}

/// Where the processes of this machine write.
fn folder() -> Option<PathBuf> {
    Some(scenario::path()?.with_extension("processes"))
}

/// Writes what this process does, by the numbers of [`Unit`]s.
pub fn publish(activity: &BTreeMap<usize, Activity>) {
    let Some(folder) = folder() else { return };
    let mut text = String::new();
    for (gpu, Activity { bytes, kernels }) in activity {
        let _ = writeln!(text, "{gpu} {bytes} {kernels}");
    }
    let path = folder.join(std::process::id().to_string());
    let aside = path.with_extension("new");
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&aside, text))
        .and_then(|()| std::fs::rename(&aside, &path));
    if let Err(error) = written {
        eprintln!("simulated NVIDIA machine: {}: {error}", path.display());
    }
}

/// What a process holds of a unit, in bytes; of a GPU that is split of its instances too.
fn held(activity: &BTreeMap<usize, Activity>, unit: Unit) -> u64 {
    let of = |number: usize| {
        let other = Unit::of(number);
        other.gpu == unit.gpu && (unit.instance.is_none() || other == unit)
    };
    let held = activity.iter().filter(|(number, _)| of(**number));
    held.map(|(_, activity)| activity.bytes).sum()
}

/// The bytes that living processes hold of a unit, and of what each killed one held at most `keeps`.
pub fn used_bytes(unit: Unit, keeps: u64) -> u64 {
    let bytes = |(process, activity): (String, BTreeMap<usize, Activity>)| {
        let held = held(&activity, unit);
        if lives(&process) {
            held
        } else {
            held.min(keeps)
        }
    };
    all().into_iter().map(bytes).sum()
}

/// The living processes that hold memory of a unit, and how many bytes.
pub fn holders(unit: Unit) -> Vec<(u32, u64)> {
    let living = all().into_iter().filter(|(process, _)| lives(process));
    let held = living.filter_map(|(process, activity)| {
        let bytes = held(&activity, unit);
        Some((process.parse().ok()?, bytes)).filter(|_| bytes > 0)
    });
    held.collect()
}

/// Whether this process is the first that comes to a fault of this number.
pub fn first(fault: usize) -> bool {
    let marker = scenario::path().map(|path| path.with_extension(format!("fault-{fault}")));
    marker.is_some_and(|marker| std::fs::File::create_new(marker).is_ok())
}

/// Where the faults of processes are written, that the driver reports.
fn reports() -> Option<PathBuf> {
    Some(scenario::path()?.with_extension("xids"))
}

/// Reports an Xid of a GPU, by the GPU's place in the scenario.
pub fn report(gpu: usize, xid: u64) {
    let Some(path) = reports() else { return };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path);
    let line = format!("{gpu} {xid}\n");
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("simulated NVIDIA machine: {}: {error}", path.display());
    }
}

/// GPUs and Xids of all faults that processes had, in order.
pub fn reported() -> Vec<(usize, u64)> {
    let text = reports().and_then(|path| std::fs::read_to_string(path).ok());
    let line = |line: &str| {
        let (gpu, xid) = line.split_once(' ')?;
        Some((gpu.parse().ok()?, xid.parse().ok()?))
    };
    text.unwrap_or_default().lines().filter_map(line).collect()
}

/// What every process did, those that are gone among them, by process id.
pub fn all() -> Vec<(String, BTreeMap<usize, Activity>)> {
    folder().map_or_else(Vec::new, |folder| all_in(&folder))
}

/// The same of the machine whose processes write in `folder`.
pub fn all_in(folder: &Path) -> Vec<(String, BTreeMap<usize, Activity>)> {
    let entries = std::fs::read_dir(folder).ok();
    let entries = entries.into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let text = std::fs::read_to_string(entry.path()).ok()?;
        let line = |line: &str| {
            let mut words = line.split(' ').map(str::parse::<u64>);
            let mut next = || words.next()?.ok();
            let gpu = next()? as usize;
            let (bytes, kernels) = (next()?, next()?);
            Some((gpu, Activity { bytes, kernels }))
        };
        name.parse::<u32>().ok()?;
        Some((name, text.lines().filter_map(line).collect()))
    };
    entries.filter_map(read).collect()
}

/// Whether a process lives: there, and no zombie.
fn lives(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}
