//! The demonstration's plugins on simulated GPUs, from outside.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fakedriver::processes;
use serde_json::{Value, json};

use crate::{Home, Machine, Server, root};

/// Four GPUs whose order differs wherever it can: NVML counts as listed, `cuda:N` by bus, the
/// driver from the fastest. By bus: A100, H100, RTX 3090, T4.
pub(crate) const FOUR: &str = "[[gpu]]\nprofile = \"t4\"\nbus = 0x90\n\
    [[gpu]]\nprofile = \"h100\"\nbus = 0x53\n\
    [[gpu]]\nprofile = \"rtx3090\"\nbus = 0x64\n\
    [[gpu]]\nprofile = \"a100\"\nbus = 0x1a\n";
/// The place in `FOUR` of each `cuda:N`.
const BY_BUS: [usize; 4] = [3, 1, 2, 0];
const ONE: &str = "[[gpu]]\nprofile = \"h100\"\n";

/// The GPUs, by their places in the scenario, on which a task ran kernels: besides the process that
/// probed the GPU before.
pub(crate) fn used(machine: &Machine) -> Vec<usize> {
    let processes = processes::all_in(&machine.folder.path().join("machine.processes"));
    let ran = |gpu: &usize| {
        let did = |gpus: &std::collections::BTreeMap<usize, processes::Activity>| {
            gpus.get(gpu).is_some_and(|done| done.kernels > 0)
        };
        processes.iter().filter(|(_, gpus)| did(gpus)).count()
    };
    (0..4).filter(|gpu| ran(gpu) > 1).collect()
}

/// A data set of 28 × 28 images in IDX files: stripes that tell the class, of 10.
pub(crate) fn stripes(folder: &Path) -> PathBuf {
    let data = folder.join("stripes");
    std::fs::create_dir(&data).unwrap();
    for (part, count) in [("train", 48u32), ("t10k", 16)] {
        let number = |n: u32| n.to_be_bytes();
        let mut images = [number(0x803), number(count), number(28), number(28)].concat();
        let mut labels = [number(0x801), number(count)].concat();
        for i in 0..count {
            let class = i % 10;
            labels.push(class as u8);
            let pixel = |at: u32| ((at / 28 * (class + 1) + at % 28 * i) % 251) as u8;
            images.extend((0..28 * 28).map(pixel));
        }
        std::fs::write(data.join(format!("{part}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(data.join(format!("{part}-labels-idx1-ubyte")), labels).unwrap();
    }
    data
}

/// A few of the recordings.
pub(crate) fn recordings(folder: &Path) -> PathBuf {
    let (from, to) = (
        root().join("tests/data/spoken-digits"),
        folder.join("recordings"),
    );
    for part in ["train", "test"] {
        std::fs::create_dir_all(to.join(part)).unwrap();
        let mut files: Vec<PathBuf> = std::fs::read_dir(from.join(part))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let few = files.iter().step_by(files.len() / 12).take(12);
        for file in few {
            if file.is_dir() {
                let class = to.join(part).join(file.file_name().unwrap());
                std::fs::create_dir(&class).unwrap();
                let first = std::fs::read_dir(file).unwrap().next().unwrap().unwrap();
                std::fs::copy(first.path(), class.join(first.file_name())).unwrap();
            } else {
                std::fs::copy(file, to.join(part).join(file.file_name().unwrap())).unwrap();
            }
        }
    }
    to
}

/// Runs a command on the machine: the task's record.
fn run(home: &Home, machine: &Machine, arguments: &[&str]) -> Value {
    let mut command = home.hangar(&["--json", "run"]);
    crate::json(&machine.on(command.args(arguments)).output().unwrap())
}

fn same(a: &Value, b: &Value, tolerance: f64) {
    let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
    assert!((a - b).abs() <= tolerance * b.abs(), "{a} {b}");
}

/// Trains a plugin on `cuda:1` and on the CPU, then infers on `cuda:2` and on the CPU.
fn trains_and_infers(plugin: &str, data: impl Fn(&Path) -> PathBuf) {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let data = data(home.folder.path());
    let data = data.to_str().unwrap();
    let output = |name: &str| home.folder.path().join(name).to_str().unwrap().to_owned();
    let train = |device: &str, to: &str| {
        let arguments = [
            plugin, "train", "--data", data, "--device", device, "--output", to,
        ];
        let parameters = ["--param", "epochs=2", "--param", "batch_size=16"];
        let record = run(&home, &machine, &[&arguments[..], &parameters].concat());
        assert_eq!(record["state"], "completed", "{record}");
        record
    };
    let gpu = train("cuda:1", &output("gpu"));
    assert_eq!(used(&machine), [BY_BUS[1]]);
    let cpu = train("cpu", &output("cpu"));
    assert_eq!(
        (&gpu["device"], &cpu["device"]),
        (&json!("cuda:1"), &json!("cpu"))
    );
    for metric in ["train_loss", "val_loss"] {
        same(
            &gpu["latest_metrics"][metric],
            &cpu["latest_metrics"][metric],
            1e-3,
        );
    }
    let listed = machine.gpus();
    assert_eq!(gpu["device_uuid"], listed["gpus"][1]["uuid"]);
    assert_eq!(listed["gpus"][1]["name"], "NVIDIA H100 80GB HBM3");
    assert_eq!(listed["gpus"][1]["schedulable"], true);
    let memory = |what: &str| gpu["device_memory"][what].as_u64().unwrap();
    let taken = memory("during_bytes") - memory("before_bytes");
    assert_eq!(memory("after_bytes"), memory("before_bytes"));
    // The session takes what was leased, the context comes on top.
    let lease = gpu["lease_bytes"].as_u64().unwrap();
    assert_eq!(taken, lease + (320 << 20), "{gpu}");
    // What a batch is staged in, and copies to and from the GPU.
    assert!(gpu["scratch_bytes"].as_u64().unwrap() >= 4 << 20, "{gpu}");

    let weights = output("gpu/best.safetensors");
    let infer = |device: &str, to: &str| {
        let arguments = [plugin, "infer", "--data", data, "--weights", &weights];
        let more = ["--device", device, "--output", to];
        let record = run(&home, &machine, &[&arguments[..], &more].concat());
        assert_eq!(record["state"], "completed", "{record}");
        let mut files: Vec<PathBuf> = std::fs::read_dir(to)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        std::fs::read_to_string(files.first().unwrap()).unwrap()
    };
    let on_gpu = infer("cuda:2", &output("gpu-infer"));
    assert_eq!(used(&machine), [BY_BUS[1], BY_BUS[2]]);
    let on_cpu = infer("cpu", &output("cpu-infer"));
    assert_eq!(on_gpu.lines().count(), on_cpu.lines().count());
    // What is not a number, such as a class, is the same; numbers are close.
    let words = |text: &str| -> Vec<String> {
        let split = text.split(|c: char| ",: {}[]\n".contains(c));
        split
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    for (a, b) in words(&on_gpu).iter().zip(&words(&on_cpu)) {
        match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => assert!((a - b).abs() < 1e-3, "{a} {b}"),
            _ => assert_eq!(a, b),
        }
    }
}

#[test]
fn cuda_runs_digits_as_the_cpu_does_on_the_gpu_asked_for() {
    trains_and_infers("digits", stripes);
}

#[test]
fn cuda_runs_spoken_digits_as_the_cpu_does_on_the_gpu_asked_for() {
    trains_and_infers("spoken-digits", recordings);
}

/// A training for the API.
fn training(data: &Path, device: &str, id: &str) -> Value {
    json!({
        "model": "cnn", "train_path": data, "val_path": data, "num_epochs": 1, "batch_size": 16,
        "device": device, "task_id": id,
    })
}

fn submit(server: &Server, body: &Value) {
    let (status, answer) = server.call("POST", "/api/v2/training/start", body);
    assert_eq!(status, 200, "{answer}");
}

/// Serves on a machine with a fault: its task fails with the code, and the next one, after the
/// fault is gone, trains on the same GPU.
fn contained(fault: &str, code: &str) {
    let (home, machine) = (Home::new(), Machine::new(&format!("{ONE}{fault}")));
    let data = stripes(home.folder.path());
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    machine.on(&mut command);
    let server = Server::spawn(command);
    submit(&server, &training(&data, "cuda:0", "faulty"));
    let task = server.wait("faulty", &["failed", "completed"]);
    assert_eq!(task["error_code"], code, "{task}");
    let (_, resources) = server.call("GET", "/api/v2/resources", &Value::Null);
    assert_eq!(
        resources["active_tasks"]["cuda:0"],
        json!([]),
        "{resources}"
    );
    machine.change(ONE);
    submit(&server, &training(&data, "cuda", "next"));
    let task = server.wait("next", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cuda:0")),
        "{task}"
    );
    let (_, gpus) = server.call("GET", "/api/v2/resources/gpu", &Value::Null);
    assert_eq!(gpus["devices"][0]["schedulable"], true, "{gpus}");
    server.stop();
}

fn fault(function: &str, call: u64, code: u32) -> String {
    format!("[[fault]]\nfunction = \"{function}\"\ncall = {call}\ncode = {code}\n")
}

#[test]
fn cuda_memory_that_runs_out_fails_its_own_task() {
    contained(&fault("cuMemAlloc_v2", 1, 2), "memory.exhausted");
}

#[test]
fn cuda_illegal_addresses_fail_their_own_task() {
    contained(&fault("cuLaunchKernel", 30, 700), "device.fault");
}

#[test]
fn cuda_launch_failures_fail_their_own_task() {
    contained(&fault("cuLaunchKernel", 100, 719), "device.fault");
}

#[test]
fn cuda_devices_that_are_lost_fail_their_own_task() {
    contained(&fault("cuLaunchKernel", 50, 999), "device.lost");
}

#[test]
fn a_task_that_never_fits_a_gpu_is_refused_with_both_figures() {
    // Enough for a context, not for the task.
    let (home, machine) = (
        Home::new(),
        Machine::new("[[gpu]]\nprofile = \"t4\"\ntotal_mib = 330\n"),
    );
    let data = stripes(home.folder.path());
    let record = run(
        &home,
        &machine,
        &[
            "digits",
            "train",
            "--data",
            data.to_str().unwrap(),
            "--device",
            "cuda:0",
        ],
    );
    assert_eq!(record["error_code"], "memory.never-fits", "{record}");
    let message = record["message"].as_str().unwrap();
    assert!(
        message.contains(&format!("`cuda:0` has {} bytes", 330u64 << 20)),
        "{message}"
    );
    assert!(used(&machine).is_empty());
}

#[test]
fn a_task_waits_for_memory_that_other_programs_hold() {
    let full = "[[gpu]]\nprofile = \"t4\"\nused_mib = 14600\n";
    let (home, machine) = (Home::new(), Machine::new(full));
    let data = stripes(home.folder.path());
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    machine.on(&mut command);
    let server = Server::spawn(command);
    let mut wanted = training(&data, "cuda", "patient");
    wanted["tf32"] = true.into();
    submit(&server, &wanted);
    let start = Instant::now();
    loop {
        let (_, task) = server.call("GET", "/api/v2/tasks/patient", &Value::Null);
        let reason = task["waiting_reason"].as_str().unwrap_or_default();
        if reason.contains("other programs") {
            assert_eq!(task["status"], "queued");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{task}");
        std::thread::sleep(Duration::from_millis(50));
    }
    machine.change("[[gpu]]\nprofile = \"t4\"\n");
    let task = server.wait("patient", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cuda:0")),
        "{task}"
    );
    assert_eq!(task["tf32"], true);
}

/// Why the GPU of a machine is not schedulable.
fn reason(machine: &Machine) -> String {
    let gpu = machine.gpus()["gpus"][0].clone();
    assert_eq!(gpu["schedulable"], false, "{gpu}");
    gpu["reason"].as_str().unwrap().to_owned()
}

#[test]
fn gpus_that_cannot_run_tasks_say_why() {
    assert!(reason(&Machine::new(&format!("cuda = 12080\n{ONE}"))).contains("up to 12.8"));
    assert!(
        reason(&Machine::new("[[gpu]]\nprofile = \"v100\"\n")).contains("compute capability 7.0")
    );
    let machine = Machine::new(ONE);
    std::fs::remove_file(machine.folder.path().join("libcublasLt.so.13")).unwrap();
    assert!(reason(&machine).contains("libcublasLt.so.13"));
    std::fs::remove_file(machine.folder.path().join("libcuda.so.1")).unwrap();
    assert!(reason(&machine).contains("libcuda.so.1 is not installed"));
    let hidden = Machine::new(FOUR);
    let output = hidden
        .on(Home::empty()
            .hangar(&["--json", "gpus"])
            .env("CUDA_VISIBLE_DEVICES", "2"))
        .output()
        .unwrap();
    assert_eq!(
        crate::json(&output)["gpus"][0]["name"],
        "NVIDIA GeForce RTX 3090"
    );
    // cuda:0 is the RTX 3090 now, for the driver as well.
    assert_eq!(crate::json(&output)["gpus"][0]["schedulable"], true);
}

#[test]
fn cuda_is_probed_without_a_context_where_nothing_runs() {
    let machine = Machine::new(ONE);
    machine.gpus();
    let mut command: Command = Home::empty().hangar(&["gpus"]);
    machine.on(&mut command).output().unwrap();
    let processes = processes::all_in(&machine.folder.path().join("machine.processes"));
    assert!(processes.iter().all(|(_, gpus)| gpus.is_empty()));
}

#[test]
fn cuda_memory_of_killed_and_cancelled_tasks_comes_back() {
    let (home, machine) = (Home::new(), Machine::new(ONE));
    let data = stripes(home.folder.path());
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    machine.on(&mut command);
    let server = Server::spawn(command);
    for (id, end) in [("killed", "failed"), ("stopped", "cancelled")] {
        let mut wanted = training(&data, "cuda:0", id);
        wanted["num_epochs"] = 10_000.into();
        submit(&server, &wanted);
        server.wait(id, &["running"]);
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        if end == "failed" {
            let workers = crate::children(server.child.id());
            assert_eq!(workers.len(), 1);
            let kill = Command::new("kill")
                .args(["-9", &workers[0].to_string()])
                .status();
            assert!(kill.unwrap().success());
        } else {
            let (status, _) =
                server.call("POST", &format!("/api/v2/tasks/{id}/cancel"), &Value::Null);
            assert_eq!(status, 200);
        }
        let task = server.wait(id, &["failed", "cancelled", "completed"]);
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(task["status"], end, "{task}");
        let memory = &task["device_memory"];
        assert!(
            memory["during_bytes"].as_u64() > memory["before_bytes"].as_u64(),
            "{task}"
        );
        assert_eq!(memory["after_bytes"], memory["before_bytes"], "{task}");
        let (_, resources) = server.call("GET", "/api/v2/resources", &Value::Null);
        assert_eq!(
            resources["active_tasks"]["cuda:0"],
            json!([]),
            "{resources}"
        );
    }
}

#[test]
fn a_lease_tells_plugins_why_its_gpu_cannot_be_used_any_more() {
    let fault = fault("cuLaunchKernel", 60, 700);
    let (home, machine) = (Home::empty(), Machine::new(&format!("{ONE}{fault}")));
    let guests = root().join("tests/guests/target/wasm32-wasip2/release/examples");
    home.add(&guests.join("devices_lost.wasm"));
    let wav = "tests/data/spoken-digits/test/0_george_0.wav";
    let plugins = crate::json(&home.hangar(&["--json", "plugins"]).output().unwrap());
    let name = plugins[0]["plugin"]["description"]["name"]
        .as_str()
        .unwrap();
    let record = run(
        &home,
        &machine,
        &[name, "train", "--data", wav, "--device", "cuda:0"],
    );
    assert_eq!(record["state"], "completed", "{record}");
    assert_eq!(record["device"], "cuda:0");
}
