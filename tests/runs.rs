//! Commands that look at the machine and run one task, from outside.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{Home, Machine, json, root};

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
fn an_old_driver_whose_nvml_lacks_functions_tells_the_rest_and_runs_nothing() {
    let machine = Machine::new("driver = \"450.80.02\"\ncuda = 11000\n[[gpu]]\nprofile = \"t4\"");
    machine.lacks(&[
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
    ]);
    let told = machine.gpus();
    let gpu = &told["gpus"][0];
    assert!(told["nvml_error"].is_null(), "{told}");
    assert_eq!(
        (&gpu["name"], &gpu["power_draw_watts"], &gpu["error"]),
        (&Value::from("Tesla T4"), &Value::from(33.51), &Value::Null),
        "{gpu}"
    );
    let unsupported = gpu["unsupported"].as_array().unwrap();
    for field in ["memory_total_bytes", "memory_used_bytes"] {
        assert!(gpu[field].is_null(), "{gpu}");
        assert!(unsupported.contains(&field.into()), "{unsupported:?}");
    }
    assert_eq!(gpu["schedulable"], false, "{gpu}");
    let reason = gpu["reason"].as_str().unwrap();
    assert!(reason.contains("up to 11.0"), "{reason}");
    let home = Home::new();
    let mut train = home.hangar(&["--json", "run", "digits", "train"]);
    train.args(["--data", "tests/data/mnist10k", "--device", "cuda"]);
    let output = machine.on(train.args(["--param", "epochs=1"])).output();
    let record = json(&output.unwrap());
    assert_eq!(
        (&record["state"], &record["device"]),
        (&Value::from("completed"), &Value::from("cpu")),
        "{record}"
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
