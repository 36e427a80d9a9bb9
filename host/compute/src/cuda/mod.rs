//! The CUDA backend: the same plans as on the CPU, with kernels of our own, cuBLASLt, and cuDNN
//! where it is installed.
//!
//! A plan is lowered to commands (`lower` and a file a family of operators, with its kernels in
//! `kernels/`), which a session records once as a CUDA graph and replays. `layout` gives every
//! tensor a place in one allocation, whose size is known before a GPU is asked for. `driver`,
//! `blas` and `dnn` hold all calls into NVIDIA's libraries; `probe` finds out whether there are any.

mod attention;
mod blas;
mod conv;
mod dnn;
mod driver;
mod fused;
mod index;
mod kernels;
mod layer_norm;
mod layout;
mod lower;
mod matmul;
mod narrow;
mod norm;
mod numbers;
mod optimizer;
mod pool;
mod probe;
mod program;
mod recent;
mod reduce;
mod session;
mod signal;
mod window;

use std::sync::Arc;

pub use driver::VisibleGpu;

use crate::backend::{Backend, Session};
use crate::error::Error;
use crate::plan::{Plan, Precision};

/// How a GPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Matrix products round their inputs to 10 bits of fraction, where matrix units are faster for
    /// it (NVIDIA's TF32).
    pub tf32: bool,
    /// Runs are recorded as CUDA graphs and replayed; otherwise every kernel is launched each time.
    pub graphs: bool,
    /// Convolutions go through cuDNN where it is installed; otherwise through kernels of our own.
    pub cudnn: bool,
}

impl Default for Options {
    /// Float32 throughout, graphs, cuDNN.
    fn default() -> Self {
        Self {
            tf32: false,
            graphs: true,
            cudnn: true,
        }
    }
}

/// The GPUs that the CUDA driver shows to this process, without making a context. Errors:
/// `device.unsupported` where there is no driver, or an old one.
pub fn visible() -> Result<Vec<VisibleGpu>, Error> {
    probe::visible()
}

/// Whether kernels can run on the GPU of this UUID, without making a context. Errors:
/// `device.unsupported` where the driver, cuBLAS or the GPU is missing or too old, `device.lost`.
pub fn check(uuid: &str) -> Result<(), Error> {
    probe::check()?;
    probe::gpu(uuid).map(drop)
}

/// What a session of these plans takes on a GPU, in bytes: exactly what it allocates. Errors:
/// `graph.limit`.
pub fn session_bytes(plans: &[&Plan]) -> Result<u64, Error> {
    Ok(layout::Layout::new(plans)?.total_bytes)
}

/// What a plan takes on a GPU, for people: all bytes, and those of them that libraries work in.
pub(crate) fn describe(plan: &Plan) -> String {
    match layout::Layout::new(&[plan]) {
        Ok(layout) => format!(
            "{} bytes in all, {} of them for libraries, and {} bytes of host memory to stage batches",
            layout.total_bytes,
            layout.library_bytes,
            session::host_bytes(&layout)
        ),
        Err(error) => format!("not at all: {error}"),
    }
}

/// A GPU.
#[derive(Debug)]
pub struct CudaBackend {
    device: String,
    gpu: Arc<Gpu>,
    /// Major and minor.
    compute_capability: (i32, i32),
    options: Options,
}

/// The oldest compute capability whose matrix units take bfloat16.
const BFLOAT16_CAPABILITY: (i32, i32) = (8, 0);

/// What sessions of a GPU share. Fields drop in order: the context goes last.
#[derive(Debug)]
struct Gpu {
    kernels: kernels::Kernels,
    blas: Arc<blas::Blas>,
    dnn: Option<Arc<dnn::Dnn>>,
    context: Arc<driver::Context>,
}

impl CudaBackend {
    /// The GPU of this UUID, as NVML writes it, to be called `device`. Makes a context and loads
    /// every kernel. Errors: `device.unsupported` where the driver, cuBLAS or the GPU is missing or
    /// too old, `device.lost`, `memory.exhausted`.
    ///
    /// An instance of a GPU (`MIG-…`) is the only one that the process sees from then on.
    pub fn new(uuid: &str, device: &str, options: Options) -> Result<Self, Error> {
        if uuid.starts_with("MIG-") {
            driver::show_only(uuid);
        }
        probe::check()?;
        let visible = probe::gpu(uuid)?;
        let open = || {
            let context = driver::Context::new(visible.ordinal)?;
            let kernels = kernels::Kernels::load(&context)?;
            let blas = Arc::new(blas::Blas::new(&context)?);
            let dnn = options.cudnn.then(|| dnn::Dnn::new(&context)).flatten();
            let dnn = dnn.map(Arc::new);
            Ok(Gpu {
                kernels,
                blas,
                dnn,
                context,
            })
        };
        Ok(Self {
            device: device.to_owned(),
            gpu: Arc::new(probe::guarded(open)?),
            compute_capability: visible.compute_capability,
            options,
        })
    }
}

impl Backend for CudaBackend {
    fn device(&self) -> &str {
        &self.device
    }

    fn open(&self, plans: Vec<Plan>, budget_bytes: u64) -> Result<Box<dyn Session>, Error> {
        let (major, minor) = self.compute_capability;
        let narrow = plans
            .iter()
            .any(|plan| plan.precision == Precision::Bfloat16);
        if narrow && self.compute_capability < BFLOAT16_CAPABILITY {
            let message = format!(
                "precision bfloat16 needs a GPU of compute capability {}.{} or newer; {} has \
                 {major}.{minor}",
                BFLOAT16_CAPABILITY.0, BFLOAT16_CAPABILITY.1, self.device
            );
            return Err(Error::new("device.unsupported", message));
        }
        let needed = session_bytes(&plans.iter().collect::<Vec<_>>())?;
        if needed > budget_bytes {
            let message = format!("the plans need {needed} bytes, the lease is of {budget_bytes}");
            return Err(Error::new("memory.exceeds-lease", message));
        }
        let gpu = Arc::clone(&self.gpu);
        let session = session::CudaSession::new(plans, gpu, self.device.clone(), self.options)?;
        Ok(Box::new(session))
    }
}
