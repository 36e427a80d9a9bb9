//! The CUDA driver behind owned types: a context, its memory, streams, events, modules, graphs.
//!
//! The only code that calls the driver. Everything keeps its context alive; whoever calls from
//! another thread binds the context first.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::error::Error;

/// Threads of every block, as `device.cuh` says.
pub(super) const BLOCK: u32 = 256;

/// Workspace that the algorithms of cuBLASLt and cuDNN may use, in bytes: what cuBLASLt's
/// documentation advises for Hopper.
pub(super) const LIBRARY_WORKSPACE_BYTES: u64 = 32 << 20;
/// What the algorithms of convolutions may use at most, in bytes. The fast ones that give the same bits in
/// every run transform whole batches.
pub(super) const MOST_WORKSPACE_BYTES: u64 = 1 << 30;

/// Turns the driver's answer into the engine's error. Errors after which cuda.h says that the
/// process must be ended are `device.fault`; a GPU that is gone is `device.lost`.
fn failed(doing: &str, error: DriverError) -> Error {
    let code = match error.0 as u32 {
        2 => "memory.exhausted",
        46 | 100 | 101 | 802 | 999 => "device.lost",
        700..=702 | 709 | 714..=719 => "device.fault",
        _ => "device.failed",
    };
    let name = error
        .error_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|_| format!("CUDA error {}", error.0 as u32));
    Error::new(code, format!("{doing}: {name}"))
}

/// A GPU's primary context.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The context of the GPU of this ordinal, bound to the calling thread.
    pub(super) fn new(ordinal: i32) -> Result<Arc<Self>, Error> {
        let device = result::device::get(ordinal).map_err(|e| failed("no such GPU", e))?;
        // SAFETY: the device was just given by the driver.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|e| failed("no context on the GPU", e))?;
        let context = Arc::new(Self { device, context });
        context.bind()?;
        Ok(context)
    }

    /// Makes this the context of the calling thread.
    pub(super) fn bind(&self) -> Result<(), Error> {
        // SAFETY: the context is retained while `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("binding the GPU", e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `new`. After a sticky error the process ends anyway.
        let _ended = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory of the GPU.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: Arc<Context>,
    at: u64,
}

impl DeviceMemory {
    /// Takes memory. Errors: `memory.exhausted`.
    pub(super) fn new(context: &Arc<Context>, bytes: u64) -> Result<Self, Error> {
        let doing = || format!("taking {bytes} bytes of the GPU's memory");
        let size = usize::try_from(bytes).map_err(|_| Error::limit(doing()))?;
        // SAFETY: the memory is written before it is read: sessions fill what they do not compute.
        let at = unsafe { result::malloc_sync(size) };
        let at = at.map_err(|error| match result::mem_get_info() {
            Ok((free, all)) => failed(&format!("{}, {free} of {all} are free", doing()), error),
            Err(_) => failed(&doing(), error),
        })?;
        Ok(Self {
            context: Arc::clone(context),
            at,
        })
    }

    /// The address of the first byte.
    pub(super) fn address(&self) -> u64 {
        self.at
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let _bound = self.context.bind();
        // SAFETY: taken in `new`; the driver waits for the work that uses it.
        let _freed = unsafe { result::free_sync(self.at) };
    }
}

/// Host memory that the GPU copies from and to while the host goes on.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    context: Arc<Context>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    pub(super) fn new(context: &Arc<Context>, bytes: u64) -> Result<Self, Error> {
        let doing = || format!("taking {bytes} bytes of pinned memory");
        let bytes = usize::try_from(bytes.max(1)).map_err(|_| Error::limit(doing()))?;
        // SAFETY: filled with zeros before anyone sees it.
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| failed(&doing(), e))?;
        let at = at.cast::<u8>();
        // SAFETY: the driver gave so many bytes.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Self {
            context: Arc::clone(context),
            at,
            bytes,
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes were given and filled. The GPU writes only between a copy and the
        // wait for it, during which sessions do not read.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed once.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let _bound = self.context.bind();
        // SAFETY: taken in `new`; the driver waits for the work that uses it.
        let _freed = unsafe { result::free_host(self.at.cast::<c_void>()) };
    }
}

/// A queue of work on the GPU.
#[derive(Debug)]
pub(super) struct Stream {
    context: Arc<Context>,
    pub(super) raw: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, Error> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|e| failed("making a stream", e))?;
        Ok(Self {
            context: Arc::clone(context),
            raw,
        })
    }

    /// Waits for all work.
    pub(super) fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.raw) }.map_err(|e| failed("running kernels", e))
    }

    /// Makes later work wait for an event.
    pub(super) fn wait(&self, event: &Event) -> Result<(), Error> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        unsafe { result::stream::wait_event(self.raw, event.raw, flags) }
            .map_err(|e| failed("ordering streams", e))
    }

    /// Copies within the GPU.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        // SAFETY: both ranges lie in the session's memory, by the session's layout.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.raw) }
            .map_err(|e| failed("copying on the GPU", e))
    }

    /// Fills memory with zeros.
    pub(super) fn clear(&self, at: u64, bytes: u64) -> Result<(), Error> {
        // SAFETY: the range lies in the session's memory, by the session's layout.
        unsafe { result::memset_d8_async(at, 0, bytes as usize, self.raw) }
            .map_err(|e| failed("clearing memory", e))
    }

    /// Copies the first `bytes` of `from` to the GPU; `from` must stay as it is until then.
    pub(super) fn upload(&self, to: u64, from: &PinnedMemory, bytes: usize) -> Result<(), Error> {
        // SAFETY: the target lies in the session's memory; the session waits before it changes
        // or drops `from`.
        unsafe { result::memcpy_htod_async(to, &from.bytes()[..bytes], self.raw) }
            .map_err(|e| failed("copying to the GPU", e))
    }

    /// Copies to the first `bytes` of `to`, which must not be read until then.
    pub(super) fn download(
        &self,
        to: &mut PinnedMemory,
        from: u64,
        bytes: usize,
    ) -> Result<(), Error> {
        // SAFETY: the source lies in the session's memory; the session waits before it reads or
        // drops `to`.
        unsafe { result::memcpy_dtoh_async(&mut to.bytes_mut()[..bytes], from, self.raw) }
            .map_err(|e| failed("copying from the GPU", e))
    }

    /// Launches a kernel of blocks of [`BLOCK`] threads.
    pub(super) fn launch(
        &self,
        function: Function,
        blocks: [u32; 3],
        arguments: &mut [*mut c_void],
    ) -> Result<(), Error> {
        let grid = (blocks[0], blocks[1], blocks[2]);
        // SAFETY: the arguments are those of the kernel's signature, and point into the session's
        // memory with sizes from the plan's shapes; data-dependent indices are checked in kernels.
        unsafe { result::launch_kernel(function.0, grid, (BLOCK, 1, 1), 0, self.raw, arguments) }
            .map_err(|e| failed("launching a kernel", e))
    }

    /// Records what `work` gives to the stream, instead of running it.
    pub(super) fn capture(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let doing = |e| failed("recording a graph", e);
        // SAFETY: the stream lives.
        unsafe { result::stream::begin_capture(self.raw, mode) }.map_err(doing)?;
        let worked = work();
        // SAFETY: capturing began above, and ends here whatever happened.
        let graph = unsafe { result::stream::end_capture(self.raw) };
        worked?;
        let graph = graph.map_err(doing)?;
        // SAFETY: the graph is the one just recorded.
        let ready = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: a ready graph needs its recording no more.
        let _dropped = unsafe { result::graph::destroy(graph) };
        let raw = ready.map_err(doing)?;
        Ok(Graph {
            context: Arc::clone(&self.context),
            raw,
        })
    }

    /// Runs a graph.
    pub(super) fn replay(&self, graph: &Graph) -> Result<(), Error> {
        // SAFETY: both live, and the session's memory that the graph uses does too.
        unsafe { result::graph::launch(graph.raw, self.raw) }
            .map_err(|e| failed("running a graph", e))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _bound = self.context.bind();
        // SAFETY: made in `new`.
        let _dropped = unsafe { result::stream::destroy(self.raw) };
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, Error> {
        let raw = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(|e| failed("making an event", e))?;
        Ok(Self {
            context: Arc::clone(context),
            raw,
        })
    }

    /// Moves the event to here in a stream's work.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: both live.
        unsafe { result::event::record(self.raw, stream.raw) }
            .map_err(|e| failed("ordering streams", e))
    }

    /// Waits until the work before it is done.
    pub(super) fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.raw) }.map_err(|e| failed("running kernels", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _bound = self.context.bind();
        // SAFETY: made in `new`.
        let _dropped = unsafe { result::event::destroy(self.raw) };
    }
}

/// Recorded work, ready to run again and again.
#[derive(Debug)]
pub(super) struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _bound = self.context.bind();
        // SAFETY: made by `capture`.
        let _dropped = unsafe { result::graph::exec_destroy(self.raw) };
    }
}

/// A kernel of a loaded module, which must outlive it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

/// Kernels loaded from PTX.
#[derive(Debug)]
pub(super) struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Compiles PTX for the context's GPU.
    pub(super) fn new(context: &Arc<Context>, name: &str, ptx: &str) -> Result<Self, Error> {
        let doing = format!("loading the kernels of {name}");
        let text =
            CString::new(ptx).map_err(|e| Error::new("device.failed", format!("{doing}: {e}")))?;
        // SAFETY: a text with its end.
        let raw = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let raw = raw.map_err(|e| failed(&doing, e))?;
        Ok(Self {
            context: Arc::clone(context),
            raw,
        })
    }

    /// A kernel by name.
    pub(super) fn function(&self, name: &str) -> Result<Function, Error> {
        let doing = format!("no kernel {name}");
        let name =
            CString::new(name).map_err(|e| Error::new("device.failed", format!("{doing}: {e}")))?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.raw, name) };
        function.map(Function).map_err(|e| failed(&doing, e))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _bound = self.context.bind();
        // SAFETY: loaded in `new`.
        let _dropped = unsafe { result::module::unload(self.raw) };
    }
}

/// A GPU that the CUDA driver shows to this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisibleGpu {
    /// The driver's number for it.
    pub ordinal: i32,
    /// As NVML writes it; of an instance too with `GPU-` before it.
    pub uuid: String,
    /// The product name.
    pub name: String,
    /// Memory in bytes, without the driver's reserve (`cuDeviceTotalMem`).
    pub memory_bytes: u64,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// Domain, bus and device.
    pub pci: (i32, i32, i32),
}

/// Has the driver show an instance and nothing else, if it has not been started: it shows one instance
/// at most, and none beside GPUs (MIG User Guide, "CUDA Visible Devices").
pub(super) fn show_only(uuid: &str) {
    // SAFETY: the standard library keeps its own readers and writers of the environment apart, and no
    // foreign code reads it on another thread: NVIDIA's libraries, the first of this process that do,
    // are called afterwards.
    unsafe { std::env::set_var("CUDA_VISIBLE_DEVICES", uuid) };
}

/// Starts the driver. The library must be present.
pub(super) fn start() -> Result<(), Error> {
    result::init().map_err(|e| failed("the driver does not start", e))
}

/// 1000·major + 10·minor of the newest CUDA that the driver supports.
pub(super) fn version() -> Result<i32, Error> {
    let mut version = 0;
    // SAFETY: a place for a number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| failed("the driver's version", e))?;
    Ok(version)
}

/// The GPUs that this process sees, after `start`.
pub(super) fn visible() -> Result<Vec<VisibleGpu>, Error> {
    let count = result::device::get_count().map_err(|e| failed("counting GPUs", e))?;
    let gpu = |ordinal| -> Result<VisibleGpu, DriverError> {
        let device = result::device::get(ordinal)?;
        let uuid = result::device::get_uuid(device)?;
        let attribute = |which| {
            // SAFETY: the device was just given by the driver.
            unsafe { result::device::get_attribute(device, which) }
        };
        use sys::CUdevice_attribute_enum as Attribute;
        Ok(VisibleGpu {
            ordinal,
            uuid: text_of(&uuid.bytes),
            name: result::device::get_name(device)?,
            // SAFETY: the device was just given by the driver.
            memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
            pci: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
            ),
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        })
    };
    // One GPU that does not answer hides no other.
    Ok((0..count).filter_map(|ordinal| gpu(ordinal).ok()).collect())
}

/// `GPU-` and five groups of hexadecimal digits.
fn text_of(bytes: &[std::ffi::c_char; 16]) -> String {
    let mut text = String::from("GPU-");
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", byte.cast_unsigned()));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        let bytes: Vec<std::ffi::c_char> = (0xf0u8..=0xff).map(u8::cast_signed).collect();
        assert_eq!(
            super::text_of(&bytes.try_into().unwrap()),
            "GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"
        );
    }
}
