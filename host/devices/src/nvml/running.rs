//! The processes on a GPU.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample};

use super::describe::absent;
use crate::gpu::Process;

/// How far back what a process used is looked at.
const RECENT: Duration = Duration::from_secs(1);

/// The processes that compute, draw, or share a context there. Errors: NVML does not tell those that
/// compute, or fails; a kind that the GPU does not have is none.
pub(super) fn processes(device: &Device<'_>) -> Result<Vec<Process>, NvmlError> {
    let known = |told: Result<Vec<ProcessInfo>, NvmlError>| match told {
        Err(error) if absent(&error) => Ok(Vec::new()),
        told => told,
    };
    let compute = device.running_compute_processes()?;
    let graphics = known(device.running_graphics_processes())?;
    let mps = known(device.mps_running_compute_processes())?;
    let mut processes = joined([("compute", compute), ("graphics", graphics), ("mps", mps)]);
    if !processes.is_empty() {
        share(&mut processes, recent_use(device).as_ref());
    }
    Ok(processes)
}

/// What processes used of the multiprocessors in the last second; none where NVML does not tell.
fn recent_use(device: &Device<'_>) -> Option<Vec<ProcessUtilizationSample>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    // NVML counts from the epoch, in µs.
    let since = now.saturating_sub(RECENT).as_micros() as u64;
    match device.process_utilization_stats(since) {
        Err(NvmlError::NotFound) => Some(Vec::new()),
        told => told.ok(),
    }
}

/// Notes the most that each process used. One of which nothing is told used nothing.
fn share(processes: &mut [Process], used: Option<&Vec<ProcessUtilizationSample>>) {
    let Some(used) = used else { return };
    for process in processes {
        let own = used.iter().filter(|one| one.pid == process.pid);
        process.sm_percent = Some(own.map(|one| one.sm_util).max().unwrap_or(0));
    }
}

/// One entry a process: one that computes and draws is told of twice.
fn joined(told: [(&'static str, Vec<ProcessInfo>); 3]) -> Vec<Process> {
    let mut processes: Vec<Process> = Vec::new();
    for (kind, told) in told {
        for one in told {
            let used_bytes = match one.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            };
            match processes.iter_mut().find(|known| known.pid == one.pid) {
                Some(known) => {
                    known.used_bytes = known.used_bytes.max(used_bytes);
                    known.kind = match (known.kind, kind) {
                        ("compute", "graphics") => "compute+graphics",
                        _ => kind,
                    };
                }
                None => processes.push(Process {
                    pid: one.pid,
                    kind,
                    used_bytes,
                    sm_percent: None,
                }),
            }
        }
    }
    processes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, used: Option<u64>) -> ProcessInfo {
        ProcessInfo {
            pid,
            used_gpu_memory: used.map_or(UsedGpuMemory::Unavailable, UsedGpuMemory::Used),
            gpu_instance_id: None,
            compute_instance_id: None,
        }
    }

    #[test]
    fn a_process_of_two_kinds_is_one() {
        let told = [
            (
                "compute",
                vec![process(1, Some(5)), process(2, None), process(3, Some(7))],
            ),
            ("graphics", vec![process(1, Some(5)), process(4, Some(1))]),
            ("mps", vec![process(3, None)]),
        ];
        let shown = joined(told).into_iter();
        let shown: Vec<_> = shown
            .map(|one| (one.pid, one.kind, one.used_bytes))
            .collect();
        let expected = [
            (1, "compute+graphics", Some(5)),
            (2, "compute", None),
            (3, "mps", Some(7)),
            (4, "graphics", Some(1)),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_process_of_which_nothing_is_told_used_nothing() {
        let used = |pid, sm_util| ProcessUtilizationSample {
            pid,
            sm_util,
            timestamp: 0,
            mem_util: 0,
            enc_util: 0,
            dec_util: 0,
        };
        let told = [vec![process(1, None), process(2, None)], vec![], vec![]];
        let [compute, graphics, mps] = told;
        let mut processes = joined([("compute", compute), ("graphics", graphics), ("mps", mps)]);
        share(&mut processes, None);
        assert_eq!(processes[0].sm_percent, None);
        share(
            &mut processes,
            Some(&vec![used(2, 30), used(2, 80), used(9, 99)]),
        );
        let shares: Vec<_> = processes.iter().map(|one| one.sm_percent).collect();
        assert_eq!(shares, [Some(0), Some(80)]);
    }
}
