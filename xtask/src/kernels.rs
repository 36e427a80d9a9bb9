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

/// Compiles all sources for all GPUs, on all cores: what each kernel takes, by the GPU's place in
/// [`ARCHITECTURES`].
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
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(&(source, column)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let kernels = measure(nvcc, source, ARCHITECTURES[column])?;
            found.extend(
                kernels
                    .into_iter()
                    .map(|(name, usage)| (name, column, usage)),
            );
        }
        anyhow::Ok(found)
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut uses: BTreeMap<String, BTreeMap<usize, Use>> = BTreeMap::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let found = worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for (name, column, usage) in found {
                uses.entry(name).or_default().insert(column, usage);
            }
        }
        Ok(uses)
    })
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

/// Writes a file, or with `check` compares it with what is there.
fn settle(path: &Path, text: &str, check: bool) -> anyhow::Result<()> {
    if !check {
        return Ok(std::fs::write(path, text)?);
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    if there != text {
        bail!(
            "{} is not what its sources give: run `cargo xtask kernels`",
            path.display()
        );
    }
    Ok(())
}

/// Compiles every kernel: PTX beside the sources, and docs/kernels.md.
pub(crate) fn kernels(root: &Path, check: bool) -> anyhow::Result<()> {
    let nvcc = compiler(root)?;
    let folder = root.join("host/compute/src/cuda/kernels");
    let mut sources: Vec<PathBuf> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let built = root.join("target/kernel.ptx");
    for source in &sources {
        let mut compile = Command::new(&nvcc);
        compile
            .arg(format!("-arch={PTX_TARGET}"))
            .args(["-ptx", "-o"]);
        super::run(compile.arg(&built).arg(source))?;
        let name = source.file_stem().context("a source has a name")?;
        let target = folder.join("ptx").join(name).with_extension("ptx");
        settle(&target, &std::fs::read_to_string(&built)?, check)?;
    }
    let uses = measure_all(&nvcc, &sources)?;
    settle(&root.join("docs/kernels.md"), &page(&uses)?, check)?;
    println!("{} kernels of {} sources", uses.len(), sources.len());
    Ok(())
}
