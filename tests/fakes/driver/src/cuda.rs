//! The driver: contexts, memory, streams and graphs. Handles are numbers of our own; a device pointer
//! is a host pointer.
//!
//! Work given to a stream waits until the host waits for it (or frees memory), so that a result
//! read too early, a staging buffer filled again too soon or a missing wait between two streams
//! shows. Fresh memory is poisoned, and every copy must lie within an allocation.

pub mod exports;

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_uint;
use std::sync::{Arc, Mutex, PoisonError};

use crate::block::{self, Coordinates, Kernel, Order};
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
        let mut ended = self.failures.iter();
        if let Some((_, code)) =
            ended.find(|(of, _)| self.scenario.failures_spread || gpu == Some(**of))
        {
            return Err(*code);
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
        let Ok(now) = Scenario::read() else {
            return answer;
        };
        let lost = |gpu: usize| now.gpus.get(gpu).is_some_and(|gpu| gpu.lost);
        let ordinals = self.contexts.keys();
        let units = ordinals.filter_map(|ordinal| self.visible.get(*ordinal));
        let mut others = units.map(|unit| Unit::of(*unit).gpu);
        if lost(gpu) || (now.failures_spread && others.any(lost)) {
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
