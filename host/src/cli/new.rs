//! `hangar new NAME`: a plugin project that builds, with the SDK and the contract inside.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};

use crate::output;

include!("../../../plugins/template/files.rs");

/// Writes the project into a folder of the name, which must not exist.
pub(super) fn new(name: &str) -> anyhow::Result<ExitCode> {
    let valid = name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(
        valid,
        "`{name}` is no plugin name: lower-case letters, digits and `-`, a letter first"
    );
    let folder = Path::new(name);
    std::fs::create_dir(folder).with_context(|| format!("cannot make the folder {name}"))?;
    for (file, content) in FILES {
        let path = folder.join(file);
        let write = || -> std::io::Result<()> {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&path, content.replace("{{name}}", name))
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::data(format_args!(
        "wrote {name}/; build it with\n  cd {name} && cargo build --release --target wasm32-wasip2"
    ))?;
    Ok(ExitCode::SUCCESS)
}
