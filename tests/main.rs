//! The program from outside: the released binary, the plugins and the data of the demonstration.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod classifier;
mod commands;
mod cpu;
mod devices;
mod examples;
mod gpu;
mod health;
mod identity;
mod memory;
mod models;
mod top;
mod training;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// A state folder of a test's own, and its plugin folder.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    /// With the plugins of the demonstration.
    fn new() -> Self {
        let home = Self::empty();
        for entry in std::fs::read_dir(root().join("dist/plugins")).unwrap() {
            home.add(&entry.unwrap().path());
        }
        home
    }

    fn empty() -> Self {
        let home = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(home.plugins()).unwrap();
        home
    }

    fn plugins(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    fn add(&self, file: &Path) {
        std::fs::copy(file, self.plugins().join(file.file_name().unwrap())).unwrap();
    }

    fn hangar(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hangar"));
        command
            .current_dir(root())
            .env_remove("CUDA_VISIBLE_DEVICES");
        command.arg("--plugins").arg(self.plugins());
        command
            .arg("--state")
            .arg(self.folder.path().join("state"))
            .args(arguments);
        command
    }

    /// Runs a command that fails: what it says.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.hangar(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn tasks(&self) -> Vec<Value> {
        let output = self.hangar(&["--json", "tasks"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}"))
}

/// The simulated machine: a folder for the library path, and a scenario.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new(scenario: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let library = own.with_file_name("libfakedriver.so");
        for name in ["libcuda.so.1", "libcublasLt.so.13", "libnvidia-ml.so.1"] {
            std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
        }
        let machine = Self { folder };
        machine.change(scenario);
        machine
    }

    /// Another scenario, from now on.
    fn change(&self, scenario: &str) {
        let aside = self.folder.path().join("machine.new");
        std::fs::write(&aside, scenario).unwrap();
        std::fs::rename(aside, self.folder.path().join("machine.toml")).unwrap();
    }

    /// Takes the NVML library away.
    fn without_nvml(&self) {
        std::fs::remove_file(self.folder.path().join("libnvidia-ml.so.1")).unwrap();
    }

    fn on<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_LIBRARY_PATH", self.folder.path())
    }

    fn gpus(&self) -> Value {
        json(
            &self
                .on(&mut Home::empty().hangar(&["--json", "gpus"]))
                .output()
                .unwrap(),
        )
    }
}

#[test]
fn gpus_are_listed_in_bus_order_with_what_they_tell() {
    for count in [0, 1, 16] {
        let scenario = "[[gpu]]\nprofile = \"a100\"\n".repeat(count);
        let gpus = Machine::new(&scenario).gpus();
        assert_eq!(gpus["gpus"].as_array().unwrap().len(), count);
        assert_eq!(gpus["nvml_error"], Value::Null);
    }
    let machine = Machine::new(
        "[[gpu]]\nprofile = \"h100\"\nbus = 0x64\n\
         [[gpu]]\nprofile = \"rtx3090\"\nbus = 0x53\ntemperature = 71\nused_mib = 1000\n\
         [[gpu]]\nprofile = \"t4\"\nbus = 0x75\nlost = true",
    );
    let gpus = machine.gpus()["gpus"].clone();
    assert_eq!(gpus[0]["name"], "NVIDIA GeForce RTX 3090");
    assert_eq!(gpus[0]["temperature_gpu_c"], 71);
    assert_eq!(gpus[0]["memory_free_bytes"], (24576u64 - 450 - 1000) << 20);
    assert_eq!(gpus[1]["compute_capability"], "9.0");
    assert!(
        gpus[2]["error"]
            .as_str()
            .unwrap()
            .contains("fell off the bus"),
        "{gpus}"
    );
    assert_eq!(gpus[2]["temperature_gpu_c"], Value::Null);
    let table = machine
        .on(&mut Home::empty().hangar(&["gpus"]))
        .output()
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("NVIDIA H100 80GB HBM3") && table.contains("ready"),
        "{table}"
    );
    let mut command = Home::empty().hangar(&["--json", "gpus"]);
    let filtered = machine
        .on(&mut command)
        .env("CUDA_VISIBLE_DEVICES", "1")
        .output()
        .unwrap();
    assert_eq!(json(&filtered)["gpus"][0]["name"], "NVIDIA H100 80GB HBM3");
}

#[test]
fn a_missing_failing_or_hanging_nvml_is_a_state() {
    let absent = Home::empty().hangar(&["--json", "gpus"]).output().unwrap();
    assert!(
        json(&absent)["nvml_error"]
            .as_str()
            .unwrap()
            .contains("libnvidia-ml.so.1")
    );
    let with = |fault: &str| {
        Machine::new(&format!("[[gpu]]\nprofile = \"t4\"\n[[fault]]\n{fault}")).gpus()
    };
    let gpus = with("function = \"nvmlDeviceGetTemperature\"\ncode = 13");
    assert_eq!(gpus["gpus"][0]["temperature_gpu_c"], Value::Null);
    assert_eq!(gpus["gpus"][0]["power_draw_watts"], 33.51);
    let gpus = with("function = \"nvmlInit_v2\"\ncode = 9");
    assert!(
        gpus["nvml_error"]
            .as_str()
            .unwrap()
            .contains("does not start"),
        "{gpus}"
    );
    let gpus = with("function = \"nvmlDeviceGetCount_v2\"\nhang = true");
    assert!(
        gpus["nvml_error"]
            .as_str()
            .unwrap()
            .contains("has not answered"),
        "{gpus}"
    );
}

#[test]
fn digits_are_learned_recorded_and_recognised() {
    let home = Home::new();
    let results = home.folder.path().join("results");
    let machine = Machine::new("cuda = 12080\n[[gpu]]\nprofile = \"rtx3090\"");
    let train = [
        "--json",
        "run",
        "digits",
        "train",
        "--data",
        "tests/data/mnist10k",
        "--device",
        "cuda",
        "--param",
        "epochs=1",
        "--output",
    ];
    let output = machine
        .on(home.hangar(&train).arg(&results))
        .output()
        .unwrap();
    let record = json(&output);
    assert_eq!(record["state"], "completed", "{record}");
    assert_eq!(record["device"], "cpu");
    assert!(
        record["fallback_reason"]
            .as_str()
            .unwrap()
            .contains("supports CUDA up to 12.8"),
        "{record}"
    );
    assert!(
        record["latest_metrics"]["val_acc"].as_f64().unwrap() > 85.0,
        "{record}"
    );
    let weights = data_weights(&results.join("best.safetensors"));
    assert!(weights.contains("\"9\""), "{weights}");
    let infer = [
        "--json",
        "run",
        "digits",
        "infer",
        "--data",
        "tests/data/mnist10k",
        "--weights",
    ];
    let record = json(
        &home
            .hangar(&infer)
            .arg(results.join("best.safetensors"))
            .output()
            .unwrap(),
    );
    assert_eq!(record["state"], "completed", "{record}");
    assert_eq!(home.tasks().len(), 2);
    // A training that starts from these weights starts where they were, not at 10 %.
    let mut further = home.hangar(&train);
    further.arg(home.folder.path().join("further"));
    further.args(["--param", "learning_rate=0.00000001", "--weights"]);
    let record = json(
        &further
            .arg(results.join("best.safetensors"))
            .output()
            .unwrap(),
    );
    assert_eq!(record["state"], "completed", "{record}");
    let start = record["latest_metrics"]["val_acc"].as_f64().unwrap();
    assert!(start > 85.0, "{record}");
    let gpu = [
        "run",
        "digits",
        "train",
        "--data",
        "tests/data/mnist10k",
        "--device",
        "cuda:0",
    ];
    let refused = machine.on(&mut home.hangar(&gpu)).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("supports CUDA up to 12.8"));
}

#[test]
fn a_model_is_timed_by_the_plugin_beside_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("hangar");
    std::fs::copy(env!("CARGO_BIN_EXE_hangar"), &program).unwrap();
    let bench = |model: &str, more: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["bench", "--model", model, "--mode", "train", "--batch", "8"]);
        command.args(["--threads", "1", "--steps", "3"]).args(more);
        command.output().unwrap()
    };
    let without = bench("mlp", &[]);
    let text = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(
        !without.status.success() && text.contains("cargo xtask build"),
        "{text}"
    );
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    let plugin = "plugins/reference_models.wasm";
    std::fs::copy(root().join("dist").join(plugin), folder.path().join(plugin)).unwrap();
    let line = json(&bench("mlp", &[]));
    assert_eq!(line["model"], "mlp");
    assert_eq!(line["device"], "cpu x1");
    let number = |name: &str| line[name].as_f64().unwrap();
    let seconds = number("seconds");
    assert!(
        seconds > 0.0 && (number("per_second") * seconds - 8.0).abs() < 1e-6,
        "{line}"
    );
    assert!(line["spread"][0].as_f64().unwrap() <= seconds, "{line}");
    assert!(number("peak_bytes") > 1e6, "{line}");
    let less = ["--size", "32", "--dtype", "bf16", "--recompute"];
    let line = json(&bench("resnet18", &less));
    assert_eq!(
        (&line["dtype"], &line["recompute"]),
        (&"bf16".into(), &true.into())
    );
    let unknown = bench("alexnet", &[]);
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(text.contains("resnet18") && text.contains("gpt2"), "{text}");
}

#[test]
fn an_onnx_model_is_imported_and_recognises_digits() {
    let home = Home::new();
    let folder = home.folder.path();
    let (weights, names) = (folder.join("digits.safetensors"), folder.join("names.txt"));
    std::fs::write(&names, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n").unwrap();
    let import = |model: &str, more: &[&str]| {
        let mut command = home.hangar(&["import", model, "--output"]);
        command.arg(&weights).args(more).output().unwrap()
    };
    let model = "tests/fixtures/digits.onnx";
    let normal = ["--mean", "0.1307", "--deviation", "0.3081", "--classes"];
    let with_names = [&normal[..], &[names.to_str().unwrap()]].concat();
    let imported = import(model, &with_names);
    let text = String::from_utf8_lossy(&imported.stdout).into_owned();
    assert!(
        text.contains("[batch, 1, 28, 28] → [batch, 10], 56592 parameters"),
        "{text}"
    );
    let infer = [
        "--json",
        "run",
        "imported",
        "infer",
        "--data",
        "tests/data/mnist10k",
        "--weights",
    ];
    let record = json(&home.hangar(&infer).arg(&weights).output().unwrap());
    assert_eq!(record["state"], "completed", "{record}");
    // 1,888 of 2,000, as the plugin that trained it has it.
    let accuracy = record["latest_metrics"]["accuracy"].as_f64().unwrap();
    assert!((accuracy - 94.4).abs() < 0.01, "{accuracy}");
    let refusals = [
        (import("tests/fixtures/README.md", &[]), "no ONNX model"),
        (
            import(model, &["--mean", "0.1,0.2", "--deviation", "1,1"]),
            "channels",
        ),
        (import(model, &["--classes", model]), "cannot read"),
        (import("/nowhere.onnx", &[]), "/nowhere.onnx"),
    ];
    for (output, why) in refusals {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(why),
            "{why}: {text}"
        );
    }
}

/// The class names in a checkpoint's header.
fn data_weights(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    format!("{:?}", header.metadata()).replace('\\', "")
}

#[test]
fn spoken_digits_begin_to_be_learned() {
    let home = Home::new();
    let train = [
        "--json",
        "run",
        "spoken-digits",
        "train",
        "--data",
        "tests/data/spoken-digits",
        "--param",
        "epochs=1",
    ];
    let record = json(&home.hangar(&train).output().unwrap());
    assert_eq!(record["state"], "completed", "{record}");
    assert!(
        record["latest_metrics"]["train_loss"].as_f64().unwrap() < 2.6,
        "{record}"
    );
}

#[test]
fn bad_input_gets_one_clear_error() {
    let home = Home::new();
    let train = |more: &[&'static str]| {
        let base = ["run", "digits", "train", "--data", "tests/data/mnist10k"];
        home.refused(&[&base[..], more].concat())
    };
    assert!(train(&["--device", "cuda:9"]).contains("the devices are `cpu`"));
    assert!(train(&["--device", "foo"]).contains("no device `foo`"));
    assert!(train(&["--device", "Foo!"]).contains("`Foo!` is not a device"));
    assert!(train(&["--param", "epochz=3"]).contains("its parameters are epochs"));
    assert!(train(&["--param", "epochs=none"]).contains("`epochs`"));
    assert!(train(&["--model", "vit"]).contains("it has cnn"));
    let missing = home.refused(&["run", "digits", "train", "--data", "/nowhere"]);
    assert!(missing.contains("/nowhere"), "{missing}");
    let unknown = home.refused(&["run", "letters", "train", "--data", "."]);
    assert!(
        unknown.contains("digits, image-classifier, imported, reference-models, spoken-digits"),
        "{unknown}"
    );
    assert!(home.tasks().is_empty(), "nothing was left behind");
    let sounds = home.folder.path().join("sounds");
    std::fs::create_dir(&sounds).unwrap();
    let bytes = std::fs::read(root().join("tests/data/spoken-digits/test/0_george_0.wav")).unwrap();
    std::fs::write(sounds.join("0_cut.wav"), &bytes[..bytes.len() / 2]).unwrap();
    let cut = home.refused(&[
        "run",
        "spoken-digits",
        "train",
        "--data",
        sounds.to_str().unwrap(),
    ]);
    assert!(
        cut.contains("0_cut.wav") && cut.contains("truncated"),
        "{cut}"
    );
    home.add(&root().join("Cargo.toml"));
    std::fs::write(home.plugins().join("bad.wasm"), b"not wasm").unwrap();
    assert!(home.refused(&["plugins"]).contains("bad.wasm"));
}

#[test]
fn a_plugin_that_misbehaves_ends_alone() {
    let guests = root().join("tests/guests/target/wasm32-wasip2/release/examples");
    let wav = "tests/data/spoken-digits/test/0_george_0.wav";
    let misbehaves = |guest: &str, code: &str| {
        let home = Home::empty();
        home.add(&guests.join(format!("{guest}.wasm")));
        let plugins = json(&home.hangar(&["--json", "plugins"]).output().unwrap());
        let name = plugins[0]["plugin"]["description"]["name"]
            .as_str()
            .unwrap()
            .to_owned();
        let record = json(
            &home
                .hangar(&["--json", "run", &name, "train", "--data", wav])
                .output()
                .unwrap(),
        );
        assert_eq!(
            record["error_code"].as_str().unwrap_or(""),
            code,
            "{guest}: {record}"
        );
    };
    std::thread::scope(|scope| {
        // This one takes as long as a plugin may compute in silence.
        scope.spawn(|| misbehaves("run_spins", "plugin.time"));
        for (guest, code) in [
            ("run_panics", "plugin.trap"),
            ("run_recurses", "plugin.trap"),
            ("run_allocates", "plugin.memory"),
            ("run_huge_list", "plugin.memory"),
            ("run_floods_handles", "plugin.failed"),
            ("run_floods_log", ""),
            ("data_ungranted", ""),
            ("devices_drops_lease", ""),
            ("devices_unknown", ""),
            ("storage_traversal", ""),
            ("graph_wrong_values", ""),
        ] {
            misbehaves(guest, code);
        }
    });
    for guest in ["describe_bad_json", "describe_spins"] {
        let home = Home::new();
        home.add(&guests.join(format!("{guest}.wasm")));
        let output = home.hangar(&["plugins"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains(guest));
        assert!(String::from_utf8_lossy(&output.stdout).contains("digits 0.1.0"));
    }
}

#[test]
fn a_new_project_builds_and_its_plugin_loads() {
    let home = Home::empty();
    let work = home.folder.path();
    let made = home
        .hangar(&["new", "my-plugin"])
        .current_dir(work)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let again = home
        .hangar(&["new", "my-plugin"])
        .current_dir(work)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("cannot make the folder my-plugin"));
    assert!(home.refused(&["new", "../x"]).contains("is no plugin name"));
    let mut cargo = Command::new(env!("CARGO"));
    // Where its dependencies' macros are compiled already.
    let target = root().join("tests/guests/target");
    cargo
        .current_dir(work.join("my-plugin"))
        .env("CARGO_TARGET_DIR", &target)
        .args(["build", "--release", "--target", "wasm32-wasip2"]);
    assert!(cargo.status().unwrap().success());
    home.add(&target.join("wasm32-wasip2/release/my_plugin.wasm"));
    let listed = home.hangar(&["plugins"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains("my-plugin"),
        "{listed:?}"
    );
}

#[test]
fn the_first_plugins_of_the_contract_still_link_and_run() {
    let home = Home::empty();
    for file in ["digits.wasm", "spoken_digits.wasm"] {
        home.add(&root().join("tests/fixtures/plugins-0.1.0").join(file));
    }
    let results = home.folder.path().join("results");
    for (plugin, data, epochs) in [
        ("digits", "tests/data/mnist10k", "epochs=1"),
        ("spoken-digits", "tests/data/spoken-digits", "epochs=1"),
    ] {
        let train = [
            "--json", "run", plugin, "train", "--data", data, "--param", epochs, "--output",
        ];
        let record = json(&home.hangar(&train).arg(&results).output().unwrap());
        assert_eq!(record["state"], "completed", "{record}");
        let infer = [
            "--json",
            "run",
            plugin,
            "infer",
            "--data",
            data,
            "--weights",
        ];
        let weights = results.join("last.safetensors");
        let record = json(&home.hangar(&infer).arg(weights).output().unwrap());
        assert_eq!(record["state"], "completed", "{record}");
    }
}

/// A host that serves, ended with the test.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Server {
    /// Ends the host as an operator does.
    fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-15", &id])
                .status()
                .unwrap()
                .success()
        );
        assert!(self.child.wait().unwrap().success());
    }

    fn start(home: &Home) -> Self {
        Self::spawn(home.hangar(&["serve", "--listen", "127.0.0.1:0"]))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        let mut stderr = child.stderr.take().unwrap();
        let mut byte = [0];
        let address = loop {
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{text}");
            text.push(byte[0] as char);
            let line = text.split("listening on http://").nth(1);
            if let Some(address) = line.and_then(|line| line.strip_suffix('\n')) {
                break address.to_owned();
            }
        };
        Self { child, address }
    }

    fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let length = body.len();
        write!(socket, "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}", self.address).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.send(method, path, &body.to_string());
        (
            status,
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")),
        )
    }

    fn wait(&self, id: &str, wanted: &[&str]) -> Value {
        let start = Instant::now();
        loop {
            let (_, task) = self.call("GET", &format!("/api/v2/tasks/{id}"), &Value::Null);
            if wanted.iter().any(|state| task["status"] == *state) {
                return task;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{task}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

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

fn training(id: &str, epochs: u64) -> Value {
    json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "num_epochs": epochs, "task_id": id })
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

/// How often a long test repeats: `few` times, or `many` where `cargo xtask test --full` asks.
fn repeat(few: usize, many: usize) -> usize {
    if std::env::var_os("HANGAR_TESTS").is_some_and(|value| value == "full") {
        many
    } else {
        few
    }
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

/// The processes started by one.
fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let numbers = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let of_parent = |id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        after.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    numbers.filter(of_parent).collect()
}
