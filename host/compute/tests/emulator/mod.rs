//! Runs a test again in a process that sees a simulated NVIDIA machine: libraries are found through
//! the library path, which a process is given at its start.

use std::process::Command;

/// The GPU to test on: a real one where `HANGAR_TEST_GPU` names it by UUID, else the first simulated
/// one.
pub(crate) fn uuid() -> String {
    let simulated = || "GPU-00000000-0000-4000-8000-000000000001".to_owned();
    std::env::var(REAL).unwrap_or_else(|_| simulated())
}

const REAL: &str = "HANGAR_TEST_GPU";

/// Set in the processes that see the simulated machine.
const INSIDE: &str = "HANGAR_TEST_INSIDE";

/// The libraries that a driver and cuBLAS install.
pub(crate) const LIBRARIES: &[&str] = &["libcuda.so.1", "libcublasLt.so.13", "libnvidia-ml.so.1"];

/// Runs `body` in a process of its own for each order of a block's threads, on the machine of
/// `scenario`. `test` is the path of the test that calls this.
pub(crate) fn emulated(test: &str, orders: &[&str], scenario: &str, body: impl FnOnce()) {
    emulated_with(LIBRARIES, test, orders, scenario, body);
}

/// The same where only some libraries are installed.
pub(crate) fn emulated_with(
    libraries: &[&str],
    test: &str,
    orders: &[&str],
    scenario: &str,
    body: impl FnOnce(),
) {
    if [INSIDE, REAL]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
    {
        return body();
    }
    let own = std::env::current_exe().unwrap();
    let library = own.with_file_name("libfakedriver.so");
    assert!(library.exists(), "{} is not built", library.display());
    for order in orders {
        let folder = tempfile::tempdir().unwrap();
        for name in libraries {
            std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
        }
        let machine = format!("thread_order = \"{order}\"\n{scenario}");
        std::fs::write(folder.path().join("machine.toml"), machine).unwrap();
        let run = Command::new(&own)
            .args([test, "--exact", "--nocapture"])
            .env("LD_LIBRARY_PATH", folder.path())
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = [run.stdout, run.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let ran = text.contains("1 passed");
        assert!(
            run.status.success() && ran,
            "threads in order `{order}`:\n{text}"
        );
        println!("{text}");
    }
}
