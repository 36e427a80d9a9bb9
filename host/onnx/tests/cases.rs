//! ONNX's own test cases: `cargo xtask onnx` makes them, with the `onnx` package of PyPI, in the
//! folder that `HANGAR_ONNX` names.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use compute::cpu::CpuBackend;
use compute::{Backend, Builder, HostTensor, Plan, Value};
use onnx::{Call, Error, Imported, Model, apply, import, parse_tensor};

/// The least number of node cases that pass.
const LEAST_PASSED: usize = 1280;

fn folder() -> PathBuf {
    let folder = std::env::var_os("HANGAR_ONNX");
    folder
        .expect("HANGAR_ONNX names the cases: run `cargo xtask onnx`")
        .into()
}

/// The tensors `KIND_0.pb`, `KIND_1.pb`, … of a case; none of those that cannot be read.
fn tensors(case: &Path, kind: &str) -> Vec<Result<HostTensor, Error>> {
    let path = |i: usize| case.join(format!("{kind}_{i}.pb"));
    let files = (0..).map(path).take_while(|path| path.exists());
    files
        .map(|path| parse_tensor(&std::fs::read(path).unwrap()))
        .collect()
}

fn numbers(tensor: &HostTensor) -> Vec<f64> {
    let floats = tensor
        .to_f32()
        .map(|v| v.into_iter().map(f64::from).collect());
    let integers = || Some(tensor.to_i64()?.into_iter().map(|v| v as f64).collect());
    let truths = || tensor.bytes().iter().map(|&v| f64::from(v)).collect();
    floats.or_else(integers).unwrap_or_else(truths)
}

/// Whether all elements agree as ONNX's own runner wants it: relatively to 1e-3, or to 1e-2 for
/// results that were rounded to 16 bits.
fn agree(got: &HostTensor, expected: &HostTensor, rounded: bool) -> bool {
    let relative = if rounded { 1e-2 } else { 1e-3 };
    let close = |(a, b): (&f64, &f64)| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-7 + relative * b.abs()
    };
    let (got_numbers, expected_numbers) = (numbers(got), numbers(expected));
    got.shape() == expected.shape() && got_numbers.iter().zip(&expected_numbers).all(close)
}

/// Runs what was imported through its calls alone, as a plugin does.
fn run(imported: &Imported, feeds: &HashMap<String, HostTensor>) -> Vec<HostTensor> {
    let mut builder = Builder::new();
    let mut results: Vec<Value> = Vec::new();
    for Call(op, operands, attributes) in &imported.calls {
        let operands: Vec<Value> = operands.iter().map(|&i| results[i as usize]).collect();
        results.extend(apply(&mut builder, op, &operands, attributes).unwrap());
    }
    assert_eq!(builder.graph(), imported.graph);
    let plan = Plan::new(&builder.graph(), 1).unwrap();
    let used: Vec<String> = plan.inputs().iter().map(|port| port.name.clone()).collect();
    let mut session = CpuBackend::new(2)
        .unwrap()
        .open(vec![plan], u64::MAX)
        .unwrap();
    let known: Vec<String> = session
        .parameters()
        .into_iter()
        .map(|info| info.name)
        .collect();
    for (name, tensor) in imported
        .weights
        .iter()
        .filter(|(name, _)| known.contains(name))
    {
        session.upload(name, tensor).unwrap();
    }
    let feeds: Vec<(&str, &HostTensor)> = used
        .iter()
        .map(|name| (name.as_str(), &feeds[name]))
        .collect();
    session.run(0, 1, &feeds, &AtomicBool::new(false)).unwrap();
    let names = (0..imported.outputs.len()).map(|i| format!("output.{i}"));
    names
        .map(|name| session.output(0, &name).unwrap())
        .collect()
}

/// What became of a case: why it is not supported, or which outputs are wrong.
enum Outcome {
    Passed,
    Unsupported(String),
    Wrong(String),
}

fn check(case: &Path) -> Outcome {
    let model = Model::parse(&std::fs::read(case.join("model.onnx")).unwrap()).unwrap();
    let mut feeds = HashMap::new();
    for (name, tensor) in model.inputs().into_iter().zip(tensors(case, "input")) {
        match tensor {
            Ok(tensor) => drop(feeds.insert(name.to_owned(), tensor)),
            Err(why) => return Outcome::Unsupported(why.to_string()),
        }
    }
    // Some operators need operands, such as shapes, to be known; these are integers.
    let integers = feeds.iter().filter(|(_, t)| t.to_i64().is_some());
    let integers = integers
        .map(|(name, t)| (name.clone(), t.clone()))
        .collect();
    let empty = |t: &HostTensor| t.shape().contains(&0);
    let imported = match import(&model, &HashMap::new()) {
        Ok(imported) => Ok(imported),
        Err(Error::Operators(names)) => Err(Error::Operators(names)),
        Err(_) => import(&model, &integers).or_else(|_| import(&model, &feeds)),
    };
    let imported = match imported {
        Ok(imported) => imported,
        Err(why) => return Outcome::Unsupported(why.to_string()),
    };
    let expected = tensors(case, "output");
    if expected.iter().flatten().any(empty) {
        return Outcome::Unsupported("an output is empty".to_owned());
    }
    let got = run(&imported, &feeds);
    let rounded = ["fp16", "bf16", "float16"]
        .iter()
        .any(|kind| case.to_string_lossy().to_lowercase().contains(kind));
    let mut wrong = String::new();
    for ((port, got), expected) in imported.outputs.iter().zip(&got).zip(expected) {
        match expected {
            Err(why) => return Outcome::Unsupported(why.to_string()),
            Ok(expected) if agree(got, &expected, rounded) => {}
            Ok(expected) => {
                let show = |t: &HostTensor| {
                    let first: Vec<f64> = numbers(t).into_iter().take(12).collect();
                    format!("{:?} {first:?}", t.shape())
                };
                wrong += &format!("{}: {} not {}; ", port.name, show(got), show(&expected));
            }
        }
    }
    if wrong.is_empty() {
        Outcome::Passed
    } else {
        Outcome::Wrong(wrong)
    }
}

#[test]
#[ignore = "`cargo xtask onnx` makes the cases"]
fn onnx_node_cases_that_are_imported_give_their_outputs() {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder().join("node"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    let (mut passed, mut wrong) = (0, Vec::new());
    let mut unsupported: BTreeMap<String, usize> = BTreeMap::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        match check(case) {
            Outcome::Passed => passed += 1,
            Outcome::Wrong(why) => wrong.push(format!("{name}: {why}")),
            Outcome::Unsupported(why) => {
                if std::env::var_os("HANGAR_ONNX_SHOW").is_some() {
                    println!("{name}: {why}");
                }
                *unsupported.entry(why).or_default() += 1;
            }
        }
    }
    println!("{passed} of {} cases pass", cases.len());
    for (why, count) in unsupported {
        println!("{count} unsupported: {why}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(passed >= LEAST_PASSED, "only {passed} pass");
}

/// The inputs of a model as ONNX's runner makes them for its light models: i/n for element i of n.
fn ramps(imported: &Imported) -> HashMap<String, HostTensor> {
    let tensor = |port: &onnx::Port| {
        let shape: Vec<usize> = port.dims.iter().map(|d| d.at(1) as usize).collect();
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|i| i as f32 / count as f32).collect();
        HostTensor::from_f32(&shape, &values).unwrap()
    };
    let ports = imported.inputs.iter();
    ports
        .map(|port| (port.name.clone(), tensor(port)))
        .collect()
}

#[test]
#[ignore = "`cargo xtask onnx` makes the cases"]
fn onnx_light_models_give_their_outputs() {
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder().join("light"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "onnx"))
        .collect();
    models.sort();
    assert_eq!(models.len(), 9);
    for path in models {
        let model = Model::parse(&std::fs::read(&path).unwrap()).unwrap();
        let imported = import(&model, &HashMap::new());
        let imported = imported.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let got = run(&imported, &ramps(&imported));
        let expected = path.with_file_name(format!(
            "{}_output_0.pb",
            path.file_stem().unwrap().to_string_lossy()
        ));
        let expected = parse_tensor(&std::fs::read(expected).unwrap()).unwrap();
        assert!(agree(&got[0], &expected, false), "{}", path.display());
    }
}

/// Every model with bytes changed at random, so many times.
const MUTANTS: u64 = 40;

#[test]
#[ignore = "`cargo xtask onnx` makes the cases"]
fn no_bytes_make_the_importer_panic() {
    let mut panicked = Vec::new();
    for case in std::fs::read_dir(folder().join("node")).unwrap() {
        let case = case.unwrap().path();
        let bytes = std::fs::read(case.join("model.onnx")).unwrap();
        let integers: HashMap<String, HostTensor> = match Model::parse(&bytes) {
            Ok(model) => model
                .inputs()
                .into_iter()
                .zip(tensors(&case, "input"))
                .filter_map(|(name, tensor)| Some((name.to_owned(), tensor.ok()?)))
                .collect(),
            Err(_) => HashMap::new(),
        };
        for mutant in 0..MUTANTS {
            let mut changed = bytes.clone();
            for change in 0..=mutant % 4 {
                let key =
                    compute::random::splitmix64(mutant << 32 | change << 24 | bytes.len() as u64);
                let at = key as usize % changed.len();
                // Small numbers are sizes and axes more often.
                changed[at] = match key >> 60 {
                    0..8 => (key >> 32) as u8 % 8,
                    8..12 => changed[at] ^ 1,
                    _ => (key >> 40) as u8,
                };
            }
            let Ok(model) = Model::parse(&changed) else {
                continue;
            };
            for known in [&HashMap::new(), &integers] {
                if std::panic::catch_unwind(|| drop(import(&model, known))).is_err() {
                    panicked.push(format!("{} mutant {mutant}", case.display()));
                }
            }
        }
    }
    assert!(panicked.is_empty(), "{}", panicked.join("\n"));
}
