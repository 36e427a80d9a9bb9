//! Whether a GPU can run tasks, and what a context costs there: found out by a process of its own,
//! as the host makes no context and must survive whatever a driver does.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use compute::builder::Conv2d;
use compute::cpu::CpuBackend;
use compute::cuda::{self, CudaBackend};
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Session};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::program;

/// A probe that takes longer is ended: a GPU that wakes up, and the first compilation of all
/// kernels for it, take some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time between two looks at a probe that runs.
const GLANCE: Duration = Duration::from_millis(10);
/// What a context is taken to cost where it cannot be measured.
const UNMEASURED_BYTES: u64 = 1 << 30;

/// How far a loss on a GPU may be from the CPU's, as a share of it.
const TOLERANCE: f64 = 1e-3;

/// How thoroughly a GPU is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Libraries, versions, compute capability: takes no memory of the GPU.
    Check,
    /// A context with all kernels as well, measured.
    Measure,
}

/// What was found of a GPU that can run tasks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What a context takes there.
    pub context_bytes: u64,
    /// Why nothing was computed there, where that is so.
    pub untested: Option<String>,
}

/// Sizes of the exercise's input.
const EXERCISE: [usize; 4] = [2, 8, 16, 16];

/// A training that uses every library, as they load much of themselves when first used.
fn exercise() -> Result<Plan, compute::Error> {
    let mut b = Builder::new();
    let x = b.input(
        "x",
        DType::F32,
        &EXERCISE.map(|size| Dim::Fixed(size as u64)),
    )?;
    let y = b.input("y", DType::I64, &[Dim::Fixed(2)])?;
    let filter = b.parameter("filter", &[8, 8, 3, 3], "torch-uniform", 0)?;
    let filter2 = b.parameter("filter2", &[8, 8, 3, 3], "torch-uniform", 0)?;
    let weight = b.parameter("weight", &[4, 8], "torch-uniform", 0)?;
    let padded = Conv2d {
        padding: (1, 1),
        ..Conv2d::default()
    };
    let hidden = b.conv2d(x, filter, None, padded)?;
    let hidden = b.conv2d(hidden, filter2, None, padded)?;
    let means = b.mean(hidden, &[2, 3], false)?;
    let logits = b.linear(means, weight, None)?;
    let loss = b.cross_entropy(logits, y, 0.0)?;
    let parameters = [filter, filter2, weight];
    let gradients = b.gradients(loss, &parameters)?;
    b.sgd(&parameters, &gradients, 0.0, false, 0.0)?;
    b.output("loss", loss)?;
    Plan::new(&b.graph(), 2)
}

/// The mean loss of a step of the exercise.
fn step(session: &mut dyn Session) -> Result<f64, compute::Error> {
    let x = HostTensor::from_f32(&EXERCISE, &[0.5; 2 * 8 * 16 * 16])?;
    let y = HostTensor::from_i64(&[2], &[0, 1])?;
    session.run(0, 2, &[("x", &x), ("y", &y)], &AtomicBool::new(false))?;
    session.mean(0, "loss")
}

/// What can be found of a GPU. Errors: why no task can run there.
fn find(uuid: &str, depth: Depth) -> Result<Finding, compute::Error> {
    if depth == Depth::Check {
        cuda::check(uuid)?;
        return Ok(Finding {
            context_bytes: 0,
            untested: None,
        });
    }
    let before = devices::memory_used(uuid);
    let backend = CudaBackend::new(uuid, "probe", cuda::Options::default())?;
    let mut session = backend.open(vec![exercise()?], u64::MAX)?;
    let loss = step(&mut *session)?;
    let after = devices::memory_used(uuid);
    let mut same = CpuBackend::new(1)?.open(vec![exercise()?], u64::MAX)?;
    let expected = step(&mut *same)?;
    if (loss - expected).abs() > TOLERANCE * expected.abs() {
        return Err(compute::Error::new(
            "device.wrong",
            format!("it computes wrong: a loss of {loss}, where the CPU has {expected}"),
        ));
    }
    let context_bytes = match (before, after) {
        (Ok(before), Ok(after)) if after > before + session.used_bytes() => {
            after - before - session.used_bytes()
        }
        _ => UNMEASURED_BYTES,
    };
    Ok(Finding {
        context_bytes,
        untested: None,
    })
}

/// The body of the probing process: prints what it finds.
pub fn run(uuid: &str, depth: Depth) -> ExitCode {
    let found = match find(uuid, depth) {
        Ok(finding) => Ok(finding),
        Err(error) if error.code() == "memory.exhausted" => Ok(Finding {
            context_bytes: UNMEASURED_BYTES,
            untested: Some("its memory is held by others, so that it cannot be tested".to_owned()),
        }),
        Err(error) => Err(error.to_string()),
    };
    answer(&found)
}

/// Prints what a process found, for [`ask`].
pub(super) fn answer<T: Serialize>(found: &Result<T, String>) -> ExitCode {
    match serde_json::to_string(found) {
        Ok(text) if crate::output::data(&text).is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Probes a GPU. Errors: why no task can run on it.
pub fn probe(uuid: &str, depth: Depth) -> Result<Finding, String> {
    let mut command = Command::new(program::PATH);
    program::environment(&mut command, &[uuid.to_owned()]).args(["probe", uuid]);
    if depth == Depth::Check {
        command.arg("--check");
    }
    ask(&mut command)
}

/// Runs a process of this program that looks at the driver: what it found. Errors: why it found nothing.
pub(super) fn ask<T: DeserializeOwned>(command: &mut Command) -> Result<T, String> {
    let child = command
        .arg0("hangar")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.map_err(|error| format!("the driver cannot be probed: {error}"))?;
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(GLANCE),
            _ => {
                let _ended_meanwhile = child.kill();
                let _reaped = child.wait();
                return Err(format!(
                    "the driver did not answer for {} s",
                    PATIENCE.as_secs()
                ));
            }
        }
    };
    let mut text = String::new();
    let read = child
        .stdout
        .take()
        .map(|mut out| out.read_to_string(&mut text));
    let found = match read {
        Some(Ok(_)) => serde_json::from_str::<Result<T, String>>(&text).ok(),
        _ => None,
    };
    found.unwrap_or_else(|| {
        Err(format!(
            "the driver ended the process that probed it ({status})"
        ))
    })
}
