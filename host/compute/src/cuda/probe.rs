//! Whether this machine can compute on its GPUs, found out without ever panicking: cudarc panics
//! where a library or a function of it is missing.

use std::panic::catch_unwind;

use super::driver;
use crate::error::Error;

/// The oldest CUDA that a driver must support for our kernels, as `cuDriverGetVersion` gives it.
const OLDEST_DRIVER: i32 = 13_000;
/// The oldest compute capability that our kernels run on.
const OLDEST_CAPABILITY: (i32, i32) = (7, 5);

/// Runs the first calls of a library, turning a panic about a missing function into an error.
pub(super) fn guarded<T>(
    work: impl FnOnce() -> Result<T, Error> + std::panic::UnwindSafe,
) -> Result<T, Error> {
    let old = || {
        let message =
            "the NVIDIA driver or cuBLAS is too old: it lacks a function that kernels need";
        Err(Error::new("device.unsupported", message))
    };
    catch_unwind(work).unwrap_or_else(|_| old())
}

/// Checks that the driver is there. Errors: `device.unsupported`.
fn driver_is_present() -> Result<(), Error> {
    // SAFETY: loading NVIDIA's own library runs its initialisers only.
    if unsafe { cudarc::driver::sys::is_culib_present() } {
        return Ok(());
    }
    let message = "the NVIDIA driver's library libcuda.so.1 is not installed";
    Err(Error::new("device.unsupported", message))
}

/// The GPUs that the driver shows to this process. Errors: `device.unsupported` where there is no
/// driver, or an old one.
pub(super) fn visible() -> Result<Vec<driver::VisibleGpu>, Error> {
    driver_is_present()?;
    guarded(|| {
        driver::start()?;
        driver::visible()
    })
}

/// Checks that the driver and cuBLAS are there and new enough. Errors: `device.unsupported`.
pub(super) fn check() -> Result<(), Error> {
    let refuse = |message: String| Err(Error::new("device.unsupported", message));
    driver_is_present()?;
    // SAFETY: as above.
    if !unsafe { cudarc::cublaslt::sys::is_culib_present() } {
        return refuse("cuBLAS is not installed: libcublasLt.so.13 is not found".to_owned());
    }
    guarded(|| {
        let version = driver::version()?;
        if version < OLDEST_DRIVER {
            return refuse(format!(
                "the NVIDIA driver supports CUDA up to {}.{}; kernels need {}.{}, which is driver 580 or newer",
                version / 1000,
                version % 1000 / 10,
                OLDEST_DRIVER / 1000,
                OLDEST_DRIVER % 1000 / 10
            ));
        }
        driver::start()
    })
}

/// A GPU, or an instance of one, as the driver shows it. Errors: `device.unsupported` where it is too
/// old, `device.lost` where the driver does not show it.
pub(super) fn gpu(uuid: &str) -> Result<driver::VisibleGpu, Error> {
    let mut gpus = guarded(driver::visible)?;
    // The driver tells an instance's identity as it tells a GPU's.
    let name = uuid.replacen("MIG-", "GPU-", 1);
    let Some(found) = gpus.iter().position(|gpu| gpu.uuid == name) else {
        let message = format!("the CUDA driver shows {} GPUs, not {uuid}", gpus.len());
        return Err(Error::new("device.lost", message));
    };
    let gpu = gpus.swap_remove(found);
    let (major, minor) = gpu.compute_capability;
    if gpu.compute_capability < OLDEST_CAPABILITY {
        let message = format!(
            "compute capability {major}.{minor}: kernels need {}.{} or newer",
            OLDEST_CAPABILITY.0, OLDEST_CAPABILITY.1
        );
        return Err(Error::new("device.unsupported", message));
    }
    Ok(gpu)
}
