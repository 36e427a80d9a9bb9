//! What a lease gave back, watched until NVML shows it free.

use std::time::{Duration, Instant};

use devices::{DeviceId, Returning};

use super::Machine;

/// What is not free after so long has leaked.
pub const BOUND: Duration = Duration::from_secs(5);
/// The time between two looks at it.
const GLANCE: Duration = Duration::from_millis(250);

/// How the memory of a lease has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    /// In use on the GPU at the last look, in bytes; none where NVML does not tell.
    pub used_bytes: Option<u64>,
    /// What did not return in time, in bytes.
    pub leaked_bytes: u64,
}

impl Machine {
    /// Watches the memory of a lease that has ended until it is free or has leaked, [`BOUND`] at most:
    /// from what was in use beside leases before it ended. Memory that is free already, as after the
    /// end of a process, is not waited for; where NVML does not tell, nothing has leaked.
    pub async fn returned(&self, returning: Returning) -> Returned {
        let device = returning.device();
        let returned = |used_bytes, leaked_bytes| Returned {
            used_bytes,
            leaked_bytes,
        };
        if device == DeviceId::Cpu {
            return returned(None, 0);
        }
        let end = Instant::now() + BOUND;
        loop {
            let used_bytes = self.used_bytes(device).await;
            let left = returning.seen(used_bytes);
            match used_bytes {
                _ if left == 0 => return returned(used_bytes, 0),
                Some(_) if Instant::now() >= end => {
                    return returned(used_bytes, returning.write_off());
                }
                None if Instant::now() >= end || self.fails(device) => {
                    returning.forget();
                    return returned(None, 0);
                }
                _ => tokio::time::sleep(GLANCE).await,
            }
        }
    }
}
