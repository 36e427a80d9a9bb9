//! The driver's functions, as `cuda.h` declares them. Handles are numbers of our own; a device
//! pointer is a host pointer.
//!
//! Work given to a stream waits until the host waits for it (or frees memory), so that a result
//! read too early, a staging buffer filled again too soon or a missing wait between two streams
//! shows. Fresh memory is poisoned, and every copy must lie within an allocation.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use crate::block::{self, Coordinates, Kernel, Order};
use crate::handle;
use crate::processes::{self, Activity};
use crate::scenario::{Scenario, Unit};

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const NOT_INITIALIZED: u32 = 3;
const NO_DEVICE: u32 = 100;
const INVALID_DEVICE: u32 = 101;
const INVALID_PTX: u32 = 218;
const INVALID_HANDLE: u32 = 400;
const NOT_FOUND: u32 = 500;
const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_FAILED: u32 = 719;
const CAPTURE_UNSUPPORTED: u32 = 900;
const CAPTURE_INVALIDATED: u32 = 901;
const UNKNOWN: u32 = 999;
/// Codes after which a GPU's context is of no more use, and cuda.h says that the process must be ended.
const STICKY: [u32; 9] = [700, 709, 714, 715, 716, 717, 718, 719, 999];

/// The Xid of an illegal address.
const MEMORY_FAULT: u64 = 31;

/// What a context takes, in bytes.
const CONTEXT_BYTES: u64 = 320 << 20;
/// Memory is given in multiples of so many bytes.
const GRANULE: u64 = 2 << 20;
const POISON: u8 = 0xCD;

type Answer = Result<(), u32>;
/// A handle or a device pointer.
type Handle = u64;

/// A call of a library that runs on the GPU.
pub(crate) trait Call: Send + Sync {
    /// The memory that takes part: address and bytes.
    fn ranges(&self) -> Vec<(u64, usize)>;
    /// Computes it.
    fn run(&self);
}

/// What a stream does.
#[derive(Clone)]
enum Work {
    Kernel {
        kernel: &'static Kernel,
        blocks: Coordinates,
        threads: Coordinates,
        parameters: Vec<Vec<u8>>,
    },
    Call(Arc<dyn Call>),
    /// From a pinned buffer, or between devices' memory.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// From pageable memory, which a real driver stages before it returns.
    Staged {
        to: u64,
        bytes: Vec<u8>,
    },
    Fill {
        at: u64,
        value: u8,
        bytes: usize,
    },
    Record(Handle, u64),
    Wait(Handle, u64),
}

#[derive(Default)]
struct Stream {
    gpu: usize,
    queue: VecDeque<Work>,
    captured: Option<Vec<Work>>,
    /// Whether the host waited within the recording.
    spoilt: bool,
}

#[derive(Default)]
struct Event {
    recorded: u64,
    done: u64,
}

struct Allocation {
    bytes: usize,
    layout: Layout,
    /// None for pinned host memory.
    gpu: Option<usize>,
}

struct Driver {
    scenario: Arc<Scenario>,
    /// The number of the scenario's unit of every CUDA ordinal.
    visible: Vec<usize>,
    order: Order,
    contexts: HashMap<usize, u32>,
    allocations: BTreeMap<u64, Allocation>,
    streams: BTreeMap<Handle, Stream>,
    events: HashMap<Handle, Event>,
    modules: HashMap<Handle, Vec<&'static Kernel>>,
    graphs: HashMap<Handle, Vec<Work>>,
    calls: HashMap<&'static str, u64>,
    activity: BTreeMap<usize, Activity>,
    /// By GPU: what ended its context.
    failures: HashMap<usize, u32>,
    next: Handle,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local! {
    /// The ordinal of the current context.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The CUDA ordinals' units: the fastest GPU first, as drivers do, then the last on the bus, unless
/// `CUDA_DEVICE_ORDER` says otherwise; `CUDA_VISIBLE_DEVICES` chooses among them and orders them. Those
/// that do not work are not among them. Of a GPU that is split the first instance is, unless another is
/// named; behind an instance nothing is.
fn visible(scenario: &Scenario) -> Vec<usize> {
    let bus = |number: usize| scenario.gpus[number].bus.unwrap_or(number as u32 + 1);
    let speed = |number: usize| {
        scenario.gpus[number]
            .profile()
            .map_or((0, 0), |profile| profile.compute_capability)
    };
    let works = |&number: &usize| {
        let gpu = &scenario.gpus[number];
        !gpu.lost && !gpu.reset_required
    };
    let mut all: Vec<usize> = (0..scenario.gpus.len()).filter(works).collect();
    if std::env::var("CUDA_DEVICE_ORDER").is_ok_and(|order| order == "PCI_BUS_ID") {
        all.sort_by_key(|&number| bus(number));
    } else {
        all.sort_by_key(|&number| std::cmp::Reverse((speed(number), bus(number))));
    }
    let whole = |gpu: usize| {
        let instance = match &scenario.gpus[gpu].mig {
            None => None,
            Some(instances) if instances.is_empty() => return None,
            Some(_) => Some(0),
        };
        Some(Unit { gpu, instance }.number())
    };
    let Ok(chosen) = std::env::var("CUDA_VISIBLE_DEVICES") else {
        return all.into_iter().filter_map(whole).collect();
    };
    let named = |wanted: &str| {
        let mut units = scenario.units().into_iter();
        units.find(|unit| {
            let identity = scenario.identity(*unit).unwrap_or_default();
            !wanted.is_empty() && all.contains(&unit.gpu) && identity.starts_with(wanted)
        })
    };
    let find = |wanted: &str| match wanted.parse::<usize>() {
        Ok(ordinal) => all.get(ordinal).copied().and_then(whole),
        Err(_) => match named(wanted)? {
            Unit {
                gpu,
                instance: None,
            } => whole(gpu),
            instance => Some(instance.number()),
        },
    };
    let chosen = chosen.split(',').map_while(|wanted| find(wanted.trim()));
    let mut visible: Vec<usize> = chosen.collect();
    let instance = |number: &usize| Unit::of(*number).instance.is_some();
    if let Some(first) = visible.iter().position(instance) {
        visible.truncate(first + 1);
    }
    visible
}

fn enter(function: &'static str, work: impl FnOnce(&mut Driver) -> Answer) -> c_uint {
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(driver) = driver.as_mut() else {
        return NOT_INITIALIZED;
    };
    let answer = driver.admit(function).and_then(|()| work(driver));
    driver.note(answer.err())
}

impl Driver {
    /// Counts a call, and fails or hangs it where the scenario says so.
    fn admit(&mut self, function: &'static str) -> Answer {
        let gpu = self.gpu().ok().map(|number| Unit::of(number).gpu);
        if let Some(&code) = gpu.and_then(|gpu| self.failures.get(&gpu)) {
            return Err(code);
        }
        let calls = self.calls.entry(function).or_default();
        *calls += 1;
        let calls = *calls;
        let mut faults = self.scenario.faults.iter().enumerate();
        let fault = faults.find(|(_, fault)| {
            fault.function == function
                && fault.call.is_none_or(|call| call == calls)
                && fault.gpu.is_none_or(|number| gpu == Some(number))
        });
        let fault = fault.filter(|(number, fault)| !fault.once || processes::first(*number));
        match fault.map(|(_, fault)| fault) {
            Some(fault) if fault.hang => loop {
                std::thread::park();
            },
            Some(fault) => Err(fault.code),
            None => Ok(()),
        }
    }

    fn note(&mut self, code: Option<u32>) -> u32 {
        if let Some(code) = code.filter(|code| STICKY.contains(code)) {
            let gpu = self.gpu().map_or(0, |number| Unit::of(number).gpu);
            if self.failures.insert(gpu, code).is_none() && code == ILLEGAL_ADDRESS {
                processes::report(gpu, MEMORY_FAULT);
            }
        }
        code.unwrap_or(0)
    }

    fn handle(&mut self) -> Handle {
        self.next += 1;
        self.next
    }

    fn gpu(&self) -> Result<usize, u32> {
        let ordinal = CURRENT.get().ok_or(201u32)?;
        self.visible.get(ordinal).copied().ok_or(INVALID_DEVICE)
    }

    /// Free and all bytes of a GPU.
    fn memory(&self, number: usize) -> Result<(u64, u64), u32> {
        // What other programs take changes while this one runs.
        let now = Scenario::read().ok();
        let scenario = now.as_ref().unwrap_or(&self.scenario);
        let memory = scenario.memory_bytes(Unit::of(number));
        let (total, reserved, used) = memory.ok_or(INVALID_DEVICE)?;
        let total = total - reserved;
        let free = total.saturating_sub(used);
        Ok((free, total))
    }

    fn charge(&mut self, number: usize, bytes: u64) -> Answer {
        if bytes > self.memory(number)?.0 {
            return Err(OUT_OF_MEMORY);
        }
        self.activity.entry(number).or_default().bytes += bytes;
        processes::publish(&self.activity);
        Ok(())
    }

    fn uncharge(&mut self, number: usize, bytes: u64) {
        let held = &mut self.activity.entry(number).or_default().bytes;
        *held = held.saturating_sub(bytes);
        processes::publish(&self.activity);
    }

    fn allocate(&mut self, bytes: usize, gpu: Option<usize>) -> Result<u64, u32> {
        let layout = Layout::from_size_align(bytes.max(1), 512).map_err(|_| INVALID_VALUE)?;
        // SAFETY: the layout has a size.
        let at = unsafe { alloc(layout) };
        if at.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        // SAFETY: `at` has so many bytes.
        unsafe { at.write_bytes(POISON, bytes) };
        self.allocations
            .insert(at as u64, Allocation { bytes, layout, gpu });
        Ok(at as u64)
    }

    fn free(&mut self, at: u64) -> Answer {
        let allocation = self.allocations.remove(&at).ok_or(INVALID_VALUE)?;
        if let Some(gpu) = allocation.gpu {
            self.uncharge(gpu, (allocation.bytes as u64).next_multiple_of(GRANULE));
        }
        // SAFETY: allocated with this layout, and in the table once.
        unsafe { dealloc(at as *mut u8, allocation.layout) };
        Ok(())
    }

    /// Whether memory lies within an allocation.
    pub(crate) fn holds(&self, at: u64, bytes: usize) -> bool {
        self.allocations
            .range(..=at)
            .next_back()
            .is_some_and(|(start, allocation)| at - start + bytes as u64 <= allocation.bytes as u64)
    }

    fn check(&self, at: u64, bytes: usize) -> Answer {
        if self.holds(at, bytes) {
            return Ok(());
        }
        eprintln!("simulated NVIDIA machine: {bytes} bytes at {at:#x} are no allocation");
        Err(INVALID_VALUE)
    }

    fn push(&mut self, stream: Handle, work: Work) -> Answer {
        let stream = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        match &mut stream.captured {
            Some(captured) => captured.push(work),
            None => stream.queue.push_back(work),
        }
        Ok(())
    }

    /// Runs a stream's work, to its end or until an event is done.
    fn drain(&mut self, handle: Handle, until: Option<(Handle, u64)>) -> Answer {
        loop {
            if let Some((event, wanted)) = until
                && self
                    .events
                    .get(&event)
                    .is_none_or(|event| event.done >= wanted)
            {
                return Ok(());
            }
            let stream = self.streams.get_mut(&handle).ok_or(INVALID_HANDLE)?;
            let gpu = stream.gpu;
            let Some(work) = stream.queue.pop_front() else {
                return Ok(());
            };
            self.execute(gpu, work)?;
        }
    }

    fn drain_all(&mut self) -> Answer {
        let streams: Vec<Handle> = self.streams.keys().rev().copied().collect();
        streams
            .into_iter()
            .try_for_each(|stream| self.drain(stream, None))
    }

    fn execute(&mut self, gpu: usize, work: Work) -> Answer {
        match work {
            Work::Kernel {
                kernel,
                blocks,
                threads,
                parameters,
            } => {
                self.count(gpu)?;
                block::run(kernel, blocks, threads, &parameters, self.order).map_err(|reason| {
                    eprintln!("simulated NVIDIA machine: {reason}");
                    LAUNCH_FAILED
                })
            }
            Work::Call(call) => {
                self.count(gpu)?;
                call.run();
                Ok(())
            }
            Work::Copy { to, from, bytes } => {
                self.check(to, bytes)?;
                // SAFETY: checked here for the target and where it was given for the source.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
                Ok(())
            }
            Work::Staged { to, bytes } => {
                self.check(to, bytes.len())?;
                // SAFETY: checked.
                unsafe { std::ptr::copy(bytes.as_ptr(), to as *mut u8, bytes.len()) };
                Ok(())
            }
            Work::Fill { at, value, bytes } => {
                self.check(at, bytes)?;
                // SAFETY: checked.
                unsafe { (at as *mut u8).write_bytes(value, bytes) };
                Ok(())
            }
            Work::Record(event, number) => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.done = event.done.max(number);
                }
                Ok(())
            }
            Work::Wait(event, number) => {
                let recorded = Work::Record(event, number);
                let holder = self.streams.iter().find(|(_, stream)| {
                    let same = |work: &Work| matches!((work, &recorded), (Work::Record(a, n), Work::Record(b, m)) if a == b && n == m);
                    stream.queue.iter().any(same)
                });
                match holder.map(|(handle, _)| *handle) {
                    Some(holder) => self.drain(holder, Some((event, number))),
                    None => Ok(()),
                }
            }
        }
    }

    /// Counts a kernel, and fails it where the scenario says so.
    fn count(&mut self, gpu: usize) -> Answer {
        self.admit("cuLaunchKernel")?;
        self.activity.entry(gpu).or_default().kernels += 1;
        Ok(())
    }

    /// What a wait of the host ends with: the failure of what ran, or of the GPU.
    fn settle(&mut self, answer: Answer) -> Answer {
        processes::publish(&self.activity);
        let gpu = Unit::of(self.gpu()?).gpu;
        let now = Scenario::read().ok();
        if now.and_then(|now| now.gpus.get(gpu).map(|gpu| gpu.lost)) == Some(true) {
            return Err(UNKNOWN);
        }
        answer
    }
}

/// Gives a library's call to a stream.
pub(crate) fn push_call(function: &'static str, stream: u64, call: Arc<dyn Call>) -> c_uint {
    enter(function, |driver| {
        for (at, bytes) in call.ranges() {
            driver.check(at, bytes)?;
        }
        driver.push(stream, Work::Call(call))
    })
}

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

    /// The context of this thread's calls.
    fn cuCtxSetCurrent(context: Handle) {
        enter("cuCtxSetCurrent", |_| {
            CURRENT.set((context as usize).checked_sub(1));
            Ok(())
        })
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
