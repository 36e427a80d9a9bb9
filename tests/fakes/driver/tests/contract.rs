//! What the host relies on of NVIDIA's driver and of NVML: it must hold of the simulated machine and
//! of a real one, where `HANGAR_TEST_GPU` names a GPU by UUID. What differs from machine to machine is
//! printed as a fact.
//!
//! Tests named `child_…` are parts of others, in processes of their own.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::ffi::{CString, c_void};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::event::EventData;
use nvml_wrapper::{Device, Nvml};

/// The UUID of the real GPU that the tests are about.
const REAL: &str = "HANGAR_TEST_GPU";
/// Set in the processes that see the simulated machine.
const INSIDE: &str = "HANGAR_TEST_INSIDE";
const SIMULATED: &str = "GPU-00000000-0000-4000-8000-000000000001";
const GIB: u64 = 1 << 30;

fn uuid() -> String {
    std::env::var(REAL).unwrap_or_else(|_| SIMULATED.to_owned())
}

/// Runs `body` on the real GPU if one is named, else again in a process that sees a simulated one.
fn on_a_machine(test: &str, faults: &str, body: impl FnOnce()) {
    if [INSIDE, REAL]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        return body();
    }
    let folder = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    let library = own.with_file_name("libfakedriver.so");
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
    }
    let machine = format!("[[gpu]]\nprofile = \"h100\"\n{faults}");
    std::fs::write(folder.path().join("machine.toml"), machine).unwrap();
    let mut command = Command::new(own);
    command
        .args([test, "--exact", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path());
    let run = command.env(INSIDE, "1").output().unwrap();
    let text = [run.stdout, run.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
    println!("{text}");
}

/// Starts a part of a test in a process of its own.
fn child(part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([part, "--exact", "--ignored", "--nocapture"])
        .stdout(Stdio::piped());
    command
}

/// The next line of a child that tells a fact.
fn told(child: &mut Child) -> String {
    let out = child.stdout.as_mut().unwrap();
    let mut lines = BufReader::new(out).lines();
    let line = lines.find_map(|line| {
        line.unwrap()
            .split_once("told: ")
            .map(|(_, rest)| rest.to_owned())
    });
    line.unwrap_or_default()
}

fn code(error: DriverError) -> u32 {
    error.0 as u32
}

/// A context on the GPU, current in this thread, until it is dropped.
struct Context {
    device: sys::CUdevice,
}

impl Context {
    fn new() -> Self {
        result::init().unwrap();
        let device = device();
        // SAFETY: the driver gave the device, and the context is retained.
        unsafe { result::ctx::set_current(result::primary_ctx::retain(device).unwrap()).unwrap() };
        Self { device }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once. After a fault the driver refuses it, and the process ends.
        let _ended = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// The device whose UUID is the one that the test is about.
fn device() -> sys::CUdevice {
    let count = result::device::get_count().unwrap();
    let mut devices = (0..count).map(|ordinal| result::device::get(ordinal).unwrap());
    devices.find(|device| cuda_uuid(*device) == uuid()).unwrap()
}

fn cuda_uuid(device: sys::CUdevice) -> String {
    let bytes = result::device::get_uuid(device).unwrap().bytes;
    let hex = |range: std::ops::Range<usize>| -> String {
        let digits = bytes[range]
            .iter()
            .map(|byte| format!("{:02x}", *byte as u8));
        digits.collect()
    };
    format!(
        "GPU-{}-{}-{}-{}-{}",
        hex(0..4),
        hex(4..6),
        hex(6..8),
        hex(8..10),
        hex(10..16)
    )
}

fn allocate(bytes: u64) -> Result<u64, u32> {
    // SAFETY: nothing reads the memory.
    unsafe { result::malloc_sync(bytes as usize) }.map_err(code)
}

fn free(at: u64) -> Result<(), u32> {
    // SAFETY: no work uses the memory.
    unsafe { result::free_sync(at) }.map_err(code)
}

/// A kernel of the host: writes `count` bfloat16 numbers at one address as float32 at another.
struct Widen {
    function: sys::CUfunction,
}

impl Widen {
    fn load() -> Self {
        let text = include_str!("../../../../host/compute/src/cuda/kernels/ptx/convert.ptx");
        let text = CString::new(text).unwrap();
        // SAFETY: a text with its end.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        // SAFETY: the module was just loaded, and stays.
        let function =
            unsafe { result::module::get_function(module, CString::new("widen").unwrap()) };
        Self {
            function: function.unwrap(),
        }
    }

    fn launch(
        &self,
        threads: u32,
        from: u64,
        to: u64,
        count: u32,
        stream: sys::CUstream,
    ) -> Result<(), u32> {
        let (mut from, mut to, mut count) = (from, to, count);
        let mut parameters: [*mut c_void; 3] = [
            (&raw mut from).cast(),
            (&raw mut to).cast(),
            (&raw mut count).cast(),
        ];
        // SAFETY: three parameters of the kernel's types. The addresses are what is tested.
        unsafe {
            result::launch_kernel(
                self.function,
                (1, 1, 1),
                (threads, 1, 1),
                0,
                stream,
                &mut parameters,
            )
        }
        .map_err(code)
    }
}

/// A stream of the current context.
fn stream() -> sys::CUstream {
    result::stream::create(result::stream::StreamKind::NonBlocking).unwrap()
}

fn wait(stream: sys::CUstream) -> Result<(), u32> {
    // SAFETY: a stream of this test.
    unsafe { result::stream::synchronize(stream) }.map_err(code)
}

fn used(gpu: &Device<'_>) -> u64 {
    gpu.memory_info().unwrap().used
}

/// Milliseconds until `done`, polled; more than `patience` fails.
fn until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) -> f64 {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < patience,
            "{what}: not within {patience:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed().as_secs_f64() * 1e3
}

#[test]
fn nvml_and_cuda_tell_of_the_same_gpu() {
    on_a_machine("nvml_and_cuda_tell_of_the_same_gpu", "", || {
        let nvml = Nvml::init().unwrap();
        let gpu = nvml.device_by_uuid(uuid()).unwrap();
        result::init().unwrap();
        let device = device();
        // SAFETY: the driver gave the device.
        let attribute = |which| unsafe { result::device::get_attribute(device, which).unwrap() };
        use sys::CUdevice_attribute as Attribute;
        assert_eq!(
            gpu.name().unwrap(),
            result::device::get_name(device).unwrap()
        );
        let place = gpu.pci_info().unwrap();
        assert_eq!(
            place.bus as i32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)
        );
        assert_eq!(
            place.device as i32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)
        );
        let capability = gpu.cuda_compute_capability().unwrap();
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        assert_eq!((capability.major, capability.minor), (major, minor));
        let mut version = 0;
        // SAFETY: a place for a number.
        let told = unsafe { sys::cuDriverGetVersion(&raw mut version) };
        assert_eq!(told, sys::CUresult::CUDA_SUCCESS);
        assert_eq!(nvml.sys_cuda_driver_version().unwrap(), version);
        println!(
            "fact: driver {}, CUDA {version}",
            nvml.sys_driver_version().unwrap()
        );
        println!(
            "fact: {} at {}, compute capability {major}.{minor}",
            gpu.name().unwrap(),
            place.bus_id
        );
    });
}

#[test]
fn memory_adds_up_in_nvml_and_cuda() {
    on_a_machine("memory_adds_up_in_nvml_and_cuda", "", || {
        let nvml = Nvml::init().unwrap();
        let gpu = nvml.device_by_uuid(uuid()).unwrap();
        let before = gpu.memory_info().unwrap();
        let _context = Context::new();
        let context = used(&gpu) - before.used;
        let (free_bytes, total) = result::mem_get_info().unwrap();
        let after = gpu.memory_info().unwrap();
        println!(
            "fact: NVML bytes: total {}, reserved {}, used before {}, free {}",
            before.total, before.reserved, before.used, before.free
        );
        println!(
            "fact: CUDA bytes: total {total}, free with a context {free_bytes}; NVML free then {}",
            after.free
        );
        println!("fact: an empty context takes {context} bytes by NVML");
        assert!((32 << 20..2 * GIB).contains(&context), "{context}");
        // The host counts what is usable by NVML: it must be there for CUDA.
        assert!(total as u64 <= before.total && total as u64 >= before.total - before.reserved);
        assert_eq!(after.free + after.used + after.reserved, after.total);
        let granule = {
            let small = allocate(1).unwrap();
            let granule = used(&gpu) - after.used;
            free(small).unwrap();
            granule
        };
        println!("fact: an allocation of 1 byte takes {granule} bytes by NVML");
        assert_eq!(granule, 2 << 20);
        let start = used(&gpu);
        let large = allocate(GIB + 1).unwrap();
        assert_eq!(used(&gpu) - start, GIB + granule);
        free(large).unwrap();
        let waited = until("freed memory", Duration::from_secs(5), || {
            used(&gpu) <= start
        });
        println!("fact: 1 GiB freed is seen by NVML after {waited:.1} ms");
        assert_eq!(allocate(1 << 44), Err(2));
        let small = allocate(4096);
        free(small.unwrap()).unwrap();
    });
}

#[test]
fn what_is_refused_harms_nothing() {
    on_a_machine("what_is_refused_harms_nothing", "", || {
        let _context = Context::new();
        let stream = stream();
        let widen = Widen::load();
        let memory = allocate(4096).unwrap();
        assert_eq!(allocate(0), Err(1));
        assert_eq!(free(memory + 1), Err(1));
        assert_eq!(widen.launch(2048, memory, memory + 2048, 1, stream), Err(1));
        let broken = CString::new(".version 9.0\n.target sm_75\n.entry nothing(\n").unwrap();
        // SAFETY: a text with its end.
        let loaded = unsafe { result::module::load_data(broken.as_ptr().cast()) };
        assert_eq!(loaded.map(drop).map_err(code), Err(218));
        assert_eq!(
            widen.launch(256, memory, memory + 2048, 512, stream),
            Ok(())
        );
        assert_eq!(wait(stream), Ok(()));
        free(memory).unwrap();
    });
}

#[test]
fn a_wait_within_a_recording_spoils_the_graph() {
    on_a_machine("a_wait_within_a_recording_spoils_the_graph", "", || {
        let _context = Context::new();
        let stream = stream();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of this test.
        unsafe { result::stream::begin_capture(stream, mode).unwrap() };
        assert_eq!(wait(stream), Err(900));
        // SAFETY: as above.
        let ended = unsafe { result::stream::end_capture(stream) };
        assert_eq!(ended.map(drop).map_err(code), Err(901));
        assert_eq!(wait(stream), Ok(()));
    });
}

#[test]
fn a_killed_process_gives_its_memory_back() {
    on_a_machine("a_killed_process_gives_its_memory_back", "", || {
        let nvml = Nvml::init().unwrap();
        let gpu = nvml.device_by_uuid(uuid()).unwrap();
        let before = used(&gpu);
        let mut holder = child("child_holds_memory").spawn().unwrap();
        assert_eq!(told(&mut holder), "holds 1 GiB");
        let held = used(&gpu) - before;
        assert!(held > GIB, "{held}");
        let processes = gpu.running_compute_processes().unwrap();
        println!(
            "fact: NVML lists {processes:?} while process {} holds 1 GiB and a context, {held} bytes",
            holder.id()
        );
        let own = processes.iter().find(|process| process.pid == holder.id());
        if let Some(UsedGpuMemory::Used(bytes)) = own.map(|process| process.used_gpu_memory.clone())
        {
            assert!((GIB..=held).contains(&bytes), "{bytes} of {held}");
        }
        holder.kill().unwrap();
        holder.wait().unwrap();
        let back = until("memory after a kill", Duration::from_secs(2), || {
            used(&gpu) <= before
        });
        println!("fact: what a killed process held is back after {back:.1} ms");
    });
}

#[test]
#[ignore = "part of a_killed_process_gives_its_memory_back"]
fn child_holds_memory() {
    let _context = Context::new();
    let _held = allocate(GIB).unwrap();
    println!("told: holds 1 GiB");
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).unwrap();
}

/// Only the first process that launches a kernel fails.
const ILLEGAL: &str = "[[fault]]\nfunction = \"cuLaunchKernel\"\ncode = 700\nonce = true\n";

#[test]
fn an_illegal_address_ends_one_process_and_is_reported() {
    on_a_machine(
        "an_illegal_address_ends_one_process_and_is_reported",
        ILLEGAL,
        || {
            let nvml = Nvml::init().unwrap();
            let gpu = nvml.device_by_uuid(uuid()).unwrap();
            let kinds = gpu.supported_event_types().unwrap();
            println!("fact: events supported: {kinds:?}");
            assert!(kinds.contains(EventTypes::CRITICAL_XID_ERROR));
            let events = nvml.create_event_set().unwrap();
            let events = gpu
                .register_events(EventTypes::CRITICAL_XID_ERROR, events)
                .map_err(|failed| failed.error)
                .unwrap();
            let start = Instant::now();
            assert!(matches!(events.wait(200), Err(NvmlError::Timeout)));
            assert!(start.elapsed() >= Duration::from_millis(190));
            let _context = Context::new();
            let stream = stream();
            let memory = allocate(4096).unwrap();
            let failing = child("child_reads_nowhere").output().unwrap();
            let text = String::from_utf8_lossy(&failing.stdout);
            assert!(
                text.contains("told: launch Ok(()), wait Err(700), allocation Err(700)"),
                "{text}"
            );
            // Another process's context goes on.
            assert_eq!(
                Widen::load().launch(256, memory, memory + 2048, 512, stream),
                Ok(())
            );
            assert_eq!(wait(stream), Ok(()));
            free(memory).unwrap();
            let start = Instant::now();
            let event = events.wait(5000);
            println!(
                "fact: an illegal address is reported as {:?} after {:.0} ms",
                event.as_ref().map(|e| e.event_data.clone()),
                start.elapsed().as_secs_f64() * 1e3
            );
            let EventData {
                event_data: Some(XidError::Value(xid)),
                ..
            } = event.unwrap()
            else {
                panic!("no Xid")
            };
            assert_eq!(xid, 31);
        },
    );
}

#[test]
#[ignore = "part of an_illegal_address_ends_one_process_and_is_reported"]
fn child_reads_nowhere() {
    let _context = Context::new();
    let stream = stream();
    let memory = allocate(4096).unwrap();
    let launched = Widen::load().launch(256, 8, memory, 1, stream);
    let waited = wait(stream);
    println!(
        "told: launch {launched:?}, wait {waited:?}, allocation {:?}",
        allocate(4096).map(drop)
    );
}

#[test]
fn the_environment_chooses_devices() {
    on_a_machine("the_environment_chooses_devices", "", || {
        let uuid = uuid();
        let cases = [
            (uuid.as_str(), "1"),
            (&uuid[..12], "1"),
            ("0", "1"),
            ("0,99", "1"),
            ("99", "Err(100)"),
            ("-1", "Err(100)"),
            ("", "Err(100)"),
            ("no-gpu", "Err(100)"),
            ("0,0", "Err(101)"),
        ];
        let count = |visible: &str| {
            let run = child("child_counts_devices")
                .env("CUDA_VISIBLE_DEVICES", visible)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&run.stdout).into_owned();
            let told = text.lines().find_map(|line| line.split_once("told: "));
            told.map(|(_, told)| told.to_owned()).unwrap_or(text)
        };
        let found = cases.map(|(visible, _)| (visible, count(visible)));
        assert_eq!(
            found,
            cases.map(|(visible, count)| (visible, count.to_owned()))
        );
    });
}

#[test]
#[ignore = "part of the_environment_chooses_devices"]
fn child_counts_devices() {
    match result::init() {
        Ok(()) => println!("told: {}", result::device::get_count().unwrap()),
        Err(error) => println!("told: Err({})", code(error)),
    }
}

#[test]
fn sensors_tell_what_can_be() {
    on_a_machine("sensors_tell_what_can_be", "", || {
        let nvml = Nvml::init().unwrap();
        let gpu = nvml.device_by_uuid(uuid()).unwrap();
        let temperature = gpu.temperature(TemperatureSensor::Gpu).unwrap();
        assert!((5..110).contains(&temperature));
        let (power, limit) = (
            gpu.power_usage().unwrap(),
            gpu.enforced_power_limit().unwrap(),
        );
        assert!(power > 0 && power < limit * 2, "{power} of {limit} mW");
        let utilization = gpu.utilization_rates().unwrap();
        assert!(utilization.gpu <= 100 && utilization.memory <= 100);
        for clock in [Clock::Graphics, Clock::SM, Clock::Memory] {
            let (now, most) = (
                gpu.clock_info(clock).unwrap(),
                gpu.max_clock_info(clock).unwrap(),
            );
            assert!(now <= most, "{clock:?}: {now} of {most} MHz");
        }
        println!(
            "fact: {temperature} °C, {power} of {limit} mW, {utilization:?}, throttled {:?}",
            gpu.current_throttle_reasons()
        );
        use TemperatureThreshold as Threshold;
        for threshold in [
            Threshold::Shutdown,
            Threshold::Slowdown,
            Threshold::MemoryMax,
            Threshold::GpuMax,
        ] {
            println!(
                "fact: temperature threshold {threshold:?}: {:?}",
                gpu.temperature_threshold(threshold)
            );
        }
        println!(
            "fact: fan {:?}, ECC {:?}, MIG {:?}, NUMA {:?}",
            gpu.fan_speed(0),
            gpu.is_ecc_enabled(),
            gpu.mig_mode(),
            gpu.numa_node_id()
        );
        println!(
            "fact: serial {:?}, board {:?}, persistence {:?}, state {:?}",
            gpu.serial().map(|s| !s.is_empty()),
            gpu.brand(),
            gpu.is_in_persistent_mode(),
            gpu.performance_state()
        );
        println!(
            "fact: energy {:?}, PCIe {:?} x{:?}, replays {:?}",
            gpu.total_energy_consumption().map(|e| e > 0),
            gpu.current_pcie_link_gen(),
            gpu.current_pcie_link_width(),
            gpu.pcie_replay_counter()
        );
        println!(
            "fact: retired pages pending {:?}, bar1 {:?}",
            gpu.are_pages_pending_retired(),
            gpu.bar1_memory_info().map(|bar| bar.total)
        );
        println!(
            "fact: of processes used since {:?}",
            gpu.process_utilization_stats(None)
                .map(|samples| samples.len())
        );
    });
}
