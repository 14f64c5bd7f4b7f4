"""Times a whole video (decode, explain, draw, encode) here and as a loop of OpenCV and PyTorch, in turns, and prints ratios.

    pip install opencv-python-headless timm torch safetensors grad-cam
    cargo build --release && python3 tests/benches/peers/whole_job.py target/release/vitscope CLIP.mp4

The loops do what a user of those packages writes: one frame at a time, the heatmap by OpenCV, MPEG-4 by
OpenCV. `diffmask` asks gates of the same size as ours and runs the second, masked pass, as the authors'
code does; `grad-cam` is pytorch-grad-cam on the last block's first norm. All run on two threads with the
same random weights. A figure is the median of the rounds, in frames a second.
"""

import argparse
import hashlib
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import cv2
import numpy as np
import safetensors.torch
import timm
import torch
from pytorch_grad_cam import GradCAM

THREADS = 2
SIZE_PX = 224
MODELS = {"vit-ti/16": "vit_tiny_patch16_224", "vit-b/16": "vit_base_patch16_224"}


class Gate(torch.nn.Module):
    """Two weight-normalized layers with tanh, over the first state and a later one."""

    def __init__(self, dim):
        super().__init__()
        hidden = dim // 4
        self.first = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2 * dim, hidden))
        self.second = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(hidden, 1))
        self.offset = torch.nn.Parameter(torch.tensor([8.0]))

    def forward(self, first, state):
        hidden = torch.tanh(self.first(torch.cat([first, state], -1)))
        return 15 * torch.tanh(self.second(hidden)) + self.offset

    def tensors(self):
        """By our names."""
        tensors = {"offset": self.offset}
        for layer, name in ((self.first, "hidden"), (self.second, "vote")):
            weight = layer.parametrizations.weight
            tensors[f"{name}.direction"] = weight.original1
            tensors[f"{name}.length"] = weight.original0.squeeze(1)
            tensors[f"{name}.bias"] = layer.bias
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


class DiffMask:
    """Gates on all states of a clean pass, then a pass with the masked patches replaced."""

    def __init__(self, model):
        self.model, self.states = model, []
        self.gates = [Gate(model.embed_dim) for _ in range(len(model.blocks) + 2)]
        self.baseline, self.mask = torch.zeros(model.embed_dim), None
        model.patch_embed.register_forward_hook(self.embedded)
        for block in model.blocks:
            block.register_forward_pre_hook(lambda _, args: self.states.append(args[0][:, 1:]))
        model.norm.register_forward_pre_hook(lambda _, args: self.states.append(args[0][:, 1:]))

    def embedded(self, _module, _args, patches):
        self.states.append(patches)
        if self.mask is None:
            return patches
        mask = self.mask[:, :, None]
        return mask * patches + (1 - mask) * self.baseline

    def __call__(self, image):
        with torch.inference_mode():
            self.states, self.mask = [], None
            logits = self.model(image)
            states = list(self.states)
            shift = 0.2 * np.log(0.2)
            keep = [
                torch.nn.functional.logsigmoid(gate(states[0], state) - shift)
                for gate, state in zip(self.gates, states)
            ]
            self.mask = sum(keep).exp()[:, :, 0]
            heat = self.mask[0].reshape(14, 14).numpy()
            self.model(image)
        return heat, int(logits.argmax())


class Cam:
    """pytorch-grad-cam."""

    def __init__(self, model):
        self.cam = GradCAM(
            model,
            [model.blocks[-1].norm1],
            reshape_transform=lambda xs: xs[:, 1:].reshape(-1, 14, 14, xs.shape[2]).permute(0, 3, 1, 2),
        )

    def __call__(self, image):
        heat = self.cam(input_tensor=image, targets=None)[0]
        return heat, int(self.cam.outputs.argmax())


def loop(explain, clip, secs, out):
    """Frames a second of a loop over the beginning of the clip."""
    capture = cv2.VideoCapture(str(clip))
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    fps = capture.get(cv2.CAP_PROP_FPS)
    writer = cv2.VideoWriter(str(out), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    frames, start = 0, time.perf_counter()
    while frames < secs * fps:
        ok, frame = capture.read()
        if not ok:
            break
        small = cv2.cvtColor(cv2.resize(frame, (SIZE_PX, SIZE_PX)), cv2.COLOR_BGR2RGB)
        image = torch.from_numpy((small.astype(np.float32) / 255 - 0.5) / 0.5)
        heat, label = explain(image.permute(2, 0, 1)[None])
        heat = cv2.resize(heat.astype(np.float32), size)
        colors = cv2.applyColorMap((255 * heat.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
        frame = cv2.addWeighted(frame, 0.5, colors, 0.5, 0)
        cv2.putText(frame, str(label), (20, 40), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2)
        writer.write(frame)
        frames += 1
    writer.release()
    return frames / (time.perf_counter() - start)


def save(model, gates, folder):
    """The same model as a folder of ours."""
    folder.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "vit",
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "intermediate_size": 4 * model.embed_dim,
        "image_size": SIZE_PX,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
        "id2label": {str(label): f"class {label}" for label in range(1000)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = {
        "size": {"height": SIZE_PX, "width": SIZE_PX},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tensors = {
        f"gates.{gate_idx}.{name}": tensor
        for gate_idx, gate in enumerate(gates)
        for name, tensor in gate.tensors().items()
    }
    tensors["baseline"] = torch.zeros(model.embed_dim)
    safetensors.torch.save_file(tensors, folder / "gates.safetensors")
    card = {
        "base_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "states": len(gates),
        "dim": model.embed_dim,
        "hidden": model.embed_dim // 4,
        "stretch": 15.0,
        "seed": 0,
        "recipe": {},
        "l0": 1.0,
        "kl": 0.0,
    }
    (folder / "gates.json").write_text(json.dumps(card))


def ours(program, model, clip, secs, out):
    """Frames a second of the program, its start and the loading of the model left out, as the loops' are."""
    command = [program, "file", clip, out, "--model", model, "--method", "diffmask", "--overwrite"]
    command += ["--threads", str(THREADS), "--progress", "none", "--end", str(secs)]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    words = (done.stdout + done.stderr).split()
    return float(words[words.index("frames/s") - 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("clip", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=int, default=4, help="how much of the clip")
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    print("model      vitscope  diffmask loop  grad-cam loop  of diffmask  of grad-cam")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in args.models.split(","):
            model = timm.create_model(MODELS[name], pretrained=False).eval()
            cam = Cam(timm.create_model(MODELS[name], pretrained=False).eval())
            diffmask = DiffMask(model)
            path = folder / MODELS[name]
            save(model, diffmask.gates, path)
            fps = {"ours": [], "diffmask": [], "cam": []}
            for _ in range(args.rounds):
                fps["ours"].append(ours(args.program, path, args.clip, args.secs, folder / "ours.mp4"))
                fps["diffmask"].append(loop(diffmask, args.clip, args.secs, folder / "loop.mp4"))
                fps["cam"].append(loop(cam, args.clip, args.secs, folder / "loop.mp4"))
            medians = {who: statistics.median(values) for who, values in fps.items()}
            print(
                f"{name:9}  {medians['ours']:8.1f}  {medians['diffmask']:13.2f}  {medians['cam']:13.2f}"
                f"  {medians['ours'] / medians['diffmask']:11.2f}  {medians['ours'] / medians['cam']:11.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
