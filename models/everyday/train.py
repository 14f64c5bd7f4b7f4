"""Trains a ViT-S/14 on everyday photographs, Tiny-ImageNet and CIFAR-10 at once, on a CPU.

python train.py --backbone DIR/model.safetensors --natural DIR --tiny DIR --cifar DIR --out RUN [--steps N ...]

The learning rate rises, stays, and falls over the last `--cooldown` steps. A run that was stopped goes on from
RUN/checkpoint.pt when the same command is given again; --init starts another run from the averaged weights of a
checkpoint, or from a folder that `export.py` or `vitscope models shrink` wrote.
`torchrun --nproc-per-node 2 train.py ...` splits each batch over two processes of one thread, which is faster than two
threads of one process.
"""

import argparse
import copy
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import pictures
import stamps
import teacher
from vit import Vit


AVERAGED_EVERY = 4
# The classifier of each set of pictures.
LABELLED = ("everyday", "tiny", "cifar")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("backbone", "natural", "tiny", "cifar", "out"):
        parser.add_argument(f"--{name}", type=Path, required=name != "cifar")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--cooldown", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--layer-decay", type=float, default=0.85)
    parser.add_argument("--shares", default="0.5,0.3,0.2", help="of natural, Tiny-ImageNet and CIFAR-10 in a batch")
    parser.add_argument("--whole-share", type=float, default=0.1, help="of the steps that see every patch")
    parser.add_argument("--keep", default="0.35,0.65", help="least and largest share of patches that the others see")
    parser.add_argument("--near-share", type=float, default=0.2, help="of the crops of sharp pictures that are close views")
    parser.add_argument("--small-share", type=float, default=0.15, help="of the pictures that stand small before another")
    parser.add_argument("--empty-share", type=float, default=0.04, help="of the pictures that show nothing in particular")
    parser.add_argument("--surface-share", type=float, default=0.0, help="of those that are made up: walls, floors, roads")
    parser.add_argument("--taught-share", type=float, default=0.0, help="of a batch that teacher.py labels, not a person")
    parser.add_argument("--imagenet", type=Path, help="folder of pictures of ImageNet, for the teacher and by their names")
    parser.add_argument("--stamps", type=Path, help="folder of Tux Paint's stamps, see stamps.py")
    parser.add_argument("--stamp-share", type=float, default=0.0, help="of what is labelled: stamps before a place")
    parser.add_argument("--balanced", action="store_true", help="take how often a class is drawn out of its probability")
    parser.add_argument("--f32", action="store_true", help="no bfloat16, which processors without it are slow at")
    parser.add_argument("--more", default="", help="classes that are drawn more often, as bird=3,cat=2")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=500, help="steps between measurements")
    return parser.parse_args()


def groups(model, lr, decay):
    """AdamW's groups: the nearer to the input, the smaller the steps; no decay of what is no matrix."""
    depth = len(model.blocks) + 1
    found = {}
    for name, parameter in model.named_parameters():
        level = depth if name.startswith(("out", "norm")) else 0
        if name.startswith("blocks."):
            level = int(name.split(".")[1]) + 1
        key = (level, parameter.ndim >= 2 and "pos" not in name)
        found.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "scale": decay ** (depth - level), "weight_decay": 0.05 if decayed else 0.0, "lr": lr}
        for (level, decayed), parameters in found.items()
    ]


class Draw:
    """Batches, drawn by a seed and the number of the step: a run that goes on draws as if it had not stopped."""

    def __init__(self, args, names, sets, rank, world):
        self.args, self.sets, self.rank = args, sets, rank
        batch = args.batch // world
        self.taught = round(batch * args.taught_share)
        batch -= self.taught
        self.stamp_count = round(batch * args.stamp_share)
        batch -= self.stamp_count
        shares = [float(share) for share in args.shares.split(",")]
        self.counts = [round(batch * share) for share in shares]
        self.counts[0] += batch - sum(self.counts)
        natural = sets[0]
        weight = 1.0 / np.sqrt(np.bincount(natural.label)[natural.label])
        weight = weight * np.where(natural.sharp, 1.5, 1.0)
        more = {names.index(name): float(factor) for name, factor in (pair.split("=") for pair in args.more.split(",") if pair)}
        weight *= [more.get(label, 1.0) for label in natural.label]
        self.weight = weight / weight.sum()
        if args.stamps:
            self.stamps, self.stamp_label = stamps.found(args.stamps, names)
            self.stamp_weight = stamps.weights(self.stamp_label, more)
        # How often each class of the first head is drawn.
        frequency = np.bincount(natural.label, self.weight * self.counts[0], len(names))
        for found, count in zip(sets[1:], self.counts[1:]):
            known = found.label[found.label >= 0]
            frequency += np.bincount(known, minlength=len(names)) * count / len(found.label)
        self.log_prior = torch.from_numpy(np.log(frequency / frequency.sum())).float()
        known = teacher.matrix(names).sum(0).numpy() > 0
        self.to_teach = [natural.pixels[i] for i in np.flatnonzero(natural.sharp & known[natural.label])]
        self.imagenet = pictures.read_all(args.imagenet) if args.imagenet else []

    def for_the_teacher(self, rng):
        """A view that nobody labels, as large as the teacher wants it: a place, a close view, or all of a picture."""
        natural, kind = self.sets[0], rng.random()
        if kind < 0.4:
            image = pictures.scene(natural.pixels[rng.integers(len(natural.pixels))], teacher.PX, rng)
            return pictures.mirrored_in_other_light(np.asarray(image), rng)
        found = self.imagenet if self.imagenet and kind < 0.6 else self.to_teach
        place = natural.pixels[rng.integers(len(natural.pixels))] if rng.random() < self.args.small_share else None
        return pictures.augmented(found[rng.integers(len(found))], True, teacher.PX, rng, 0.2, 0.6, place)

    def __call__(self, step):
        rng = np.random.default_rng([self.args.seed, step, self.rank])
        natural, px = self.sets[0], self.args.px
        images, labels = [], []
        for i, (found, count) in enumerate(zip(self.sets, self.counts)):
            if count:
                drawn = rng.choice(len(found.label), count, p=self.weight if i == 0 else None)
                for at in drawn:
                    seed = rng.integers(1 << 60)
                    own = np.random.default_rng(seed)
                    if i == 0 and own.random() < self.args.empty_share:
                        if self.args.surface_share and own.random() < self.args.surface_share:
                            images.append(pictures.surface(px, own))
                        else:
                            images.append(pictures.mirrored_in_other_light(np.asarray(pictures.scene(found.pixels[at], px, own)), own))
                        labels.append((pictures.NOTHING, pictures.NO_CLASS, pictures.NO_CLASS))
                        continue
                    small = i == 0 and own.random() < self.args.small_share
                    place = natural.pixels[own.integers(len(natural.pixels))] if small else None
                    # Little of a picture of 32 pixels is left in a small crop.
                    smallest = 0.5 if len(found.pixels[at]) < 40 else 0.3
                    images.append(pictures.augmented(found.pixels[at], bool(found.sharp[at]), px, own, smallest, self.args.near_share, place))
                    other = [found.tiny_label[at] if i == of else pictures.NO_CLASS for of in (1, 2)]
                    labels.append((found.label[at], *other))
        for _ in range(self.stamp_count):
            own = np.random.default_rng(rng.integers(1 << 60))
            at = own.choice(len(self.stamps), p=self.stamp_weight)
            place = natural.pixels[own.integers(len(natural.pixels))]
            ground = pictures.surface(px, own) if own.random() < 0.3 else np.asarray(pictures.scene(place, px, own))
            images.append(pictures.mirrored_in_other_light(stamps.before(self.stamps[at], ground, px, own), own))
            labels.append((self.stamp_label[at], pictures.NO_CLASS, pictures.NO_CLASS))
        views = [self.for_the_teacher(rng) for _ in range(self.taught)]
        images += [pictures.squeezed(view, px) for view in views]
        pixels = (np.stack(images).astype(np.float32) / 255 - pictures.MEAN) / pictures.STD
        patches = (px // 14) ** 2
        keep = None
        if rng.random() >= self.args.whole_share:
            low, high = (float(share) for share in self.args.keep.split(","))
            kept = max(1, round(patches * rng.uniform(low, high)))
            keep = torch.from_numpy(rng.random((len(images), patches)).argsort(1)[:, :kept].copy())
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(np.array(labels)), keep, np.array(views)


@torch.no_grad()
def measured(model, sets, px, bfloat16):
    """Top-1 on the held-out pictures of each kind, whole and stretched."""
    found = {}
    for name, (head, pixels, labels, of) in sets.items():
        right, five, nll = [], [], []
        for at in range(0, len(pixels), 64):
            part = np.stack([pictures.squeezed(image, px) for image in pixels[at:at + 64]])
            part = torch.from_numpy((part.astype(np.float32) / 255 - pictures.MEAN) / pictures.STD).permute(0, 3, 1, 2)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model.out[head](model.features(part)).float()
            label = torch.as_tensor(labels[at:at + 64])
            right += (logits.argmax(1) == label).tolist()
            five += (logits.topk(5).indices == label[:, None]).any(1).tolist()
            nll += F.cross_entropy(logits, label, reduction="none").tolist()
        right, five, nll = np.array(right), np.array(five), np.array(nll)
        for kind, chosen in of.items():
            found[f"{name}{kind}"] = [round(float(x[chosen].mean()), 4) for x in (right, five, nll)]
    return found


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    args.out.mkdir(parents=True, exist_ok=True)
    names = pictures.classes(args.natural)
    sets = [pictures.natural(args.natural, "train", names), pictures.tiny(args.tiny, names)]
    if args.imagenet:
        sets[0] = teacher.with_named(sets[0], args.imagenet, names)
    held = pictures.natural(args.natural, "val", names)
    tier_a = np.array([Path(path).name.startswith("A_") for path in held.path])
    whole = np.ones(len(held.label), bool)
    tests = {"natural": ("everyday", held.pixels, held.label, {"": whole, ".sharp": held.sharp, ".A": tier_a})}
    heads = {"everyday": len(names), "tiny": 200}
    if args.cifar:
        pixels, labels = pictures.cifar(args.cifar, "train")
        words = ["airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", None, "truck"]
        found = pictures.Pictures()
        found.pixels, found.tiny_label = pixels, labels
        found.label = np.array([names.index(words[x]) if words[x] in names else -100 for x in labels])
        found.sharp = np.zeros(len(labels), bool)
        sets.append(found)
        pixels, labels = pictures.cifar(args.cifar, "test")
        heads["cifar"] = 10
        tests["cifar"] = ("cifar", pixels[:1000], labels[:1000], {"": np.ones(1000, bool)})
    teach = None
    if args.taught_share:
        teach = teacher.Teacher(names)
        heads["imagenet"] = 1000
    if args.init:
        folder = args.init.is_dir()
        kept = Vit.of_folder(args.init, "everyday").state_dict() if folder else torch.load(args.init)["average"]
        model = Vit(heads, grid=round(kept["pos"].shape[1] ** 0.5))
        # Other sets of pictures may have other classifiers.
        model.load_state_dict({name: tensor for name, tensor in kept.items() if name in model.state_dict()}, strict=False)
    else:
        model = Vit(heads)
        model.load_backbone(args.backbone)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(groups(model, args.lr, args.layer_decay), betas=(0.9, 0.98), fused=True)
    first = 0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        kept = torch.load(checkpoint)
        model.load_state_dict(kept["model"]), average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    if rank == 0:
        print(json.dumps({"classes": len(names), "pictures": [len(x.label) for x in sets], "from": first, **{k: str(v) for k, v in vars(args).items()}}), flush=True)
    draw = Draw(args, names, sets, rank, world)
    ahead = ThreadPoolExecutor(1)
    coming = ahead.submit(draw, first)
    began, losses = time.time(), []
    for step in range(first, args.steps):
        images, labels, keep, views = coming.result()
        coming = ahead.submit(draw, step + 1)
        rate = args.lr * min(1.0, (step + 1) / args.warmup, (args.steps - step) / max(args.cooldown, 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        answers = teach(views) if len(views) else ()
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.f32):
            features = model.features(images, keep)
            loss = 0.0
            if len(views):
                features, taught = features[:len(labels)], features[len(labels):]
                for name, said in zip(("imagenet", "everyday"), answers):
                    loss = loss - (said * model.out[name](taught).float().log_softmax(1)).sum() / (args.batch // world)
            for i, name in enumerate(LABELLED[:len(sets)]):
                head = model.out[name]
                there = labels[:, i] != pictures.NO_CLASS
                if there.any():
                    logits = head(features[there]).float()
                    label = labels[there, i]
                    nothing = label == pictures.NOTHING
                    if args.balanced and name == "everyday":
                        # Balanced softmax, Ren et al., arXiv:2007.10740, Eq. 4.
                        logits = torch.where(nothing[:, None], logits, logits + draw.log_prior)
                    part = F.cross_entropy(logits[~nothing], label[~nothing], label_smoothing=args.smoothing, reduction="sum")
                    part = part - logits[nothing].log_softmax(1).mean(1).sum()
                    loss = loss + part / (args.batch // world)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            torch._foreach_copy_(grads, [part.view_as(grad) / world for part, grad in zip(flat.split([g.numel() for g in grads]), grads)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % AVERAGED_EVERY == 0:
            share = min(args.ema, (step + 1) / (step + 10)) ** AVERAGED_EVERY
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - share)
        done = step + 1
        if rank:
            continue
        if done % 50 == 0:
            print(json.dumps({"step": done, "loss": round(float(np.mean(losses[-50:])), 4), "seconds": round(time.time() - began)}), flush=True)
        if done % args.every == 0 or done == args.steps:
            torch.save({"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "names": names, "px": args.px}, f"{checkpoint}.part")
            os.replace(f"{checkpoint}.part", checkpoint)
            print(json.dumps({"step": done, **measured(average, tests, args.px, not args.f32)}), flush=True)


main()
