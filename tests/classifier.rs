//! The plugin `image-classifier` on photographs of coloured shapes, from outside.

use std::path::{Path, PathBuf};

use compute::random::splitmix64;
use serde_json::{Value, json};

use crate::{Home, Server, json as parsed};

/// The classes: what is drawn, and its colour (blue, green, red).
const SHAPES: [(&str, [u8; 3]); 3] = [
    ("circle", [40, 40, 220]),
    ("square", [40, 210, 40]),
    ("triangle", [220, 60, 40]),
];

/// Whether a shape covers a place, from −1 to 1 on both axes.
fn covers(shape: &str, x: f32, y: f32) -> bool {
    match shape {
        "circle" => x * x + y * y < 1.0,
        "square" => x.abs() < 0.85 && y.abs() < 0.85,
        _ => y > 2.0 * x.abs() - 1.0 && y < 1.0,
    }
}

/// A bitmap (BMP, 24 bits) of a shape anywhere on a noisy ground.
fn picture(shape: &str, colour: [u8; 3], side: u32, seed: u64) -> Vec<u8> {
    let draw =
        |number: u64| (splitmix64(seed ^ splitmix64(number)) >> 40) as f32 / (1 << 24) as f32;
    let (radius, side_f) = (0.2 + 0.15 * draw(0), side as f32);
    let (x0, y0) = (0.4 + 0.2 * draw(1), 0.4 + 0.2 * draw(2));
    let row = (3 * side).next_multiple_of(4);
    let size = 54 + row * side;
    let mut bytes = b"BM".to_vec();
    for number in [size, 0, 54, 40, side, side] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([1, 0, 24, 0]);
    bytes.resize(54, 0);
    for y in 0..side {
        for x in 0..side {
            let place = |at: u32, middle: f32| (at as f32 / side_f - middle) / radius;
            let inside = covers(shape, place(x, x0), place(y, y0));
            let grey = 90.0 + 60.0 * draw(u64::from(3 + y * side + x));
            bytes.extend(if inside { colour } else { [grey as u8; 3] });
        }
        bytes.resize((54 + row * (y + 1)) as usize, 0);
    }
    bytes
}

/// Folders of pictures, one for each class.
fn pictures(folder: &Path, classes: &[&str], count: u64, first: u64) -> PathBuf {
    for (class, (shape, colour)) in SHAPES.iter().enumerate() {
        if classes.contains(shape) {
            let of_class = folder.join(shape);
            std::fs::create_dir_all(&of_class).unwrap();
            for number in first..first + count {
                let side = 40 + (number % 3) as u32 * 8;
                let bytes = picture(shape, *colour, side, number * 3 + class as u64);
                std::fs::write(of_class.join(format!("{number}.bmp")), bytes).unwrap();
            }
        }
    }
    folder.to_owned()
}

const ALL: [&str; 3] = ["circle", "square", "triangle"];

fn log(server: &Server, id: &str) -> String {
    server
        .send("GET", &format!("/api/v2/tasks/{id}/logs"), "")
        .1
}

#[test]
fn an_old_client_trains_a_model_of_the_classifier_and_infers_with_it() {
    let home = Home::new();
    let folder = home.folder.path();
    let train = pictures(&folder.join("train"), &ALL, 16, 0);
    let validation = pictures(&folder.join("val"), &ALL, 8, 100);
    let server = Server::start(&home);
    let request = |id: &str| {
        json!({
            "model": "resnet18", "num_classes": 3, "train_path": train, "val_path": validation,
            "save_path": folder.join("runs"), "name": id, "batch_size": 8, "num_epochs": 3,
            "learning_rate": 1e-3, "image_size": 32, "device": "cuda", "weight_path": "",
            "pretrained": true, "shuffle": true, "task_id": id, "priority": 5, "description": "shapes",
        })
    };
    let start = |body: &Value| {
        let (status, task) = server.call("POST", "/api/v2/training/start", body);
        assert_eq!(status, 200, "{task}");
        assert_eq!(task["plugin"], "image-classifier", "{task}");
        let id = body["task_id"].as_str().unwrap();
        // The events end with the task.
        log(&server, id);
        server.wait(id, &["completed", "failed"])
    };
    let task = start(&request("shapes"));
    assert_eq!(task["status"], "completed", "{task}");
    let best = task["latest_metrics"]["best_acc"].as_f64().unwrap();
    assert!(best >= 90.0, "{task}");
    let text = log(&server, "shapes");
    assert!(text.contains("no weights were given"), "{text}");
    assert!(text.contains("its confusion matrix"), "{text}");

    let weights = folder.join("runs/shapes/best.safetensors");
    let infer = json!({
        "cfg_path": "configs/resnet18.yaml", "weight_path": weights, "source_path": validation,
        "save_path": folder.join("seen"), "task_id": "seen", "device": "cpu",
    });
    let (status, task) = server.call("POST", "/api/v2/inference/start", &infer);
    assert_eq!(status, 200, "{task}");
    let task = server.wait("seen", &["completed", "failed"]);
    let accuracy = task["latest_metrics"]["accuracy"].as_f64();
    assert!(
        accuracy.is_some_and(|accuracy| (accuracy - best).abs() < 1e-9),
        "{task}"
    );
    let predictions = std::fs::read_to_string(folder.join("seen/predictions.jsonl")).unwrap();
    let lines: Vec<Value> = predictions
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 24);
    for line in &lines {
        let name = line["name"].as_str().unwrap();
        assert!(name.starts_with(line["label"].as_str().unwrap()), "{line}");
        let sum: f64 = line["top"]
            .as_array()
            .unwrap()
            .iter()
            .map(|class| class["confidence"].as_f64().unwrap())
            .sum();
        assert!((sum - 1.0).abs() < 1e-5, "{line}");
    }

    // What cannot be trained is refused by the task, with the remedy.
    let refused = |id: &str, member: &str, value: Value, code: &str, named: &str| {
        let mut body = request(id);
        body[member] = value;
        let task = start(&body);
        assert_eq!(task["error_code"], code, "{task}");
        assert!(task["message"].as_str().unwrap().contains(named), "{task}");
    };
    let classes = "circle, square, triangle";
    refused("five", "num_classes", json!(5), "data.classes", classes);
}

#[test]
fn weights_of_other_classes_get_a_head_of_their_own() {
    let home = Home::new();
    let folder = home.folder.path();
    let three = pictures(&folder.join("three"), &ALL, 4, 0);
    let two = pictures(&folder.join("two"), &ALL[..2], 6, 0);
    let one = folder.join("one.bmp");
    std::fs::write(&one, picture("circle", SHAPES[0].1, 64, 5)).unwrap();
    let run = |kind: &str, data: &Path, to: &str, more: &[&str]| {
        let mut command = home.hangar(&["--json", "run", "image-classifier", kind, "--data"]);
        command
            .arg(data)
            .arg("--output")
            .arg(folder.join(to))
            .args(more);
        parsed(&command.args(["--device", "cpu"]).output().unwrap())
    };
    let small = "--param epochs=1 --param image_size=32 --param validation_fraction=0.5 \
                 --model mobilenet_v3_small";
    let small: Vec<&str> = small.split_whitespace().collect();
    let first = run("train", &three, "first", &small);
    assert_eq!(first["state"], "completed", "{first}");
    let weights = folder.join("first/best.safetensors");
    let weights = ["--weights", weights.to_str().unwrap()];
    let second = run("train", &two, "second", &[&small[..], &weights].concat());
    assert_eq!(second["state"], "completed", "{second}");
    let seen = run("infer", &one, "seen", &weights);
    assert_eq!(seen["state"], "completed", "{seen}");
    let line = std::fs::read_to_string(folder.join("seen/predictions.jsonl")).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["name"], "one.bmp");
    assert!(ALL.contains(&line["class"].as_str().unwrap()), "{line}");
    assert_eq!(line["top"].as_array().unwrap().len(), 3);
    // A model of another kind cannot take them, and neither can a training of other images.
    let other = ["--model", "resnet18", "--param", "epochs=1"];
    let other = run("train", &two, "other", &[&other[..], &weights].concat());
    assert_eq!(other["error_code"], "weights.mismatch", "{other}");
    let size = ["--model", "vit_b_16", "--param", "image_size=40"];
    let size = run("train", &two, "size", &size);
    assert_eq!(size["error_code"], "parameters.value", "{size}");
    assert!(
        size["message"].as_str().unwrap().contains("multiple of 16"),
        "{size}"
    );
}

#[test]
fn damaged_pictures_are_refused_or_skipped_by_name() {
    let home = Home::new();
    let folder = home.folder.path();
    let data = pictures(&folder.join("data"), &ALL, 6, 0);
    std::fs::write(data.join("square/torn.bmp"), b"BM and no more").unwrap();
    std::fs::write(data.join("circle/empty.jpg"), b"").unwrap();
    let server = Server::start(&home);
    let train = |id: &str, damaged: &str| {
        let body = json!({
            "model": "mobilenet_v3_small", "train_path": data, "num_epochs": 1, "image_size": 32,
            "task_id": id, "device": "cpu", "params": { "damaged": damaged },
        });
        let (status, task) = server.call("POST", "/api/v2/training/start", &body);
        assert_eq!(status, 200, "{task}");
        log(&server, id);
        server.wait(id, &["completed", "failed"])
    };
    let refused = train("refuse", "refuse");
    assert_eq!(refused["status"], "failed", "{refused}");
    assert_eq!(refused["error_code"], "data.sample", "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("torn.bmp") || message.contains("empty.jpg"),
        "{message}"
    );
    let skipped = train("skip", "skip");
    assert_eq!(skipped["status"], "completed", "{skipped}");
    let text = log(&server, "skip");
    for expected in [
        "torn.bmp",
        "empty.jpg",
        "2 damaged files are skipped, 18 are left",
    ] {
        assert!(text.contains(expected), "`{expected}` is not in {text}");
    }
}
