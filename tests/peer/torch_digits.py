#!/usr/bin/env python3
"""The plugin `digits` in PyTorch: the same model, files and schedule.

usage: torch_digits.py --data tests/data/mnist10k [--seeds 0 1 2] [--threads 2]

Trains on the 8,000 training images and measures the last epoch's model on the 2,000 test images,
once for each seed. Prints one JSON line: accuracy (%) of each seed, their median, seconds a run,
and training samples a second. Needs torch.
"""
import argparse, gzip, json, pathlib, statistics, time

import torch
import torch.nn as nn
import torch.nn.functional as F

MEAN, DEVIATION = 0.1307, 0.3081


def read(folder, part):
    """Images `[count, 1, 28, 28]`, normalised, and their digits, from gzipped IDX files."""
    def idx(kind, header):
        with gzip.open(pathlib.Path(folder) / f"{part}-{kind}-ubyte.gz") as file:
            return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)

    images = idx("images-idx3", 16).view(-1, 1, 28, 28).float() / 255
    return (images - MEAN) / DEVIATION, idx("labels-idx1", 8).long()


class Digits(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
        self.fc1, self.fc2 = nn.Linear(800, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def train(a, seed, training, testing):
    """Trains one model and returns its accuracy (%) on the test images."""
    torch.manual_seed(seed)
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.rate)
    images, digits = training
    for _ in range(a.epochs):
        for rows in torch.randperm(len(images)).split(a.batch):
            loss = F.cross_entropy(model(images[rows]), digits[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (model(testing[0]).argmax(1) == testing[1]).float().mean().item() * 100


def main():
    """Reads the arguments, trains once for each seed, prints one JSON line."""
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--rate", type=float, default=1e-3)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    training, testing = read(a.data, "train"), read(a.data, "t10k")
    began, accuracies = time.monotonic(), []
    for seed in a.seeds:
        accuracies.append(round(train(a, seed, training, testing), 2))
    seconds = (time.monotonic() - began) / len(a.seeds)
    print(json.dumps({
        "model": "digits",
        "accuracy": accuracies,
        "median": statistics.median(accuracies),
        "seconds": round(seconds, 1),
        "samples_per_second": round(len(training[0]) * a.epochs / seconds),
    }))


main()
