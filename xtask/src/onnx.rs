//! `cargo xtask onnx`: the importer against ONNX's own test cases.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// The package that makes the cases, and what it needs.
const PACKAGES: [&str; 5] = [
    "onnx==1.23.0",
    "numpy==2.4.6",
    "protobuf==7.36.2",
    "ml_dtypes==0.6.0",
    "typing_extensions==4.16.0",
];

/// Makes the cases under `target/` where they are not there yet, and runs the tests that read them.
pub(crate) fn onnx(root: &Path) -> anyhow::Result<()> {
    let packages = root.join("target/onnx-1.23.0");
    if !packages.exists() {
        let aside = packages.with_extension("part");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
        super::run(pip.arg(&aside).args(PACKAGES)).context("onnx comes from PyPI, through pip")?;
        std::fs::rename(&aside, &packages)?;
    }
    let cases = packages.join("cases");
    if !cases.exists() {
        let aside = packages.join("part");
        let mut python = Command::new("python3");
        python
            .args(["-W", "ignore"])
            .arg(root.join("tests/onnx/cases.py"));
        super::run(python.arg(&aside).env("PYTHONPATH", &packages))?;
        std::fs::rename(&aside, &cases)?;
    }
    let mut tests = super::cargo(root);
    tests.args(["test", "--release", "--locked", "--package", "onnx"]);
    tests.args(["--", "--include-ignored"]);
    super::run(tests.env("HANGAR_ONNX", &cases))
}
