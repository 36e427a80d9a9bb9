//! Which modules of a crate may use which: ARCHITECTURE.md's direction, held by name.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A module, and the modules that it may use.
type Module = (&'static str, &'static [&'static str]);

/// What every module of a crate may use besides.
type Crate = (&'static str, &'static [&'static str], &'static [Module]);

const CRATES: &[Crate] = &[
    (
        "host/compute",
        &["dtype", "error", "graph", "shape"],
        &[
            ("dtype", &[]),
            ("random", &[]),
            ("walk", &[]),
            ("error", &[]),
            ("shape", &[]),
            ("initializer", &["random"]),
            ("tensor", &[]),
            ("schedule", &[]),
            ("graph", &["initializer", "ops"]),
            // Operators are the builder's methods; gradients are made of them.
            ("ops", &["builder", "random"]),
            ("builder", &["initializer", "ops", "passes"]),
            // What is constant is computed by a plan of its own on the processor.
            ("passes", &["backend", "builder", "cpu", "ops", "plan"]),
            // A plan tells what each backend needs besides.
            (
                "plan",
                &["builder", "cpu", "cuda", "ops", "passes", "random"],
            ),
            ("backend", &["plan", "schedule", "tensor"]),
            ("opening", &["backend", "plan", "tensor"]),
            // The backends, which do not know each other.
            (
                "cpu",
                &[
                    "backend", "opening", "ops", "passes", "plan", "schedule", "tensor", "walk",
                ],
            ),
            (
                "cuda",
                &[
                    "backend", "opening", "passes", "ops", "plan", "schedule", "tensor", "walk",
                ],
            ),
            // Several of either, which it knows as backends.
            (
                "replicas",
                &[
                    "backend", "builder", "cpu", "opening", "passes", "plan", "schedule", "tensor",
                ],
            ),
            // Tests alone.
            (
                "conformance",
                &[
                    "backend", "builder", "cpu", "cuda", "ops", "passes", "plan", "random",
                    "schedule", "tensor",
                ],
            ),
        ],
    ),
    (
        "host/data",
        &["error"],
        &[
            ("error", &[]),
            ("random", &[]),
            ("idx", &["image"]),
            ("wav", &[]),
            ("weights", &[]),
            ("image", &[]),
            ("folder", &["image"]),
            // A data set reads samples, and a transform is of a kind of data set.
            (
                "dataset",
                &["folder", "idx", "image", "random", "transform", "wav"],
            ),
            ("transform", &["dataset", "image", "random"]),
            ("loader", &["dataset", "random", "transform"]),
            ("fingerprint", &["dataset"]),
        ],
    ),
    (
        "host/devices",
        &[],
        &[
            ("gpu", &[]),
            ("selector", &[]),
            ("visible", &[]),
            ("nvml", &["gpu", "visible"]),
            ("history", &["gpu"]),
            ("monitor", &["gpu", "nvml"]),
            ("gang", &["gpu"]),
            ("heat", &[]),
            ("health", &["gpu", "ledger"]),
            ("policy", &[]),
            ("memory", &[]),
            ("queue", &[]),
            ("request", &["policy", "queue", "selector"]),
            ("pool", &["policy", "request", "selector"]),
            (
                "ledger",
                &[
                    "gpu", "heat", "memory", "policy", "pool", "queue", "request", "selector",
                ],
            ),
            (
                "scheduler",
                &[
                    "gang", "gpu", "ledger", "policy", "pool", "queue", "request", "selector",
                ],
            ),
            (
                "allocator",
                &[
                    "ledger",
                    "policy",
                    "pool",
                    "request",
                    "scheduler",
                    "selector",
                ],
            ),
        ],
    ),
    (
        "host/onnx",
        &["error"],
        &[
            ("error", &[]),
            ("proto", &[]),
            ("tensor", &["proto"]),
            ("calls", &[]),
            ("graph", &["calls"]),
            // A node of the model is what operators are converted from.
            ("operators", &["graph", "import", "proto", "tensor"]),
            (
                "import",
                &["calls", "graph", "operators", "proto", "tensor"],
            ),
        ],
    ),
    (
        "host",
        &[],
        &[
            ("address", &[]),
            ("client", &[]),
            ("output", &[]),
            ("processor", &[]),
            ("program", &[]),
            // The worker runs plugins; plugins tell their worker, by its protocol.
            ("plugins", &["output", "program", "worker"]),
            ("worker", &["output", "plugins", "program"]),
            ("settings", &[]),
            ("machine", &["settings", "worker"]),
            // A task is resumed from a checkpoint, as plugins write it.
            ("tasks", &["machine", "output", "plugins", "worker"]),
            ("inputs", &["tasks"]),
            (
                "http",
                &["inputs", "machine", "plugins", "processor", "tasks"],
            ),
            (
                "cli",
                &[
                    "address", "client", "http", "inputs", "machine", "output", "plugins",
                    "settings", "tasks", "worker",
                ],
            ),
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files of a module, which is a file or a folder.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let rust = |path: &PathBuf| path.is_dir() || path.extension().is_some_and(|e| e == "rs");
    paths.filter(rust).flat_map(|path| files(&path)).collect()
}

/// The modules that a text names after `crate::`, with those of a list in braces; what its tests use is
/// free.
fn used(text: &str) -> BTreeSet<String> {
    let name = |text: &str| -> String {
        let end = text.find(|c: char| !(c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()));
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let text = text.split("#[cfg(test)]\nmod tests {").next();
    let code = text
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code = code.collect::<Vec<_>>().join("\n");
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => {
                names.insert(name(after));
            }
            Some(list) => {
                let (mut depth, mut item) = (0, String::new());
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            names.insert(name(std::mem::take(&mut item).trim()));
                        }
                        _ => {}
                    }
                    if c != ',' {
                        item.push(c);
                    }
                }
                names.insert(name(item.trim()));
            }
        }
    }
    names.remove("");
    names
}

#[test]
fn modules_use_only_what_they_may() {
    let mut wrong = Vec::new();
    for (folder, all, modules) in CRATES {
        let source = root().join(folder).join("src");
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(&source).unwrap() {
            let path = entry.unwrap().path();
            let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if module == "lib" || module == "main" {
                continue;
            }
            let Some((_, allowed)) = modules.iter().find(|(name, _)| *name == module) else {
                wrong.push(format!(
                    "{folder}: the module `{module}` is not in the table"
                ));
                continue;
            };
            for file in files(&path) {
                let text = std::fs::read_to_string(&file).unwrap();
                for name in used(&text) {
                    let known = modules.iter().any(|(module, _)| *module == name);
                    let fine = name == module || all.contains(&&*name) || allowed.contains(&&*name);
                    if known && !fine {
                        wrong.push(format!("{}: `{module}` uses `{name}`", file.display()));
                    }
                }
            }
            found.insert(module);
        }
        for (module, _) in modules
            .iter()
            .filter(|(module, _)| !found.contains(*module))
        {
            wrong.push(format!("{folder}: there is no module `{module}`"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_are_found_alone_and_in_lists() {
    let text = "use crate::a::B;\n// crate::no\nuse crate::{c::{D, e::F}, g};\nlet x = crate::h();";
    let expected = ["a", "c", "g", "h"].map(String::from);
    assert_eq!(used(text), BTreeSet::from(expected));
}
