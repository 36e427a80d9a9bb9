//! Compiles the CUDA kernels as C++ against `shim/shim.h`, with a table of them by name.

#![allow(clippy::expect_used, reason = "a build fails by panicking")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    let kernels =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../host/compute/src/cuda/kernels");
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed={}", kernels.display());
    println!("cargo::rerun-if-changed={}", shim.display());
    let mut sources: Vec<PathBuf> = std::fs::read_dir(&kernels)
        .expect("the kernels are there")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    // Kernels that fail on purpose, for the tests of the simulated driver.
    sources.push(shim.join("faulty.cu"));
    sources.sort();
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .include(&shim)
        .include(&kernels)
        .warnings(false)
        .flag("-fno-strict-aliasing");
    let mut declared = String::new();
    let mut listed = String::new();
    for source in &sources {
        let stem = source
            .file_stem()
            .and_then(|stem| stem.to_str())
            .expect("names are ASCII");
        let text = std::fs::read_to_string(source).expect("a kernel file is text");
        let mut unit = format!(
            "#include \"shim.h\"\nnamespace {{\n#include \"{}\"\n}}\n",
            source.display()
        );
        for name in text.lines().filter_map(|line| line.strip_prefix("KERNEL ")) {
            let name = name.split('(').next().unwrap_or_default();
            let _ = writeln!(
                unit,
                "extern const FakeKernel fake_kernel_{name} = fake_entry(\"{name}\", launch<decltype(&{name}), &{name}>, &{name});"
            );
            let _ = writeln!(declared, "extern const FakeKernel fake_kernel_{name};");
            let _ = writeln!(listed, "    &fake_kernel_{name},");
        }
        let unit_path = out.join(format!("{stem}.cpp"));
        std::fs::write(&unit_path, unit).expect("OUT_DIR can be written");
        build.file(unit_path);
    }
    let table = format!(
        "#include \"shim.h\"\nFakeThread* fake_thread;\n{declared}static const FakeKernel* const kernels[] = {{\n{listed}    nullptr\n}};\n\
         extern \"C\" const FakeKernel* const* fake_kernels() {{ return kernels; }}\n"
    );
    let table_path = out.join("table.cpp");
    std::fs::write(&table_path, table).expect("OUT_DIR can be written");
    build.file(table_path).compile("fake_kernels");
}
