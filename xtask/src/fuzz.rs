//! `cargo xtask fuzz`: the targets in `fuzz/`, each for a while.
//!
//! libFuzzer runs them on the stable toolchain: the code is instrumented by LLVM's pass for coverage,
//! as `cargo fuzz` does it, without a sanitizer. Only the project's crates are: this program stands in
//! for the compiler, as cargo's `RUSTC_WRAPPER`, and adds the flags to them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, bail};

use crate::{cargo, run};

/// What is looked at.
const CRATES: [&str; 4] = ["fuzz", "compute", "data", "onnx"];
/// Coverage as libFuzzer wants it.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Memory that a target may take, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Seconds that one input may take.
const INPUT_SECONDS: u32 = 20;

/// The compiler and its arguments, where cargo started this program in its place.
pub(crate) fn as_compiler() -> Option<Vec<OsString>> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let compiler = Path::new(arguments.first()?);
    (compiler.file_stem()? == "rustc").then_some(arguments)
}

/// Runs the compiler, with the flags for what is looked at.
pub(crate) fn compile(arguments: &[OsString]) -> anyhow::Result<ExitStatus> {
    let (compiler, rest) = arguments.split_first().context("no compiler is named")?;
    let named = rest.windows(2).find(|pair| pair[0] == "--crate-name");
    let own = named.is_some_and(|pair| CRATES.iter().any(|name| pair[1] == *name));
    let mut command = Command::new(compiler);
    command.args(rest);
    if own {
        command.args(FLAGS);
    }
    command.status().context("cannot start rustc")
}

/// Runs every target for so many seconds in all, from the same seeds in the same order.
pub(crate) fn fuzz(root: &Path, seconds: u32) -> anyhow::Result<()> {
    let folder = root.join("fuzz");
    let target = root.join("target");
    // The versions that are shipped; libFuzzer is added to them.
    std::fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    run(cargo(&folder)
        .env("RUSTC_WRAPPER", std::env::current_exe()?)
        .args(["build", "--release", "--target-dir"])
        .arg(&target))?;
    let built = target.join("release");
    let corpus = empty(folder.join("corpus"))?;
    let seeds = Command::new(built.join("seeds"))
        .arg(&corpus)
        .output()
        .context("cannot start the program that writes the seeds")?;
    let targets = String::from_utf8_lossy(&seeds.stdout).into_owned();
    let targets: Vec<&str> = targets.lines().collect();
    if !seeds.status.success() || targets.is_empty() {
        bail!("the seeds cannot be written: {}", seeds.status);
    }
    let each = (seconds / targets.len() as u32).max(1);
    let artifacts = folder.join("artifacts");
    std::fs::create_dir_all(&artifacts)?;
    for target in targets {
        let mut command = Command::new(built.join(target));
        command
            .current_dir(&folder)
            .arg(corpus.join(target))
            .arg(format!(
                "-artifact_prefix={}/{target}-",
                artifacts.display()
            ))
            .arg(format!("-max_total_time={each}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .args(["-seed=1", "-max_len=8192", "-verbosity=0"])
            .arg("-print_final_stats=1");
        let output = command
            .output()
            .with_context(|| format!("cannot start {command:?}"))?;
        // What a target tells is long, and of use only where it failed.
        let told = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            eprint!("{told}");
            bail!(
                "{target} failed: {}; what it met is in {}: the program takes it as an argument",
                output.status,
                artifacts.display()
            );
        }
        let inputs = told
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        let inputs = inputs.context("a target tells how many inputs it took")?;
        println!("{target} took {} inputs in {each} s", inputs.trim());
    }
    Ok(())
}

/// The folder, without what was in it.
fn empty(folder: PathBuf) -> anyhow::Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
