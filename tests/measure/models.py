"""Times the SDK's models against PyTorch, one after the other in one run, and prints a table.

usage: PYTHON_WITH_TORCH tests/measure/models.py [THREADS]

Both time a step on random numbers that are drawn once; the ratio is PyTorch's seconds by ours.
`cargo xtask build` must have made dist/hangar.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
ROWS = (
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


def time(program, row, threads):
    model, mode, batch = row
    arguments = ["--model", model, "--mode", mode, "--batch", str(batch), "--threads", threads]
    run = subprocess.run(program + arguments, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{program[0]} failed on {row}: {run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def main(threads):
    print("| model | mode | batch | Hangar, s | PyTorch, s | ratio | peak MB, ours | PyTorch's |")
    print("|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        ours = time([ROOT / "dist/hangar", "bench"], row, threads)
        peer = time([sys.executable, ROOT / "tests/peer/torch_models.py"], row, threads)
        mine, other = ours["seconds"], peer["seconds"]
        memory = [f"{run['peak_bytes'] / 1e6:.0f}" for run in (ours, peer)]
        cells = [*map(str, row), f"{mine:.3g}", f"{other:.3g}", f"{other / mine:.2f}", *memory]
        print(f"| {' | '.join(cells)} |", flush=True)


main(sys.argv[1] if len(sys.argv) > 1 else "2")
