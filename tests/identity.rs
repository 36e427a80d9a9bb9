//! Which GPU is which: for NVML, for the driver, for `cuda:N`.

use std::time::{Duration, Instant};

use fakedriver::processes;
use fakedriver::scenario::Unit;
use serde_json::{Value, json};

use crate::gpu::{FOUR, stripes, used};
use crate::{Home, Machine, Server};

/// A GPU that is split in two, before one that is not.
const SPLIT: &str = "[[gpu]]\nprofile = \"h100\"\nbus = 0x1a\ntemperature = 50\n\
    [[gpu.mig]]\nname = \"1g.10gb\"\nmemory_mib = 9856\nsm_count = 16\n\
    [[gpu.mig]]\nname = \"2g.20gb\"\nmemory_mib = 20096\nsm_count = 32\n\
    [[gpu]]\nprofile = \"t4\"\nbus = 0x90\n";

/// The identity of a GPU by its place in a scenario.
fn uuid(place: usize) -> String {
    format!("GPU-00000000-0000-4000-8000-{:012x}", place + 1)
}

/// The UUIDs of the GPUs that are visible, in the order of `cuda:N`.
fn listed(machine: &Machine, visible: &str) -> Vec<Value> {
    let mut command = Home::empty().hangar(&["--json", "gpus"]);
    let command = machine
        .on(&mut command)
        .env("CUDA_VISIBLE_DEVICES", visible);
    let gpus = crate::json(&command.output().unwrap())["gpus"].clone();
    let gpus = gpus.as_array().unwrap().iter().enumerate();
    gpus.map(|(index, gpu)| {
        assert_eq!(gpu["index"], index);
        assert_eq!(gpu["schedulable"], true, "{gpu}");
        gpu["uuid"].clone()
    })
    .collect()
}

#[test]
fn cuda_visible_devices_names_gpus_as_in_any_cuda_program() {
    // By bus: places 3, 1, 2, 0.
    let machine = Machine::new(FOUR);
    let (a100, h100, rtx3090, t4) = (uuid(3), uuid(1), uuid(2), uuid(0));
    for (visible, expected) in [
        ("1,3".to_owned(), vec![&h100, &t4]),
        ("3,0".to_owned(), vec![&a100, &t4]),
        (format!("{rtx3090},{h100}"), vec![&h100, &rtx3090]),
        // The whole beginning is shared by all but the last digit.
        ("GPU-00000000-0000-4000-8000-00000000000".to_owned(), vec![]),
        ("2,9,0".to_owned(), vec![&rtx3090]),
        (format!("{t4},GPU-f,{a100}"), vec![&t4]),
        ("0,0".to_owned(), vec![]),
        (String::new(), vec![]),
    ] {
        assert_eq!(
            json!(listed(&machine, &visible)),
            json!(expected),
            "{visible}"
        );
    }
    let named = "[[gpu]]\nprofile = \"t4\"\nuuid = \"GPU-5f2c8a10-0000-4000-8000-000000000001\"\n\
                 [[gpu]]\nprofile = \"t4\"\nuuid = \"GPU-5f9d0000-0000-4000-8000-000000000002\"\n";
    let named = Machine::new(named);
    let only = json!(["GPU-5f9d0000-0000-4000-8000-000000000002"]);
    assert_eq!(json!(listed(&named, "GPU-5f9")), only);
    assert_eq!(json!(listed(&named, "GPU-5f")), json!([]));
}

#[test]
fn a_task_runs_on_the_gpu_whose_uuid_its_device_has() {
    // Three numberings: NVML counts as listed, the driver from the fastest, `cuda:N` by bus among the
    // visible. The second of those is the T4, which is NVML's first and the driver's last.
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let data = stripes(home.folder.path());
    let mut command = home.hangar(&["--json", "run", "digits", "train"]);
    let command = machine
        .on(&mut command)
        .env("CUDA_VISIBLE_DEVICES", "2,3,7,1");
    command.args(["--data", data.to_str().unwrap(), "--device", "cuda:1"]);
    let task = crate::json(&command.args(["--param", "epochs=1"]).output().unwrap());
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(
        (&task["device"], &task["device_uuid"]),
        (&json!("cuda:1"), &json!(uuid(0)))
    );
    assert_eq!(used(&machine), [0]);
}

/// The identity of an instance of the first GPU, from 1.
fn instance(number: usize) -> String {
    format!("MIG-00000000-0000-4000-8{number:03x}-000000000001")
}

#[test]
fn instances_of_a_split_gpu_are_devices_of_their_own() {
    let machine = Machine::new(SPLIT);
    let gpus = machine.gpus()["gpus"].clone();
    let shown = |name: &str| -> Vec<&Value> {
        let gpus = gpus.as_array().unwrap().iter();
        gpus.map(|gpu| &gpu[name]).collect()
    };
    let first = uuid(0);
    assert_eq!(
        json!(shown("uuid")),
        json!([first, instance(1), instance(2), uuid(1)])
    );
    assert_eq!(
        json!(shown("mig_parent_uuid")),
        json!([null, first, first, null])
    );
    assert_eq!(
        json!(shown("schedulable")),
        json!([false, true, true, true]),
        "{gpus}"
    );
    assert!(
        gpus[0]["reason"].as_str().unwrap().contains("MIG"),
        "{gpus}"
    );
    let one = &gpus[2];
    assert_eq!(one["name"], "NVIDIA H100 80GB HBM3 MIG 2g.20gb");
    assert_eq!(one["memory_total_bytes"], 20096u64 << 20);
    assert_eq!(
        (
            &one["sm_count"],
            &one["mig_gpu_instance"],
            &one["mig_compute_instance"]
        ),
        (&json!(32), &json!(2), &json!(0))
    );
    assert_eq!(one["compute_capability"], "9.0");
    // What the board has once is the GPU's; what instances do not tell is said.
    assert_eq!(
        (&one["temperature_gpu_c"], &one["thermal_margin_c"]),
        (&json!(50), &json!(39))
    );
    for gpu in [&gpus[0], one] {
        assert_eq!(gpu["utilization_gpu_percent"], Value::Null);
        let unsupported = gpu["unsupported"].as_array().unwrap();
        assert!(
            unsupported.contains(&json!("utilization_gpu_percent")),
            "{gpu}"
        );
    }
    assert_eq!(json!(listed(&machine, &instance(2))), json!([instance(2)]));
    let older = format!("MIG-{first}/1/0");
    assert_eq!(json!(listed(&machine, &older)), json!([instance(1)]));
    assert_eq!(json!(listed(&machine, "1")), json!([uuid(1)]));
}

#[test]
fn a_training_runs_on_the_instance_that_it_was_given() {
    let (home, machine) = (Home::new(), Machine::new(SPLIT));
    let data = stripes(home.folder.path());
    let train = |device: &str| {
        let mut command = home.hangar(&["--json", "run", "digits", "train", "--device", device]);
        command.args(["--data", data.to_str().unwrap(), "--param", "epochs=1"]);
        machine.on(&mut command).output().unwrap()
    };
    let task = crate::json(&train("cuda:2"));
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(
        (&task["device"], &task["device_uuid"]),
        (&json!("cuda:2"), &json!(instance(2)))
    );
    let memory = |what: &str| task["device_memory"][what].as_u64().unwrap();
    assert!(memory("during_bytes") > memory("before_bytes"), "{task}");
    assert_eq!(memory("after_bytes"), memory("before_bytes"));
    // Besides the process that probed it, one ran kernels, and there alone.
    let ran = processes::all_in(&machine.folder.path().join("machine.processes"));
    let count = |unit: Unit| {
        let ran = ran
            .iter()
            .filter_map(|(_, units)| units.get(&unit.number()));
        ran.filter(|done| done.kernels > 0).count()
    };
    let second = Unit {
        gpu: 0,
        instance: Some(1),
    };
    assert_eq!(
        (count(second), count(Unit::gpu(0)), count(Unit::gpu(1))),
        (2, 0, 0)
    );
    let refused = String::from_utf8(train("cuda:0").stderr).unwrap();
    assert!(refused.contains("split into MIG instances"), "{refused}");
}

#[test]
fn gpus_and_instances_that_appear_later_are_tested_and_take_tasks() {
    let one = "[[gpu]]\nprofile = \"h100\"\nbus = 0x50\n";
    // Before the other on the bus.
    let new = "[[gpu]]\nprofile = \"a100\"\nbus = 0x10\n";
    let (home, machine) = (Home::new(), Machine::new(one));
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine);
    let state = home.folder.path().join("state");
    let train = |device: &str, id: &str| {
        let body = json!({
            "model": "cnn", "train_path": data, "val_path": data, "num_epochs": 1,
            "batch_size": 16, "device": device, "task_id": id,
        });
        let (status, answer) = server.call("POST", "/api/v2/training/start", &body);
        if status != 200 {
            return (answer["code"].clone(), Value::Null);
        }
        let task = server.wait(id, &["completed", "failed"]);
        (task["device"].clone(), task["device_uuid"].clone())
    };
    let ready = |count: usize| {
        move |gpus: &Value| {
            let devices = gpus["devices"].as_array().unwrap();
            devices.len() == count && devices[count - 1]["schedulable"] == true
        }
    };
    until(&server, GPU, ready(1));
    assert_eq!(train("cuda:1", "early").0, "device.unknown");
    machine.change(&format!("{one}{new}"));
    let gpus = until(&server, GPU, ready(2));
    let uuids = |gpus: &Value| -> Vec<Value> {
        let devices = gpus["devices"].as_array().unwrap().iter();
        devices.map(|gpu| gpu["uuid"].clone()).collect()
    };
    assert_eq!(json!(uuids(&gpus)), json!([uuid(0), uuid(1)]));
    assert_eq!(train("cuda:1", "there"), (json!("cuda:1"), json!(uuid(1))));
    // Settings of it are kept, as those of any.
    let limits = json!({ "max_concurrent": { "cuda:1": { "training": 3 } } });
    let (status, config) = server.call("POST", "/api/v2/resources/config", &limits);
    assert_eq!(status, 200, "{config}");
    let kept = std::fs::read_to_string(state.join("devices.json")).unwrap();
    assert!(kept.contains(&uuid(1)), "{kept}");
    // Its Xids are heard.
    let xid = "[[xid]]\nnumber = 1\ngpu = 1\ncode = 48\n";
    machine.change(&format!("{one}{new}{xid}"));
    until(&server, GPU, |gpus| {
        gpus["devices"][1]["health"] == "quarantined"
    });
    // An instance of the first, which takes no tasks itself then.
    let instance_of = "[[gpu.mig]]\nname = \"1g.10gb\"\nmemory_mib = 9856\nsm_count = 16\n";
    machine.change(&format!("{one}{instance_of}{new}{xid}"));
    let gpus = until(&server, GPU, ready(3));
    assert_eq!(json!(uuids(&gpus)), json!([uuid(0), uuid(1), instance(1)]));
    let ran = train("cuda:2", "split");
    assert_eq!(ran, (json!("cuda:2"), json!(instance(1))));
    let gpus = until(&server, GPU, |gpus| {
        gpus["devices"][0]["schedulable"] == false
    });
    let reason = gpus["devices"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("MIG"), "{reason}");
    machine.change(&format!("{one}{new}{xid}"));
    until(&server, GPU, |gpus| {
        gpus["devices"][0]["schedulable"] == true && gpus["devices"][2]["health"] == "lost"
    });
    assert_eq!(train("cuda:0", "whole"), (json!("cuda:0"), json!(uuid(0))));
    server.stop();
}

fn serve(home: &Home, machine: &Machine) -> Server {
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    machine.on(&mut command);
    Server::spawn(command)
}

/// Asks again until an answer is as expected.
fn until(server: &Server, path: &str, expected: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let (status, answer) = server.call("GET", path, &Value::Null);
        assert_eq!(status, 200, "{answer}");
        if expected(&answer) {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{answer}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

const GPU: &str = "/api/v2/resources/gpu";

#[test]
fn the_processes_on_a_gpu_are_told_with_the_tasks_that_own_them() {
    let others = "[[gpu]]\nprofile = \"h100\"\n\
        [[gpu.process]]\npid = 4000042\nused_mib = 500\nsm_percent = 40\n\
        [[gpu.process]]\npid = 4000043\nused_mib = 20\ngraphics = true\n";
    let (home, machine) = (Home::new(), Machine::new(others));
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine);
    let body = json!({
        "model": "cnn", "train_path": data, "val_path": data, "num_epochs": 100_000,
        "batch_size": 16, "device": "cuda:0", "task_id": "long",
    });
    let (status, answer) = server.call("POST", "/api/v2/training/start", &body);
    assert_eq!(status, 200, "{answer}");
    let asked = format!("{GPU}?processes=true");
    let owned = |gpus: &Value| {
        let processes = gpus["devices"][0]["processes"].as_array();
        let mut processes = processes.into_iter().flatten();
        processes.find(|one| one["owner"] == "long").cloned()
    };
    let gpus = until(&server, &asked, |gpus| owned(gpus).is_some());
    let ours = owned(&gpus).unwrap();
    assert_eq!(ours["kind"], "compute");
    assert!(ours["used_bytes"].as_u64().unwrap() >= 320 << 20, "{ours}");
    let worker = crate::children(server.child.id());
    assert!(worker.iter().any(|pid| ours["pid"] == *pid), "{ours}");
    let foreign = |pid: u32| {
        let processes = gpus["devices"][0]["processes"].as_array().unwrap().iter();
        processes
            .filter(|one| one["pid"] == pid)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        json!(foreign(4_000_042)),
        json!([{ "pid": 4_000_042, "kind": "compute", "used_bytes": 500u64 << 20, "sm_percent": 40, "owner": null }])
    );
    assert_eq!(
        json!(foreign(4_000_043)),
        json!([{ "pid": 4_000_043, "kind": "graphics", "used_bytes": 20u64 << 20, "sm_percent": 0, "owner": null }])
    );
    let (_, plain) = server.call("GET", GPU, &Value::Null);
    assert!(plain["devices"][0].get("processes").is_none(), "{plain}");
    let (status, _) = server.call("GET", &format!("{GPU}?process=true"), &Value::Null);
    assert_eq!(status, 422);
    // What cannot be told is not empty.
    let fault = "[[fault]]\nfunction = \"nvmlDeviceGetComputeRunningProcesses_v3\"\ncode = 999\n";
    machine.change(&format!("{others}{fault}"));
    let unknown = until(&server, &asked, |gpus| {
        gpus["devices"][0]["processes"].is_null()
    });
    assert!(
        unknown["devices"][0]["errors"]["processes"].is_string(),
        "{unknown}"
    );
    server.stop();
}

#[test]
fn links_and_traffic_are_told_and_null_where_there_are_none() {
    let linked = |bus: u32, switch: u32| {
        format!(
            "[[gpu]]\nprofile = \"h100\"\nbus = {bus}\nnvlinks = 18\nnvlinks_active = 17\n\
             switch = {switch}\npcie_kib = [120, 340]\n"
        )
    };
    let t4 = "[[gpu]]\nprofile = \"t4\"\nbus = 9\n";
    let machine = Machine::new(&[&*linked(3, 1), &*linked(5, 1), t4].concat());
    let (home, path) = (Home::empty(), "/api/v2/resources/gpu");
    let server = serve(&home, &machine);
    let gpus = until(&server, path, |gpus| gpus["devices"][2]["peers"].is_array());
    let (h100, t4) = (&gpus["devices"][0], &gpus["devices"][2]);
    assert_eq!(
        h100["peers"],
        json!([
            { "uuid": uuid(1), "level": "single_switch", "p2p": "ok" },
            { "uuid": uuid(2), "level": "system", "p2p": "gpu_not_supported" },
        ])
    );
    assert_eq!(
        (&h100["nvlink_active_links"], &t4["nvlink_active_links"]),
        (&json!(17), &Value::Null)
    );
    assert!(
        t4["unsupported"]
            .as_array()
            .unwrap()
            .contains(&json!("nvlink_active_links"))
    );
    assert_eq!(
        (&h100["pcie_tx_kib_per_s"], &h100["pcie_rx_kib_per_s"]),
        (&json!(120), &json!(340))
    );
    server.stop();
}

#[test]
fn the_history_of_a_gpu_shows_what_it_was() {
    let gpu = |celsius: u32| {
        format!("[[gpu]]\nprofile = \"h100\"\ntemperature = {celsius}\nused_mib = 100\n")
    };
    let (home, machine) = (Home::empty(), Machine::new(&gpu(40)));
    let server = serve(&home, &machine);
    let path = format!("{GPU}/cuda:0/history");
    until(&server, &path, |history| {
        history["samples"].as_array().unwrap().len() >= 2
    });
    machine.change(&gpu(70));
    let temperatures = |history: &Value| -> Vec<u64> {
        let samples = history["samples"].as_array().unwrap().iter();
        samples
            .map(|one| one["temperature_gpu_c"].as_u64().unwrap())
            .collect()
    };
    let history = until(&server, &path, |history| {
        temperatures(history).contains(&70)
    });
    let shown = temperatures(&history);
    assert!(
        shown.starts_with(&[40, 40]) && shown.is_sorted(),
        "{history}"
    );
    assert_eq!(
        (&history["device"], &history["uuid"]),
        (&json!("cuda:0"), &json!(uuid(0)))
    );
    let last = &history["samples"][shown.len() - 1];
    assert_eq!(last["power_draw_watts"].as_f64().unwrap().round(), 69.0);
    assert!(
        last["memory_used_bytes"].as_u64().unwrap() >= 100 << 20,
        "{last}"
    );
    assert!(
        last["sampled_at"].is_string() && last["utilization_gpu_percent"] == 0,
        "{last}"
    );
    let recent = until(&server, &format!("{path}?seconds=0"), |_| true);
    assert_eq!(recent["samples"], json!([]));
    for wrong in [
        "cuda:7/history",
        "cpu/history",
        "cuda/history",
        "cuda:0/history?seconds=-1",
        "cuda:0/history?hours=1",
    ] {
        let (status, answer) = server.call("GET", &format!("{GPU}/{wrong}"), &Value::Null);
        assert_eq!(status, 422, "{wrong}: {answer}");
    }
    server.stop();
}
