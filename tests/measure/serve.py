#!/usr/bin/env python3
"""Measures `hangar serve` with 8 simulated GPUs, after `cargo xtask test` has built everything.

Prints the time from the start of the process to its word that it listens (the first start of a state
folder, which compiles the plugins, and the median of five more), the resident memory 3 s later, and
GET /api/v2/resources/gpu from one client on one connection for 4 s.
"""
import http.client, os, pathlib, statistics, subprocess, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    machine, state = tempfile.TemporaryDirectory(), tempfile.TemporaryDirectory()
    folder = pathlib.Path(machine.name)
    (folder / "libnvidia-ml.so.1").symlink_to(ROOT / "target/release/libfakedriver.so")
    (folder / "machine.toml").write_text('[[gpu]]\nprofile = "h100"\n' * 8)
    environment = dict(os.environ, LD_LIBRARY_PATH=machine.name)
    command = [ROOT / "target/release/hangar", "--plugins", ROOT / "dist/plugins",
               "--state", state.name, "serve", "--listen", "127.0.0.1:0"]
    starts = []
    for run in range(6):
        begun = time.monotonic()
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        line = next(line for line in server.stderr if "listening" in line)
        starts.append((time.monotonic() - begun) * 1e3)
        if run == 5:
            time.sleep(3)
            status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
            print(next(text for text in status.splitlines() if text.startswith("VmRSS")))
            measure_requests(int(line.strip().rsplit(":", 1)[1]))
        server.terminate()
        server.wait()
    print(f"start: first {starts[0]:.0f} ms, then {statistics.median(starts[1:]):.0f} ms")


def measure_requests(port):
    client = http.client.HTTPConnection("127.0.0.1", port)
    times, begun = [], time.monotonic()
    while time.monotonic() - begun < 4:
        sent = time.monotonic()
        client.request("GET", "/api/v2/resources/gpu")
        client.getresponse().read()
        times.append(time.monotonic() - sent)
    times.sort()
    print(f"{len(times) / 4:.0f} requests/s, p99 {times[int(len(times) * 0.99)] * 1e3:.2f} ms")


main()
