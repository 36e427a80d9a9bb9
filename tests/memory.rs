//! The memory of simulated GPUs, from outside: the ledger, the workers' arenas and NVML agree, through
//! every end that a task can come to.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fakedriver::processes;
use serde_json::{Value, json};

use crate::devices::{CONFIG, START, get, post, refused, serve, training, waits};
use crate::gpu::stripes;
use crate::{Home, Machine, Server};

const ONE: &str = "[[gpu]]\nprofile = \"h100\"\n";
/// A context on the simulated GPU.
const CONTEXT: u64 = 320 << 20;
const GPUS: &str = "/api/v2/resources/gpu";

/// A training that goes on until it is ended.
fn endless(data: &Path, id: &str) -> Value {
    let mut wanted = training(data, "cuda:0", id);
    wanted["num_epochs"] = 10_000.into();
    wanted
}

/// A figure of the first GPU, in bytes.
fn figure(gpu: &Value, name: &str) -> u64 {
    let figure = gpu[name].as_u64();
    figure.unwrap_or_else(|| panic!("{name} of {gpu}"))
}

/// Waits until the first GPU is as it should be, `limit` at most: what it is then, and how long it took.
fn until(
    server: &Server,
    limit: Duration,
    as_it_should: impl Fn(&Value) -> bool,
) -> (Value, Duration) {
    let start = Instant::now();
    loop {
        let gpu = get(server, GPUS)["devices"][0].clone();
        if as_it_should(&gpu) {
            return (gpu, start.elapsed());
        }
        assert!(start.elapsed() < limit, "{gpu}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the first GPU takes tasks.
fn ready(server: &Server) -> Value {
    let ready = |gpu: &Value| gpu["schedulable"] == true;
    until(server, Duration::from_secs(60), ready).0
}

/// What each process holds on the machine's first GPU, in bytes.
fn held(machine: &Machine) -> Vec<(String, u64)> {
    let processes = processes::all_in(&machine.folder.path().join("machine.processes"));
    let on_first = |(process, gpus): (String, BTreeMap<usize, processes::Activity>)| {
        let bytes = gpus.get(&0).map_or(0, |activity| activity.bytes);
        (process, bytes)
    };
    processes.into_iter().map(on_first).collect()
}

/// The worker that holds the machine's only GPU, and what it holds of it in bytes.
fn worker(server: &Server, machine: &Machine) -> (String, u64) {
    let workers = crate::children(server.child.id());
    let lives = |process: &str| workers.iter().any(|worker| worker.to_string() == process);
    let mut held = held(machine).into_iter();
    let found = held.find(|(process, bytes)| *bytes > 0 && lives(process));
    found.unwrap_or_else(|| panic!("none of {workers:?} holds the GPU"))
}

/// Kills the worker that holds the machine's only GPU.
fn kill(server: &Server, machine: &Machine) {
    let (process, _) = worker(server, machine);
    let kill = Command::new("kill").args(["-9", &process]).status();
    assert!(kill.unwrap().success());
}

/// What a task's events say.
fn events(server: &Server, id: &str) -> String {
    server
        .send("GET", &format!("/api/v2/tasks/{id}/logs"), "")
        .1
}

#[test]
fn the_ledger_the_workers_arena_and_nvml_agree_to_the_byte() {
    let foreign = 1000u64 << 20;
    let (home, machine) = (
        Home::new(),
        Machine::new(&format!("{ONE}used_mib = 1000\n")),
    );
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &[]);
    let idle = ready(&server);
    assert_eq!(figure(&idle, "foreign_used_bytes"), foreign);
    post(&server, START, &endless(&data, "long"));
    let task = server.wait("long", &["running"]);
    let lease = task["lease_bytes"].as_u64().unwrap();
    // A sample is taken by the worker's next sign of life.
    let taken = |gpu: &Value| figure(gpu, "memory_used_bytes") > foreign + CONTEXT;
    let (gpu, _) = until(&server, Duration::from_secs(10), taken);
    let observed = figure(&gpu, "lease_observed_bytes");
    assert_eq!(observed, worker(&server, &machine).1, "{gpu}");
    assert_eq!(observed, lease + CONTEXT);
    assert_eq!(observed, figure(&gpu, "lease_reserved_bytes"));
    assert_eq!(figure(&gpu, "memory_used_bytes"), foreign + observed);
    assert_eq!(figure(&gpu, "foreign_used_bytes"), foreign);
    let left = [
        figure(&gpu, "returning_bytes"),
        figure(&gpu, "leaked_bytes"),
    ];
    assert_eq!(left, [0, 0]);
    let task = get(&server, "/api/v2/tasks/long");
    assert_eq!(task["lease_observed_bytes"], observed, "{task}");
    post(&server, "/api/v2/tasks/long/cancel", &Value::Null);
    let task = server.wait("long", &["cancelled"]);
    assert_eq!(task["device_memory"]["after_bytes"], foreign, "{task}");
    let gpu = get(&server, GPUS)["devices"][0].clone();
    let none = [
        "lease_reserved_bytes",
        "lease_observed_bytes",
        "returning_bytes",
        "leaked_bytes",
    ];
    assert_eq!(none.map(|name| figure(&gpu, name)), [0; 4]);
    assert_eq!(figure(&gpu, "memory_used_bytes"), foreign);
    assert_eq!(
        figure(&gpu, "allocatable_bytes"),
        figure(&idle, "allocatable_bytes")
    );
    server.stop();
}

#[test]
fn a_worker_that_is_killed_gives_everything_back_within_two_seconds() {
    let (home, machine) = (Home::new(), Machine::new(ONE));
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &[]);
    let idle = ready(&server);
    let mut times = Vec::new();
    for round in 0..crate::repeat(3, 200) {
        let id = format!("killed-{round}");
        post(&server, START, &endless(&data, &id));
        server.wait(&id, &["running"]);
        until(&server, Duration::from_secs(10), |gpu| {
            figure(gpu, "memory_used_bytes") > figure(&idle, "memory_used_bytes")
        });
        kill(&server, &machine);
        // The ledger and NVML, by one answer.
        let back = |gpu: &Value| {
            let same = |name| gpu[name] == idle[name];
            let figures = [
                "memory_used_bytes",
                "allocatable_bytes",
                "lease_observed_bytes",
            ];
            gpu["active_leases"] == 0 && figures.into_iter().all(same)
        };
        times.push(until(&server, Duration::from_secs(2), back).1);
        let task = server.wait(&id, &["failed"]);
        assert_eq!(task["error_code"], "worker.died", "{task}");
        assert_eq!(
            task["device_memory"]["after_bytes"],
            idle["memory_used_bytes"]
        );
    }
    println!("back after {times:?}");
    // What waits for the slot goes on.
    post(&server, START, &endless(&data, "first"));
    server.wait("first", &["running"]);
    post(&server, START, &training(&data, "cuda:0", "next"));
    waits(&server, "next", "cuda:0 runs 1 of 1 trainings");
    let killed = Instant::now();
    kill(&server, &machine);
    let task = server.wait("next", &["running", "completed", "failed"]);
    println!("the next runs after {:?}", killed.elapsed());
    assert_ne!(task["status"], "failed", "{task}");
    let task = server.wait("next", &["completed", "failed"]);
    assert_eq!(task["status"], "completed", "{task}");
    server.stop();
}

#[test]
fn memory_that_a_task_leaves_behind_is_shown_counted_and_forgotten_when_it_returns() {
    const KEPT: u64 = 100 << 20;
    let (home, machine) = (Home::new(), Machine::new(ONE));
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &[]);
    let idle = ready(&server);
    post(&server, START, &endless(&data, "leaks"));
    server.wait("leaks", &["running"]);
    until(&server, Duration::from_secs(10), |gpu| {
        figure(gpu, "memory_used_bytes") > CONTEXT
    });
    machine.change(&format!("{ONE}keeps_mib = 100\n"));
    kill(&server, &machine);
    // The task does not wait for it, and others run beside it.
    let task = server.wait("leaks", &["failed"]);
    assert_eq!(task["error_code"], "worker.died", "{task}");
    let gpu = get(&server, GPUS)["devices"][0].clone();
    assert_eq!(
        (
            figure(&gpu, "returning_bytes"),
            figure(&gpu, "leaked_bytes")
        ),
        (KEPT, 0)
    );
    let less = |gpu: &Value| figure(&idle, "allocatable_bytes") - figure(gpu, "allocatable_bytes");
    assert_eq!(less(&gpu), KEPT);
    post(&server, START, &training(&data, "cuda:0", "beside"));
    let task = server.wait("beside", &["completed", "failed"]);
    assert_eq!(task["status"], "completed", "{task}");
    let (gpu, _) = until(&server, Duration::from_secs(20), |gpu| {
        figure(gpu, "leaked_bytes") == KEPT && gpu["active_leases"] == 0 && less(gpu) == KEPT
    });
    assert_eq!(figure(&gpu, "foreign_used_bytes"), KEPT, "{gpu}");
    assert_eq!(figure(&gpu, "returning_bytes"), 0);
    // It returns in the end.
    machine.change(ONE);
    until(&server, Duration::from_secs(10), |gpu| {
        figure(gpu, "leaked_bytes") == 0 && figure(gpu, "foreign_used_bytes") == 0
    });
    until(&server, Duration::from_secs(60), |gpu| less(gpu) == 0);
    server.stop();
}

#[test]
fn memory_that_runs_out_in_spite_of_a_lease_fails_one_task_with_the_bytes_or_none() {
    let gpus = ONE.repeat(2);
    let fault = "[[fault]]\nfunction = \"cuMemAlloc_v2\"\ncall = 1\ncode = 2\n";
    let (home, machine) = (Home::new(), Machine::new(&gpus));
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &[]);
    ready(&server);
    let mut other = endless(&data, "other");
    other["device"] = "cuda:1".into();
    post(&server, START, &other);
    server.wait("other", &["running"]);

    // Somebody was faster once: the task is tried again.
    machine.change(&format!("{gpus}{fault}once = true\n"));
    post(&server, START, &training(&data, "cuda:0", "again"));
    let task = server.wait("again", &["completed", "failed"]);
    assert_eq!(task["status"], "completed", "{task}");
    let told = events(&server, "again");
    assert!(told.contains("the task is tried once more"), "{told}");

    // Always: it is not tried for ever.
    machine.change(&format!("{gpus}{fault}"));
    post(&server, START, &training(&data, "cuda:0", "never"));
    let task = server.wait("never", &["completed", "failed"]);
    assert_eq!(task["error_code"], "memory.exhausted", "{task}");
    let lease = task["lease_bytes"].as_u64().unwrap();
    let free = ((81559u64 - 480) << 20) - CONTEXT;
    let message = task["message"].as_str().unwrap();
    for part in [format!("taking {lease} bytes"), format!("{free} of ")] {
        assert!(message.contains(&part), "{message}");
    }
    assert_eq!(
        events(&server, "never").matches("tried once more").count(),
        1
    );
    let (gpu, _) = until(&server, Duration::from_secs(5), |gpu| {
        gpu["active_leases"] == 0
    });
    assert_eq!(figure(&gpu, "leaked_bytes"), 0);
    let task = get(&server, "/api/v2/tasks/other");
    assert_eq!(task["status"], "running", "{task}");
    server.stop();
}

#[test]
fn a_task_whose_memory_another_program_takes_first_waits_until_it_is_back() {
    // Enough for a context alone.
    let left = 14_455_680;
    let full = format!("{ONE}free_bytes = {}\n", CONTEXT + left);
    let (home, machine) = (Home::new(), Machine::new(ONE));
    let data = stripes(home.folder.path());
    // The other program grows after the last look at the GPU.
    let server = serve(&home, &machine, &["--monitor-period", "10000"]);
    ready(&server);
    let sampled = |server: &Server| get(server, GPUS)["sample_age_ms"].as_u64().unwrap();
    let start = Instant::now();
    while sampled(&server) > 1000 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    machine.change(&full);
    post(&server, START, &training(&data, "cuda:0", "late"));
    waits(&server, "late", "other programs");
    machine.change(ONE);
    let task = server.wait("late", &["completed", "failed"]);
    assert_eq!(task["status"], "completed", "{task}");
    let told = events(&server, "late");
    let exhausted = format!("{left} of {} are free", (81559u64 - 480) << 20);
    for part in [&*exhausted, "the task is tried once more"] {
        assert!(told.contains(part), "{told}");
    }
    server.stop();
}

#[test]
fn of_two_tasks_that_race_for_memory_one_waits_and_both_are_done() {
    let (home, machine) = (
        Home::new(),
        Machine::new("[[gpu]]\nprofile = \"t4\"\ntotal_mib = 700\n"),
    );
    let data = stripes(home.folder.path());
    let server = serve(&home, &machine, &[]);
    let idle = ready(&server);
    post(
        &server,
        CONFIG,
        &json!({ "max_concurrent": { "cuda": { "training": 2 } } }),
    );
    std::thread::scope(|scope| {
        for id in ["one", "two"] {
            let (server, data) = (&server, &data);
            scope.spawn(move || post(server, START, &endless(data, id)));
        }
    });
    let start = Instant::now();
    let (runs, waiting) = loop {
        let state = |id: &str| get(&server, &format!("/api/v2/tasks/{id}"))["status"].clone();
        match [state("one") == "running", state("two") == "running"] {
            [true, false] => break ("one", "two"),
            [false, true] => break ("two", "one"),
            [both, _] => assert!(!both && start.elapsed() < Duration::from_secs(60)),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    waits(&server, waiting, "bytes free, the task needs");
    let gpu = get(&server, GPUS)["devices"][0].clone();
    assert_eq!(gpu["active_leases"], 1);
    let reserved = figure(&gpu, "lease_reserved_bytes");
    assert!(2 * reserved > figure(&idle, "allocatable_bytes"), "{gpu}");
    for id in [runs, waiting] {
        server.wait(id, &["running"]);
        post(&server, &format!("/api/v2/tasks/{id}/cancel"), &Value::Null);
        let task = server.wait(id, &["cancelled", "failed"]);
        assert_eq!(task["status"], "cancelled", "{task}");
    }
    server.stop();
}

#[test]
fn the_headroom_is_set_for_one_gpu_or_all_and_outlives_the_host() {
    let (home, machine) = (Home::new(), Machine::new(&ONE.repeat(2)));
    let server = serve(&home, &machine, &[]);
    let usable = (81559u64 - 480) << 20;
    let default = usable / 100 * 3;
    let headroom = |server: &Server| get(server, CONFIG)["headroom_bytes"].clone();
    assert_eq!(
        headroom(&server),
        json!({ "cpu": 0, "cuda:0": default, "cuda:1": default })
    );
    let set = |change: Value| {
        let body = json!({ "headroom_bytes": change });
        post(&server, CONFIG, &body)["current_config"]["headroom_bytes"].clone()
    };
    assert_eq!(set(json!({ "cuda:1": 0 }))["cuda:1"], 0);
    let all = set(json!({ "cuda": 1 << 30 }));
    assert_eq!(
        (&all["cuda:0"], &all["cuda:1"]),
        (&json!(1 << 30), &json!(1 << 30))
    );
    assert_eq!(set(json!({ "cuda:1": 7 }))["cuda:0"], 1 << 30);
    for (change, code) in [
        (json!({ "cuda:0": usable }), "device.headroom"),
        (json!({ "cpu": 1 }), "device.headroom"),
        (json!({ "cuda:9": 1 }), "device.unknown"),
        (json!({ "cuda:0": -1 }), "request.member"),
    ] {
        let body = json!({ "headroom_bytes": change, "policy": "pack" });
        assert_eq!(refused(&server, CONFIG, &body), code, "{change}");
    }
    ready(&server);
    let gpus = get(&server, GPUS)["devices"].clone();
    let figures = |name| [figure(&gpus[0], name), figure(&gpus[1], name)];
    assert_eq!(figures("headroom_bytes"), [1 << 30, 7]);
    assert_eq!(
        figures("allocatable_bytes"),
        [usable - (1 << 30), usable - 7]
    );
    let before = get(&server, CONFIG);
    // A change while a GPU does not answer sets nothing of it anew.
    machine.change(&format!("{ONE}lost = true\n{ONE}"));
    let out = |gpu: &Value| gpu["schedulable"] == false;
    until(&server, Duration::from_secs(10), out);
    post(
        &server,
        CONFIG,
        &json!({ "headroom_bytes": { "cuda:1": 7 } }),
    );
    assert_eq!(get(&server, CONFIG), before);
    machine.change(&ONE.repeat(2));
    server.stop();
    let server = serve(&home, &machine, &[]);
    assert_eq!(get(&server, CONFIG), before);
    let back = json!({ "headroom_bytes": { "cuda": null } });
    post(&server, CONFIG, &back);
    assert_eq!(headroom(&server)["cuda:1"], default);
    server.stop();
}

#[test]
fn a_training_that_goes_on_keeps_its_policy() {
    let home = Home::new();
    let server = Server::start(&home);
    let data = stripes(home.folder.path());
    let mut wanted = training(&data, "cpu", "first");
    wanted["policy"] = "pack".into();
    post(&server, START, &wanted);
    let task = server.wait("first", &["completed", "failed"]);
    assert_eq!(task["status"], "completed", "{task}");
    let again = json!({ "resume": "first", "num_epochs": 2, "task_id": "second" });
    assert_eq!(post(&server, START, &again)["policy"], "pack");
    server.wait("second", &["completed", "failed"]);
    let other =
        json!({ "resume": "first", "num_epochs": 3, "task_id": "third", "policy": "spread" });
    assert_eq!(post(&server, START, &other)["policy"], "spread");
    server.wait("third", &["completed", "failed"]);
    server.stop();
}
