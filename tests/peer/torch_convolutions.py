"""Times the convolutions of host/compute/examples/convolutions.rs in PyTorch on one thread, in its
processor time: forward, and the gradients of x and of the weights, each the best of several runs.
usage: torch_convolutions.py [PART_OF_A_LAYER'S_NAME]"""
import pathlib
import re
import sys
import time

import torch

torch.set_num_threads(1)
SOURCE = pathlib.Path(__file__).parents[2] / "host/compute/examples/convolutions.rs"
ROWS = re.findall(r"^    \[(\d+(?:, \d+){6})\],$", SOURCE.read_text(), re.MULTILINE)


def best(run):
    times = []
    for _ in range(6):
        start = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
        run()
        times.append(time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) - start)
    return 1e3 * min(times[1:])


for row in ROWS:
    batch, channels, side, out, kernel, stride, groups = map(int, row.split(", "))
    name = (f"batch {batch}, {channels} x {side} x {side} to {out}, {kernel} x {kernel}, "
            f"stride {stride}, groups {groups}")
    if len(sys.argv) > 1 and sys.argv[1] not in name:
        continue
    x = torch.randn(batch, channels, side, side)
    weight = torch.randn(out, channels // groups, kernel, kernel)
    arguments = ([stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    with torch.no_grad():
        def forward():
            return torch.convolution(x, weight, None, *arguments)
        dy = torch.randn_like(forward())
        def backward(*wanted):
            return torch.ops.aten.convolution_backward(dy, x, weight, None, *arguments, wanted)
        times = best(forward), best(lambda: backward(True, False, False)), best(lambda: backward(False, True, False))
    print("%s: forward %.2f ms, x %.2f ms, weights %.2f ms" % (name, *times), flush=True)
