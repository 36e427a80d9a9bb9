//! `hangar top` in a terminal, which script(1) makes, against a server with simulated GPUs.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gpu::{FOUR, stripes};
use crate::{Home, Machine, Server};

fn size(rows: u16, columns: u16) -> (NonZeroU16, NonZeroU16) {
    (
        NonZeroU16::new(rows).unwrap(),
        NonZeroU16::new(columns).unwrap(),
    )
}

/// A terminal in which `hangar top` runs.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<vt100::Parser>>,
    /// What brings its output to the screen.
    reader: Option<std::thread::JoinHandle<()>>,
    /// The device of the terminal, and the process in it.
    facts: PathBuf,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Terminal {
    fn top(home: &Home) -> Self {
        let hangar = home.hangar(&["top"]);
        let words = std::iter::once(hangar.get_program()).chain(hangar.get_args());
        let words = words.map(|word| format!("'{}'", word.to_str().unwrap()));
        let line = words.collect::<Vec<_>>().join(" ");
        let facts = home.folder.path().join("terminal");
        let file = facts.display();
        let session = format!("stty rows 24 cols 80; tty > {file}; echo $$ >> {file}; exec {line}");
        let mut command = Command::new("script");
        command.args([
            "--quiet",
            "--return",
            "--flush",
            "--echo",
            "never",
            "--command",
        ]);
        command.arg(session).arg("/dev/null");
        command
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm-256color");
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let (rows, columns) = size(24, 80);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let (shown, mut output) = (Arc::clone(&screen), child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..read]);
            }
        });
        let keys = child.stdin.take().unwrap();
        Self {
            child,
            keys,
            screen,
            reader: Some(reader),
            facts,
        }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn line(&self, number: usize) -> String {
        let text = self.text();
        text.lines()
            .nth(number)
            .unwrap_or_default()
            .trim_end()
            .to_owned()
    }

    /// Waits until all of these are on the screen.
    fn shows(&self, texts: &[&str]) {
        let start = Instant::now();
        while !texts.iter().all(|text| self.text().contains(text)) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{texts:?}\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn fact(&self, line: usize) -> String {
        let text = std::fs::read_to_string(&self.facts).unwrap();
        text.lines().nth(line).unwrap().to_owned()
    }

    fn resize(&self, rows: u16, columns: u16) {
        let (rows, columns) = size(rows, columns);
        self.screen
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(rows, columns);
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let mut stty = Command::new("stty");
        let stty = stty.args(["-F", &self.fact(0), "rows", &rows, "cols", &columns]);
        assert!(stty.status().unwrap().success());
    }

    /// Whether it has the screen to itself.
    fn alternate(&self) -> bool {
        self.screen.lock().unwrap().screen().alternate_screen()
    }

    /// Waits for the end: the exit code. The terminal is as it was.
    fn ended(mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        // All that it wrote is on the screen then.
        self.reader.take().unwrap().join().unwrap();
        let screen = self.screen.lock().unwrap();
        assert!(!screen.screen().alternate_screen() && !screen.screen().hide_cursor());
        status.code()
    }
}

#[test]
fn top_shows_gpus_and_tasks_follows_its_terminal_and_gives_it_back() {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let data = stripes(home.folder.path());
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    machine.on(&mut command);
    let server = Server::spawn(command);
    for (id, priority) in [("watched", 1), ("patient", 7), ("urgent", 2)] {
        let (status, answer) = server.call(
            "POST",
            "/api/v2/training/start",
            &json!({
                "model": "cnn", "train_path": data, "val_path": data, "num_epochs": 100_000, "batch_size": 16,
                "device": "cuda:1", "task_id": id, "priority": priority,
            }),
        );
        assert_eq!(status, 200, "{answer}");
        if id == "watched" {
            server.wait(id, &["running"]);
        }
    }
    let mut terminal = Terminal::top(&home);
    let address = format!("http://{}", server.address);
    terminal.shows(&[
        &address,
        "4 GPUs",
        "H100 80GB HBM3",
        "watched",
        "train digits/cnn",
        "patient",
        "cuda:1 runs 1 of 1 trainings",
        "/100000",
    ]);
    assert!(
        terminal
            .text()
            .lines()
            .all(|line| line.chars().count() <= 80)
    );
    assert_eq!(terminal.line(23), "q quits");
    terminal.resize(40, 120);
    let start = Instant::now();
    while terminal.line(39) != "q quits" {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{}",
            terminal.text()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let document = home.hangar(&["--json", "top"]).output().unwrap();
    let document = crate::json(&document);
    assert_eq!(document["gpus"][1]["name"], "NVIDIA H100 80GB HBM3");
    assert_eq!(document["running"][0]["task_id"], "watched");
    let mut waiting: Vec<&Value> = document["waiting"].as_array().unwrap().iter().collect();
    waiting.sort_by_key(|task| task["position"].as_u64());
    let waiting: Vec<&Value> = waiting.iter().map(|task| &task["task_id"]).collect();
    assert_eq!(waiting, ["urgent", "patient"]);
    let piped = home.refused(&["top"]);
    assert!(piped.contains("needs a terminal"), "{piped}");

    assert!(terminal.alternate());
    terminal.keys.write_all(b"q").unwrap();
    assert_eq!(terminal.ended(), Some(0));

    // A terminal that goes away takes the view with it.
    let mut terminal = Terminal::top(&home);
    terminal.shows(&["watched"]);
    let process = PathBuf::from("/proc").join(terminal.fact(1));
    terminal.child.kill().unwrap();
    let start = Instant::now();
    while process.join("exe").read_link().is_ok() {
        assert!(start.elapsed() < Duration::from_secs(30), "it still runs");
        std::thread::sleep(Duration::from_millis(50));
    }

    // A server that ends meanwhile is told; a signal ends the view as a key does.
    let terminal = Terminal::top(&home);
    terminal.shows(&["watched"]);
    for id in ["patient", "urgent", "watched"] {
        server.call("POST", &format!("/api/v2/tasks/{id}/cancel"), &Value::Null);
    }
    terminal.shows(&["0 tasks run"]);
    server.stop();
    terminal.shows(&["no server answers at", "H100 80GB HBM3"]);
    assert!(terminal.alternate());
    let process = terminal.fact(1);
    assert!(
        Command::new("kill")
            .args(["-15", &process])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(terminal.ended(), Some(0));
    let without = home.refused(&["top"]);
    assert!(without.contains("no server runs"), "{without}");
}
