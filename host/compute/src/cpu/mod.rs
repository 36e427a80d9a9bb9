//! The CPU backend: kernels over one arena, on a pool of threads of its own.
//!
//! A family of operators is a file of the same name as in `ops/`. Work is divided by shapes alone,
//! so that results are the same, bit for bit, on any number of threads.

mod attention;
mod chunks;
mod conv;
mod conv_depthwise;
mod conv_transform;
mod conv_weight;
mod conv_windows;
mod conv_winograd;
mod dispatch;
mod elementwise;
mod functions;
mod fused;
mod gemm;
mod index;
mod layer_norm;
mod loss;
mod math;
mod matmul;
mod movement;
mod narrow;
mod norm;
mod operands;
mod optimizer;
mod pool;
mod random;
mod reduce;
mod resample;
mod run;
pub(crate) mod session;
mod signal;
mod softmax;
mod tile;

use std::sync::Arc;

use crate::backend::{Backend, Session};
use crate::error::Error;
use crate::plan::{Plan, peak_bytes_of};
use session::CpuSession;

/// The most bytes that a thread takes beside a session's own for packed matrices, tables of
/// transforms and sums of its own.
pub const SCRATCH_BYTES: u64 = 16 << 20;

/// The processor.
#[derive(Debug)]
pub struct CpuBackend {
    /// None runs on the caller's thread.
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl CpuBackend {
    /// A backend that computes on so many threads; 0 counts as 1. Errors: `backend.threads` where
    /// the system gives no thread.
    pub fn new(threads: usize) -> Result<Self, Error> {
        if threads <= 1 {
            return Ok(Self { pool: None });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compute-{i}"))
            .build()
            .map_err(|e| Error::new("backend.threads", format!("no threads to compute on: {e}")))?;
        Ok(Self {
            pool: Some(Arc::new(pool)),
        })
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &str {
        "cpu"
    }

    fn open(&self, plans: Vec<Plan>, budget_bytes: u64) -> Result<Box<dyn Session>, Error> {
        let needed = peak_bytes_of(&plans.iter().collect::<Vec<_>>());
        if needed > budget_bytes {
            return Err(Error::new(
                "memory.exceeds-lease",
                format!("the plans need {needed} bytes, the lease is of {budget_bytes}"),
            ));
        }
        Ok(Box::new(CpuSession::new(plans, self.pool.clone())?))
    }
}
