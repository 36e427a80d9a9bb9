//! How devices are given away, from outside, on simulated GPUs.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gpu::{FOUR, stripes};
use crate::{Home, Machine, Server};

pub(crate) fn serve(home: &Home, machine: &Machine, more: &[&str]) -> Server {
    let arguments = [&["serve", "--listen", "127.0.0.1:0"], more].concat();
    let mut command = home.hangar(&arguments);
    machine.on(&mut command);
    Server::spawn(command)
}

pub(crate) fn get(server: &Server, path: &str) -> Value {
    let (status, answer) = server.call("GET", path, &Value::Null);
    assert_eq!(status, 200, "{answer}");
    answer
}

pub(crate) fn post(server: &Server, path: &str, body: &Value) -> Value {
    let (status, answer) = server.call("POST", path, body);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The code of a refusal.
pub(crate) fn refused(server: &Server, path: &str, body: &Value) -> String {
    let (status, answer) = server.call("POST", path, body);
    assert_eq!(status, 422, "{answer}");
    answer["code"].as_str().unwrap().to_owned()
}

pub(crate) fn training(data: &Path, device: &str, id: &str) -> Value {
    json!({
        "model": "cnn", "train_path": data, "val_path": data, "num_epochs": 1, "batch_size": 16, "device": device,
        "task_id": id,
    })
}

/// Waits until a task says that it waits for this.
pub(crate) fn waits(server: &Server, id: &str, reason: &str) {
    let start = Instant::now();
    loop {
        let task = get(server, &format!("/api/v2/tasks/{id}"));
        let told = task["waiting_reason"].as_str().unwrap_or_default();
        if told.contains(reason) {
            assert_eq!(task["status"], "queued");
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{task}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) const CONFIG: &str = "/api/v2/resources/config";
pub(crate) const START: &str = "/api/v2/training/start";

#[test]
fn a_gpu_is_shown_with_every_field_and_none_where_it_has_none() {
    let machine = Machine::new(
        "[[gpu]]\nprofile = \"h100\"\nbus = 0x53\ntemperature = 39\nutilization = 40\nused_mib = 2048\necc_errors = 3\n\
         [[gpu]]\nprofile = \"rtx3090\"\nbus = 0x64\nthrottle = 0x60\n\
         [[gpu]]\nprofile = \"t4\"\nbus = 0x1a\n\
         [[gpu]]\nprofile = \"a100\"\nbus = 0x75\nlost = true\n",
    );
    let home = Home::new();
    let server = serve(&home, &machine, &[]);
    // Until the probes have given back what they took.
    let start = Instant::now();
    let gpus = loop {
        let gpus = get(&server, "/api/v2/resources/gpu");
        let used = gpus["devices"][1]["memory_used_bytes"] == 2048u64 << 20;
        // One slows its clocks down for heat, and one is lost.
        if used && gpus["gpu_count_schedulable"] == 2 && gpus["devices"][2]["health"] == "throttled"
        {
            break gpus;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{gpus}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(gpus["source"], "nvml");
    assert_eq!(gpus["gpu_count_detected"], 4);
    assert!(gpus["sample_age_ms"].as_u64().is_some() && gpus["sampled_at"].is_string());
    let t4 = &gpus["devices"][0];
    let h100 = &gpus["devices"][1];
    let rtx = &gpus["devices"][2];
    let lost = &gpus["devices"][3];
    // Identity: the order of `cuda:N` is not NVML's.
    assert_eq!(
        (&h100["index"], &h100["nvml_index"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(h100["device"], "cuda:1");
    assert_eq!(h100["architecture"], "Hopper");
    assert_eq!(
        (&h100["sm_count"], &h100["cuda_cores"]),
        (&json!(132), &json!(16896))
    );
    assert_eq!(
        (&rtx["brand"], &rtx["serial"]),
        (&json!("GeForce"), &Value::Null)
    );
    assert!(
        rtx["unsupported"]
            .as_array()
            .unwrap()
            .contains(&json!("serial")),
        "{rtx}"
    );
    // Memory; the old members are what NVML shows.
    assert_eq!(h100["memory_reserved_bytes"], 480u64 << 20);
    assert_eq!(h100["memory_used_bytes"], 2048u64 << 20);
    assert_eq!(
        (&h100["allocated_memory_gb"], &h100["utilization"]),
        (&json!(2.0), &json!(40))
    );
    assert_eq!(h100["bar1_total_bytes"], 131_072u64 << 20);
    // The ledger: what others hold and the headroom are not to be had.
    let usable = (81559u64 - 480) << 20;
    let figure = |name: &str| h100[name].as_u64().unwrap();
    let foreign = figure("foreign_used_bytes");
    assert!(foreign >= 2048 << 20, "{h100}");
    assert_eq!(figure("headroom_bytes"), usable / 100 * 3);
    assert_eq!(
        figure("allocatable_bytes"),
        usable - foreign - usable / 100 * 3
    );
    assert_eq!(
        (figure("lease_reserved_bytes"), figure("active_leases")),
        (0, 0)
    );
    // Both presentations of temperature give one margin.
    assert_eq!(
        (&h100["tlimit_current_c"], &h100["tlimit_slowdown_c"]),
        (&json!(48), &json!(-2))
    );
    assert_eq!(
        (&h100["thermal_margin_c"], &h100["threshold_slowdown_c"]),
        (&json!(50), &json!(89))
    );
    assert_eq!(
        (&t4["thermal_margin_c"], &t4["threshold_slowdown_c"]),
        (&json!(60), &json!(93))
    );
    assert_eq!(
        (&t4["tlimit_current_c"], &t4["temperature_memory_c"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (&h100["temperature_memory_c"], &rtx["fan_speed_percent"]),
        (&json!(37), &json!(0))
    );
    // Power, clocks, why they are low, the bus, errors, modes.
    assert_eq!(
        (
            &h100["power_limit_default_watts"],
            &h100["power_limit_min_watts"]
        ),
        (&json!(700.0), &json!(200.0))
    );
    assert_eq!(
        (&h100["power_draw_kind"], &t4["power_draw_kind"]),
        (&json!("average_1s"), &json!("instant"))
    );
    assert_eq!(
        (&h100["clock_sm_mhz"], &h100["clock_sm_max_mhz"]),
        (&json!(345), &json!(1980))
    );
    assert_eq!(
        rtx["throttle_reasons"],
        json!(["sw_thermal_slowdown", "hw_thermal_slowdown"])
    );
    assert_eq!(
        (&rtx["throttle_active"], &h100["throttle_active"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&t4["pcie_gen_max"], &t4["pcie_width_current"]),
        (&json!(3), &json!(8))
    );
    assert_eq!(
        (&h100["ecc_enabled"], &h100["ecc_corrected_volatile"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(
        (&rtx["ecc_enabled"], &rtx["ecc_corrected_volatile"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (&rtx["performance_state"], &h100["compute_mode"]),
        (&json!("P8"), &json!("default"))
    );
    assert_eq!(
        (&h100["mig_enabled"], &rtx["mig_enabled"]),
        (&json!(false), &Value::Null)
    );
    // One that is lost is an entry of its own, and the answer goes on.
    assert_eq!(
        (&lost["health"], &lost["memory_used_bytes"]),
        (&json!("lost"), &Value::Null)
    );
    assert_eq!(h100["health"], "healthy");
    server.stop();
}

#[test]
fn settings_are_merged_checked_and_outlive_the_host() {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let server = serve(&home, &machine, &[]);
    let config = post(
        &server,
        CONFIG,
        &json!({
            "max_concurrent": { "cuda:1": { "training": 4 }, "cpu": { "inference": 7 } },
            "policy": "pack",
            "cpu_fallback": false,
            "health": { "cool_seconds": 20 },
            "pools": {
                "large": { "min_memory_bytes": 40_000_000_000u64 },
                "small": { "models": ["T4"], "plugins": ["digits"], "limits": { "training": 1 } },
            },
        }),
    );
    let current = &config["current_config"];
    assert_eq!(
        current["max_concurrent"]["cuda:1"],
        json!({ "training": 4, "inference": 3 })
    );
    assert_eq!(
        current["max_concurrent"]["cpu"],
        json!({ "training": 2, "inference": 7 })
    );
    assert_eq!(
        current["pools"]["large"]["members"],
        json!(["cuda:0", "cuda:1"])
    );
    assert_eq!(current["pools"]["small"]["members"], json!(["cuda:3"]));
    // `cuda` is every GPU, one that has a limit of its own too; what is left out stays.
    let every =
        json!({ "max_concurrent": { "cuda": { "inference": 9 }, "small": { "inference": 2 } } });
    let current = post(&server, CONFIG, &every)["current_config"].clone();
    assert_eq!(
        current["max_concurrent"]["cuda:1"],
        json!({ "training": 4, "inference": 9 })
    );
    assert_eq!(
        current["max_concurrent"]["cuda:2"],
        json!({ "training": 1, "inference": 9 })
    );
    assert_eq!(
        current["max_concurrent"]["cpu"],
        json!({ "training": 2, "inference": 7 })
    );
    assert_eq!(
        current["pools"]["small"]["limits"],
        json!({ "training": 1, "inference": 2 })
    );
    assert_eq!(current["policy"], "pack");
    assert_eq!(current["cpu_fallback"], false);
    assert_eq!(current["health"]["cool_seconds"], 20);
    for (change, code) in [
        (
            json!({ "max_concurrent": { "cuda:9": { "training": 1 } } }),
            "device.unknown",
        ),
        (
            json!({ "max_concurrent": { "nowhere": { "training": 1 } } }),
            "device.unknown",
        ),
        (
            json!({ "max_concurrent": { "cuda:x": { "training": 1 } } }),
            "device.invalid",
        ),
        (
            json!({ "max_concurrent": { "cuda": { "training": -1 } } }),
            "request.member",
        ),
        (
            json!({ "max_concurrent": { "cuda": { "trainings": 1 } } }),
            "request.member",
        ),
        (json!({ "policy": "random" }), "device.policy"),
        (json!({ "cpu_fallback": "never" }), "request.member"),
        (
            json!({ "policy": "spread", "pools": { "cuda": {} } }),
            "pool.invalid",
        ),
        (
            json!({ "policy": "spread", "pools": { "p": { "gpus": ["3"] } } }),
            "pool.invalid",
        ),
        (json!({ "bogus": 1 }), "request.member"),
    ] {
        assert_eq!(refused(&server, CONFIG, &change), code, "{change}");
    }
    assert_eq!(
        get(&server, CONFIG),
        current,
        "a change that is refused changes nothing"
    );
    let drained = post(&server, "/api/v2/devices/cuda:2/drain", &Value::Null);
    assert_eq!(
        (&drained["draining"], &drained["active_tasks"]),
        (&json!(true), &json!(0))
    );
    for device in ["cuda:7", "cuda", "cuda:x"] {
        let (status, _) = server.call(
            "POST",
            &format!("/api/v2/devices/{device}/drain"),
            &Value::Null,
        );
        assert_eq!(status, 422, "{device}");
    }
    let before = get(&server, CONFIG);
    server.stop();

    let server = serve(&home, &machine, &[]);
    assert_eq!(get(&server, CONFIG), before);
    assert_eq!(before["drained"], json!(["cuda:2"]));
    let start = Instant::now();
    let gpu = loop {
        let gpu = get(&server, "/api/v2/resources/gpu")["devices"][2].clone();
        if gpu["reason"] != "it is being probed" || start.elapsed() > Duration::from_secs(30) {
            break gpu;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(
        (&gpu["health"], &gpu["schedulable"]),
        (&json!("draining"), &json!(false))
    );
    assert!(gpu["reason"].as_str().unwrap().contains("drained"), "{gpu}");
    post(&server, "/api/v2/devices/cuda:2/enable", &Value::Null);
    post(&server, CONFIG, &json!({ "pools": { "large": null } }));
    let current = get(&server, CONFIG);
    assert_eq!(
        (&current["drained"], &current["pools"]["large"]),
        (&json!([]), &Value::Null)
    );
    assert!(current["pools"]["small"].is_object());
    server.stop();
}

#[test]
fn tasks_go_where_pools_policies_and_drained_gpus_let_them() {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &["--policy", "fewest-tasks"]);
    assert_eq!(get(&server, CONFIG)["policy"], "fewest-tasks");
    let pools = json!({ "pools": { "turing": { "models": ["T4"], "plugins": ["digits"] } } });
    post(&server, CONFIG, &pools);
    let other = json!({
        "model": "spoken-digits", "train_path": "tests/data/spoken-digits", "device": "turing",
    });
    assert_eq!(refused(&server, START, &other), "device.plugin");
    assert_eq!(
        refused(&server, START, &training(&data, "volta", "lost")),
        "device.unknown"
    );
    let mut odd = training(&data, "cuda", "odd");
    odd["policy"] = "random".into();
    assert_eq!(refused(&server, START, &odd), "device.policy");

    // A GPU that is too hot is left alone until it has been cool for a while.
    assert_eq!(get(&server, CONFIG)["health"]["cool_seconds"], 30);
    post(&server, CONFIG, &json!({ "health": { "cool_seconds": 2 } }));
    machine.change(&FOUR.replace("\"h100\"", "\"h100\"\ntemperature = 86"));
    let start = Instant::now();
    while get(&server, "/api/v2/resources/gpu")["devices"][1]["health"] != "throttled" {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    post(&server, START, &training(&data, "cuda:1", "hot"));
    waits(&server, "hot", "cuda:1 is 3 °C from its slowdown");
    machine.change(FOUR);
    let cooled = Instant::now();
    let task = server.wait("hot", &["failed", "completed"]);
    assert_eq!(task["device"], "cuda:1", "{task}");
    assert!(cooled.elapsed() >= Duration::from_secs(2));

    // A pool's task waits while its only GPU is drained, the others' GPUs being free.
    post(&server, "/api/v2/devices/cuda:3/drain", &Value::Null);
    post(&server, START, &training(&data, "turing", "pooled"));
    waits(&server, "pooled", "cuda:3 is drained");
    // By the request's policy, not the host's.
    let mut largest = training(&data, "cuda", "largest");
    largest["policy"] = "most-free-memory".into();
    post(&server, START, &largest);
    let task = server.wait("largest", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cuda:1")),
        "{task}"
    );
    assert_eq!(
        (&task["policy"], &task["waiting_reason"]),
        (&json!("most-free-memory"), &Value::Null)
    );
    post(&server, "/api/v2/devices/cuda:3/enable", &Value::Null);
    let task = server.wait("pooled", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cuda:3")),
        "{task}"
    );
    assert_eq!(task["device_requested"], "turing");
    let pool = get(&server, "/api/v2/resources")["pools"]["turing"].clone();
    assert_eq!(
        pool["current_tasks"],
        json!({ "training": 0, "inference": 0 }),
        "{pool}"
    );
    server.stop();
}

#[test]
fn a_full_queue_refuses_with_429_and_when_to_come_again() {
    use std::io::{Read, Write};
    let home = Home::new();
    let server =
        Server::spawn(home.hangar(&["serve", "--listen", "127.0.0.1:0", "--queue-size", "2"]));
    post(
        &server,
        CONFIG,
        &json!({ "max_concurrent": { "cpu": { "training": 0 } } }),
    );
    for id in ["first", "second"] {
        post(&server, START, &crate::training(id, 1));
    }
    waits(&server, "first", "cpu runs 0 of 0 trainings");
    let queue = get(&server, "/api/v2/resources")["queue"].clone();
    assert_eq!(queue, json!({ "waiting": 2, "size": 2 }));
    let body = crate::training("third", 1).to_string();
    let mut socket = std::net::TcpStream::connect(&server.address).unwrap();
    let length = body.len();
    write!(
        socket,
        "POST {START} HTTP/1.0\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n{body}",
        server.address
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 429"), "{answer}");
    assert!(
        answer.to_lowercase().contains("\r\nretry-after: 5\r\n"),
        "{answer}"
    );
    assert!(answer.contains("queue.full"), "{answer}");
    // A higher limit wakes those that wait.
    post(
        &server,
        CONFIG,
        &json!({ "max_concurrent": { "cpu": { "training": 2 } } }),
    );
    for id in ["first", "second"] {
        let task = server.wait(id, &["failed", "completed"]);
        assert_eq!(task["status"], "completed", "{task}");
    }
    server.stop();
}

#[test]
fn a_task_that_waits_longer_than_it_may_fails_and_gives_up_its_place() {
    const ONE: &str = "[[gpu]]\nprofile = \"h100\"\nbus = 1\n";
    let (home, machine) = (Home::new(), Machine::new(ONE));
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &[]);
    let begin = |id: &str, wait: Option<u64>, epochs: u64| {
        let mut body = training(&data, "cuda:0", id);
        body["num_epochs"] = epochs.into();
        body["wait_seconds"] = json!(wait);
        post(&server, START, &body)
    };
    begin("holder", None, 100_000);
    server.wait("holder", &["running"]);
    begin("patient", None, 1);
    waits(&server, "patient", "cuda:0 runs 1 of 1 trainings");
    let begun = Instant::now();
    assert_eq!(begin("late", Some(1), 1)["wait_seconds"], 1);
    let late = server.wait("late", &["failed", "running", "completed"]);
    let took = begun.elapsed();
    assert_eq!(
        (&late["status"], &late["error_code"]),
        (&json!("failed"), &json!("queue.deadline")),
        "{late}"
    );
    let second = Duration::from_secs(1);
    assert!((second..10 * second).contains(&took), "{took:?}");
    let message = late["message"].as_str().unwrap();
    assert!(message.starts_with("it waited "), "{message}");
    assert!(
        message.ends_with("cuda:0 runs 1 of 1 trainings"),
        "{message}"
    );
    begin("at-once", Some(0), 1);
    let refused_at_once = server.wait("at-once", &["failed", "running", "completed"]);
    assert_eq!(refused_at_once["error_code"], "queue.deadline");
    // One that waits behind those that have a plan has no worker.
    for id in ["more-1", "more-2", "more-3"] {
        begin(id, None, 1);
        waits(&server, id, "cuda:0 runs 1 of 1 trainings");
    }
    for (position, id) in (1..).zip(["patient", "more-1", "more-2", "more-3"]) {
        let task = get(&server, &format!("/api/v2/tasks/{id}"));
        assert_eq!(task["position"], position, "{task}");
    }
    assert_eq!(
        get(&server, "/api/v2/tasks/holder")["position"],
        Value::Null
    );
    begin("behind", Some(1), 1);
    let behind = server.wait("behind", &["failed", "running", "completed"]);
    assert_eq!(behind["error_code"], "queue.deadline", "{behind}");
    let message = behind["message"].as_str().unwrap();
    assert!(
        message.ends_with("it waits for a worker that plans it"),
        "{message}"
    );
    assert_eq!(get(&server, "/api/v2/resources")["queue"]["waiting"], 4);
    assert_eq!(server.wait("holder", &["running"])["status"], "running");
    for (wait, code) in [
        (json!(604_801), "request.wait"),
        (json!(-1), "request.member"),
    ] {
        let mut odd = training(&data, "cuda:0", "odd");
        odd["wait_seconds"] = wait;
        assert_eq!(refused(&server, START, &odd), code);
    }
    for id in ["more-1", "more-2", "more-3", "holder"] {
        post(&server, &format!("/api/v2/tasks/{id}/cancel"), &Value::Null);
    }
    let patient = server.wait("patient", &["failed", "completed"]);
    assert_eq!(patient["status"], "completed", "{patient}");
    // Nothing is before it.
    begin("free", Some(0), 1);
    let free = server.wait("free", &["failed", "completed"]);
    assert_eq!(free["status"], "completed", "{free}");
    server.stop();

    machine.change(&format!("{ONE}used_mib = 80000\n"));
    let folder = data.to_str().unwrap();
    let run = ["run", "digits", "train", "--data", folder, "--device"];
    let mut command = home.hangar(&[&run[..], &["cuda:0", "--wait", "1"]].concat());
    let output = machine.on(&mut command).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("it waited "),
        "{told}"
    );
    assert!(told.contains("other programs"), "{told}");
}

#[test]
fn the_time_in_which_the_host_is_down_counts_as_waiting() {
    let home = Home::new();
    let data = stripes(home.folder.path());
    let server = Server::start(&home);
    let none = json!({ "max_concurrent": { "cpu": { "training": 0 } } });
    post(&server, CONFIG, &none);
    let mut body = training(&data, "cpu", "patient");
    body["wait_seconds"] = 600.into();
    post(&server, START, &body);
    body["task_id"] = "late".into();
    body["wait_seconds"] = 3.into();
    post(&server, START, &body);
    server.stop();
    std::thread::sleep(Duration::from_secs(4));
    let server = Server::start(&home);
    let late = server.wait("late", &["failed", "running", "completed"]);
    assert_eq!(late["error_code"], "queue.deadline", "{late}");
    let message = late["message"].as_str().unwrap();
    let waited = message.strip_prefix("it waited ").unwrap();
    let (waited, _) = waited.split_once(" s and may wait 3 s").unwrap();
    assert!(waited.parse::<f64>().unwrap() >= 4.0, "{message}");
    waits(&server, "patient", "cpu runs 0 of 0 trainings");
    server.stop();
}

#[test]
fn the_cpu_takes_tasks_for_gpus_only_where_the_operator_lets_it() {
    let home = Home::new();
    let data = stripes(home.folder.path());
    let server = Server::start(&home);
    let start = "/api/v2/training/start";
    let info =
        |server: &Server| get(server, "/api/v2/resources/gpu")["cpu_fallback_enabled"].clone();
    assert_eq!(info(&server), true);
    post(&server, start, &training(&data, "cuda", "allowed"));
    let task = server.wait("allowed", &["completed", "failed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cpu"))
    );
    assert!(task["fallback_reason"].is_string(), "{task}");
    post(&server, CONFIG, &json!({ "cpu_fallback": false }));
    assert_eq!(info(&server), false);
    let refused = refused(&server, start, &training(&data, "cuda", "refused"));
    assert_eq!(refused, "device.unschedulable");
    server.stop();
    // It is kept, for tasks without a server as well.
    let folder = data.to_str().unwrap();
    let run = ["run", "digits", "train", "--data", folder, "--device"];
    let told = home.refused(&[&run[..], &["cuda"]].concat());
    assert!(told.contains("cannot run tasks"), "{told}");
}

#[test]
fn gpus_without_nvml_are_known_from_the_driver_and_compute() {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    machine.without_nvml();
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &[]);
    let info = get(&server, "/api/v2/resources/gpu");
    assert_eq!(
        (&info["source"], &info["count"]),
        (&json!("cuda-only"), &json!(4))
    );
    let reason = info["nvml_error"].as_str().unwrap();
    assert!(reason.contains("libnvidia-ml.so.1"), "{reason}");
    let gpu = &info["devices"][1];
    assert_eq!(gpu["health"], "healthy", "{gpu}");
    assert!(gpu["memory_total_bytes"].as_u64() > Some(8 << 30), "{gpu}");
    assert_eq!(
        (&gpu["memory_used_bytes"], &gpu["temperature_gpu_c"]),
        (&Value::Null, &Value::Null)
    );
    assert!(gpu["allocatable_bytes"].as_u64() > Some(7 << 30), "{gpu}");
    post(&server, START, &training(&data, "cuda:1", "blind"));
    let task = server.wait("blind", &["completed", "failed"]);
    assert_eq!(
        (&task["status"], &task["device"], &task["device_uuid"]),
        (&json!("completed"), &json!("cuda:1"), &gpu["uuid"]),
        "{task}"
    );
    server.stop();
    // Without the driver's library too there is no GPU.
    std::fs::remove_file(machine.folder.path().join("libcuda.so.1")).unwrap();
    let none = machine.gpus();
    assert_eq!(none["gpus"], json!([]), "{none}");
}
