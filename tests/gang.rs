//! One task on several simulated GPUs, from outside: it gets all at once, trains on them together, and
//! gives all back however it ends.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gpu::stripes;
use crate::{Home, Machine, Server, children};

/// The tasks of a GPU that fails have failed within this.
const PROMISE: Duration = Duration::from_secs(5);

/// So many equal GPUs; `lines` are those of one of them.
fn scenario(gpus: usize, (one, lines): (usize, &str)) -> String {
    let gpu = |number: usize| {
        let own = if number == one { lines } else { "" };
        format!("[[gpu]]\nprofile = \"h100\"\nbus = {}\n{own}\n", number + 1)
    };
    (0..gpus).map(gpu).collect()
}

struct Scene {
    gpus: usize,
    machine: Machine,
    server: Server,
    data: PathBuf,
    home: Home,
}

impl Scene {
    /// A host on so many GPUs, all tested.
    fn new(gpus: usize) -> Self {
        Self::on(gpus, &scenario(gpus, (0, "")))
    }

    /// The same on a machine of the scenario.
    fn on(gpus: usize, scenario: &str) -> Self {
        let (home, machine) = (Home::new(), Machine::new(scenario));
        let data = stripes(home.folder.path());
        let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
        machine.on(&mut command);
        let scene = Self {
            gpus,
            server: Server::spawn(command),
            machine,
            data,
            home,
        };
        scene.until("all GPUs are tested", |gpus| {
            gpus.iter().all(|gpu| gpu["schedulable"] == true)
        });
        scene
    }

    /// The GPUs, which the API tells of whatever happens.
    fn gpus(&self) -> Vec<Value> {
        let path = "/api/v2/resources/gpu";
        let (status, answer) = self.server.call("GET", path, &Value::Null);
        assert_eq!(status, 200, "{answer}");
        let gpus = answer["devices"].as_array().unwrap().clone();
        assert_eq!(gpus.len(), self.gpus);
        gpus
    }

    /// Waits for something of the GPUs. Gives them then.
    fn until(&self, what: &str, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let gpus = self.gpus();
            if holds(&gpus) {
                return gpus;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{what}: {gpus:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks for a training with these members: the answer.
    fn ask(&self, id: &str, epochs: u64, members: &Value) -> (u16, Value) {
        let mut body = json!({
            "model": "cnn", "train_path": self.data, "val_path": self.data, "num_epochs": epochs,
            "batch_size": 16, "task_id": id,
        });
        for (name, value) in members.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.server.call("POST", "/api/v2/training/start", &body)
    }

    fn submit(&self, id: &str, epochs: u64, members: &Value) {
        let (status, answer) = self.ask(id, epochs, members);
        assert_eq!(status, 200, "{answer}");
    }

    fn cancel(&self, id: &str) {
        let path = format!("/api/v2/tasks/{id}/cancel");
        assert_eq!(self.server.call("POST", &path, &Value::Null).0, 200);
    }

    fn task(&self, id: &str) -> Value {
        let path = format!("/api/v2/tasks/{id}");
        self.server.call("GET", &path, &Value::Null).1
    }

    /// Leases of each GPU.
    fn leases(&self) -> Vec<u64> {
        let gpus = self.gpus();
        let leases = gpus
            .iter()
            .map(|gpu| gpu["active_leases"].as_u64().unwrap());
        leases.collect()
    }

    /// A training on this many GPUs completes, on these.
    fn completes(&self, id: &str, gpus: u64, on: &[&str]) {
        self.submit(id, 1, &json!({ "gpus": gpus }));
        let task = self.server.wait(id, &["failed", "completed"]);
        assert_eq!(task["status"], "completed", "{task}");
        assert_eq!(devices(&task), on, "{task}");
    }
}

fn devices(task: &Value) -> Vec<&str> {
    let devices = task["devices"].as_array().unwrap().iter();
    devices
        .map(|device| device["device"].as_str().unwrap())
        .collect()
}

#[test]
fn a_task_on_eight_gpus_waits_while_small_ones_run_takes_all_in_one_step_and_gives_all_back() {
    let scene = Scene::new(8);
    for gpu in [1, 4, 6] {
        let pinned = json!({ "device": format!("cuda:{gpu}") });
        scene.submit(&format!("small-{gpu}"), 100_000, &pinned);
        scene.server.wait(&format!("small-{gpu}"), &["running"]);
    }
    scene.submit("gang", 2, &json!({ "gpus": 8, "priority": 1 }));
    let begun = Instant::now();
    let waits = "it waits for 8 GPUs at once, and 5 have room";
    let told = |task: &Value| {
        task["waiting_reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    while !told(&scene.task("gang")).starts_with(waits) {
        let task = scene.task("gang");
        assert!(begun.elapsed() < Duration::from_secs(60), "{task}");
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.cancel("small-1");
    scene.cancel("small-4");
    scene.server.wait("small-4", &["cancelled"]);
    scene.server.wait("small-1", &["cancelled"]);
    // It holds none while it waits for one.
    let task = scene.task("gang");
    assert_eq!(
        (&task["status"], &task["devices"]),
        (&json!("queued"), &json!([]))
    );
    assert_eq!(scene.leases(), [0, 0, 0, 0, 0, 0, 1, 0]);
    scene.cancel("small-6");
    scene.server.wait("gang", &["running", "completed"]);
    let task = scene.server.wait("gang", &["completed", "failed"]);
    assert_eq!(task["status"], "completed", "{task}");
    let all: Vec<String> = (0..8).map(|gpu| format!("cuda:{gpu}")).collect();
    assert_eq!(devices(&task), all);
    assert_eq!(
        (&task["device"], &task["gpus"]),
        (&json!("cuda:0"), &json!(8))
    );
    let gpus = scene.gpus();
    let lease = task["lease_bytes"].as_u64().unwrap();
    for (device, gpu) in task["devices"].as_array().unwrap().iter().zip(&gpus) {
        assert_eq!(device["device_uuid"], gpu["uuid"]);
        // Each took what was leased there, and a context, and gave it back.
        let memory = |what: &str| device["device_memory"][what].as_u64().unwrap();
        let taken = memory("during_bytes") - memory("before_bytes");
        assert_eq!(taken, lease + (320 << 20), "{device}");
        assert_eq!(memory("after_bytes"), memory("before_bytes"), "{device}");
        assert_eq!(
            (&gpu["active_leases"], &gpu["lease_reserved_bytes"]),
            (&json!(0), &json!(0))
        );
    }
    scene.completes(
        "next",
        8,
        &all.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    scene.server.stop();
}

#[test]
fn a_task_that_loses_one_of_its_gpus_fails_with_its_name_and_the_others_are_free_at_once() {
    for lost in [true, false] {
        let scene = Scene::new(4);
        scene.submit("doomed", 100_000, &json!({ "gpus": 3 }));
        let task = scene.server.wait("doomed", &["running"]);
        assert_eq!(devices(&task), ["cuda:0", "cuda:1", "cuda:2"]);
        assert_eq!(scene.leases(), [1, 1, 1, 0]);
        let uuid = scene.gpus()[2]["uuid"].as_str().unwrap().to_owned();
        let begun = Instant::now();
        let code = if lost {
            scene.machine.change(&scenario(4, (2, "lost = true")));
            "device.lost"
        } else {
            // It computes no more and does not answer: NVML's call does not return.
            let hang = |function: &str| {
                format!("[[fault]]\nfunction = \"{function}\"\ngpu = 2\nhang = true\n")
            };
            let hangs = hang("cuLaunchKernel") + &hang("nvmlDeviceGetMemoryInfo_v2");
            scene.machine.change(&(scenario(4, (0, "")) + &hangs));
            "device.silent"
        };
        let task = scene.server.wait("doomed", &["failed", "completed"]);
        let took = begun.elapsed();
        assert_eq!(
            (&task["status"], &task["error_code"]),
            (&json!("failed"), &json!(code)),
            "{task}"
        );
        let message = task["message"].as_str().unwrap();
        assert!(
            message.contains(&uuid) && message.contains("cuda:2"),
            "{message}"
        );
        println!(
            "{code}: the task had failed {:.2} s later",
            took.as_secs_f64()
        );
        assert!(took <= PROMISE, "{took:?}");
        let gpus = scene.until("nothing is leased", |gpus| {
            gpus.iter().all(|gpu| gpu["active_leases"] == 0)
        });
        if lost {
            assert_eq!(gpus[2]["health"], "lost");
        }
        assert_eq!(
            [&gpus[0], &gpus[1], &gpus[3]].map(|gpu| gpu["health"].as_str()),
            [Some("healthy"); 3]
        );
        scene.completes("next", 3, &["cuda:0", "cuda:1", "cuda:3"]);
        scene.server.stop();
    }
}

#[test]
fn where_one_gpus_loss_ends_a_process_on_all_its_gpus_the_lost_one_is_named_and_no_other_suspected()
{
    let spread = |lines| format!("failures_spread = true\n{}", scenario(4, (2, lines)));
    let scene = Scene::on(4, &spread(""));
    // Three in an hour would be quarantined.
    for round in 0..2 {
        let id = format!("doomed-{round}");
        scene.submit(&id, 100_000, &json!({ "gpus": 4 }));
        scene.server.wait(&id, &["running"]);
        scene.machine.change(&spread("lost = true"));
        let task = scene.server.wait(&id, &["failed", "completed"]);
        assert_eq!(task["error_code"], "device.lost", "{task}");
        let message = task["message"].as_str().unwrap();
        assert!(message.contains("cuda:2"), "{message}");
        let gpus = scene.until("it is lost", |gpus| gpus[2]["health"] == "lost");
        for other in [0, 1, 3] {
            assert_eq!(gpus[other]["health"], "healthy", "{}", gpus[other]);
            assert!(gpus[other]["health_reason"].is_null(), "{}", gpus[other]);
        }
        scene.machine.change(&spread(""));
        scene.until("it is back", |gpus| gpus[2]["schedulable"] == true);
    }
    scene.server.stop();
}

#[test]
fn a_task_on_several_gpus_that_is_cancelled_or_killed_gives_all_back() {
    let scene = Scene::new(3);
    for kill in [false, true] {
        let id = if kill { "killed" } else { "cancelled" };
        scene.submit(id, 100_000, &json!({ "gpus": 3 }));
        scene.server.wait(id, &["running"]);
        assert_eq!(scene.leases(), [1, 1, 1]);
        if kill {
            let workers = children(scene.server.child.id());
            let [worker] = workers[..] else {
                panic!("{workers:?}");
            };
            let killed = std::process::Command::new("kill")
                .args(["-9", &worker.to_string()])
                .status();
            assert!(killed.unwrap().success());
            let task = scene.server.wait(id, &["failed"]);
            assert_eq!(task["error_code"], "worker.died", "{task}");
        } else {
            scene.cancel(id);
            scene.server.wait(id, &["cancelled"]);
        }
        scene.until("all is given back", |gpus| {
            gpus.iter()
                .all(|gpu| gpu["active_leases"] == 0 && gpu["lease_reserved_bytes"] == 0)
        });
    }
    scene.completes("next", 3, &["cuda:0", "cuda:1", "cuda:2"]);
    scene.server.stop();
}

#[test]
fn what_can_never_run_on_so_many_gpus_is_refused_with_both_figures_and_not_queued() {
    let scene = Scene::new(2);
    let pool = json!({ "pools": { "one": { "gpus": ["cuda:1"] } } });
    assert_eq!(
        scene
            .server
            .call("POST", "/api/v2/resources/config", &pool)
            .0,
        200
    );
    let refused = |answer: (u16, Value), told: &str| {
        let (status, problem) = answer;
        assert_eq!(
            (status, &problem["code"]),
            (422, &json!("device.replicas")),
            "{problem}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(told), "{detail}");
    };
    refused(
        scene.ask("a", 1, &json!({ "gpus": 3 })),
        "asks for 3 GPUs, and `cuda` has 2",
    );
    refused(
        scene.ask("b", 1, &json!({ "gpus": 2, "device": "one" })),
        "asks for 2 GPUs, and `one` has 1",
    );
    refused(
        scene.ask("c", 1, &json!({ "gpus": 2, "device": "cpu" })),
        "`cpu` is 1 device",
    );
    refused(
        scene.ask("d", 1, &json!({ "gpus": 2, "device": "cuda:0" })),
        "`cuda:0` is 1 device",
    );
    refused(scene.ask("e", 1, &json!({ "gpus": 0 })), "at least 1");
    // A file that is there; what it holds is not looked at.
    let inference = json!({
        "model": "cnn", "weight_path": "Cargo.toml", "source_path": scene.data, "gpus": 2, "task_id": "f",
    });
    let answer = scene
        .server
        .call("POST", "/api/v2/inference/start", &inference);
    refused(answer, "an inference runs on one device");
    let (_, tasks) = scene.server.call("GET", "/api/v2/tasks", &Value::Null);
    assert_eq!(
        (&tasks["total_training"], &tasks["total_inference"]),
        (&json!(0), &json!(0))
    );
    // One that runs on one device has no such limit.
    scene.submit("g", 1, &json!({ "gpus": 1, "device": "cpu" }));
    let task = scene.server.wait("g", &["failed", "completed"]);
    assert_eq!(
        (&task["status"], devices(&task)),
        (&json!("completed"), vec!["cpu"])
    );
    scene.server.stop();
    let data = scene.data.to_str().unwrap();
    // Without a GPU the processor takes the place of one, and never of several.
    let told = scene
        .home
        .refused(&["run", "digits", "train", "--data", data, "--gpus", "2"]);
    assert!(
        told.contains("the task asks for 2 GPUs, and `cuda` has 0"),
        "{told}"
    );
}

#[test]
fn several_gpus_train_what_one_does_and_a_training_goes_on_with_another_number() {
    let (home, machine) = (Home::new(), Machine::new(&scenario(3, (0, ""))));
    let data = stripes(home.folder.path());
    let folder = |name: &str| home.folder.path().join(name).to_str().unwrap().to_owned();
    let run = |more: &[&str]| {
        let all = [
            "--json",
            "run",
            "digits",
            "train",
            "--data",
            data.to_str().unwrap(),
        ];
        let mut command = home.hangar(&all);
        let record = crate::json(&machine.on(command.args(more)).output().unwrap());
        assert_eq!(record["state"], "completed", "{record}");
        record
    };
    // 48 samples: the last batch has 8, of which each GPU of three has another number.
    let train = |gpus: &str, epochs: &str, name: &str| {
        run(&[
            "--param",
            "batch_size=20",
            "--param",
            epochs,
            "--gpus",
            gpus,
            "--output",
            &folder(name),
        ])
    };
    let one = train("1", "epochs=3", "one");
    let three = train("3", "epochs=3", "three");
    assert_eq!(
        (
            one["devices"].as_array().unwrap().len(),
            three["devices"].as_array().unwrap().len()
        ),
        (1, 3)
    );
    let metrics = |record: &Value| {
        ["train_loss", "val_loss"].map(|name| record["latest_metrics"][name].as_f64().unwrap())
    };
    let same = |a: [f64; 2], b: [f64; 2]| {
        for (a, b) in a.into_iter().zip(b) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{a} {b}");
        }
    };
    same(metrics(&three), metrics(&one));
    assert_eq!(metrics(&train("3", "epochs=3", "again")), metrics(&three));
    train("2", "epochs=2", "resumed");
    let resumed = run(&[
        "--resume",
        &folder("resumed"),
        "--param",
        "epochs=3",
        "--gpus",
        "3",
    ]);
    same(metrics(&resumed), metrics(&one));
}

#[test]
fn a_plugin_asks_for_several_gpus_and_the_users_choice_wins() {
    let (home, machine) = (Home::empty(), Machine::new(&scenario(3, (0, ""))));
    let guests = crate::root().join("tests/guests/target/wasm32-wasip2/release/examples");
    home.add(&guests.join("devices_replicas.wasm"));
    let wav = "tests/data/spoken-digits/test/0_george_0.wav";
    let cases: [(&[&str], &[&str]); 4] = [
        (&[], &["cuda:0", "cuda:1"]),
        (&["--device", "cuda"], &["cuda:0", "cuda:1"]),
        (
            &["--gpus", "3", "--param", "width=3", "--param", "own=false"],
            &["cuda:0", "cuda:1", "cuda:2"],
        ),
        (
            &[
                "--device",
                "cuda:1",
                "--param",
                "width=1",
                "--param",
                "own=false",
            ],
            &["cuda:1"],
        ),
    ];
    for (more, on) in cases {
        let run = ["--json", "run", "devices-replicas", "train", "--data", wav];
        let mut command = home.hangar(&run);
        let record = crate::json(&machine.on(command.args(more)).output().unwrap());
        assert_eq!(record["state"], "completed", "{more:?}: {record}");
        assert_eq!(devices(&record), on, "{more:?}");
    }
}

#[test]
fn a_model_with_batch_normalisation_trains_on_several_gpus_and_infers_on_the_processor() {
    let (home, machine) = (Home::new(), Machine::new(&scenario(2, (0, ""))));
    let data = crate::gpu::recordings(home.folder.path());
    let output = home.folder.path().join("output");
    let (data, output) = (data.to_str().unwrap(), output.to_str().unwrap());
    let run = |more: &[&str]| {
        let mut command = home.hangar(&["--json", "run", "spoken-digits"]);
        let record = crate::json(&machine.on(command.args(more)).output().unwrap());
        assert_eq!(record["state"], "completed", "{record}");
        record
    };
    let parameters = ["--param", "epochs=2", "--param", "batch_size=16"];
    let train = ["train", "--data", data, "--output", output, "--gpus", "2"];
    let record = run(&[&train[..], &parameters].concat());
    assert_eq!(devices(&record), ["cuda:0", "cuda:1"]);
    let weights = format!("{output}/best.safetensors");
    let infer = ["infer", "--data", data, "--weights", &weights];
    let record = run(&[&infer[..], &["--device", "cpu"]].concat());
    assert_eq!(devices(&record), ["cpu"]);
}
