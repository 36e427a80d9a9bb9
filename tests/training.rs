//! Trainings that end early and go on, and what they tell, from outside.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gpu::{recordings, stripes};
use crate::{Home, Machine, Server, children, json as parsed};

/// Everything that clients know of an epoch.
const METRICS: [&str; 20] = [
    "epoch",
    "total_epochs",
    "train_loss",
    "train_acc",
    "val_loss",
    "val_acc",
    "macro_f1",
    "micro_f1",
    "mAP",
    "top1_acc",
    "top3_acc",
    "top5_acc",
    "macro_precision",
    "macro_recall",
    "micro_precision",
    "micro_recall",
    "precision",
    "recall",
    "learning_rate",
    "best_acc",
];

fn metadata(file: &Path) -> Value {
    let facts = data::weights::metadata(file).unwrap_or_default();
    facts
        .into_iter()
        .map(|(key, value)| (key, Value::from(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn epochs_done(folder: &Path) -> u64 {
    let state = metadata(&folder.join("last.state.safetensors"));
    state["epoch"]
        .as_str()
        .map_or(0, |text| text.parse().unwrap())
}

fn end(process: u32) {
    let id = process.to_string();
    let _gone = Command::new("kill").args(["-9", &id]).status().unwrap();
}

/// Trainings of one plugin on one device.
struct Bench<'a> {
    home: &'a Home,
    machine: Option<&'a Machine>,
    plugin: &'a str,
    data: PathBuf,
    device: &'a str,
}

impl Bench<'_> {
    fn folder(&self, name: &str) -> PathBuf {
        self.home.folder.path().join(name)
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = self.home.hangar(&["--json", "run", self.plugin, "train"]);
        command.arg("--data").arg(&self.data);
        command.args(["--device", self.device]).args(more);
        if let Some(machine) = self.machine {
            machine.on(&mut command);
        }
        command
    }

    fn train(&self, more: &[&str], option: &str, folder: &str) -> Value {
        let mut command = self.command(more);
        parsed(
            &command
                .arg(option)
                .arg(self.folder(folder))
                .output()
                .unwrap(),
        )
    }

    /// Trains until so many epochs are saved, and kills the host and its worker.
    fn killed(&self, more: &[&str], folder: &str, epochs: u64) {
        let folder = self.folder(folder);
        let mut command = self.command(more);
        command.arg("--output").arg(&folder);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut host = command.spawn().unwrap();
        let start = Instant::now();
        while epochs_done(&folder) < epochs {
            assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint");
            std::thread::sleep(Duration::from_millis(1));
        }
        let workers = children(host.id());
        end(host.id());
        workers.iter().for_each(|&worker| end(worker));
        host.wait().unwrap();
        while workers.iter().any(|worker| {
            let stat = std::fs::read_to_string(format!("/proc/{worker}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        }) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The files of two trainings are the same, byte for byte.
    fn same(&self, one: &str, other: &str) {
        for file in [
            "last.safetensors",
            "best.safetensors",
            "last.state.safetensors",
            "confusion.json",
        ] {
            let read = |folder: &str| std::fs::read(self.folder(folder).join(file)).unwrap();
            assert!(read(one) == read(other), "{file} differs");
        }
    }
}

/// Trains without an interruption, and with a kill after some epochs: the results are the same.
fn goes_on(bench: &Bench<'_>, epochs: u64, killed_after: u64) {
    let epochs = format!("epochs={epochs}");
    let parameters = ["--param", &epochs, "--param", "batch_size=8"];
    let straight = bench.train(&parameters, "--output", "straight");
    assert_eq!(straight["state"], "completed", "{straight}");
    bench.killed(&parameters, "broken", killed_after);
    let done = epochs_done(&bench.folder("broken"));
    assert!(
        done < epochs_done(&bench.folder("straight")),
        "killed too late"
    );
    let resumed = bench.train(&[], "--resume", "broken");
    assert_eq!(resumed["state"], "completed", "{resumed}");
    assert_eq!(resumed["latest_metrics"], straight["latest_metrics"]);
    assert_eq!(resumed["device"], bench.device);
    bench.same("straight", "broken");
}

#[test]
fn a_killed_training_goes_on_to_the_same_bits() {
    let home = Home::new();
    // With shuffling, augmentation, batch norm, AdamW, and a cosine with warm-up.
    let bench = Bench {
        home: &home,
        machine: None,
        plugin: "spoken-digits",
        data: recordings(home.folder.path()),
        device: "cpu",
    };
    goes_on(&bench, 30, 3);
}

#[test]
fn cuda_goes_on_with_a_killed_training_to_the_same_bits() {
    let home = Home::new();
    let machine = Machine::new("[[gpu]]\nprofile = \"h100\"\n");
    let bench = Bench {
        home: &home,
        machine: Some(&machine),
        plugin: "digits",
        data: stripes(home.folder.path()),
        device: "cuda:0",
    };
    goes_on(&bench, 12, 2);
}

#[test]
fn a_training_goes_on_with_more_epochs_and_with_nothing_else() {
    let home = Home::new();
    let bench = Bench {
        home: &home,
        machine: None,
        plugin: "digits",
        data: stripes(home.folder.path()),
        device: "cpu",
    };
    let of = |epochs: &str| ["--param".to_owned(), format!("epochs={epochs}")];
    let (two, four) = (of("2"), of("4"));
    let (two, four) = (two.each_ref().map(|a| &**a), four.each_ref().map(|a| &**a));
    assert_eq!(
        bench.train(&four, "--output", "straight")["state"],
        "completed"
    );
    assert_eq!(
        bench.train(&two, "--output", "longer")["state"],
        "completed"
    );
    let refused = |bench: &Bench<'_>, parameter: &str, named: &str| {
        let record = bench.train(&["--param", parameter], "--resume", "longer");
        assert_eq!(record["error_code"], "resume.differs", "{record}");
        let message = record["message"].as_str().unwrap();
        assert!(message.contains(named), "{message}");
    };
    refused(
        &bench,
        "learning_rate=0.5",
        "learning_rate was 0.001, is 0.5",
    );
    refused(&bench, "batch_size=7", "batch_size");
    refused(&bench, "seed=3", "seed");
    let folder = home.folder.path().join("other");
    std::fs::create_dir(&folder).unwrap();
    let other = stripes(&folder);
    let labels = other.join("train-labels-idx1-ubyte");
    let mut bytes = std::fs::read(&labels).unwrap();
    bytes.swap(8, 9);
    std::fs::write(labels, bytes).unwrap();
    let other = Bench {
        data: other,
        ..bench
    };
    refused(&other, "epochs=4", "data was");

    let bench = Bench {
        data: home.folder.path().join("stripes"),
        ..other
    };
    let longer = bench.train(&four, "--resume", "longer");
    assert_eq!(longer["state"], "completed", "{longer}");
    bench.same("straight", "longer");
    // Nothing is left to do: the metrics are told again.
    let again = bench.train(&[], "--resume", "longer");
    assert_eq!(again["state"], "completed", "{again}");
    assert_eq!(again["latest_metrics"], longer["latest_metrics"]);

    let data = bench.data.to_str().unwrap();
    let empty = home.folder.path().to_str().unwrap();
    let train = ["run", "digits", "train", "--data", data, "--resume", empty];
    let text = home.refused(&train);
    assert!(text.contains("last.state.safetensors"), "{text}");
}

#[test]
fn an_epoch_tells_every_metric_and_the_best_one_its_confusion() {
    let home = Home::new();
    let bench = Bench {
        home: &home,
        machine: None,
        plugin: "digits",
        data: stripes(home.folder.path()),
        device: "cpu",
    };
    let parameters = ["--param", "epochs=3", "--param", "learning_rate=0.01"];
    let record = bench.train(&parameters, "--output", "results");
    let metrics = &record["latest_metrics"];
    let number = |name: &str| {
        metrics[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {record}"))
    };
    for name in METRICS {
        assert!(number(name) >= 0.0, "{name}: {metrics}");
    }
    assert_eq!(metrics["epoch"], 3);
    assert_eq!(number("top1_acc"), number("val_acc"));
    assert!((100.0 * number("micro_f1") - number("val_acc")).abs() < 1e-9);
    assert!(number("top5_acc") >= number("top3_acc") && number("best_acc") >= number("val_acc"));
    let file = bench.folder("results").join("confusion.json");
    let confusion: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let best = metadata(&bench.folder("results").join("best.safetensors"));
    assert_eq!(
        confusion["epoch"].to_string(),
        best["epoch"].as_str().unwrap()
    );
    let rows = confusion["matrix"].as_array().unwrap().iter();
    let counts: Vec<Vec<u64>> = rows
        .map(|row| serde_json::from_value(row.clone()).unwrap())
        .collect();
    assert_eq!(counts.iter().flatten().sum::<u64>(), 16);
    let right: u64 = (0..10).map(|class| counts[class][class]).sum();
    assert_eq!(100.0 * right as f64 / 16.0, number("best_acc"));
}

#[test]
fn a_training_that_gets_no_better_stops_early() {
    let home = Home::new();
    let bench = Bench {
        home: &home,
        machine: None,
        plugin: "digits",
        data: stripes(home.folder.path()),
        device: "cpu",
    };
    let parameters = ["epochs=50", "patience=2", "min_delta=100"];
    let parameters = parameters.map(|parameter| ["--param", parameter]).concat();
    let record = bench.train(&parameters, "--output", "results");
    assert_eq!(record["state"], "completed", "{record}");
    assert_eq!(record["current_epoch"], 3, "{record}");
    assert_eq!(epochs_done(&bench.folder("results")), 3);
}

#[test]
fn a_training_goes_on_where_it_was_unless_the_user_says_otherwise() {
    let home = Home::new();
    let data = stripes(home.folder.path());
    let folder = home.folder.path().join("results");
    let run = |more: &[&str], option: &str| {
        let mut command = home.hangar(&["--json", "run", "digits", "train", "--data"]);
        command.arg(&data).args(more).arg(option).arg(&folder);
        let record = parsed(&command.output().unwrap());
        assert_eq!(record["state"], "completed", "{record}");
        [record["device_requested"].clone(), record["policy"].clone()]
    };
    let first = ["--param", "epochs=1", "--device", "cpu", "--policy", "pack"];
    let asked = run(&first, "--output");
    assert_eq!(asked, ["cpu", "pack"]);
    assert_eq!(run(&["--param", "epochs=2"], "--resume"), asked);
    let other = ["--policy", "spread"];
    assert_eq!(run(&other, "--resume"), ["cpu", "spread"]);
}

#[test]
fn the_api_goes_on_with_a_task_by_its_id() {
    let home = Home::new();
    let server = Server::start(&home);
    let data = stripes(home.folder.path());
    let start = |body: &Value| server.call("POST", "/api/v2/training/start", body);
    let first = json!({
        "model": "digits", "train_path": data, "val_path": data, "num_epochs": 100_000,
        "device": "cpu", "task_id": "first", "policy": "pack", "priority": 2,
    });
    assert_eq!(start(&first).0, 200);
    let task = server.wait("first", &["running"]);
    let folder = PathBuf::from(task["output"].as_str().unwrap());
    let resume = |id: &str, epochs: u64| {
        start(&json!({ "resume": "first", "task_id": id, "num_epochs": epochs }))
    };
    let (status, problem) = resume("early", 100_000);
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("task.active")),
        "{problem}"
    );
    while epochs_done(&folder) < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.call("POST", "/api/v2/training/first/stop", &Value::Null);
    server.wait("first", &["cancelled"]);
    let (status, task) = resume("second", 100_000);
    assert_eq!(status, 200, "{task}");
    assert_eq!(task["output"], folder.to_str().unwrap());
    assert_eq!(task["model"], "cnn");
    let kept = |task: &Value| {
        let members = ["device_requested", "policy", "priority"];
        members.map(|name| task[name].clone())
    };
    assert_eq!(kept(&task), [json!("cpu"), json!("pack"), json!(2)]);
    // One task at a time goes on from a state.
    let (status, problem) = resume("third", 100_000);
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("task.active")),
        "{problem}"
    );
    // The folder is the second task's too, so that it outlives the first.
    server.wait("second", &["running"]);
    assert_eq!(
        server.call("DELETE", "/api/v2/tasks/first", &Value::Null).0,
        200
    );
    server.call("POST", "/api/v2/training/second/stop", &Value::Null);
    server.wait("second", &["cancelled"]);
    let done = epochs_done(&folder);
    let by_path = json!({
        "model": "digits", "train_path": data, "val_path": data, "resume": folder,
        "num_epochs": done + 2, "task_id": "third", "policy": "spread",
    });
    let (status, task) = start(&by_path);
    assert_eq!(status, 200, "{task}");
    assert_eq!(kept(&task), [json!("cpu"), json!("spread"), json!(2)]);
    let task = server.wait("third", &["completed", "failed"]);
    assert_eq!(task["current_epoch"], done + 2, "{task}");
    let both = json!({ "resume": "third", "save_path": "elsewhere" });
    assert_eq!(start(&both).1["code"], "request.resume");
    let nothing = json!({ "resume": "nobody", "model": "digits", "train_path": data });
    assert_eq!(start(&nothing).1["code"], "resume.path");
    let neither = json!({ "train_path": data });
    assert_eq!(start(&neither).1["code"], "request.member");
    for id in ["second", "third"] {
        let path = format!("/api/v2/tasks/{id}");
        assert_eq!(server.call("DELETE", &path, &Value::Null).0, 200);
    }
    assert!(
        !folder.exists(),
        "the last task to use a folder takes it along"
    );
}
