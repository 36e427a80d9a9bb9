//! What a lease gave back, watched until NVML shows it free.

use std::time::{Duration, Instant};

use devices::{DeviceId, Returning};

use super::Machine;
use crate::output;

/// What is not free after so long has leaked.
const BOUND: Duration = Duration::from_secs(5);
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
    /// end of a process, is not waited for.
    pub async fn returned(&self, returning: Returning) -> Returned {
        let device = returning.device();
        if device == DeviceId::Cpu {
            return Returned {
                used_bytes: None,
                leaked_bytes: 0,
            };
        }
        let end = Instant::now() + BOUND;
        loop {
            let used_bytes = self.used_bytes(device).await;
            let left = returning.seen(used_bytes);
            if left == 0 || Instant::now() >= end {
                let leaked_bytes = returning.write_off();
                if leaked_bytes > 0 {
                    output::message(format_args!(
                        "{device}: {leaked_bytes} bytes of a task that ended were not given back \
                         within {} s, and count as other programs' until they are",
                        BOUND.as_secs()
                    ));
                }
                return Returned {
                    used_bytes,
                    leaked_bytes,
                };
            }
            tokio::time::sleep(GLANCE).await;
        }
    }
}
