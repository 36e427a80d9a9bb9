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
mod gang;
mod gpu;
mod health;
mod identity;
mod memory;
mod models;
mod plugins;
mod runs;
mod server;
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

    /// Gives it an NVML library that lacks functions, as an older one does.
    fn lacks(&self, functions: &[&str]) {
        let path = self.folder.path().join("libnvidia-ml.so.1");
        let mut library = std::fs::read(&path).unwrap();
        for function in functions {
            // In the table of symbols' names another of the same length.
            let name = format!("\0{function}\0");
            let found = library.windows(name.len());
            let found = found
                .enumerate()
                .filter(|(_, bytes)| *bytes == name.as_bytes());
            let found: Vec<usize> = found.map(|(at, _)| at + 1).collect();
            assert!(!found.is_empty(), "{function}");
            found.into_iter().for_each(|at| library[at] = b'_');
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, library).unwrap();
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

fn training(id: &str, epochs: u64) -> Value {
    json!({ "model": "cnn", "train_path": "tests/data/mnist10k", "num_epochs": epochs, "task_id": id })
}

/// How often a long test repeats: `few` times, or `many` where `cargo xtask test --full` asks.
fn repeat(few: usize, many: usize) -> usize {
    if std::env::var_os("HANGAR_TESTS").is_some_and(|value| value == "full") {
        many
    } else {
        few
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
