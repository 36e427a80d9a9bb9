//! What NVML reports of GPUs: Xids.

use std::collections::HashMap;
use std::ffi::{c_uint, c_ulonglong, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::processes;

use super::{INVALID_ARGUMENT, SUCCESS, TIMEOUT, about, answer, machine, put};

/// `nvmlEventTypeXidCriticalError`.
const XID: c_ulonglong = 8;
/// The events that an H100 tells of: Xids, ECC errors, changes of states and of its split.
const KINDS: c_ulonglong = 0x19F;
/// The time between two looks at the scenario.
const GLANCE: Duration = Duration::from_millis(50);

/// `nvmlEventData_t`.
#[repr(C)]
pub struct EventData {
    device: *mut c_void,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// Who waits for events.
#[derive(Default)]
struct Set {
    gpus: Vec<usize>,
    /// The number of the last event of the scenario that it was told of, or that happened before it was there.
    last: u64,
    /// How many faults of processes it was told of, or happened before it was there.
    faults: usize,
}

/// All sets by number, and the last number.
static SETS: Mutex<Option<(HashMap<usize, Set>, usize)>> = Mutex::new(None);

type Sets = MutexGuard<'static, Option<(HashMap<usize, Set>, usize)>>;

fn sets() -> Sets {
    let mut sets = SETS.lock().unwrap_or_else(PoisonError::into_inner);
    sets.get_or_insert_default();
    sets
}

/// Changes a set.
fn with<T>(set: *mut c_void, work: impl FnOnce(&mut Set) -> T) -> Result<T, c_uint> {
    let mut sets = sets();
    let found = sets
        .as_mut()
        .and_then(|(sets, _)| sets.get_mut(&(set as usize)));
    found.map(work).ok_or(INVALID_ARGUMENT)
}

exported! {
    /// Makes a set of events.
    fn nvmlEventSetCreate(set: *mut *mut c_void) {
        answer("nvmlEventSetCreate", |scenario| {
            let last = scenario.xids.iter().map(|xid| xid.number).max().unwrap_or(0);
            let mut sets = sets();
            let (sets, number) = sets.as_mut().ok_or(INVALID_ARGUMENT)?;
            *number += 1;
            sets.insert(*number, Set { gpus: Vec::new(), last, faults: processes::reported().len() });
            put(set, *number as *mut c_void)
        })
    }

    /// Ends a set of events.
    fn nvmlEventSetFree(set: *mut c_void) {
        if let Some((sets, _)) = sets().as_mut() {
            sets.remove(&(set as usize));
        }
        SUCCESS
    }

    /// The kinds of events that a GPU tells of.
    fn nvmlDeviceGetSupportedEventTypes(device: *mut c_void, kinds: *mut c_ulonglong) {
        about("nvmlDeviceGetSupportedEventTypes", device, |_, _, _| put(kinds, KINDS))
    }

    /// Has a set hear of a GPU.
    fn nvmlDeviceRegisterEvents(device: *mut c_void, kinds: c_ulonglong, set: *mut c_void) {
        about("nvmlDeviceRegisterEvents", device, |_, _, number| {
            if kinds & XID == 0 {
                return Err(INVALID_ARGUMENT);
            }
            with(set, |set| set.gpus.push(number as usize))
        })
    }

    /// Waits for the next event of a set, so many milliseconds at most.
    fn nvmlEventSetWait_v2(set: *mut c_void, data: *mut EventData, patience: c_uint) {
        let end = Instant::now() + Duration::from_millis(patience.into());
        loop {
            let scenario = match machine() {
                Ok(scenario) => scenario,
                Err(code) => return code,
            };
            let next = with(set, |set| {
                let new = |xid: &&crate::scenario::Xid| xid.number > set.last && set.gpus.contains(&xid.gpu);
                if let Some(xid) = scenario.xids.iter().filter(new).min_by_key(|xid| xid.number) {
                    set.last = xid.number;
                    return Some((xid.gpu, xid.code));
                }
                let faults = processes::reported();
                let fresh = faults.iter().enumerate().skip(set.faults);
                let (at, fault) = fresh.into_iter().find(|(_, fault)| set.gpus.contains(&fault.0))?;
                set.faults = at + 1;
                Some(*fault)
            });
            match next {
                Err(code) => return code,
                Ok(Some((gpu, code))) => {
                    let event = EventData {
                        device: (gpu + 1) as *mut c_void,
                        kind: XID,
                        data: code,
                        gpu_instance: c_uint::MAX,
                        compute_instance: c_uint::MAX,
                    };
                    return put(data, event).err().unwrap_or(SUCCESS);
                }
                Ok(None) if Instant::now() >= end => return TIMEOUT,
                Ok(None) => std::thread::sleep(GLANCE.min(end.saturating_duration_since(Instant::now()))),
            }
        }
    }
}
