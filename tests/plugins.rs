//! Plugins of others: those that misbehave, new ones, and ones of older releases.

use std::process::Command;

use crate::{Home, json, root};

#[test]
fn a_plugin_that_misbehaves_ends_alone() {
    let guests = root().join("tests/guests/target/wasm32-wasip2/release/examples");
    let wav = "tests/data/spoken-digits/test/0_george_0.wav";
    let misbehaves = |guest: &str, code: &str| {
        let home = Home::empty();
        home.add(&guests.join(format!("{guest}.wasm")));
        let plugins = json(&home.hangar(&["--json", "plugins"]).output().unwrap());
        let name = plugins[0]["plugin"]["description"]["name"]
            .as_str()
            .unwrap()
            .to_owned();
        let record = json(
            &home
                .hangar(&["--json", "run", &name, "train", "--data", wav])
                .output()
                .unwrap(),
        );
        assert_eq!(
            record["error_code"].as_str().unwrap_or(""),
            code,
            "{guest}: {record}"
        );
    };
    std::thread::scope(|scope| {
        // This one takes as long as a plugin may compute in silence.
        scope.spawn(|| misbehaves("run_spins", "plugin.time"));
        for (guest, code) in [
            ("run_panics", "plugin.trap"),
            ("run_recurses", "plugin.trap"),
            ("run_allocates", "plugin.memory"),
            ("run_huge_list", "plugin.memory"),
            ("run_floods_handles", "plugin.failed"),
            ("run_floods_log", ""),
            ("data_ungranted", ""),
            ("devices_drops_lease", ""),
            ("devices_unknown", ""),
            ("storage_traversal", ""),
            ("graph_wrong_values", ""),
        ] {
            misbehaves(guest, code);
        }
    });
    for guest in ["describe_bad_json", "describe_spins"] {
        let home = Home::new();
        home.add(&guests.join(format!("{guest}.wasm")));
        let output = home.hangar(&["plugins"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains(guest));
        assert!(String::from_utf8_lossy(&output.stdout).contains("digits 0.1.0"));
    }
}

#[test]
fn a_new_project_builds_and_its_plugin_loads() {
    let home = Home::empty();
    let work = home.folder.path();
    let made = home
        .hangar(&["new", "my-plugin"])
        .current_dir(work)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let again = home
        .hangar(&["new", "my-plugin"])
        .current_dir(work)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("cannot make the folder my-plugin"));
    assert!(home.refused(&["new", "../x"]).contains("is no plugin name"));
    let mut cargo = Command::new(env!("CARGO"));
    // Where its dependencies' macros are compiled already.
    let target = root().join("tests/guests/target");
    cargo
        .current_dir(work.join("my-plugin"))
        .env("CARGO_TARGET_DIR", &target)
        .args(["build", "--release", "--target", "wasm32-wasip2"]);
    assert!(cargo.status().unwrap().success());
    home.add(&target.join("wasm32-wasip2/release/my_plugin.wasm"));
    let listed = home.hangar(&["plugins"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains("my-plugin"),
        "{listed:?}"
    );
}

#[test]
fn the_first_plugins_of_the_contract_still_link_and_run() {
    let home = Home::empty();
    for file in ["digits.wasm", "spoken_digits.wasm"] {
        home.add(&root().join("tests/fixtures/plugins-0.1.0").join(file));
    }
    let results = home.folder.path().join("results");
    for (plugin, data, epochs) in [
        ("digits", "tests/data/mnist10k", "epochs=1"),
        ("spoken-digits", "tests/data/spoken-digits", "epochs=1"),
    ] {
        let train = [
            "--json", "run", plugin, "train", "--data", data, "--param", epochs, "--output",
        ];
        let record = json(&home.hangar(&train).arg(&results).output().unwrap());
        assert_eq!(record["state"], "completed", "{record}");
        let infer = [
            "--json",
            "run",
            plugin,
            "infer",
            "--data",
            data,
            "--weights",
        ];
        let weights = results.join("last.safetensors");
        let record = json(&home.hangar(&infer).arg(weights).output().unwrap());
        assert_eq!(record["state"], "completed", "{record}");
    }
}
