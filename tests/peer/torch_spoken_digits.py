#!/usr/bin/env python3
"""The plugin `spoken-digits` in PyTorch: the same model, files, augmentation and schedule.

usage: torch_spoken_digits.py --data tests/data/spoken-digits [--seeds 0 1 2 3 4] [--threads 2]

Trains on DATA/train and measures the last epoch's model on DATA/test, once for each seed. Prints
one JSON line: accuracy (%) of each seed, their median, and seconds a run. Needs torch.
"""
import argparse, json, pathlib, statistics, time, wave

import torch
import torch.nn as nn
import torch.nn.functional as F

SAMPLES, SIZE, HOP, FLOOR = 6144, 128, 64, 1e-3


def read(folder):
    """Recordings `[count, SAMPLES]`, scaled to peak 1, cut or padded at the end; and their digits."""
    files = sorted(pathlib.Path(folder).rglob("*.wav"))
    sounds = torch.zeros(len(files), SAMPLES)
    for row, file in zip(sounds, files):
        with wave.open(str(file)) as recording:
            pcm = bytearray(recording.readframes(recording.getnframes()))
        sound = torch.frombuffer(pcm, dtype=torch.int16).float() / 32768
        sound = (sound / sound.abs().max())[:SAMPLES]
        row[: len(sound)] = sound
    return sounds, torch.tensor([int(file.name[0]) for file in files])


def augment(sounds, shift, decibels, generator):
    """Moves each recording by up to `shift` samples and scales it by up to `decibels`, both ways."""
    moved = torch.zeros_like(sounds)
    for row, sound in zip(moved, sounds):
        by = int(torch.randint(-shift, shift + 1, (), generator=generator))
        if by >= 0:
            row[by:] = sound[: SAMPLES - by]
        else:
            row[:by] = sound[-by:]
    gain = (torch.rand(len(sounds), 1, generator=generator) * 2 - 1) * decibels
    return moved * 10 ** (gain / 20)


class Block(nn.Module):
    """The basic residual block (He et al. 2016)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class SpokenDigits(nn.Module):
    """Samples → power spectrogram → logarithm → batch norm → residual network."""

    def __init__(self, widths, classes=10):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.conv1 = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = [widths[0]] + widths[:-1]
        for number, (i, o) in enumerate(zip(inputs, widths), 1):
            stride = 1 if number == 1 else 2
            setattr(self, f"layer{number}", nn.Sequential(Block(i, o, stride)))
        self.depth = len(widths)
        self.fc = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, sounds):
        window = torch.hann_window(SIZE)
        power = torch.stft(sounds, SIZE, HOP, window=window, center=False, return_complex=True).abs() ** 2
        x = self.norm((power + FLOOR).log().unsqueeze(1))
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.depth + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))


def train(a, seed, training, testing):
    """Trains one model and returns its accuracy (%) on the test recordings."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SpokenDigits(a.widths)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.rate, weight_decay=a.decay)
    sounds, digits = training
    steps = -(-len(sounds) // a.batch)
    total, warmup = steps * a.epochs, steps * a.warmup
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1, warmup - 1)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [warmup])
    for _ in range(a.epochs):
        model.train()
        for rows in torch.randperm(len(sounds), generator=generator).split(a.batch):
            logits = model(augment(sounds[rows], a.shift, a.gain, generator))
            loss = F.cross_entropy(logits, digits[rows], label_smoothing=a.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return (model(testing[0]).argmax(1) == testing[1]).float().mean().item() * 100


def main():
    """Reads the arguments, trains once for each seed, prints one JSON line."""
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rate", type=float, default=3e-3)
    p.add_argument("--decay", type=float, default=0.05)
    p.add_argument("--warmup", type=int, default=5, help="epochs")
    p.add_argument("--smoothing", type=float, default=0.1)
    p.add_argument("--shift", type=int, default=1024, help="samples")
    p.add_argument("--gain", type=float, default=6.0, help="decibels")
    p.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    training, testing = (read(pathlib.Path(a.data) / part) for part in ("train", "test"))
    began, accuracies = time.monotonic(), []
    for seed in a.seeds:
        accuracies.append(round(train(a, seed, training, testing), 2))
    print(json.dumps({
        "model": "spoken-digits",
        "accuracy": accuracies,
        "median": statistics.median(accuracies),
        "seconds": round((time.monotonic() - began) / len(a.seeds), 1),
    }))


if __name__ == "__main__":
    main()
