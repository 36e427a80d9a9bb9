//! A simulated NVIDIA machine: one library that takes the place of `libnvidia-ml.so.1`,
//! `libcuda.so.1`, `libcublasLt.so.13` and `libcudnn.so.9` through the library path, with GPUs from the scenario file
//! beside it.
//!
//! [`scenario`] says which GPUs there are, from captures of real ones, and what goes wrong; [`nvml`]
//! shows them through NVML's functions, looking at the file again and again, so that a test changes the
//! machine while a program looks at it. [`cuda`] is the driver: streams whose work waits until the
//! host does, so that a missing wait shows; memory limits shared by all [`processes`]; faults.
//! [`block`] runs the kernels themselves, the same sources that ship, compiled as C++. It proves
//! results and the handling of errors, never speed.

/// Defines functions that C calls by these names.
macro_rules! exported {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $T:ty),*) $body:block)*) => {
        $(
            $(#[$doc])*
            // SAFETY: the names are those of NVIDIA's libraries, each defined once.
            #[unsafe(no_mangle)]
            #[allow(
                non_snake_case,
                clippy::not_unsafe_ptr_arg_deref,
                clippy::too_many_arguments,
                reason = "the signatures are NVIDIA's"
            )]
            pub extern "C" fn $name($($argument: $T),*) -> c_uint $body
        )*
    };
}

pub mod block;
pub mod cublaslt;
pub mod cuda;
pub mod cudnn;
mod half;
mod handle;
pub mod nvml;
pub mod processes;
pub mod profiles;
pub mod scenario;
