//! Xids: errors that the driver reports of a GPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;

use super::Session;

/// The time between two looks at whether to end.
const SLICE_MS: u32 = 250;
/// After a call that failed at once.
const PAUSE: Duration = Duration::from_millis(250);

impl Session {
    /// Tells of every Xid of these GPUs (by NVML's numbers), until `ended` is set.
    pub(crate) fn events(&self, gpus: &[u32], ended: &AtomicBool, tell: impl Fn(u32, u64)) {
        let Ok(set) = self.nvml.create_event_set() else {
            return;
        };
        // A GPU that is lost does not tell its identity any more, so that its handle is kept.
        let mut handles = Vec::new();
        for &index in gpus {
            let Ok(device) = self.nvml.device_by_index(index) else {
                continue;
            };
            // SAFETY: the handle is kept to be compared with others alone, or passed on below.
            let handle = unsafe { device.handle() };
            let Ok(register) = self.nvml.lib().nvmlDeviceRegisterEvents.as_ref() else {
                return;
            };
            // The wrapper's function gives the whole set up where one GPU has no events.
            // SAFETY: the function is the library's; the handle and the set are of this session, which
            // lives, and no other thread has the set.
            let code =
                unsafe { register(handle, EventTypes::CRITICAL_XID_ERROR.bits(), set.handle()) };
            if code == 0 {
                handles.push((handle, index));
            }
        }
        while !ended.load(Ordering::Relaxed) {
            match set.wait(SLICE_MS) {
                Ok(event) => {
                    // SAFETY: the handle is compared alone.
                    let handle = unsafe { event.device.handle() };
                    let gpu = handles.iter().find(|(known, _)| *known == handle);
                    if let (Some(&(_, index)), Some(code)) = (gpu, event.event_data) {
                        tell(index, number(&code));
                    }
                }
                Err(NvmlError::Timeout) => {}
                // Such as that a GPU is lost, which a sample shows of which.
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

/// NVIDIA's number of an Xid; 0 of one that the driver could not tell.
fn number(code: &XidError) -> u64 {
    match code {
        XidError::Value(code) => *code,
        XidError::Unknown => 0,
    }
}
