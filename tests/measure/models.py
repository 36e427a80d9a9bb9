"""Times the SDK's models against PyTorch, one after the other in one run, and prints a table.

usage: PYTHON_WITH_TORCH tests/measure/models.py [--threads N] [--device cpu|cuda] [--dtype f32|tf32|bf16]
                                                 [--program dist/hangar] [--steps N] [--mode train|infer]

Both time a step on random numbers that are drawn once; the ratio is PyTorch's seconds by ours. On a
GPU ours copy them there in every step, in trainings while the step before is computed, PyTorch's stay
there; inference is also compared with PyTorch captured as a CUDA graph.
`cargo xtask build` must have made dist/hangar.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CPU = (
    ("mlp", "train", 128),
    ("mlp", "infer", 1),
    ("resnet18", "train", 16),
    ("resnet18", "infer", 1),
    ("resnet18", "infer", 16),
    ("resnet50", "infer", 16),
    ("mobilenet_v3_small", "train", 16),
    ("mobilenet_v3_small", "infer", 1),
    ("vit_b_16", "train", 8),
    ("vit_b_16", "infer", 1),
    ("gpt2", "train", 1),
)
# A GPU has room for more than a sample or a few at a time.
CUDA = (
    ("mlp", "train", 128),
    ("mlp", "infer", 1),
    ("resnet18", "train", 16),
    ("resnet18", "train", 64),
    ("resnet18", "infer", 1),
    ("resnet50", "train", 64),
    ("resnet50", "infer", 16),
    ("mobilenet_v3_small", "train", 64),
    ("vit_b_16", "train", 32),
    ("vit_b_16", "infer", 1),
    ("gpt2", "train", 4),
)


# Runs the peer again and again in one process, so that PyTorch is loaded once.
PEER = """
import contextlib, io, json, runpy, sys
import torch, torchvision
for line in sys.stdin:
    sys.argv, text = json.loads(line), io.StringIO()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with contextlib.redirect_stdout(text):
            runpy.run_path(sys.argv[0])
        print(text.getvalue().splitlines()[-1], flush=True)
    except Exception as error:
        print(json.dumps({"error": str(error).splitlines()[0]}), flush=True)
"""


class Peer:
    def __init__(self):
        command = [sys.executable, "-c", PEER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def time(self, arguments):
        print(json.dumps([str(ROOT / "tests/peer/torch_models.py"), *arguments]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def ours(program, arguments):
    run = subprocess.run([program, "bench", *arguments], capture_output=True, text=True)
    if run.returncode != 0:
        return {"error": (run.stderr.strip().splitlines() or ["no word of why"])[0]}
    return json.loads(run.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", default="2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--program", default=ROOT / "dist/hangar")
    parser.add_argument("--steps", default="0", help="that are timed; 0 for 7 on the CPU and 60 on a GPU")
    parser.add_argument("--mode", help="only this one")
    chosen = parser.parse_args()
    options = ["--threads", chosen.threads, "--device", chosen.device, "--dtype", chosen.dtype]
    options += ["--steps", chosen.steps] if chosen.steps != "0" else []
    gpu = chosen.device != "cpu"
    peers = None
    print("| model | mode | batch | Hangar, s | PyTorch, s | ratio |" + (" captured, s | ratio |" if gpu else "") + " peak MB, ours | PyTorch's |")
    print("|---|---|---|---|---|---|---|---|" + ("---|---|" if gpu else ""))
    for row in CUDA if gpu else CPU:
        model, mode, batch = row
        if chosen.mode not in (None, mode):
            continue
        arguments = ["--model", model, "--mode", mode, "--batch", str(batch), *options]
        own = ours(chosen.program, arguments)
        # On the CPU peak memory is the process's: one a row.
        peers = peers if peers and gpu else Peer()
        runs = [peers.time(arguments)]
        if gpu:
            runs.append(peers.time([*arguments, "--how", "graph"]) if mode == "infer" else {})
        else:
            peers.process.stdin.close()
            peers.process.wait()
        cells = [*map(str, row), f"{own['seconds']:.3g}" if "seconds" in own else own["error"]]
        for run in runs:
            known = "seconds" in run and "seconds" in own
            cells += [f"{run['seconds']:.3g}", f"{run['seconds'] / own['seconds']:.2f}"] if known else [run.get("error", "–"), "–"]
        cells += [f"{run['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in run else "–" for run in (own, runs[0])]
        print(f"| {' | '.join(cells)} |", flush=True)


main()
