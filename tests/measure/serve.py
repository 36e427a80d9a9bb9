#!/usr/bin/env python3
"""Measures `hangar serve` with 8 simulated GPUs, after `cargo xtask test` has built everything.

Prints the time from the start of the process to its word that it listens (the first start of a state
folder, which compiles the plugins, and the median of five more) and, in these five, to the sample that
it answers with then, which is its first, with every figure of all 8 GPUs; the resident memory 3 s after
all GPUs are probed; the processor time of the host over 10 s without a request; and
GET /api/v2/resources/gpu by `wrk` (Debian's package) on the same machine, one thread, with 1, 8 and 32
connections that stay open: of three times 5 s the median by rate.
"""
import http.client, json, os, pathlib, statistics, subprocess, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATH = "/api/v2/resources/gpu"
GPUS = 8
FIGURES = ["memory_used_bytes", "utilization_gpu_percent", "temperature_gpu_c", "power_draw_watts",
           "clock_sm_mhz", "throttle_reasons", "pcie_gen_current", "ecc_corrected_volatile"]


def gpus(port):
    client = http.client.HTTPConnection("127.0.0.1", port)
    client.request("GET", PATH)
    return json.loads(client.getresponse().read())


def main():
    machine, state = tempfile.TemporaryDirectory(), tempfile.TemporaryDirectory()
    folder = pathlib.Path(machine.name)
    for name in ["libnvidia-ml.so.1", "libcuda.so.1", "libcublasLt.so.13"]:
        (folder / name).symlink_to(ROOT / "target/release/libfakedriver.so")
    (folder / "machine.toml").write_text('[[gpu]]\nprofile = "h100"\n' * GPUS)
    environment = dict(os.environ, LD_LIBRARY_PATH=machine.name)
    command = [ROOT / "target/release/hangar", "--plugins", ROOT / "dist/plugins",
               "--state", state.name, "serve", "--listen", "127.0.0.1:0"]
    starts, samples = [], []
    for run in range(6):
        begun = time.monotonic()
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        line = next(line for line in server.stderr if "listening" in line)
        starts.append((time.monotonic() - begun) * 1e3)
        port = int(line.strip().rsplit(":", 1)[1])
        told = gpus(port)
        missing = [name for gpu in told["devices"] for name in FIGURES if gpu[name] is None]
        assert len(told["devices"]) == GPUS and not missing, missing
        samples.append((time.monotonic() - begun) * 1e3 - told["sample_age_ms"])
        if run == 5:
            while gpus(port)["gpu_count_schedulable"] < GPUS:
                time.sleep(0.05)
            print(f"all {GPUS} probed: {time.monotonic() - begun:.1f} s")
            time.sleep(3)
            status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
            print(next(text for text in status.splitlines() if text.startswith("VmRSS")))
            before = ticks(server.pid)
            time.sleep(10)
            print(f"processor time without requests: {ticks(server.pid) - before} ticks of 10 ms in 10 s")
            print(f"body: {len(json.dumps(gpus(port), separators=(',', ':')))} bytes")
            for connections in [1, 8, 32]:
                rounds = sorted(measure(port, server.pid, connections) for _ in range(3))
                rate, p99, each = rounds[1]
                print(f"{connections} connections: {rate:.0f} requests/s, p99 {p99}, "
                      f"{each:.1f} µs of the host's processor time each")
        server.terminate()
        server.wait()
    print(f"listening: first {starts[0]:.0f} ms, then {statistics.median(starts[1:]):.0f} ms")
    print(f"first complete sample: {statistics.median(samples[1:]):.0f} ms")


def ticks(process):
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def measure(port, process, connections):
    before = ticks(process)
    command = ["wrk", "-t1", f"-c{connections}", "-d5s", "--latency", f"http://127.0.0.1:{port}{PATH}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = text.split()
    assert "Non-2xx" not in text and "Socket errors" not in text, text
    rate, p99 = words[words.index("Requests/sec:") + 1], words[words.index("99%") + 1]
    each = (ticks(process) - before) * 1e4 / int(words[words.index("requests") - 1])
    return float(rate), p99, each


main()
