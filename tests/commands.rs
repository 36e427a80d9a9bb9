//! The commands that talk to a server that runs, on simulated GPUs.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gpu::FOUR;
use crate::{Home, Machine, Server};

fn serve(home: &Home, machine: &Machine) -> Server {
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    machine.on(&mut command);
    Server::spawn(command)
}

/// What a command prints that ends well.
fn said(home: &Home, arguments: &[&str]) -> String {
    let output = home.hangar(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn told(home: &Home, arguments: &[&str]) -> Value {
    let text = said(home, &[&["--json"], arguments].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The line of a table that begins with a cell, without its frame and spaces.
fn row(table: &str, cell: &str) -> String {
    let lines = table.lines().map(|line| {
        let cells = line.trim_matches('│').split('┆').map(str::trim);
        cells.collect::<Vec<_>>().join("|")
    });
    let mut lines = lines.filter(|line| line.starts_with(&format!("{cell}|")));
    lines.next().unwrap_or_else(|| panic!("{cell}: {table}"))
}

fn interrupt(process: u32) {
    let ended = Command::new("kill")
        .args(["-2", &process.to_string()])
        .status();
    assert!(ended.unwrap().success());
}

#[test]
fn devices_are_drained_enabled_and_limited_by_commands() {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let without = home.refused(&["devices", "drain", "cuda:1"]);
    assert!(
        without.contains("no server runs on the state folder"),
        "{without}"
    );
    let server = serve(&home, &machine);

    let drained = said(&home, &["devices", "drain", "cuda:1"]);
    assert_eq!(drained, "cuda:1 takes no new tasks; those that run go on\n");
    let enabled = told(&home, &["devices", "enable", "cuda:1"]);
    assert_eq!(
        (&enabled["draining"], &enabled["device"]),
        (&json!(false), &json!("cuda:1"))
    );
    said(&home, &["devices", "drain", "cuda:2"]);

    let limit = [
        "devices",
        "limits",
        "cuda",
        "--training",
        "2",
        "--inference",
        "4",
    ];
    let every = said(&home, &limit);
    assert_eq!(row(&every, "cuda:0"), "cuda:0|2|4|");
    assert_eq!(row(&every, "cuda:2"), "cuda:2|2|4|drained");
    assert!(!every.contains("cpu"), "{every}");
    let one = told(&home, &["devices", "limits", "cuda:3", "--inference", "7"]);
    assert_eq!(
        one,
        json!({ "cuda:3": { "training": 2, "inference": 7, "drained": false } })
    );
    // What is left out stays, on the server as in what the commands show.
    let (_, config) = server.call("GET", "/api/v2/resources/config", &Value::Null);
    assert_eq!(
        config["max_concurrent"]["cuda:3"],
        json!({ "training": 2, "inference": 7 })
    );
    assert_eq!(config["drained"], json!(["cuda:2"]));
    let pools = json!({ "pools": { "large": { "min_memory_bytes": 40_000_000_000u64 } } });
    server.call("POST", "/api/v2/resources/config", &pools);
    said(&home, &["devices", "limits", "large", "--training", "3"]);
    let all = said(&home, &["devices", "limits"]);
    assert_eq!(row(&all, "large"), "large|3|–|together: cuda:0, cuda:1");
    assert_eq!(row(&all, "cpu"), "cpu|2|4|");

    for (arguments, message) in [
        (&["drain", "cuda:9"][..], "cuda:9"),
        (&["drain", "cuda"], "name one device"),
        (&["enable", "large"], "name one device"),
        (&["drain", "gpu 1"], "`cuda:N`"),
        (&["limits", "nowhere", "--training", "1"], "nowhere"),
        (&["limits", "cuda:9"], "there are: cpu, cuda:0"),
        (&["limits", "cuda", "--training", "-1"], "-1"),
        (
            &["limits", "cuda", "--training", "4294967296"],
            "4294967296",
        ),
        (&["limits", "--training", "1"], "DEVICE"),
    ] {
        let refused = home.refused(&[&["devices"], arguments].concat());
        assert!(refused.contains(message), "{arguments:?}: {refused}");
    }

    // Any server by its address; one that has ended is not looked for where it was.
    let elsewhere = Home::empty();
    let address = format!("http://{}", server.address);
    let named = told(
        &elsewhere,
        &["devices", "limits", "cpu", "--server", &address],
    );
    assert_eq!(named["cpu"]["training"], 2);
    server.stop();
    let ended = home.refused(&["devices", "limits"]);
    assert!(ended.contains("no server runs"), "{ended}");
    let silent = home.refused(&["devices", "limits", "--server", &address]);
    assert!(
        silent.contains(&format!("no server answers at {address}")),
        "{silent}"
    );
    let odd = home.refused(&["devices", "limits", "--server", "https://gpu-box"]);
    assert!(odd.contains("such as http://127.0.0.1:8000"), "{odd}");
}

#[test]
fn gpus_are_shown_as_the_server_sees_them_once_and_again() {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let mut alone = home.hangar(&["--json", "gpus"]);
    let alone = crate::json(&machine.on(&mut alone).output().unwrap());
    assert_eq!(alone["server"], Value::Null);
    let server = serve(&home, &machine);
    said(&home, &["devices", "drain", "cuda:2"]);
    said(&home, &["devices", "limits", "cuda:1", "--training", "5"]);

    // The command itself sees no GPU: what it shows is the server's.
    let start = Instant::now();
    let table = loop {
        let table = said(&home, &["gpus"]);
        if !table.contains("being probed") {
            break table;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{table}");
    };
    assert!(row(&table, "cuda:1").contains("|0/5|0/3|"), "{table}");
    assert!(row(&table, "cuda:1").ends_with("|ready"), "{table}");
    let drained = row(&table, "cuda:2");
    assert!(
        drained.ends_with("draining: it is drained by the operator"),
        "{drained}"
    );
    let seen = told(&home, &["gpus"]);
    assert_eq!(seen["server"], format!("http://{}", server.address));
    assert_eq!(seen["gpus"][1]["uuid"], alone["gpus"][1]["uuid"]);
    assert_eq!(
        seen["gpus"][1]["limits"],
        json!({ "training": 5, "inference": 3 })
    );

    for (more, json) in [(&[][..], false), (&["--json"], true)] {
        let mut command = home.hangar(&[&["gpus", "--watch", "0.2"], more].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut documents = 0;
        while documents < 3 {
            let line = lines.next().unwrap().unwrap();
            assert!(!line.contains('\x1b'), "{line}");
            let document = match json {
                true => serde_json::from_str::<Value>(&line).unwrap()["gpus"][3].is_object(),
                false => line.contains("cuda:3"),
            };
            documents += usize::from(document);
        }
        interrupt(child.id());
        assert!(child.wait().unwrap().success());
    }
    let odd = home.refused(&["gpus", "--watch", "0"]);
    assert!(odd.contains("from 0.1 to 86400"), "{odd}");
    server.stop();
}

#[test]
fn a_server_shows_its_devices_as_it_starts_and_why_one_takes_no_task() {
    let machine = Machine::new(
        "[[gpu]]\nprofile = \"h100\"\n[[gpu]]\nprofile = \"t4\"\nbus = 0x90\nlost = true\n",
    );
    let home = Home::new();
    let state = home.folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let pool = json!({ "pools": { "fast": { "models": ["H100"] } },
        "max_concurrent": { "cuda": { "training": 2, "inference": 6 } } });
    std::fs::write(state.join("devices.json"), pool.to_string()).unwrap();
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    let mut child = machine
        .on(&mut command)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        text.push_str(&line.unwrap());
        text.push('\n');
        if text.contains("CUDA up to") {
            break;
        }
    }
    interrupt(child.id());
    assert!(child.wait().unwrap().success());
    assert!(row(&text, "cpu").contains("|0/2|0/4|"), "{text}");
    let h100 = row(&text, "cuda:0");
    assert!(
        h100.starts_with("cuda:0|NVIDIA H100 80GB HBM3|9.0|"),
        "{h100}"
    );
    assert!(h100.ends_with("|0/2|0/6|fast|ready"), "{h100}");
    let lost = row(&text, "cuda:1");
    assert!(
        lost.contains("lost: ") && lost.contains("fell off the bus"),
        "{lost}"
    );
}
