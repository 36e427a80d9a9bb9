//! The project's chores: `cargo xtask demo`, `build`, `test [--full]`, `kernels [--check]`, `onnx`,
//! `fuzz [SECONDS]`.

mod fuzz;
mod kernels;
mod onnx;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

const TARGET: &str = "wasm32-wasip2";
const USAGE: &str = "usage: cargo xtask COMMAND

  build          the release binary and every plugin, into dist/
  demo           build, then train and run the plugin `digits` on real data
  test [--full]  every test that needs only rustup and C and C++ compilers; --full runs the full counts of
                 long tests
  kernels [--check]
                 the CUDA kernels' PTX and docs/kernels.md, with nvcc from PyPI; --check only compares the PTX
  onnx           ONNX's own test cases, with its package from PyPI
  fuzz [SECONDS] every fuzz target, 60 seconds in all or as many as said";

fn main() -> ExitCode {
    if let Some(arguments) = fuzz::as_compiler() {
        return match fuzz::compile(&arguments) {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => fail(&error),
        };
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match &*arguments {
        ["build"] => build(),
        ["demo"] => demo(),
        ["test"] => test(false),
        ["test", "--full"] => test(true),
        ["kernels"] => kernels::kernels(&root(), false),
        ["onnx"] => onnx::onnx(&root()),
        ["fuzz"] => fuzz::fuzz(&root(), 60),
        ["fuzz", seconds] => match seconds.parse() {
            Ok(seconds) => fuzz::fuzz(&root(), seconds),
            Err(error) => {
                Err(error).with_context(|| format!("`{seconds}` is no number of seconds"))
            }
        },
        ["kernels", "--check"] => kernels::kernels(&root(), true),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo sets for this program is not meant for the one it starts.
    command.current_dir(folder).env_remove("CARGO_MANIFEST_DIR");
    command
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Adds the target of plugins to the toolchain where it is missing.
fn add_target() -> anyhow::Result<()> {
    let root = root();
    let libraries = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(&root)
        .output()
        .context("cannot start rustc: install Rust from https://rustup.rs")?;
    let folder = String::from_utf8_lossy(&libraries.stdout).trim().to_owned();
    if libraries.status.success() && Path::new(&folder).is_dir() {
        return Ok(());
    }
    run(Command::new("rustup")
        .args(["target", "add", TARGET])
        .current_dir(root))
    .with_context(|| format!("plugins need the target {TARGET}"))
}

/// Builds every plugin, and copies what is built into `dist/plugins`.
fn build_plugins() -> anyhow::Result<()> {
    add_target()?;
    let folder = root().join("plugins");
    run(cargo(&folder).args(["build", "--release", "--locked", "--target", TARGET]))?;
    let built = folder.join("target").join(TARGET).join("release");
    let dist = root().join("dist/plugins");
    std::fs::create_dir_all(&dist)?;
    for entry in std::fs::read_dir(built)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "wasm")
        {
            let name = path.file_name().context("a plugin's file has a name")?;
            std::fs::copy(&path, dist.join(name))?;
        }
    }
    Ok(())
}

fn build() -> anyhow::Result<()> {
    build_plugins()?;
    let root = root();
    run(cargo(&root).args(["build", "--release", "--locked", "--package", "hangar"]))?;
    std::fs::create_dir_all(root.join("dist"))?;
    std::fs::copy(root.join("target/release/hangar"), root.join("dist/hangar"))?;
    println!("built dist/hangar and dist/plugins");
    Ok(())
}

fn demo() -> anyhow::Result<()> {
    build()?;
    let root = root();
    let state = root.join("dist/state");
    let results = state.join("demo");
    let hangar = |arguments: &[&str]| {
        let mut command = Command::new(root.join("dist/hangar"));
        command
            .current_dir(&root)
            .arg("--plugins")
            .arg(root.join("dist/plugins"));
        command.arg("--state").arg(&state).args(arguments);
        command
    };
    run(&mut hangar(&["gpus"]))?;
    let data = "tests/data/mnist10k";
    println!("training `digits` on {data}");
    let train = [
        "run", "digits", "train", "--data", data, "--param", "epochs=5", "--output",
    ];
    run(hangar(&train).arg(&results))?;
    println!("running the trained model on images it has not seen");
    let infer = ["run", "digits", "infer", "--data", data, "--weights"];
    run(hangar(&infer).arg(results.join("best.safetensors")))
}

fn test(full: bool) -> anyhow::Result<()> {
    build_plugins()?;
    let root = root();
    run(cargo(&root.join("plugins")).args(["test", "--release", "--locked"]))?;
    let guests = root.join("tests/guests");
    run(cargo(&guests).args([
        "build",
        "--release",
        "--locked",
        "--examples",
        "--target",
        TARGET,
    ]))?;
    // The simulated machine is a library that no test links: it is built before they run.
    run(cargo(&root).args(["build", "--release", "--locked", "--package", "fake-driver"]))?;
    let nextest = cargo(&root).args(["nextest", "--version"]).output();
    let nextest = nextest.is_ok_and(|output| output.status.success());
    let mut tests = cargo(&root);
    tests.args(if nextest {
        &["nextest", "run"][..]
    } else {
        &["test"]
    });
    // `--tests` leaves the examples, which have none.
    tests.args(["--workspace", "--locked", "--release", "--tests"]);
    if full {
        tests.env("HANGAR_TESTS", "full");
    }
    run(&mut tests)?;
    run(cargo(&root).args(["test", "--workspace", "--locked", "--release", "--doc"]))
}
