#!/usr/bin/env python3
"""The peer of host/compute/examples/step.rs: the same step in PyTorch on a CUDA GPU.

usage: torch_step.py mlp|digits|spoken-digits|copy|product train|infer BATCH [f32|tf32] [eager|graph]

Prints one JSON line. `graph` captures the whole step as a CUDA graph.
"""
import json, pathlib, statistics, sys, time

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peer"))

name, mode, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
precision = sys.argv[4] if len(sys.argv) > 4 else "f32"
how = sys.argv[5] if len(sys.argv) > 5 else "eager"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
torch.backends.cudnn.benchmark = True
torch.manual_seed(0)
device = "cuda"


class Spoken(nn.Module):
    """tests/peer/torch_spoken_digits.py's network on the GPU."""

    def __init__(self):
        super().__init__()
        from torch_spoken_digits import Block

        self.register_buffer("window", torch.hann_window(128))
        self.body = nn.Sequential(
            nn.BatchNorm2d(1), nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, sounds):
        power = torch.stft(sounds, 128, 64, window=self.window, center=False, return_complex=True).abs() ** 2
        return self.fc(self.body((power + 1e-3).log().unsqueeze(1)).mean((2, 3)))


if name == "mlp":
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    x = torch.randn(batch, 784)
elif name == "digits":
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 10),
    )
    x = torch.randn(batch, 1, 28, 28)
elif name == "spoken-digits":
    model, x = Spoken(), torch.randn(batch, 6144)
elif name == "copy":
    memory = torch.zeros(batch << 18, device=device)
    out = torch.empty_like(memory)
    model, x = None, None
else:
    matrix = torch.rand(batch, batch, device=device)
    model, x = None, None

if model is None:
    step = (lambda: torch.mul(memory, 2.0, out=out)) if name == "copy" else (lambda: matrix @ matrix)
else:
    model, x = model.to(device), x.to(device)
    y = (torch.arange(batch) % 10).to(device)
    if mode == "train":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=how == "graph")

        def step():
            optimizer.zero_grad(set_to_none=how != "graph")
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    else:
        model.eval()

        def step():
            with torch.no_grad():
                return model(x)
    if how == "graph":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        step = graph.replay

group = 10 if mode == "train" else 1
times = []
for round in range(220):
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(group):
        step()
    torch.cuda.synchronize()
    if round >= 20:
        times.append((time.perf_counter() - began) / group)
print(json.dumps({
    "peer": f"torch {torch.__version__}", "model": name, "mode": mode, "batch": batch, "precision": precision,
    "how": how, "seconds": statistics.median(times), "bytes": torch.cuda.max_memory_allocated(),
}))
