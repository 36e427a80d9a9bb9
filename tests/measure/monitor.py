#!/usr/bin/env python3
"""Measures the processor time that watching 16 simulated GPUs takes of `hangar serve`, which samples each
every second, after `cargo xtask test` has built everything.

Prints the time of the threads that sample (all `nvml…` and `monitor`) and of the whole process, each as a
share of one core, over SECONDS (30).
"""
import os, pathlib, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
GPUS = 16


def spent(pid):
    """ns on a processor by thread name (proc(5), schedstat)."""
    times = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        ran = int((task / "schedstat").read_text().split()[0])
        times[name] = times.get(name, 0) + ran
    return times


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30
    machine, state = tempfile.TemporaryDirectory(), tempfile.TemporaryDirectory()
    folder = pathlib.Path(machine.name)
    (folder / "libnvidia-ml.so.1").symlink_to(ROOT / "target/release/libfakedriver.so")
    (folder / "machine.toml").write_text('[[gpu]]\nprofile = "h100"\n' * GPUS)
    command = [ROOT / "target/release/hangar", "--plugins", ROOT / "dist/plugins",
               "--state", state.name, "serve", "--listen", "127.0.0.1:0"]
    environment = dict(os.environ, LD_LIBRARY_PATH=machine.name)
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    next(line for line in server.stderr if "listening" in line)
    time.sleep(5)  # probes and plugins
    before, begun = spent(server.pid), time.monotonic()
    time.sleep(seconds)
    after, took = spent(server.pid), time.monotonic() - begun
    server.terminate()
    server.wait()
    differences = {name: after[name] - before.get(name, 0) for name in after}
    sampling = sum(ns for name, ns in differences.items() if name.startswith(("nvml", "monitor")))
    for what, ns in [("threads that sample", sampling), ("the whole process", sum(differences.values()))]:
        print(f"{what}: {ns / took / 1e7:.3f} % of a core")


if __name__ == "__main__":
    main()
