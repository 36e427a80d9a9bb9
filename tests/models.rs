//! The SDK's models against torchvision's, on weights and inputs that both make: the figures are in
//! `tests/models`, which `tests/models/figures.py` writes.

use std::collections::BTreeMap;
use std::path::Path;

use compute::random::splitmix64;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::{Home, json, root};

/// Two halves, which run at once.
const FIRST: [&str; 7] = [
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v3_large",
    "vit_b_16",
    "swin_v2_b",
    "mlp",
];
const SECOND: [&str; 9] = [
    "resnet18",
    "resnet34",
    "mobilenet_v3_small",
    "vit_b_32",
    "vit_l_16",
    "vit_l_32",
    "swin_v2_t",
    "swin_v2_s",
    "gpt2",
];

/// FNV-1a, 64 bits.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A parameter's values, as `figures.py` makes them.
fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in = shape.iter().skip(1).product::<usize>() as f64;
    let value = |i: usize| {
        let key = fnv(name).wrapping_add(i as u64);
        let unit = (splitmix64(key) >> 11) as f64 / (1u64 << 53) as f64;
        let u = f64::from((2.0 * unit - 1.0) as f32);
        let scaled = match shape {
            _ if name.ends_with("running_var") => 1.5 + 0.5 * u,
            [_, _, ..] => u * (3.0 / fan_in).sqrt(),
            _ if name.ends_with("weight") => 1.0 + 0.2 * u,
            _ => 0.1 * u,
        };
        scaled as f32
    };
    (0..shape.iter().product()).map(value).collect()
}

fn shapes(figures: &Value) -> BTreeMap<String, Vec<usize>> {
    let size = |v: &Value| v.as_u64().unwrap() as usize;
    let shapes = figures["shapes"].as_object().unwrap().iter();
    shapes
        .map(|(name, shape)| {
            let sizes = shape.as_array().unwrap().iter().map(size);
            (name.clone(), sizes.collect())
        })
        .collect()
}

/// Writes weights of these shapes, with the counters that PyTorch's norms have.
fn write(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .map(|(name, shape)| {
            let values = weight(name, shape);
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let counters = shapes
        .keys()
        .filter_map(|name| name.strip_suffix("running_var"));
    let counters: Vec<String> = counters
        .map(|name| format!("{name}num_batches_tracked"))
        .collect();
    let seven = 7i64.to_le_bytes();
    let counters = counters.iter().map(|name| {
        let view = TensorView::new(Dtype::I64, Vec::new(), &seven).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views.chain(counters), None, path).unwrap();
}

fn run(home: &Home, weights: &Path, parameters: &[String]) -> std::path::PathBuf {
    let mut command = home.hangar(&[
        "--json",
        "run",
        "model-parity",
        "train",
        "--data",
        "tests/data/mnist10k",
        "--device",
        "cpu",
        "--weights",
    ]);
    command.arg(weights);
    for parameter in parameters {
        command.args(["--param", parameter]);
    }
    let record = json(&command.output().unwrap());
    assert_eq!(record["state"], "completed", "{record}");
    record["output"].as_str().unwrap().into()
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap().iter();
    list.map(|v| v.as_f64().unwrap()).collect()
}

/// ‖got − expected‖ / ‖expected‖.
fn error(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    difference / norm(&mut expected.iter().copied())
}

fn check(home: &Home, name: &str) {
    let path = root().join(format!("tests/models/{name}.json"));
    let figures: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let weights = home.folder.path().join(format!("{name}.safetensors"));
    write(&weights, &shapes(&figures));
    let network = format!("network={name}");

    // All of it has torchvision's parameters, by name and shape.
    let whole = [network.clone(), "full=true".into(), "side=224".into()];
    let names = std::fs::read_to_string(run(home, &weights, &whole).join("parameters.txt"));
    let hash = format!("{:016x}", fnv(&names.unwrap()));
    assert_eq!(hash, figures["names"].as_str().unwrap(), "{name}");

    let train = format!("train={}", figures["train"]);
    let output = run(home, &weights, &[network, train]).join("figures.json");
    let got: Value = serde_json::from_slice(&std::fs::read(output).unwrap()).unwrap();
    let tolerance = |what: &str| {
        let own = figures["f32_error"][what].as_f64().unwrap();
        (4.0 * own).max(1e-4)
    };
    let logits = error(&numbers(&got["logits"]), &numbers(&figures["logits"]));
    let most = tolerance("logits");
    assert!(
        logits <= most,
        "{name}: logits differ by {logits:.2e}, more than {most:.2e}"
    );
    let (loss, expected) = (numbers(&got["loss"])[0], figures["loss"].as_f64().unwrap());
    assert!(
        (loss - expected).abs() <= tolerance("logits") * expected,
        "{name}: loss {loss}, not {expected}"
    );
    let norms = figures["norms"].as_object().unwrap();
    let largest = norms
        .values()
        .map(|v| v.as_f64().unwrap())
        .fold(0.0, f64::max);
    for (parameter, expected) in norms {
        let (got, expected) = (
            got["norms"][parameter].as_f64().unwrap_or(f64::NAN),
            expected.as_f64().unwrap(),
        );
        // Small gradients are what is left of larger numbers.
        let within = (got - expected).abs() <= tolerance("norms") * (expected + 1e-3 * largest);
        assert!(
            within,
            "{name}: gradient norm of {parameter} is {got}, not {expected}"
        );
    }
    std::fs::remove_file(weights).unwrap();
}

#[test]
fn weights_of_a_like_model_keep_a_head_of_their_own() {
    let home = home();
    let path = root().join("tests/models/mlp.json");
    let figures: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut shapes = shapes(&figures);
    shapes.insert("4.weight".to_owned(), vec![37, 512]);
    shapes.remove("4.bias");
    shapes.insert("extra".to_owned(), vec![3]);
    let weights = home.folder.path().join("other.safetensors");
    write(&weights, &shapes);
    let adapted = |parameters: &[&str]| {
        let mut command = home.hangar(&["run", "model-parity", "train", "--device", "cpu"]);
        command
            .args(["--data", "tests/data/mnist10k", "--weights"])
            .arg(&weights);
        for parameter in parameters {
            command.args(["--param", parameter]);
        }
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    };
    let refused = adapted(&["train=true"]);
    for part in ["missing: 4.bias", "unknown: extra", "mis-shaped: 4.weight"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let kept = adapted(&["train=true", "replace=4.", "ignore=extra"]);
    assert!(kept.contains("kept: 4.bias, 4.weight"), "{kept}");
}

fn home() -> Home {
    let home = Home::empty();
    let guests = root().join("tests/guests/target/wasm32-wasip2/release/examples");
    home.add(&guests.join("model_parity.wasm"));
    home
}

#[test]
fn models_give_torchvisions_logits_loss_and_gradients() {
    let home = home();
    FIRST.iter().for_each(|name| check(&home, name));
}

#[test]
fn the_other_models_give_torchvisions_logits_loss_and_gradients() {
    let home = home();
    SECOND.iter().for_each(|name| check(&home, name));
}
