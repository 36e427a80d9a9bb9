"""Writes what torchvision's models give on numbers that the tests make too: FOLDER/NAME.json with
the parameters' shapes, the logits, the loss, the norm of every parameter's gradient (in float64, with
PyTorch's own float32 error), and the names and shapes of the whole model's parameters as a hash.

usage: figures.py FOLDER [NAME...]
"""

import json
import math
import pathlib
import sys

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as functional
import torchvision
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

CLASSES = 10
BATCH = 2


def splitmix(keys):
    """Numbers within -1 to 1, by splitmix64 of integers."""
    with numpy.errstate(over="ignore"):
        z = keys.astype(numpy.uint64) + numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    unit = (z >> numpy.uint64(11)).astype(numpy.float64) / 2.0**53
    return (2.0 * unit - 1.0).astype(numpy.float32)


def fnv(text):
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def weight(name, shape):
    """A parameter's values: a function of its name and shape."""
    count = math.prod(shape)
    with numpy.errstate(over="ignore"):
        keys = numpy.uint64(fnv(name)) + numpy.arange(count, dtype=numpy.uint64)
    u = splitmix(keys).astype(numpy.float64)
    if name.endswith("running_var"):
        u = 1.5 + 0.5 * u
    elif len(shape) >= 2:
        u = u * math.sqrt(3.0 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        u = 1.0 + 0.2 * u
    else:
        u = 0.1 * u
    return torch.from_numpy(u.astype(numpy.float32).reshape(shape))


class Gpt2(nn.Module):
    """GPT-2's shape, the head tied to the tokens' embeddings."""

    def __init__(self, layers, width, heads, vocabulary, context):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.heads = heads

        def block():
            return nn.ModuleDict(
                dict(
                    l1=nn.LayerNorm(width),
                    qkv=nn.Linear(width, 3 * width),
                    o=nn.Linear(width, width),
                    l2=nn.LayerNorm(width),
                    f=nn.Linear(width, 4 * width),
                    p=nn.Linear(4 * width, width),
                )
            )

        self.b = nn.ModuleList(block() for _ in range(layers))
        self.ln = nn.LayerNorm(width)

    def forward(self, tokens):
        batch, length = tokens.shape
        x = self.wte(tokens) + self.wpe.weight[:length]
        for b in self.b:
            qkv = b.qkv(b.l1(x)).view(batch, length, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + b.o(y.transpose(1, 2).reshape(batch, length, -1))
            x = x + b.p(functional.gelu(b.f(b.l2(x)), approximate="tanh"))
        return functional.linear(self.ln(x), self.wte.weight)[:, -1]


def vit(patch, layers, large, side):
    heads, hidden = (16, 1024) if large else (12, 768)
    return torchvision.models.VisionTransformer(
        image_size=side,
        patch_size=patch,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=hidden,
        mlp_dim=4 * hidden,
        num_classes=CLASSES,
    )


def swin(width, depths, heads):
    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=width,
        depths=depths,
        num_heads=heads,
        window_size=[8, 8],
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def build(name, full):
    """The model, and whether it is compared in training."""
    if name == "mlp":
        layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(512, CLASSES)), True
    if name == "gpt2":
        sizes = (12, 768, 12, 50304, 1024) if full else (2, 64, 4, 97, 16)
        return Gpt2(*sizes), True
    if name.startswith("vit"):
        large, patch = "_l_" in name, int(name[-2:])
        layers = (24 if large else 12) if full else 2
        return vit(patch, layers, large, 224 if full else 64), True
    if name in ("swin_v2_s", "swin_v2_b") and not full:
        base = name == "swin_v2_b"
        heads = [4, 8, 16, 32] if base else [3, 6, 12, 24]
        return swin(128 if base else 96, [2, 2, 2, 2], heads), False
    model = getattr(torchvision.models, name)(num_classes=CLASSES)
    # The statistics of deeper ones on two small images make rounding grow.
    return model, name in ("resnet18", "resnet34")


def floats(model):
    """The tensors that weights hold: parameters and running statistics."""
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float32 and not name.endswith("relative_coords_table"):
            yield name, tensor


def figures(name):
    torch.set_grad_enabled(True)
    whole, _ = build(name, True)
    lines = [f"{key} {list(value.shape)}\n" for key, value in whole.named_parameters()]
    names = f"{fnv(''.join(sorted(lines))):016x}"
    model, train = build(name, False)
    with torch.no_grad():
        for key, tensor in floats(model):
            tensor.copy_(weight(key, tuple(tensor.shape)))
    shapes = {key: list(tensor.shape) for key, tensor in floats(model)}
    model.train(train)
    if name == "gpt2":
        x = torch.arange(BATCH * 12).mul(31).remainder(97).reshape(BATCH, 12)
    else:
        shape = (BATCH, 784) if name == "mlp" else (BATCH, 3, 64, 64)
        keys = numpy.arange(math.prod(shape), dtype=numpy.uint64)
        x = torch.from_numpy(splitmix(keys).reshape(shape))
    single = results(model, x)
    # In float64, from the same numbers; running statistics do not matter in training.
    exact = results(model.double(), x.double() if x.is_floating_point() else x)
    largest = max(exact[2].values())
    return {
        "train": train,
        "names": names,
        "shapes": shapes,
        "logits": [float(f"{value:.9g}") for value in exact[0]],
        "loss": exact[1],
        "norms": {key: float(f"{value:.9g}") for key, value in exact[2].items()},
        # How far PyTorch's own float32 is from that, relatively.
        "f32_error": {
            "logits": math.dist(single[0], exact[0]) / math.hypot(*exact[0]),
            "norms": max(
                abs(single[2][key] - value) / (value + 1e-3 * largest)
                for key, value in exact[2].items()
            ),
        },
    }


def results(model, x):
    """Logits, loss, and norms of gradients."""
    model.zero_grad()
    logits = model(x)
    loss = functional.cross_entropy(logits, torch.tensor([1, 3]))
    loss.backward()
    norms = {key: p.grad.double().norm().item() for key, p in model.named_parameters()}
    return logits.double().flatten().tolist(), loss.item(), norms


MODELS = (
    "mlp gpt2 resnet18 resnet34 resnet50 resnet101 resnet152 mobilenet_v3_large "
    "mobilenet_v3_small vit_b_16 vit_b_32 vit_l_16 vit_l_32 swin_v2_t swin_v2_s swin_v2_b"
).split()


def main(folder, names):
    for name in names or MODELS:
        text = json.dumps(figures(name), separators=(",", ":"))
        (folder / f"{name}.json").write_text(text + "\n")
        print(name, len(text), flush=True)


main(pathlib.Path(sys.argv[1]), sys.argv[2:])
