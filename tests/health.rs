//! GPUs that fail, from outside, on simulated ones: what is told of them, what becomes of their tasks,
//! and how they come back.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gpu::stripes;
use crate::{Home, Machine, Server, devices};

/// The tasks of a GPU that fails have failed within this.
const PROMISE: Duration = Duration::from_secs(5);

/// A host on two GPUs, both tested.
struct Scene {
    machine: Machine,
    server: Server,
    data: PathBuf,
    home: Home,
}

/// Two GPUs, of which the second has these lines, and what else there is.
fn scenario(second: &str, more: &str) -> String {
    format!(
        "[[gpu]]\nprofile = \"h100\"\nbus = 1\n[[gpu]]\nprofile = \"a100\"\nbus = 2\n{second}\n{more}"
    )
}

/// Of the second GPU.
fn xid(number: u64, code: u64) -> String {
    format!("[[xid]]\nnumber = {number}\ngpu = 1\ncode = {code}\n")
}

fn hang(function: &str) -> String {
    format!("[[fault]]\nfunction = \"{function}\"\ngpu = 1\nhang = true\n")
}

impl Scene {
    fn new() -> Self {
        let scene = Self::begin(&scenario("", ""));
        scene.until(0, "both GPUs are tested", |gpu| gpu["schedulable"] == true);
        scene.until(1, "both GPUs are tested", |gpu| gpu["schedulable"] == true);
        scene
    }

    fn begin(scenario: &str) -> Self {
        let (home, machine) = (Home::new(), Machine::new(scenario));
        let data = stripes(home.folder.path());
        let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
        machine.on(&mut command);
        Self {
            server: Server::spawn(command),
            machine,
            data,
            home,
        }
    }

    /// Changes the second GPU, and what else there is.
    fn change(&self, second: &str, more: &str) {
        self.machine.change(&scenario(second, more));
    }

    /// A GPU, which the API tells of whatever happens.
    fn gpu(&self, index: usize) -> Value {
        let (status, gpus) = self
            .server
            .call("GET", "/api/v2/resources/gpu", &Value::Null);
        assert_eq!(status, 200, "{gpus}");
        assert_eq!(gpus["devices"].as_array().unwrap().len(), 2, "{gpus}");
        let gpu = gpus["devices"][index].clone();
        assert_eq!(gpu["index"], index);
        assert!(gpu["uuid"].is_string(), "{gpu}");
        gpu
    }

    /// Waits for something of a GPU. Gives the GPU then.
    fn until(&self, index: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let gpu = self.gpu(index);
            if holds(&gpu) {
                return gpu;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {gpu}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn healthy_again(&self) {
        self.until(1, "it is healthy again", |gpu| {
            gpu["health"] == "healthy" && gpu["schedulable"] == true
        });
    }

    /// Begins a long training there, and waits until it computes.
    fn train(&self, device: &str, id: &str) {
        self.submit(device, id, 100_000);
        self.server.wait(id, &["running"]);
    }

    fn submit(&self, device: &str, id: &str, epochs: u64) {
        let body = json!({
            "model": "cnn", "train_path": self.data, "val_path": self.data, "num_epochs": epochs,
            "batch_size": 16, "device": device, "task_id": id,
        });
        let (status, answer) = self.server.call("POST", "/api/v2/training/start", &body);
        assert_eq!(status, 200, "{answer}");
    }

    fn task(&self, id: &str) -> Value {
        let (_, task) = self
            .server
            .call("GET", &format!("/api/v2/tasks/{id}"), &Value::Null);
        task
    }

    /// Waits for the end of a task whose GPU has failed since: it must come soon, with this code, and
    /// name the GPU.
    fn fails(&self, id: &str, since: Instant, code: &str) -> Value {
        let task = self.server.wait(id, &["failed", "completed", "cancelled"]);
        let took = since.elapsed();
        assert_eq!(
            (&task["status"], &task["error_code"]),
            (&json!("failed"), &json!(code)),
            "{task}"
        );
        assert!(took <= PROMISE, "{took:?}: {task}");
        let message = task["message"].as_str().unwrap();
        let uuid = self.gpu(1)["uuid"].as_str().unwrap().to_owned();
        assert!(
            message.contains("cuda:1") && message.contains(&uuid),
            "{message}"
        );
        println!(
            "{code}: the task had failed {:.2} s later",
            took.as_secs_f64()
        );
        task
    }

    /// A short training on the first GPU completes.
    fn first_still_computes(&self, id: &str) {
        self.submit("cuda:0", id, 1);
        let task = self.server.wait(id, &["failed", "completed"]);
        assert_eq!(
            (&task["status"], &task["device"]),
            (&json!("completed"), &json!("cuda:0")),
            "{task}"
        );
    }
}

fn exists(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

#[test]
fn a_gpu_lost_while_idle_is_told_waited_for_and_taken_back_after_a_self_test() {
    let scene = Scene::new();
    let begun = Instant::now();
    scene.change("lost = true", "");
    let gpu = scene.until(1, "it is lost", |gpu| gpu["health"] == "lost");
    assert!(begun.elapsed() <= PROMISE, "{:?}", begun.elapsed());
    assert!(
        gpu["health_reason"]
            .as_str()
            .unwrap()
            .contains("fell off the bus"),
        "{gpu}"
    );
    assert!(
        gpu["health_since"].is_string() && gpu["memory_used_bytes"].is_null(),
        "{gpu}"
    );
    assert_eq!(
        (&gpu["schedulable"], &gpu["last_xid"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(scene.gpu(0)["health"], "healthy");
    scene.submit("cuda:1", "patient", 1);
    let begun = Instant::now();
    loop {
        let task = scene.task("patient");
        let reason = task["waiting_reason"].as_str().unwrap_or_default();
        if reason.contains("cuda:1 cannot be used for now") && reason.contains("fell off the bus") {
            assert_eq!(task["status"], "queued");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{task}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Whoever does not insist gets another.
    scene.submit("cuda", "flexible", 1);
    let task = scene.server.wait("flexible", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cuda:0")),
        "{task}"
    );
    // It is back on the bus, but computes nothing: the self-test keeps it out.
    let broken = "[[fault]]\nfunction = \"cuLaunchKernel\"\ngpu = 1\ncode = 719\n";
    scene.change("", broken);
    let gpu = scene.until(1, "its self-test fails", |gpu| {
        gpu["health_reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("self-test failed"))
    });
    assert_eq!(
        (&gpu["health"], &gpu["schedulable"]),
        (&json!("lost"), &json!(false))
    );
    assert_eq!(scene.task("patient")["status"], "queued");
    scene.change("", "");
    let task = scene.server.wait("patient", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cuda:1")),
        "{task}"
    );
    scene.healthy_again();
    scene.server.stop();
}

#[test]
fn tasks_on_a_gpu_that_is_lost_fail_within_five_seconds_and_the_others_go_on() {
    let scene = Scene::new();
    scene.train("cuda:1", "doomed");
    let workers = crate::children(scene.server.child.id());
    assert_eq!(workers.len(), 1);
    scene.train("cuda:0", "other");
    let begun = Instant::now();
    scene.change("lost = true", "");
    let task = scene.fails("doomed", begun, "device.lost");
    // NVML tells of it or the task's next kernel, whichever comes first.
    let message = task["message"].as_str().unwrap();
    assert!(
        message.contains("fell off the bus") || message.contains("CUDA_ERROR_UNKNOWN"),
        "{task}"
    );
    assert!(!exists(workers[0]), "its worker lives on");
    assert_eq!(scene.gpu(1)["active_leases"], 0);
    assert_eq!(scene.task("other")["status"], "running");
    scene.change("", "");
    scene.healthy_again();
    scene.submit("cuda:1", "next", 1);
    let task = scene.server.wait("next", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], &task["device"]),
        (&json!("completed"), &json!("cuda:1")),
        "{task}"
    );
    assert_eq!(scene.task("other")["status"], "running");
    scene.server.stop();
}

#[test]
fn a_worker_that_hangs_on_a_lost_gpu_is_killed() {
    let hangs = "[[fault]]\nfunction = \"cuLaunchKernel\"\ngpu = 1\ncall = 2000\nhang = true\n";
    let scene = Scene::begin(&scenario("", hangs));
    scene.train("cuda:1", "doomed");
    let workers = crate::children(scene.server.child.id());
    // Until it computes no more.
    let mut last = (Value::Null, Instant::now());
    while last.1.elapsed() < Duration::from_secs(3) {
        let epoch = scene.task("doomed")["current_epoch"].clone();
        if epoch != last.0 {
            last = (epoch, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(scene.task("doomed")["status"], "running");
    let begun = Instant::now();
    scene.change("lost = true", hangs);
    scene.fails("doomed", begun, "device.lost");
    assert!(!exists(workers[0]), "its worker lives on");
    scene.server.stop();
}

#[test]
fn a_gpu_that_slows_down_for_heat_is_throttled_and_one_at_its_power_limit_is_not() {
    let scene = Scene::new();
    let cool = json!({ "health": { "cool_seconds": 1 } });
    devices::post(&scene.server, devices::CONFIG, &cool);
    scene.train("cuda:1", "goes-on");
    // NVML's bits: software thermal slowdown, then software power cap.
    scene.change("throttle = 0x20", "");
    let gpu = scene.until(1, "it is throttled", |gpu| gpu["health"] == "throttled");
    assert_eq!(gpu["schedulable"], false);
    assert!(gpu["health_since"].is_string(), "{gpu}");
    scene.change("throttle = 0x4\npower = 400.0", "");
    let gpu = scene.until(1, "it is healthy", |gpu| gpu["health"] == "healthy");
    assert_eq!(gpu["throttle_reasons"], json!(["sw_power_cap"]));
    assert_eq!(
        (&gpu["schedulable"], &gpu["power_draw_watts"]),
        (&json!(true), &json!(400.0))
    );
    assert_eq!(scene.task("goes-on")["status"], "running");
    scene.server.stop();
}

#[test]
fn a_gpu_whose_nvml_calls_hang_stops_neither_the_others_nor_the_api() {
    let scene = Scene::new();
    scene.train("cuda:1", "doomed");
    scene.train("cuda:0", "other");
    let begun = Instant::now();
    scene.change("", &hang("nvmlDeviceGetMemoryInfo_v2"));
    let gpu = scene.until(1, "it is suspect", |gpu| gpu["health"] == "suspect");
    assert!(begun.elapsed() <= PROMISE, "{:?}", begun.elapsed());
    assert!(
        gpu["health_reason"]
            .as_str()
            .unwrap()
            .contains("has not answered"),
        "{gpu}"
    );
    scene.fails("doomed", begun, "device.silent");
    // The other one is sampled on.
    scene
        .machine
        .change(&scenario("", &hang("nvmlDeviceGetMemoryInfo_v2")).replacen(
            "bus = 1",
            "bus = 1\ntemperature = 44",
            1,
        ));
    scene.until(0, "it is sampled", |gpu| gpu["temperature_gpu_c"] == 44);
    assert_eq!(scene.gpu(0)["health"], "healthy");
    assert_eq!(scene.task("other")["status"], "running");
    let asked = Instant::now();
    for _ in 0..20 {
        scene.gpu(1);
    }
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
    scene.change("", "");
    scene.healthy_again();
    scene.server.stop();
}

#[test]
fn xids_that_ask_for_a_reset_or_a_restart_fail_their_gpus_tasks() {
    for (code, health, failure, action) in [
        (79, "lost", "device.lost", "RESTART_BM"),
        (95, "reset_required", "device.reset-required", "RESET_GPU"),
        (119, "reset_required", "device.reset-required", "RESET_GPU"),
    ] {
        let scene = Scene::new();
        scene.train("cuda:1", "doomed");
        let begun = Instant::now();
        // After Xid 79 the GPU answers nothing any more; others answer on.
        let lost = if code == 79 { "lost = true" } else { "" };
        scene.change(lost, &xid(1, code));
        let task = scene.fails("doomed", begun, failure);
        let named = format!("Xid {code}");
        // Whichever is noticed first, the loss or the Xid.
        let message = task["message"].as_str().unwrap();
        assert!(
            message.contains(&named) || message.contains("fell off the bus"),
            "{message}"
        );
        let gpu = scene.until(1, "the Xid is told", |gpu| gpu["last_xid"]["code"] == code);
        assert_eq!(
            (&gpu["health"], &gpu["last_xid"]["action"]),
            (&json!(health), &json!(action))
        );
        assert!(gpu["last_xid"]["at"].is_string(), "{gpu}");
        scene.first_still_computes("other");
        // Long after it answers, it is out until it has been reset, or the operator says so.
        assert_eq!(scene.gpu(1)["schedulable"], false);
        if code == 79 {
            scene.change("", &xid(1, code));
        } else {
            let (status, _) =
                scene
                    .server
                    .call("POST", "/api/v2/devices/cuda:1/enable", &Value::Null);
            assert_eq!(status, 200);
        }
        scene.healthy_again();
        assert_eq!(scene.gpu(1)["last_xid"]["code"], code);
        scene.server.stop();
    }
}

#[test]
fn xids_of_programs_fail_the_task_that_did_it_and_too_many_quarantine_the_gpu() {
    let scene = Scene::new();
    let mut xids = String::new();
    for (number, code) in [(1, 13), (2, 31), (3, 94)] {
        let id = format!("faulty-{code}");
        scene.train("cuda:1", &id);
        let begun = Instant::now();
        xids += &xid(number, code);
        scene.change("", &xids);
        let task = scene.fails(&id, begun, "device.fault");
        assert!(
            task["message"]
                .as_str()
                .unwrap()
                .contains(&format!("Xid {code}")),
            "{task}"
        );
        if code != 94 {
            scene.healthy_again();
        }
    }
    let gpu = scene.until(1, "it is quarantined", |gpu| gpu["health"] == "quarantined");
    assert!(
        gpu["health_reason"]
            .as_str()
            .unwrap()
            .contains("3 tasks failed"),
        "{gpu}"
    );
    assert_eq!(gpu["last_xid"]["action"], "RESTART_APP");
    // Time alone does not bring it back.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(scene.gpu(1)["health"], "quarantined");
    let (status, _) = scene
        .server
        .call("POST", "/api/v2/devices/cuda:1/enable", &Value::Null);
    assert_eq!(status, 200);
    scene.healthy_again();
    // One that is only recorded.
    scene.train("cuda:1", "undisturbed");
    xids += &xid(4, 63);
    scene.change("", &xids);
    let gpu = scene.until(1, "it is recorded", |gpu| gpu["last_xid"]["code"] == 63);
    assert_eq!(
        (&gpu["health"], &gpu["last_xid"]["action"]),
        (&json!("healthy"), &json!("IGNORE"))
    );
    assert_eq!(scene.task("undisturbed")["status"], "running");
    // One that nobody knows: a self-test shows that nothing is wrong, and its tasks go on.
    xids += &xid(5, 4242);
    scene.change("", &xids);
    scene.until(1, "it is recorded", |gpu| gpu["last_xid"]["code"] == 4242);
    scene.healthy_again();
    assert_eq!(scene.task("undisturbed")["status"], "running");
    // What NVML says would recover it counts as well.
    let begun = Instant::now();
    scene.change("recovery_action = 1", &(xids.clone() + &xid(6, 154)));
    scene.fails("undisturbed", begun, "device.reset-required");
    assert_eq!(scene.gpu(1)["recovery_action"], "gpu_reset");
    scene.change("", &xids);
    scene.healthy_again();
    scene.server.stop();
}

#[test]
fn of_several_tasks_on_a_gpu_an_xid_fails_the_one_with_an_error_of_its_own() {
    // A kernel of the first task that comes so far fails, after some seconds.
    let fault =
        "[[fault]]\nfunction = \"cuLaunchKernel\"\ngpu = 1\ncall = 1200\ncode = 700\nonce = true\n";
    let scene = Scene::begin(&scenario("", fault));
    let two = json!({ "max_concurrent": { "cuda:1": { "training": 2 } } });
    devices::post(&scene.server, devices::CONFIG, &two);
    scene.train("cuda:1", "one");
    scene.train("cuda:1", "two");
    let state = |id| scene.task(id)["status"].clone();
    // None has an error: the self-test decides.
    let xids = xid(1, 94);
    scene.change("", &xids);
    scene.until(1, "the Xid is told", |gpu| gpu["last_xid"]["code"] == 94);
    scene.healthy_again();
    assert_eq!([state("one"), state("two")], ["running", "running"]);
    let begun = Instant::now();
    let (culprit, other) = loop {
        let failed = |id| state(id) == "failed";
        match (failed("one"), failed("two")) {
            (true, _) => break ("one", "two"),
            (_, true) => break ("two", "one"),
            _ => assert!(begun.elapsed() < Duration::from_secs(60)),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let task = scene.task(culprit);
    assert_eq!(task["error_code"], "device.fault", "{task}");
    let message = task["message"].as_str().unwrap();
    assert!(message.contains("ILLEGAL_ADDRESS"), "{message}");
    assert_eq!(state(other), "running");
    scene.until(1, "its own Xid is told", |gpu| {
        gpu["last_xid"]["code"] == 31
    });
    // The driver tells of it again, when the other task is alone.
    scene.change("", &(xids + &xid(2, 31) + &xid(3, 13)));
    scene.until(1, "the Xid is told", |gpu| gpu["last_xid"]["code"] == 13);
    // Three Xids and an error are no three faults, which would quarantine it.
    scene.healthy_again();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(state(other), "running");
    scene.server.stop();
}

#[test]
fn the_operator_says_what_is_done_at_an_xid() {
    let scene = Scene::new();
    let set = |xid: Value| json!({ "health": { "xid": xid } });
    for (odd, named) in [
        (json!({ "109": "RESTART" }), "RESTART_APP"),
        (json!({ "all": "IGNORE" }), "`all` is no Xid"),
    ] {
        let (status, answer) = scene.server.call("POST", devices::CONFIG, &set(odd));
        assert_eq!((status, &answer["code"]), (422, &json!("health.xid")));
        assert!(
            answer["detail"].as_str().unwrap().contains(named),
            "{answer}"
        );
    }
    let table = json!({ "109": "RESTART_APP", "4242": "IGNORE", "13": null });
    let config = devices::post(&scene.server, devices::CONFIG, &set(table));
    assert_eq!(
        config["current_config"]["health"]["xid"],
        json!({ "109": "RESTART_APP", "4242": "IGNORE" })
    );
    scene.train("cuda:1", "doomed");
    let begun = Instant::now();
    scene.change("", &xid(1, 109));
    scene.fails("doomed", begun, "device.fault");
    // No reset is waited for.
    scene.healthy_again();
    assert_eq!(scene.gpu(1)["last_xid"]["action"], "RESTART_APP");
    scene.change("", &(xid(1, 109) + &xid(2, 4242)));
    let gpu = scene.until(1, "it is recorded", |gpu| gpu["last_xid"]["code"] == 4242);
    assert_eq!(
        (&gpu["health"], &gpu["last_xid"]["action"]),
        (&json!("healthy"), &json!("IGNORE"))
    );
    let file = scene.home.folder.path().join("state/devices.json");
    scene.server.stop();
    // It is kept in a file, which a start reads.
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"109\": \"RESTART_APP\""), "{text}");
    std::fs::write(&file, text.replace("RESTART_APP", "RESTART")).unwrap();
    let told = scene.home.refused(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(
        told.contains("devices.json: mend it") && told.contains("Xid 109: `RESTART` is no action"),
        "{told}"
    );
}

#[test]
fn a_gpu_that_must_be_reset_fails_its_tasks_and_returns_after_the_reset() {
    let scene = Scene::new();
    scene.train("cuda:1", "doomed");
    let begun = Instant::now();
    scene.change("reset_required = true", "");
    scene.fails("doomed", begun, "device.reset-required");
    assert_eq!(scene.gpu(1)["health"], "reset_required");
    scene.change("", "");
    scene.healthy_again();
    scene.server.stop();
}

#[test]
fn a_gpu_that_nobody_may_open_is_told_beside_the_others() {
    let denied = "[[fault]]\nfunction = \"nvmlDeviceGetHandleByIndex_v2\"\ngpu = 1\ncode = 4\n";
    let machine = Machine::new(&scenario("", denied));
    let gpus = machine.gpus();
    assert_eq!(gpus["detected"], 2);
    let gpu = &gpus["gpus"][1];
    assert_eq!(
        (&gpu["health"], &gpu["schedulable"]),
        (&json!("suspect"), &json!(false))
    );
    assert!(
        gpu["reason"].as_str().unwrap().contains("permission"),
        "{gpu}"
    );
    assert_eq!(gpus["gpus"][0]["schedulable"], true, "{gpus}");
}

#[test]
fn a_restart_of_the_driver_is_survived_and_every_gpu_tested_again() {
    let scene = Scene::new();
    let before = [scene.gpu(0)["uuid"].clone(), scene.gpu(1)["uuid"].clone()];
    let unloaded = format!("unloaded = true\n{}", scenario("", ""));
    scene.machine.change(&unloaded);
    for index in [0, 1] {
        let gpu = scene.until(index, "it does not answer", |gpu| {
            gpu["health"] == "suspect"
        });
        assert_eq!(gpu["schedulable"], false);
    }
    let (_, gpus) = scene
        .server
        .call("GET", "/api/v2/resources/gpu", &Value::Null);
    assert!(gpus["nvml_error"].is_string(), "{gpus}");
    // NVML counts in another order from now on.
    let second = "[[gpu]]\nprofile = \"a100\"\nbus = 2\nuuid = \"GPU-00000000-0000-4000-8000-000000000002\"\n";
    let first = "[[gpu]]\nprofile = \"h100\"\nbus = 1\nuuid = \"GPU-00000000-0000-4000-8000-000000000001\"\n";
    scene
        .machine
        .change(&format!("restarts = 1\n{second}{first}"));
    scene.healthy_again();
    scene.until(0, "it is healthy again", |gpu| gpu["health"] == "healthy");
    assert_eq!(
        [scene.gpu(0)["uuid"].clone(), scene.gpu(1)["uuid"].clone()],
        before
    );
    assert_eq!(
        (
            scene.gpu(0)["nvml_index"].clone(),
            scene.gpu(1)["nvml_index"].clone()
        ),
        (json!(1), json!(0))
    );
    scene.first_still_computes("after");
    scene.server.stop();
}
