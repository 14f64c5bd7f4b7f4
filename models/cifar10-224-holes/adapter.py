"""Tunes the model everyday for CIFAR-10 at 224 px, with and without holes in the pictures: a LoRA adapter and a head.

python adapter.py --cifar DIR --out FOLDER
python adapter.py --cifar DIR --test ../cifar10-224/head.safetensors

The first writes `adapter_config.json` and `adapter_model.safetensors` as peft does, and `head.safetensors`; it goes on where
a `checkpoint.pt` in FOLDER stopped. The second tests another head on everyday without an adapter.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.append(str(Path(__file__).parent.parent / "everyday"))
import pictures  # noqa: E402
from vit import Vit  # noqa: E402

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
MEAN, STD = (torch.from_numpy(values).view(3, 1, 1) for values in (pictures.MEAN, pictures.STD))
PX, GRID, RANK = 224, 16, 4


class Adapted(nn.Module):
    """A frozen linear layer and B A beside it, which begins as 0; `parts` matrices B A stacked, for q, k and v."""

    def __init__(self, layer, parts=1):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.ParameterList(nn.Parameter(torch.randn(RANK, layer.in_features) / RANK) for _ in range(parts))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(layer.out_features // parts, RANK)) for _ in range(parts))

    def forward(self, x):
        change = [F.linear(F.linear(x, a), b) for a, b in zip(self.a, self.b)]
        return self.layer(x) + (change[0] if len(change) == 1 else torch.cat(change, -1))


class Classifier(nn.Module):
    """everyday with an adapter; the head reads the class token and the mean of the patches."""

    def __init__(self, folder):
        super().__init__()
        self.vit = Vit.of_folder(folder, "everyday").requires_grad_(False)
        for block in self.vit.blocks:
            block.qkv = Adapted(block.qkv, parts=3)
            block.proj, block.fc1, block.fc2 = Adapted(block.proj), Adapted(block.fc1), Adapted(block.fc2)
        self.head = nn.Linear(2 * self.vit.norm.weight.shape[0], len(CLASSES))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images, keep=None):
        vit = self.vit
        x = vit.patches(images)
        if keep is not None:
            x = x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        first = torch.cat([vit.cls + vit.cls_pos, vit.registers], 1).expand(len(x), -1, -1)
        x = torch.cat([first, x], 1)
        for block in vit.blocks:
            q, k, v = block.qkv(block.norm1(x)).view(*x.shape[:2], 3, block.heads, -1).permute(2, 0, 3, 1, 4)
            # PyTorch's fused attention goes back four times slower than this on a CPU.
            attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
            x = x + block.ls1 * block.proj((attention @ v).transpose(1, 2).reshape(x.shape))
            x = x + block.ls2 * block.fc2(F.gelu(block.fc1(block.norm2(x))))
        x = vit.norm(x)
        return self.head(torch.cat([x[:, 0], x[:, first.shape[1]:].mean(1)], -1))

    def trained(self):
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def adapter(self):
        """By peft's names."""
        tensors = {}
        for i, block in enumerate(self.vit.blocks):
            layers = [(f"attention.attention.{part}", block.qkv, n) for n, part in enumerate(("query", "key", "value"))]
            layers += [("attention.output.dense", block.proj, 0), ("mlp.fc1", block.fc1, 0), ("mlp.fc2", block.fc2, 0)]
            for name, layer, part in layers:
                at = f"base_model.model.dinov2_with_registers.encoder.layer.{i}.{name}"
                tensors[f"{at}.lora_A.weight"] = layer.a[part].detach().half().contiguous()
                tensors[f"{at}.lora_B.weight"] = layer.b[part].detach().half().contiguous()
        return tensors


def enlarged(pixels):
    """As the preprocessor does: bicubic; `[3, 224, 224]` in 0…1."""
    return torch.from_numpy(pictures.squeezed(pixels, PX).copy()).permute(2, 0, 1).float() / 255


def hole(rng):
    """A share of 0 to 95 % of the picture: whole patches, or where a smooth map lies above a threshold."""
    share, kind = rng.uniform(0, 0.95), rng.random()
    if kind < 0.3:
        field = rng.random((GRID, GRID)).astype(np.float32)
        field = torch.from_numpy(field).repeat_interleave(PX // GRID, 0).repeat_interleave(PX // GRID, 1)
    else:
        cells = GRID if kind < 0.7 else int(rng.integers(3, 9))
        field = torch.from_numpy(rng.random((1, 1, cells, cells)).astype(np.float32))
        field = F.interpolate(field, (PX, PX), mode="bilinear", align_corners=False)[0, 0]
    return field < torch.quantile(field.flatten()[::7], share)


def filled(picture, where, rng):
    kind = rng.random()
    if kind < 0.6:
        fill = torch.zeros(3, 1, 1)
    elif kind < 0.75:
        fill = MEAN
    elif kind < 0.9:
        fill = picture.mean((1, 2), keepdim=True)
    else:
        small = F.interpolate(picture[None], (6, 6), mode="area")
        fill = F.interpolate(small, (PX, PX), mode="bilinear", align_corners=False)[0]
    return torch.where(where, fill, picture)


def example(pixels, rng):
    picture = enlarged(pixels if rng.random() < 0.5 else pixels[:, ::-1])
    # The frame moves by up to four of the small pixels.
    dx, dy = (int(v) for v in rng.integers(-28, 29, 2))
    picture = F.pad(picture[None], (28, 28, 28, 28), mode="reflect")[0, :, 28 + dy:252 + dy, 28 + dx:252 + dx]
    return filled(picture, hole(rng), rng) if rng.random() < 0.6 else picture


def tested(model, pixels, labels, share, seed):
    """Accuracy where `share` of each picture is black: a map of 16×16 random values, enlarged and cut."""
    right = 0
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for at in range(0, len(pixels), 25):
            images = torch.stack([enlarged(p) for p in pixels[at:at + 25]])
            if share > 0:
                fields = torch.from_numpy(rng.random((len(images), 1, GRID, GRID)).astype(np.float32))
                fields = F.interpolate(fields, (PX, PX), mode="bilinear", align_corners=False)
                cuts = torch.stack([torch.quantile(f.flatten()[::7], share) for f in fields]).view(-1, 1, 1, 1)
                images = torch.where(fields < cuts, torch.zeros(()), images)
            right += (model((images - MEAN) / STD).argmax(1) == labels[at:at + 25]).sum().item()
    return right / len(pixels)


def write(model, everyday, out):
    save_file(model.adapter(), out / "adapter_model.safetensors", metadata={"format": "pt"})
    layers = ["query", "key", "value", "attention.output.dense", "fc1", "fc2"]
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "lora_dropout": 0.0, "bias": "none",
        "init_lora_weights": "gaussian", "target_modules": layers, "base_model_name_or_path": "everyday",
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    files = [everyday / "model.safetensors", out / "adapter_model.safetensors", out / "adapter_config.json"]
    backbone = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    head = {"weight": model.head.weight.detach().contiguous(), "bias": model.head.bias.detach().contiguous()}
    save_file(head, out / "head.safetensors", metadata={"labels": json.dumps(CLASSES), "backbone_sha256": backbone})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--everyday", type=Path, default=Path(__file__).parent.parent / "everyday")
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--test", type=Path, help="head to test without an adapter")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = Classifier(args.everyday)
    if args.test:
        model.head.load_state_dict(load_file(args.test))
        return report(model, args.cifar)
    args.out.mkdir(parents=True, exist_ok=True)
    matrices = [p for name, p in model.trained().items() if not name.startswith("head")]
    optimizer = torch.optim.AdamW([
        {"params": matrices, "lr": 1e-3, "weight_decay": 0.01},
        {"params": model.head.parameters(), "lr": 5e-4, "weight_decay": 0.01},
    ])
    rates = [group["lr"] for group in optimizer.param_groups]
    average = {name: p.detach().clone() for name, p in model.trained().items()}
    checkpoint, first = args.out / "checkpoint.pt", 0
    if checkpoint.exists():
        kept = torch.load(checkpoint)
        model.load_state_dict(kept["model"], strict=False)
        optimizer.load_state_dict(kept["optimizer"])
        average, first = kept["average"], kept["step"]
    pixels, labels = pictures.cifar(args.cifar, "train")
    labels = torch.as_tensor(labels)
    began = time.time()
    for step in range(first, args.steps):
        rng = np.random.default_rng([args.seed, step])
        chosen = rng.integers(0, len(pixels), args.batch)
        images = torch.stack([(example(pixels[i], rng) - MEAN) / STD for i in chosen])
        keep = None
        if step < 0.85 * args.steps:
            kept_patches = int(GRID * GRID * rng.uniform(0.4, 1.0))
            keep = torch.from_numpy(rng.random((args.batch, GRID * GRID)).argsort(1)[:, :kept_patches])
        factor = min((step + 1) / 60, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images, keep)
        loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.trained().values(), 1.0)
        optimizer.step()
        decay = min(0.99, (step + 1) / (step + 10))
        for name, p in model.trained().items():
            average[name].lerp_(p.detach(), 1 - decay)
        if step % 10 == 0:
            print(f"step {step} loss {loss.item():.3f}, {(time.time() - began) / (step - first + 1):.2f} s a step", flush=True)
        if (step + 1) % 50 == 0:
            kept = {"model": model.trained(), "optimizer": optimizer.state_dict(), "average": average, "step": step + 1}
            torch.save(kept, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
    model.load_state_dict(average, strict=False)
    write(model, args.everyday, args.out)
    report(model, args.cifar)


def report(model, folder):
    pixels, labels = pictures.cifar(folder, "test")
    labels = torch.as_tensor(labels)
    for share, count in ((0.0, 1000), (0.5, 300), (0.9, 300)):
        print(f"{share:.0%} black: {tested(model, pixels[:count], labels[:count], share, 1):.3f} of {count}", flush=True)


if __name__ == "__main__":
    main()
