//! The scripts in `examples/`, on four simulated GPUs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::gpu::{FOUR, stripes};
use crate::{Home, Machine, Server, root};

/// Runs an example: whether it ended well, and what it said.
fn example(server: &Server, name: &str, data: &Path, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(root().join("examples").join(name));
    command
        .arg(format!("http://{}", server.address))
        .arg(data)
        .args(more);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn examples_do_on_four_gpus_what_they_say() {
    let (home, machine) = (Home::new(), Machine::new(FOUR));
    let data = stripes(home.folder.path());
    let mut command = home.hangar(&["serve", "--listen", "127.0.0.1:0"]);
    machine.on(&mut command);
    let server = Server::spawn(command);
    let run = |name: &str, more: &[&str]| {
        let (well, said) = example(&server, name, &data, more);
        assert!(well, "{name}: {said}");
        said
    };

    let automatic = run("automatic.sh", &[]);
    assert!(automatic.contains("completed on cuda:"), "{automatic}");

    let pinned = run("pinned.sh", &["cuda:2"]);
    assert!(pinned.contains("completed on cuda:2"), "{pinned}");
    let (well, said) = example(&server, "pinned.sh", &data, &["cuda:9"]);
    assert!(!well && said.contains("device.unknown"), "{said}");

    let parallel = run("parallel.sh", &[]);
    let devices = parallel
        .lines()
        .filter_map(|line| line.split("completed on ").nth(1));
    let devices: BTreeSet<&str> = devices.collect();
    assert_eq!(
        devices,
        BTreeSet::from(["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        "{parallel}"
    );

    let both = run("train-and-infer.sh", &[]);
    assert!(both.contains("-training: completed on cuda:0"), "{both}");
    assert!(both.contains("-inference: completed on cuda:1"), "{both}");
    let tasks = home.tasks();
    let time = |suffix: &str, when: &str| {
        let named = |task: &&serde_json::Value| task["id"].as_str().unwrap().ends_with(suffix);
        tasks.iter().find(named).unwrap()[when]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(time("-inference", "started_at") < time("-training", "ended_at"));
    assert!(time("-training", "started_at") < time("-inference", "ended_at"));
    server.stop();

    // Without a GPU `cuda` is the processor, and the example says why.
    let home = Home::new();
    let server = Server::start(&home);
    let (well, said) = example(&server, "automatic.sh", &data, &[]);
    assert!(well && said.contains("completed on cpu"), "{said}");
    assert!(
        said.contains("on the CPU, because there is no GPU"),
        "{said}"
    );
    server.stop();
}
