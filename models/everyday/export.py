"""Writes a trained checkpoint as a folder of Hugging Face's layout, with calibrated probabilities.

python export.py --checkpoint RUN/checkpoint.pt --natural DIR --px 112 --head everyday --out FOLDER

The temperature is chosen on the sharp pictures of NATURAL/val and folded into the classifier. The classifier reads the
class token; the half that would read the mean of the patches, which the layout asks for, is 0.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import pictures
from vit import Vit

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def logits_of(model, head, images, px):
    found = []
    with torch.no_grad():
        for at in range(0, len(images), 64):
            part = np.stack([pictures.squeezed(image, px) for image in images[at:at + 64]])
            part = torch.from_numpy((part.astype(np.float32) / 255 - pictures.MEAN) / pictures.STD)
            found.append(model.out[head](model.features(part.permute(0, 3, 1, 2))))
    return torch.cat(found)


def calibration_error(logits, labels, bins=15):
    sure, guess = logits.softmax(1).max(1)
    right = (guess == labels).float()
    which = (sure * bins).clamp(max=bins - 1e-6).long()
    gaps = [
        (sure[which == b].mean() - right[which == b].mean()).abs() * (which == b).float().mean()
        for b in range(bins) if (which == b).any()
    ]
    return float(sum(gaps))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--natural", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--px", type=int, required=True)
    parser.add_argument("--head", default="everyday")
    parser.add_argument("--weights", choices=["average", "model"], default="average", help="averaged over steps, or the last")
    parser.add_argument("--sure-accuracy", type=float, default=0.9)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    kept = torch.load(args.checkpoint)
    state = kept[args.weights]
    heads = {name.split(".")[1]: len(t) for name, t in state.items() if name.startswith("out.") and name.endswith("bias")}
    model = Vit(heads, grid=round(state["pos"].shape[1] ** 0.5))
    model.load_state_dict(state)
    if args.head == "everyday":
        folders = kept["names"]
        plain = {c["folder"]: c["name"] for c in json.loads((args.natural / "classes.json").read_text())["classes"]}
        labels = [plain.get(folder, folder) for folder in folders]
        held = pictures.natural(args.natural, "val", folders)
        chosen = held.sharp
        logits, truth = logits_of(model, args.head, held.pixels, args.px), torch.as_tensor(held.label)
    else:
        labels = CIFAR
        pixels, truth = pictures.cifar(args.cifar, "train")
        logits, truth = logits_of(model, args.head, pixels[:1000], args.px), torch.as_tensor(truth[:1000])
        chosen = np.ones(len(truth), bool)
    chosen = torch.as_tensor(chosen)
    temperatures = torch.linspace(0.4, 2.5, 211)
    losses = [F.cross_entropy(logits[chosen] / t, truth[chosen]).item() for t in temperatures]
    temperature = float(temperatures[int(np.argmin(losses))])
    logits = logits / temperature
    sure, guess = logits[chosen].softmax(1).max(1)
    right = guess == truth[chosen]
    thresholds = np.arange(0.0, 1.0, 0.01)
    threshold = next((float(t) for t in thresholds if right[sure >= t].float().mean() >= args.sure_accuracy), 0.0)
    found = {
        "temperature": temperature,
        "top1": float(right.float().mean()),
        "top5": float((logits[chosen].topk(5).indices == truth[chosen][:, None]).any(1).float().mean()),
        "calibration error": calibration_error(logits[chosen], truth[chosen]),
        "not sure below": threshold,
        "sure": float((sure >= threshold).float().mean()),
    }
    print(json.dumps(found))
    tensors = model.tensors(args.px // 14)
    weight, bias = model.out[args.head].weight.detach() / temperature, model.out[args.head].bias.detach() / temperature
    tensors["classifier.weight"] = torch.cat([weight, torch.zeros_like(weight)], 1)
    tensors["classifier.bias"] = bias
    tensors = {
        name if name.startswith("classifier") else f"dinov2_with_registers.{name}": tensor.half().contiguous()
        for name, tensor in tensors.items()
    }
    config = {
        "architectures": ["Dinov2WithRegistersForImageClassification"],
        "model_type": "dinov2_with_registers",
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4,
        "image_size": args.px, "patch_size": 14, "num_register_tokens": 4, "num_channels": 3,
        "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True, "layerscale_value": 1.0,
        "use_swiglu_ffn": False, "torch_dtype": "float16",
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if args.head == "everyday":
        config["not_sure_below"] = round(threshold, 2)
        config["label_aliases"] = {old: new for old, new in pictures.MERGED.items() if new in folders}
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True, "size": {"height": args.px, "width": args.px}, "resample": 3,
        "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }
    args.out.mkdir(parents=True)
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (args.out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


main()
