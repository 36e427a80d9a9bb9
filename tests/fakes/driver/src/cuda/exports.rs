//! The driver's functions, as `cuda.h` declares them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::PoisonError;

use super::{
    Answer, CAPTURE_INVALIDATED, CAPTURE_UNSUPPORTED, CONTEXT_BYTES, CURRENT, DRIVER, Driver,
    Event, GRANULE, Handle, ILLEGAL_ADDRESS, INVALID_DEVICE, INVALID_HANDLE, INVALID_PTX,
    INVALID_VALUE, LAUNCH_FAILED, NO_DEVICE, NOT_FOUND, NOT_INITIALIZED, OUT_OF_MEMORY, Stream,
    UNKNOWN, Work, enter, visible,
};
use crate::block::{self, Coordinates, Kernel, Order};
use crate::handle;
use crate::scenario::{Scenario, Unit};

fn put<T>(target: *mut T, value: T) -> Answer {
    match handle::put(INVALID_VALUE, target, value) {
        0 => Ok(()),
        code => Err(code),
    }
}

/// The kernels of a PTX text, each with the sizes of its parameters in bytes.
fn entries(text: &str) -> Vec<(&str, Vec<usize>)> {
    let mut found: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(rest) = line.split(".entry ").nth(1) {
            found.push((rest.split('(').next().unwrap_or("").trim(), Vec::new()));
            open = true;
        } else if line.starts_with(')') {
            open = false;
        } else if open && let Some(parameter) = line.trim().strip_prefix(".param ") {
            let array = parameter
                .split('[')
                .nth(1)
                .and_then(|rest| rest.split(']').next());
            let bits = || {
                let kinds = [".u8", ".u16", ".u32", ".f32", ".u64", ".f64", ".b64"];
                let sizes = [1, 2, 4, 4, 8, 8, 8];
                let kind = kinds.iter().position(|kind| parameter.starts_with(kind));
                kind.map_or(0, |kind| sizes[kind])
            };
            let size = array
                .and_then(|size| size.parse().ok())
                .unwrap_or_else(bits);
            if let Some((_, sizes)) = found.last_mut() {
                sizes.push(size);
            }
        }
    }
    found
}

exported! {
    /// Starts the driver.
    fn cuInit(_flags: c_uint) {
        let scenario = match Scenario::read() {
            Ok(scenario) => scenario,
            Err(reason) => {
                eprintln!("simulated NVIDIA machine: {reason}");
                return NO_DEVICE;
            }
        };
        let visible = visible(&scenario);
        if visible.is_empty() {
            return NO_DEVICE;
        }
        if visible.iter().enumerate().any(|(at, number)| visible[..at].contains(number)) {
            return INVALID_DEVICE;
        }
        let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
        let driver = driver.get_or_insert_with(|| Driver {
            order: Order::parse(&scenario.thread_order),
            scenario,
            visible,
            contexts: HashMap::new(),
            allocations: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            graphs: HashMap::new(),
            calls: HashMap::new(),
            activity: BTreeMap::new(),
            failures: HashMap::new(),
            next: 0,
        });
        let answer = driver.admit("cuInit");
        driver.note(answer.err())
    }

    /// The newest CUDA version that the driver supports.
    fn cuDriverGetVersion(version: *mut c_int) {
        let scenario = Scenario::read();
        put(version, scenario.map_or(0, |scenario| scenario.cuda)).err().unwrap_or(0)
    }

    /// The number of visible GPUs.
    fn cuDeviceGetCount(count: *mut c_int) {
        enter("cuDeviceGetCount", |driver| put(count, driver.visible.len() as c_int))
    }

    /// A GPU by ordinal.
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        enter("cuDeviceGet", |driver| {
            let known = usize::try_from(ordinal).is_ok_and(|n| n < driver.visible.len());
            if known { put(device, ordinal) } else { Err(INVALID_DEVICE) }
        })
    }

    /// A GPU's identity, or an instance's, as 16 bytes.
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        enter("cuDeviceGetUuid_v2", |driver| {
            let number = *driver.visible.get(device as usize).ok_or(INVALID_DEVICE)?;
            let text = driver.scenario.identity(Unit::of(number)).ok_or(INVALID_DEVICE)?;
            let digits: String = text.chars().skip(4).filter(char::is_ascii_hexdigit).collect();
            let value = u128::from_str_radix(&digits, 16).map_err(|_| INVALID_DEVICE)?;
            put(uuid, value.to_be_bytes())
        })
    }

    /// The same.
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        cuDeviceGetUuid_v2(uuid, device)
    }

    /// A GPU's product name.
    fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) {
        enter("cuDeviceGetName", |driver| {
            let number = *driver.visible.get(device as usize).ok_or(INVALID_DEVICE)?;
            let number = Unit::of(number).gpu;
            let profile = driver.scenario.gpus[number].profile().map_err(|_| INVALID_DEVICE)?;
            let text = profile.name.bytes().chain([0]).take(length.max(0) as usize);
            text.enumerate().try_for_each(|(at, byte)| put(name.wrapping_add(at), byte as c_char))
        })
    }

    /// A GPU's memory in bytes, without the driver's reserve.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        enter("cuDeviceTotalMem_v2", |driver| {
            let number = *driver.visible.get(device as usize).ok_or(INVALID_DEVICE)?;
            put(bytes, driver.memory(number)?.1 as usize)
        })
    }

    /// A number about a GPU: the compute capability (75, 76) or its place on the bus (33, 34, 50).
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) {
        enter("cuDeviceGetAttribute", |driver| {
            let number = *driver.visible.get(device as usize).ok_or(INVALID_DEVICE)?;
            let number = Unit::of(number).gpu;
            let gpu = &driver.scenario.gpus[number];
            let profile = gpu.profile().map_err(|_| INVALID_DEVICE)?;
            put(value, match attribute {
                75 => profile.compute_capability.0,
                76 => profile.compute_capability.1,
                33 => gpu.bus.unwrap_or(number as u32 + 1) as c_int,
                34 | 50 => 0,
                _ => return Err(INVALID_VALUE),
            })
        })
    }

    /// Makes a GPU's context, or counts one holder more.
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) {
        enter("cuDevicePrimaryCtxRetain", |driver| {
            let ordinal = device as usize;
            let number = *driver.visible.get(ordinal).ok_or(INVALID_DEVICE)?;
            if driver.contexts.get(&ordinal).is_none_or(|&count| count == 0) {
                driver.charge(number, CONTEXT_BYTES)?;
            }
            *driver.contexts.entry(ordinal).or_default() += 1;
            put(context, ordinal as Handle + 1)
        })
    }

    /// Counts one holder less; the last takes the context with it.
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) {
        enter("cuDevicePrimaryCtxRelease_v2", |driver| {
            let ordinal = device as usize;
            let number = *driver.visible.get(ordinal).ok_or(INVALID_DEVICE)?;
            let count = driver.contexts.get_mut(&ordinal).filter(|count| **count > 0).ok_or(201u32)?;
            *count -= 1;
            if *count == 0 {
                driver.uncharge(number, CONTEXT_BYTES);
            }
            Ok(())
        })
    }

    /// The context of this thread's calls, of this one too: one that has ended can be left.
    fn cuCtxSetCurrent(context: Handle) {
        CURRENT.set((context as usize).checked_sub(1));
        enter("cuCtxSetCurrent", |_| Ok(()))
    }

    /// Free and all memory of the context's GPU, in bytes.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        enter("cuMemGetInfo_v2", |driver| {
            let (have, all) = driver.memory(driver.gpu()?)?;
            put(free, have as usize)?;
            put(total, all as usize)
        })
    }

    /// Takes memory of the GPU.
    fn cuMemAlloc_v2(at: *mut u64, bytes: usize) {
        enter("cuMemAlloc_v2", |driver| {
            let gpu = driver.gpu()?;
            if bytes == 0 {
                return Err(INVALID_VALUE);
            }
            driver.charge(gpu, (bytes as u64).next_multiple_of(GRANULE))?;
            let taken = driver.allocate(bytes, Some(gpu))?;
            put(at, taken)
        })
    }

    /// Gives memory back, after all work.
    fn cuMemFree_v2(at: u64) {
        enter("cuMemFree_v2", |driver| {
            driver.drain_all()?;
            driver.free(at)
        })
    }

    /// Takes pinned memory of the host.
    fn cuMemHostAlloc(at: *mut u64, bytes: usize, _flags: c_uint) {
        enter("cuMemHostAlloc", |driver| {
            let taken = driver.allocate(bytes, None)?;
            put(at, taken)
        })
    }

    /// Gives pinned memory back, after all work.
    fn cuMemFreeHost(at: u64) {
        enter("cuMemFreeHost", |driver| {
            driver.drain_all()?;
            driver.free(at)
        })
    }

    /// Host to device.
    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        enter("cuMemcpyHtoDAsync_v2", |driver| {
            driver.check(to, bytes)?;
            if driver.holds(from, bytes) {
                return driver.push(stream, Work::Copy { to, from, bytes });
            }
            // SAFETY: the caller passes so many bytes.
            let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec();
            driver.push(stream, Work::Staged { to, bytes })
        })
    }

    /// Device to host, which must be pinned, as a real driver is not asynchronous otherwise.
    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        enter("cuMemcpyDtoHAsync_v2", |driver| {
            driver.check(from, bytes)?;
            driver.check(to, bytes)?;
            driver.push(stream, Work::Copy { to, from, bytes })
        })
    }

    /// Within a device.
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) {
        enter("cuMemcpyDtoDAsync_v2", |driver| {
            driver.check(from, bytes)?;
            driver.check(to, bytes)?;
            driver.push(stream, Work::Copy { to, from, bytes })
        })
    }

    /// Between devices.
    fn cuMemcpyPeerAsync(to: u64, _to_context: Handle, from: u64, _from_context: Handle, bytes: usize, stream: Handle) {
        enter("cuMemcpyPeerAsync", |driver| {
            driver.check(from, bytes)?;
            driver.check(to, bytes)?;
            driver.push(stream, Work::Copy { to, from, bytes })
        })
    }

    /// Every simulated GPU reaches every other.
    fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, other: c_int) {
        enter("cuDeviceCanAccessPeer", |_| put(can, c_int::from(device != other)))
    }

    /// Fills memory.
    fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: Handle) {
        enter("cuMemsetD8Async", |driver| {
            driver.check(at, bytes)?;
            driver.push(stream, Work::Fill { at, value, bytes })
        })
    }

    /// Makes a stream.
    fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) {
        enter("cuStreamCreate", |driver| {
            let gpu = driver.gpu()?;
            let handle = driver.handle();
            driver.streams.insert(handle, Stream { gpu, ..Stream::default() });
            put(stream, handle)
        })
    }

    /// Ends a stream, after its work.
    fn cuStreamDestroy_v2(stream: Handle) {
        enter("cuStreamDestroy_v2", |driver| {
            driver.drain(stream, None)?;
            driver.streams.remove(&stream);
            Ok(())
        })
    }

    /// Waits for a stream's work.
    fn cuStreamSynchronize(stream: Handle) {
        enter("cuStreamSynchronize", |driver| {
            let known = driver.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
            if known.captured.is_some() {
                known.spoilt = true;
                return Err(CAPTURE_UNSUPPORTED);
            }
            let answer = driver.drain(stream, None);
            driver.settle(answer)
        })
    }

    /// Makes a stream wait for an event.
    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) {
        enter("cuStreamWaitEvent", |driver| {
            let recorded = driver.events.get(&event).ok_or(INVALID_HANDLE)?.recorded;
            driver.push(stream, Work::Wait(event, recorded))
        })
    }

    /// Starts to record a stream's work instead of doing it.
    fn cuStreamBeginCapture_v2(stream: Handle, _mode: c_uint) {
        enter("cuStreamBeginCapture_v2", |driver| {
            let stream = driver.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
            stream.captured = Some(Vec::new());
            Ok(())
        })
    }

    /// The work recorded, as a graph.
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        enter("cuStreamEndCapture", |driver| {
            let stream = driver.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
            let work = stream.captured.take().ok_or(INVALID_VALUE)?;
            if std::mem::take(&mut stream.spoilt) {
                return Err(CAPTURE_INVALIDATED);
            }
            let handle = driver.handle();
            driver.graphs.insert(handle, work);
            put(graph, handle)
        })
    }

    /// Makes a graph ready to run.
    fn cuGraphInstantiateWithFlags(ready: *mut Handle, graph: Handle, _flags: u64) {
        enter("cuGraphInstantiateWithFlags", |driver| {
            let work = driver.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
            let handle = driver.handle();
            driver.graphs.insert(handle, work);
            put(ready, handle)
        })
    }

    /// Gives a graph's work to a stream.
    fn cuGraphLaunch(ready: Handle, stream: Handle) {
        enter("cuGraphLaunch", |driver| {
            let work = driver.graphs.get(&ready).ok_or(INVALID_HANDLE)?.clone();
            work.into_iter().try_for_each(|work| driver.push(stream, work))
        })
    }

    /// Drops a graph.
    fn cuGraphDestroy(graph: Handle) {
        enter("cuGraphDestroy", |driver| driver.graphs.remove(&graph).map(drop).ok_or(INVALID_HANDLE))
    }

    /// Drops a ready graph.
    fn cuGraphExecDestroy(ready: Handle) {
        enter("cuGraphExecDestroy", |driver| driver.graphs.remove(&ready).map(drop).ok_or(INVALID_HANDLE))
    }

    /// Makes an event, done from the start.
    fn cuEventCreate(event: *mut Handle, _flags: c_uint) {
        enter("cuEventCreate", |driver| {
            let handle = driver.handle();
            driver.events.insert(handle, Event::default());
            put(event, handle)
        })
    }

    /// Drops an event.
    fn cuEventDestroy_v2(event: Handle) {
        enter("cuEventDestroy_v2", |driver| driver.events.remove(&event).map(drop).ok_or(INVALID_HANDLE))
    }

    /// The event is done once the stream's work up to here is.
    fn cuEventRecord(event: Handle, stream: Handle) {
        enter("cuEventRecord", |driver| {
            let known = driver.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
            known.recorded += 1;
            let number = known.recorded;
            driver.push(stream, Work::Record(event, number))
        })
    }

    /// Waits for an event.
    fn cuEventSynchronize(event: Handle) {
        enter("cuEventSynchronize", |driver| {
            let number = driver.events.get(&event).ok_or(INVALID_HANDLE)?.recorded;
            let gpu = driver.visible.first().copied().unwrap_or(0);
            let answer = driver.execute(gpu, Work::Wait(event, number));
            driver.settle(answer)
        })
    }

    /// Loads a PTX text, whose kernels must be those that this library was built with.
    fn cuModuleLoadData(module: *mut Handle, image: *const c_char) {
        enter("cuModuleLoadData", |driver| {
            if image.is_null() {
                return Err(INVALID_VALUE);
            }
            // SAFETY: the caller passes a text and its end.
            let text = unsafe { CStr::from_ptr(image) }.to_str().map_err(|_| INVALID_PTX)?;
            let mut kernels = Vec::new();
            for (name, sizes) in entries(text) {
                let kernel = block::find(name).filter(|kernel| kernel.parameters() == sizes);
                let Some(kernel) = kernel else {
                    eprintln!("simulated NVIDIA machine: no source of kernel {name} with parameters of {sizes:?} bytes");
                    return Err(INVALID_PTX);
                };
                kernels.push(kernel);
            }
            let handle = driver.handle();
            driver.modules.insert(handle, kernels);
            put(module, handle)
        })
    }

    /// Drops a module.
    fn cuModuleUnload(module: Handle) {
        enter("cuModuleUnload", |driver| driver.modules.remove(&module).map(drop).ok_or(INVALID_HANDLE))
    }

    /// A kernel by name.
    fn cuModuleGetFunction(function: *mut *const Kernel, module: Handle, name: *const c_char) {
        enter("cuModuleGetFunction", |driver| {
            let kernels = driver.modules.get(&module).ok_or(INVALID_HANDLE)?;
            // SAFETY: the caller passes a text and its end.
            let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?;
            let wanted = block::find(name).ok_or(NOT_FOUND)?;
            let kernel = kernels.iter().find(|kernel| std::ptr::eq(**kernel, wanted));
            put(function, std::ptr::from_ref(*kernel.ok_or(NOT_FOUND)?))
        })
    }

    /// Gives a kernel to a stream.
    fn cuLaunchKernel(
        function: *const Kernel, blocks_x: c_uint, blocks_y: c_uint, blocks_z: c_uint,
        threads_x: c_uint, threads_y: c_uint, threads_z: c_uint, _shared_bytes: c_uint,
        stream: Handle, parameters: *const *const c_void, _extra: *const c_void
    ) {
        enter("launch", |driver| {
            // SAFETY: cuModuleGetFunction gave the pointer, to a static.
            let kernel = unsafe { function.as_ref() }.ok_or(INVALID_HANDLE)?;
            let blocks = Coordinates { x: blocks_x, y: blocks_y, z: blocks_z };
            let threads = Coordinates { x: threads_x, y: threads_y, z: threads_z };
            let empty = [blocks_x, blocks_y, blocks_z, threads_x, threads_y, threads_z].contains(&0);
            let most = u64::from(threads_x) * u64::from(threads_y) * u64::from(threads_z);
            if empty || most > 1024 || blocks_y > 65_535 || blocks_z > 65_535 || blocks_x > i32::MAX as u32 {
                eprintln!("simulated NVIDIA machine: a grid of {blocks:?} blocks of {threads:?}");
                return Err(INVALID_VALUE);
            }
            let parameters = kernel.parameters().iter().enumerate().map(|(i, &size)| {
                // SAFETY: the caller passes a pointer a parameter, to so many bytes.
                unsafe { std::slice::from_raw_parts((*parameters.add(i)).cast::<u8>(), size) }.to_vec()
            });
            let parameters = parameters.collect();
            driver.push(stream, Work::Kernel { kernel, blocks, threads, parameters })
        })
    }

    /// A code's name in cuda.h.
    fn cuGetErrorName(code: c_uint, text: *mut *const c_char) {
        put(text, name(code).as_ptr()).err().unwrap_or(0)
    }

    /// The same.
    fn cuGetErrorString(code: c_uint, text: *mut *const c_char) {
        put(text, name(code).as_ptr()).err().unwrap_or(0)
    }
}

fn name(code: u32) -> &'static CStr {
    match code {
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NOT_INITIALIZED => c"CUDA_ERROR_NOT_INITIALIZED",
        NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        UNKNOWN => c"CUDA_ERROR_UNKNOWN",
        _ => c"CUDA_ERROR",
    }
}
