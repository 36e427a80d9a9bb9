//! The project template carries all of the SDK and the contract.

use std::path::Path;

include!("../../template/files.rs");

#[test]
fn the_template_holds_every_file_of_the_sdk_and_the_contract() {
    for folder in ["src", "src/models", "wit"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        for entry in entries.filter(|entry| entry.path().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            let file = format!("hangar-sdk/{folder}/{name}");
            assert!(
                FILES.iter().any(|(path, _)| *path == file),
                "{file} is not in files.rs"
            );
        }
    }
}

#[test]
fn the_name_stands_in_the_manifest_and_the_source_and_nowhere_in_the_sdk() {
    for (path, content) in FILES {
        let named = content.contains("{{name}}");
        match *path {
            "Cargo.toml" | "src/lib.rs" | "README.md" => assert!(named, "{path} lacks the name"),
            _ => assert!(!named, "{path} has a placeholder"),
        }
    }
}
