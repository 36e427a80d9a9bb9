//! Compute on the processor from outside: the same bytes on any number of threads, and a cancel that
//! does not wait for a step.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Home, Server, root};

#[test]
fn any_number_of_threads_trains_the_same_weights() {
    let home = Home::new();
    let files = ["1", "3"].map(|threads| {
        let results = home.folder.path().join(threads);
        let mut train = home.hangar(&["run", "digits", "train", "--device", "cpu"]);
        train.args(["--data", "tests/data/mnist10k", "--param", "epochs=1"]);
        train.args(["--threads", threads, "--output"]).arg(&results);
        let output = train.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        ["best", "last"].map(|name| {
            let file = results.join(name).with_extension("safetensors");
            std::fs::read(file).unwrap()
        })
    });
    assert!(
        files[0] == files[1],
        "one and three threads train other weights"
    );
}

#[test]
fn a_cancel_ends_a_training_within_a_step() {
    let home = Home::empty();
    home.add(&root().join("dist/plugins/reference_models.wasm"));
    let server = Server::start(&home);
    // A step takes seconds; the host would kill a worker that goes on for 1.5 s.
    let large = json!({
        "model": "resnet50", "train_path": "tests/data/mnist10k", "task_id": "large",
        "device": "cpu", "params": { "batch": 8, "steps": 1000 },
    });
    let (status, answer) = server.call("POST", "/api/v2/training/start", &large);
    assert_eq!(status, 200, "{answer}");
    server.wait("large", &["running"]);
    std::thread::sleep(Duration::from_secs(1));
    let cancelled = Instant::now();
    server.call("POST", "/api/v2/tasks/large/cancel", &Value::Null);
    server.wait("large", &["cancelled"]);
    let took = cancelled.elapsed();
    assert!(took < Duration::from_millis(1400), "{took:?}");
}
