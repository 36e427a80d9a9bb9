//! The HTTP API: its tasks, its queue, and its ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Home, Server, children, repeat, root, training};

/// The processor time that a process has used, in clock ticks of 10 ms (proc(5), fields 14 and 15).
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_idle_host_is_idle() {
    let home = Home::new();
    let server = Server::start(&home);
    std::thread::sleep(Duration::from_secs(1));
    let before = ticks(server.child.id());
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks(server.child.id()) - before;
    assert!(used <= 10, "{used} ticks of 10 ms in 2 s");
}

#[test]
fn the_api_trains_streams_cancels_refuses_and_survives() {
    let home = Home::new();
    let server = Server::start(&home);
    let (status, health) = server.call("GET", "/api/v1/health", &Value::Null);
    assert_eq!((status, &health["status"]), (200, &json!("healthy")));
    assert_eq!(health["active_log_streams"], 0);
    assert_eq!(health["resource_status"]["active_tasks"]["cpu"], json!([]));
    let (status, gpus) = server.call("GET", "/api/v2/resources/gpu", &Value::Null);
    assert_eq!(
        (status, &gpus["available"], &gpus["count"]),
        (200, &json!(false), &json!(0))
    );
    for path in [
        "/",
        "/api/v1/info",
        "/api/v2/resources",
        "/api/v2/resources/cpu",
        "/api/v2/plugins",
    ] {
        assert_eq!(server.call("GET", path, &Value::Null).0, 200, "{path}");
    }

    let (status, task) = server.call("POST", "/api/v2/training/start", &training("one", 1));
    assert_eq!((status, &task["task_id"]), (200, &json!("one")), "{task}");
    assert_eq!(
        server
            .call("POST", "/api/v2/training/start", &training("one", 1))
            .0,
        409
    );
    assert_eq!(
        server.call("DELETE", "/api/v2/tasks/one", &Value::Null).0,
        409
    );
    let (_, stream) = server.send("GET", "/api/v2/training/one/logs", "");
    assert!(
        stream.contains("val_acc") && stream.contains("\"status\":\"completed\""),
        "{stream}"
    );
    let (_, again) = server.send("GET", "/api/v2/tasks/one/logs", "");
    assert_eq!(stream, again, "a stream replays");
    let task = server.wait("one", &["completed"]);
    assert_eq!(
        (&task["device"], &task["current_epoch"]),
        (&json!("cpu"), &json!(1))
    );

    let infer = json!({
        "model": "digits", "source_path": "tests/data/mnist10k", "task_id": "seen",
        "weight_path": Path::new(task["output"].as_str().unwrap()).join("best.safetensors"),
    });
    assert_eq!(
        server.call("POST", "/api/v2/inference/start", &infer).0,
        200
    );
    let seen = server.wait("seen", &["completed", "failed"]);
    assert!(
        seen["latest_metrics"]["accuracy"].as_f64().unwrap() > 85.0,
        "{seen}"
    );

    for (body, code) in [
        (
            json!({ "model": "nope", "train_path": "." }),
            "model.unknown",
        ),
        (
            json!({ "model": "cnn", "train_path": "/nowhere" }),
            "request.path",
        ),
        (
            json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "device": "cuda:9" }),
            "device.unknown",
        ),
        (
            json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "device": "cuda:abc" }),
            "device.invalid",
        ),
        (
            json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "priority": 11 }),
            "request.priority",
        ),
        (
            json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "bogus": 1 }),
            "request.member",
        ),
        (
            json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "params": { "epochz": 1 } }),
            "parameter.unknown",
        ),
        (
            json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "task_id": "../x" }),
            "task.id",
        ),
    ] {
        let (status, problem) = server.call("POST", "/api/v2/training/start", &body);
        assert_eq!(
            (status, problem["code"].as_str()),
            (422, Some(code)),
            "{problem}"
        );
    }
    let mut page = TcpStream::connect(&server.address).unwrap();
    write!(page, "GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n").unwrap();
    let mut answer = String::new();
    page.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 403"), "{answer}");
    assert_eq!(server.send("POST", "/api/v2/training/start", "{").0, 400);
    assert_eq!(
        server.call("GET", "/api/v2/tasks/none", &Value::Null).0,
        404
    );
    assert_eq!(server.call("GET", "/nowhere", &Value::Null).0, 404);
    assert_eq!(server.call("POST", "/api/v1/health", &Value::Null).0, 405);
    let (_, list) = server.call("GET", "/api/v2/tasks", &Value::Null);
    assert_eq!(
        (&list["total_training"], &list["total_inference"]),
        (&json!(1), &json!(1))
    );

    // With a limit of one the second training waits and says why; cancelling works in both states.
    let limit = json!({ "max_concurrent": { "cpu": { "training": 1 } } });
    let (status, config) = server.call("POST", "/api/v2/resources/config", &limit);
    assert_eq!(
        (status, &config["current_config"]["max_concurrent"]["cpu"]),
        (200, &json!({ "training": 1, "inference": 4 }))
    );
    server.call("POST", "/api/v2/training/start", &training("long", 1000));
    server.wait("long", &["running"]);
    server.call("POST", "/api/v2/training/start", &training("second", 1000));
    planned(&server, "second");
    assert_eq!(
        server
            .call("POST", "/api/v2/tasks/second/cancel", &Value::Null)
            .0,
        200
    );
    server.wait("second", &["cancelled"]);
    let (_, resources) = server.call("GET", "/api/v2/resources", &Value::Null);
    assert_eq!(
        resources["device_usage"]["cpu"],
        json!({ "training": 1, "inference": 0 })
    );
    let cancelled = Instant::now();
    assert_eq!(
        server
            .call("POST", "/api/v2/training/long/stop", &Value::Null)
            .0,
        200
    );
    server.wait("long", &["cancelled"]);
    assert!(cancelled.elapsed() < Duration::from_secs(5));
    assert_eq!(
        server
            .call("POST", "/api/v2/tasks/long/cancel", &Value::Null)
            .0,
        409
    );
    assert_eq!(
        server.call("DELETE", "/api/v2/tasks/long", &Value::Null).0,
        200
    );
    assert_eq!(
        server.call("GET", "/api/v2/tasks/long", &Value::Null).0,
        404
    );

    // A plugin that ignores the cancel is killed.
    let guests = root().join("tests/guests/target/wasm32-wasip2/release/examples");
    home.add(&guests.join("run_ignores_cancel.wasm"));
    let stubborn = json!({ "model": "run-ignores-cancel", "train_path": "tests/data/mnist10k", "task_id": "stubborn" });
    let start = Instant::now();
    while server.call("POST", "/api/v2/training/start", &stubborn).0 != 200 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the plugin is not loaded"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    server.wait("stubborn", &["running"]);
    let cancelled = Instant::now();
    assert_eq!(
        server
            .call("POST", "/api/v2/tasks/stubborn/cancel", &Value::Null)
            .0,
        200
    );
    server.wait("stubborn", &["cancelled"]);
    assert!(cancelled.elapsed() < Duration::from_secs(5));

    // A killed worker fails its task with the signal; its device is free again.
    server.call("POST", "/api/v2/training/start", &training("killed", 1000));
    server.wait("killed", &["running"]);
    let worker = children(server.child.id())[0];
    assert!(
        Command::new("kill")
            .args(["-9", &worker.to_string()])
            .status()
            .unwrap()
            .success()
    );
    let task = server.wait("killed", &["failed"]);
    assert_eq!(task["error_code"], "worker.died");
    assert!(
        task["message"].as_str().unwrap().contains("signal 9"),
        "{task}"
    );
    let (_, resources) = server.call("GET", "/api/v2/resources", &Value::Null);
    assert_eq!(resources["device_usage"]["cpu"]["training"], 0);

    // A killed supervisor: its worker ends within 2 s, and its task is interrupted.
    server.call("POST", "/api/v2/training/start", &training("orphan", 1000));
    server.wait("orphan", &["running"]);
    let worker = children(server.child.id())[0];
    let in_use = home.refused(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(in_use.contains("in use by another host"), "{in_use}");
    let beside = home.refused(&["run", "digits", "train", "--data", "tests/data/mnist10k"]);
    assert!(beside.contains("in use by a server"), "{beside}");
    let port_in_use = home.refused(&["serve", "--listen", &server.address]);
    assert!(port_in_use.contains("cannot listen on"), "{port_in_use}");
    drop(server);
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        !Path::new(&format!("/proc/{worker}")).exists(),
        "the worker lives on"
    );
    let server = Server::start(&home);
    assert_eq!(
        server.wait("orphan", &["interrupted"])["status"],
        "interrupted"
    );
    assert_eq!(server.wait("one", &["completed"])["progress"], 100.0);

    // A host that is told to end marks what runs as interrupted, and keeps what waits.
    let limit = json!({ "max_concurrent": { "cpu": { "training": 1 } } });
    server.call("POST", "/api/v2/resources/config", &limit);
    server.call("POST", "/api/v2/training/start", &training("runs", 1000));
    server.wait("runs", &["running"]);
    server.call("POST", "/api/v2/training/start", &training("waits", 1));
    server.stop();
    let server = Server::start(&home);
    assert_eq!(
        server.wait("runs", &["interrupted"])["status"],
        "interrupted"
    );
    server.wait("waits", &["completed"]);
}

#[test]
fn a_host_outlives_the_replacement_of_its_program() {
    let home = Home::new();
    let program = home.folder.path().join("hangar");
    std::fs::copy(env!("CARGO_BIN_EXE_hangar"), &program).unwrap();
    let mut command = Command::new(&program);
    command
        .current_dir(root())
        .arg("--plugins")
        .arg(home.plugins())
        .arg("--state");
    command
        .arg(home.folder.path().join("state"))
        .args(["serve", "--listen", "127.0.0.1:0"]);
    let server = Server::spawn(command);
    std::fs::remove_file(&program).unwrap();
    let (status, task) = server.call("POST", "/api/v2/training/start", &training("after", 1));
    assert_eq!(status, 200, "{task}");
    assert_eq!(
        server.wait("after", &["completed", "failed"])["status"],
        "completed"
    );
}

/// Waits until a training has planned and waits for its lease.
fn planned(server: &Server, id: &str) {
    let start = Instant::now();
    loop {
        let (_, task) = server.call("GET", &format!("/api/v2/tasks/{id}"), &Value::Null);
        let reason = task["waiting_reason"].as_str().unwrap_or_default();
        if reason.contains("1 of 1 trainings") {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{task}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_queue_goes_by_priority() {
    let home = Home::new();
    let server = Server::start(&home);
    let limit = json!({ "max_concurrent": { "cpu": { "training": 1 } } });
    server.call("POST", "/api/v2/resources/config", &limit);
    let start = |id: &str, priority: u8, epochs: u64| {
        let mut request = training(id, epochs);
        request["priority"] = json!(priority);
        let (status, task) = server.call("POST", "/api/v2/training/start", &request);
        assert_eq!(status, 200, "{task}");
    };
    start("first", 5, 1000);
    server.wait("first", &["running"]);
    // All have planned and wait for their leases before the first ends.
    for (id, priority) in [("second", 5), ("late", 10), ("middle", 5), ("early", 1)] {
        start(id, priority, 1);
        planned(&server, id);
    }
    server.call("POST", "/api/v2/tasks/first/cancel", &Value::Null);
    let mut ended: Vec<(String, &str)> = ["late", "middle", "early", "second"]
        .into_iter()
        .map(|id| {
            (
                server.wait(id, &["completed"])["updated_at"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
                id,
            )
        })
        .collect();
    ended.sort();
    let order: Vec<&str> = ended.iter().map(|(_, id)| *id).collect();
    assert_eq!(order, ["early", "second", "middle", "late"]);
}

#[test]
fn killed_workers_never_keep_their_lease() {
    let home = Home::new();
    let server = Server::start(&home);
    for round in 0..repeat(5, 2000) {
        let id = format!("killed-{round}");
        server.call("POST", "/api/v2/training/start", &training(&id, 1000));
        // At every stage of a worker's life: as it starts, plans, waits, computes.
        let start = Instant::now();
        let delay = Duration::from_millis(round as u64 * 37 % 400);
        while children(server.child.id()).is_empty() || start.elapsed() < delay {
            std::thread::sleep(Duration::from_millis(2));
            assert!(start.elapsed() < Duration::from_secs(20), "no worker");
        }
        for worker in children(server.child.id()) {
            let _gone = Command::new("kill")
                .args(["-9", &worker.to_string()])
                .status()
                .unwrap();
        }
        let task = server.wait(&id, &["failed"]);
        assert_eq!(task["error_code"], "worker.died", "{task}");
        let (_, resources) = server.call("GET", "/api/v2/resources", &Value::Null);
        assert_eq!(
            resources["device_usage"]["cpu"],
            json!({ "training": 0, "inference": 0 })
        );
    }
}
