#!/usr/bin/env python3
"""A training step of an MLP 784-512-512-10 in PyTorch: AdamW, batches of 64 random images.

usage: torch_mlp.py [--batch 64] [--steps 1000] [--threads 2]

Prints one JSON line: the median step in seconds, the 5th and 95th percentile, and samples a second at
the median. Needs torch.
"""
import argparse, json, statistics, time

import torch
import torch.nn as nn
import torch.nn.functional as F


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                          nn.Linear(512, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.rand(arguments.batch, 784)
    y = torch.randint(0, 10, (arguments.batch,))
    seconds = []
    for _ in range(20 + arguments.steps):
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - begun)
    seconds = sorted(seconds[20:])
    median = statistics.median(seconds)
    at = lambda fraction: seconds[int(fraction * len(seconds))]
    print(json.dumps({"model": "mlp", "median": median, "p5": at(0.05), "p95": at(0.95),
                      "samples_per_second": round(arguments.batch / median)}))


main()
