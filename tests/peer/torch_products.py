"""Times the products of host/compute/examples/products.rs in PyTorch on one thread, in its processor
time, the best of several runs.
usage: torch_products.py [PART_OF_A_PRODUCT'S_NAME]"""
import pathlib
import re
import sys
import time

import torch

torch.set_num_threads(1)
SOURCE = pathlib.Path(__file__).parents[2] / "host/compute/examples/products.rs"
ROWS = re.findall(r"^    \[(\d+(?:, \d+){4})\],$", SOURCE.read_text(), re.MULTILINE)

for row in ROWS:
    rows, terms, columns, ta, tb = map(int, row.split(", "))
    name = f"{rows} x {terms}{'ᵀ' * ta} · {terms} x {columns}{'ᵀ' * tb}"
    if len(sys.argv) > 1 and sys.argv[1] not in name:
        continue
    a = torch.rand(*((terms, rows) if ta else (rows, terms))) - 0.5
    b = torch.rand(*((columns, terms) if tb else (terms, columns))) - 0.5
    a, b = a.T if ta else a, b.T if tb else b
    times = []
    for _ in range(12):
        start = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
        torch.mm(a, b)
        times.append(time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) - start)
    seconds = min(times)
    rate = 2e-9 * rows * terms * columns / seconds
    print(f"{name}: {seconds * 1e3:.2f} ms, {rate:.1f} GFLOP/s", flush=True)
