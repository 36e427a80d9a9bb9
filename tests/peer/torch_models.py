#!/usr/bin/env python3
"""The peer to beat: the same training step or inference call in PyTorch, on the CPU or on a CUDA GPU.

usage: torch_models.py --model resnet18 --mode train --batch 16 [--size 224] [--classes 37]
                     [--device cpu|cuda] [--dtype f32|tf32|bf16] [--how eager|compile|graph] [--threads N]

Prints one JSON line: median seconds a step, samples a second, and peak memory in bytes.
  f32   strict float32 on the GPU (no TF32)      tf32  float32 with TF32 matrix units      bf16  autocast to bfloat16
  eager plain; compile: torch.compile(mode="max-autotune"), channels-last for images; graph: eager captured as a CUDA graph (inference only)
Needs torch, and torchvision for the image models. Inputs are random, drawn once and kept on the device.
"""
import argparse, json, math, time
import torch, torch.nn as nn, torch.nn.functional as F

p = argparse.ArgumentParser()
p.add_argument("--model", required=True)   # mlp, resnet18/34/50/101/152, mobilenet_v3_small/large, vit_b_16/..., swin_v2_t/..., gpt2
p.add_argument("--mode", choices=["train", "infer"], required=True)
p.add_argument("--batch", type=int, required=True)
p.add_argument("--size", type=int, default=224)
p.add_argument("--classes", type=int, default=37)
p.add_argument("--device", default="cpu")
p.add_argument("--dtype", default="f32")
p.add_argument("--how", default="eager")
p.add_argument("--threads", type=int, default=0)
p.add_argument("--steps", type=int, default=0)
a = p.parse_args()
if a.threads: torch.set_num_threads(a.threads)
cuda = a.device.startswith("cuda")
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.dtype != "f32"
torch.backends.cudnn.benchmark = True
torch.manual_seed(0)

class Gpt2(nn.Module):
    """GPT-2 124M: 12 layers, width 768, 12 heads, context 1024, vocabulary 50304 (padded), tied head."""
    def __init__(s, L=12, d=768, v=50304, t=1024):
        super().__init__(); s.wte = nn.Embedding(v, d); s.wpe = nn.Embedding(t, d)
        s.b = nn.ModuleList(nn.ModuleDict(dict(l1=nn.LayerNorm(d), qkv=nn.Linear(d, 3 * d), o=nn.Linear(d, d), l2=nn.LayerNorm(d), f=nn.Linear(d, 4 * d), p=nn.Linear(4 * d, d))) for _ in range(L))
        s.ln = nn.LayerNorm(d); s.h = d // 64
    def forward(s, i):
        B, T = i.shape; x = s.wte(i) + s.wpe.weight[:T]
        for b in s.b:
            q, k, v = b.qkv(b.l1(x)).view(B, T, 3, s.h, 64).permute(2, 0, 3, 1, 4)
            x = x + b.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, -1))
            x = x + b.p(F.gelu(b.f(b.l2(x)), approximate="tanh"))
        return F.linear(s.ln(x), s.wte.weight)

if a.model == "mlp":
    m = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)); x = torch.randn(a.batch, 784); y = torch.randint(0, 10, (a.batch,))
elif a.model == "gpt2":
    m = Gpt2(); x = torch.randint(0, 50257, (a.batch, 1024)); y = torch.randint(0, 50257, (a.batch, 1024))
else:
    import torchvision
    m = getattr(torchvision.models, a.model)(num_classes=a.classes); x = torch.randn(a.batch, 3, a.size, a.size); y = torch.randint(0, a.classes, (a.batch,))
m, x, y = m.to(a.device), x.to(a.device), y.to(a.device)
if x.dim() == 4 and a.how == "compile": m, x = m.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
amp = lambda: torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=a.dtype == "bf16")
opt = torch.optim.AdamW(m.parameters(), lr=1e-4, **(dict(fused=True) if cuda else {}))
f = torch.compile(m, mode="max-autotune") if a.how == "compile" else m

if a.mode == "train":
    m.train()
    def step():
        opt.zero_grad(set_to_none=True)
        with amp(): o = f(x); l = F.cross_entropy(o.flatten(0, -2).float(), y.flatten())
        l.backward(); opt.step()
else:
    m.eval()
    def step():
        with torch.no_grad(), amp(): return f(x)
    if a.how == "graph":
        s = torch.cuda.Stream()
        with torch.cuda.stream(s):
            for _ in range(3): step()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g): step()
        step = g.replay

sync = torch.cuda.synchronize if cuda else (lambda: None)
t0 = time.perf_counter(); step(); sync(); first = time.perf_counter() - t0
for _ in range(10 if cuda else 1): step()
sync()
ts, n = [], a.steps or (60 if cuda else 7)
for _ in range(n):
    t0 = time.perf_counter(); step(); sync(); ts.append(time.perf_counter() - t0)
ts.sort(); med = ts[len(ts) // 2]
import resource
mem = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
units = a.batch * (1024 if a.model == "gpt2" else 1)
print(json.dumps(dict(peer=f"torch {torch.__version__}", model=a.model, mode=a.mode, batch=a.batch, dtype=a.dtype, how=a.how,
    device=torch.cuda.get_device_name() if cuda else f"cpu x{torch.get_num_threads()}", seconds=med, spread=[ts[0], ts[-1]], per_second=units / med, first_seconds=first, peak_bytes=mem)))
