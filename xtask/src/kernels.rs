//! `cargo xtask kernels`: PTX of the CUDA kernels, and what they take on every GPU that we claim.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};

/// nvcc and what it needs, of one release: others emit PTX that older drivers refuse.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];
/// The PTX that is shipped: the oldest GPU that is supported, which all newer ones run.
const PTX_TARGET: &str = "compute_75";
const ARCHITECTURES: [&str; 7] = ["75", "80", "86", "89", "90", "100", "120"];

/// Installs the pinned compiler under `target/` where it is not there yet.
fn compiler(root: &Path) -> anyhow::Result<PathBuf> {
    let folder = root.join("target/nvcc-13.0.88");
    let nvcc = folder.join("nvidia/cu13/bin/nvcc");
    if !nvcc.exists() {
        let aside = folder.with_extension("part");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]);
        super::run(pip.arg(&aside).args(PACKAGES)).context("nvcc comes from PyPI, through pip")?;
        std::fs::rename(&aside, &folder)?;
    }
    Ok(nvcc)
}

/// What ptxas tells of one kernel on one GPU.
#[derive(Default, Clone)]
struct Use {
    registers: u32,
    spilled_bytes: u32,
    shared_bytes: u32,
}

/// The number before `unit` in a line of ptxas.
fn number(line: &str, unit: &str) -> u32 {
    let before = line.split(unit).next().unwrap_or_default();
    let last = before.trim_end().rsplit([' ', ',']).next();
    last.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Compiles a source for one GPU: its kernels by name, and what they take.
fn measure(nvcc: &Path, source: &Path, architecture: &str) -> anyhow::Result<Vec<(String, Use)>> {
    let output = Command::new(nvcc)
        .arg(format!("-arch=sm_{architecture}"))
        .args(["-cubin", "-Xptxas", "-v", "-o", "/dev/null"])
        .arg(source)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} for sm_{architecture}: {text}", source.display());
    }
    let mut kernels = Vec::new();
    let mut current: Option<(String, Use)> = None;
    for line in text.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default();
            current = Some((name.to_owned(), Use::default()));
        } else if let Some((_, usage)) = current.as_mut().filter(|_| line.contains("spill stores"))
        {
            usage.spilled_bytes = number(line, " bytes spill stores");
        } else if line.contains("Used ")
            && line.contains(" registers")
            && let Some((name, mut usage)) = current.take()
        {
            usage.registers = number(line, " registers");
            usage.shared_bytes = if line.contains(" bytes smem") {
                number(line, " bytes smem")
            } else {
                0
            };
            kernels.push((name, usage));
        }
    }
    Ok(kernels)
}

/// Does all jobs, on all cores.
fn on_all_cores<J: Sync, R: Send>(
    jobs: &[J],
    work: impl Fn(&J) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(work(job)?);
        }
        anyhow::Ok(done)
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            let done = worker.join();
            all.extend(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Compiles all sources for all GPUs: what each kernel takes, by the GPU's place in [`ARCHITECTURES`].
fn measure_all(
    nvcc: &Path,
    sources: &[PathBuf],
) -> anyhow::Result<BTreeMap<String, BTreeMap<usize, Use>>> {
    let columns = 0..ARCHITECTURES.len();
    let jobs: Vec<(&Path, usize)> = sources
        .iter()
        .flat_map(|source| {
            columns
                .clone()
                .map(move |column| (source.as_path(), column))
        })
        .collect();
    let measured = on_all_cores(&jobs, |&(source, column)| {
        Ok((column, measure(nvcc, source, ARCHITECTURES[column])?))
    })?;
    let mut uses: BTreeMap<String, BTreeMap<usize, Use>> = BTreeMap::new();
    for (column, kernels) in measured {
        for (name, usage) in kernels {
            uses.entry(name).or_default().insert(column, usage);
        }
    }
    Ok(uses)
}

/// The PTX of a source, by way of a file in `folder`.
fn ptx(nvcc: &Path, folder: &Path, source: &Path) -> anyhow::Result<String> {
    let name = source.file_stem().context("a source has a name")?;
    let built = folder.join(name).with_extension("ptx");
    let mut compile = Command::new(nvcc);
    compile
        .arg(format!("-arch={PTX_TARGET}"))
        .args(["-ptx", "-o"]);
    super::run(compile.arg(&built).arg(source))?;
    Ok(std::fs::read_to_string(&built)?)
}

/// The page of figures.
fn page(kernels: &BTreeMap<String, BTreeMap<usize, Use>>) -> anyhow::Result<String> {
    let mut text = String::from(
        "# CUDA kernels on every GPU\n\n\
         Registers a thread, by ptxas 13.0.88 for each compute capability; spilled bytes follow after \
         a slash where there are any. Shared memory is that of a block, in bytes. The shipped PTX is \
         for 7.5, which drivers compile for newer GPUs. Written by `cargo xtask kernels`.\n\n| kernel |",
    );
    for architecture in ARCHITECTURES {
        let (major, minor) = architecture.split_at(architecture.len() - 1);
        write!(text, " {major}.{minor} |")?;
    }
    text.push_str(" shared |\n|---|");
    text.push_str(&"---|".repeat(ARCHITECTURES.len() + 1));
    text.push('\n');
    for (name, uses) in kernels {
        write!(text, "| `{name}` |")?;
        for usage in uses.values() {
            match usage.spilled_bytes {
                0 => write!(text, " {} |", usage.registers)?,
                spilled => write!(text, " {} / {spilled} |", usage.registers)?,
            }
        }
        let shared = uses
            .values()
            .map(|usage| usage.shared_bytes)
            .max()
            .unwrap_or(0);
        writeln!(text, " {shared} |")?;
    }
    Ok(text)
}

/// Compiles every kernel: PTX beside the sources, and docs/kernels.md, whose figures follow from the
/// same sources and compiler. With `check` only compares the PTX with what is there.
pub(crate) fn kernels(root: &Path, check: bool) -> anyhow::Result<()> {
    let nvcc = compiler(root)?;
    let folder = root.join("host/compute/src/cuda/kernels");
    let mut sources: Vec<PathBuf> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let built = root.join("target/kernels");
    std::fs::create_dir_all(&built)?;
    on_all_cores(&sources, |source| {
        let text = ptx(&nvcc, &built, source)?;
        let name = source.file_stem().context("a source has a name")?;
        let target = folder.join("ptx").join(name).with_extension("ptx");
        if !check {
            return Ok(std::fs::write(target, text)?);
        }
        if std::fs::read_to_string(&target).unwrap_or_default() != text {
            bail!(
                "{} is not what its source gives: run `cargo xtask kernels`",
                target.display()
            );
        }
        Ok(())
    })?;
    if !check {
        let uses = measure_all(&nvcc, &sources)?;
        std::fs::write(root.join("docs/kernels.md"), page(&uses)?)?;
    }
    println!("{} sources of kernels", sources.len());
    Ok(())
}
