"""Times one forward pass of ViT-Ti, -S and -B here, in ONNX Runtime, OpenVINO and PyTorch, in turns, and prints ratios.

    pip install onnxruntime onnx openvino timm torch
    cargo build --release && python3 tests/benches/peers/forward.py target/release/vitscope

All run on two threads with random weights; a figure is the median over all rounds, in ms a picture.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import onnxruntime
import openvino
import timm
import torch

THREADS = 2
REPEATS_A_ROUND = 5
MODELS = {
    "vit-ti/16": "vit_tiny_patch16_224",
    "vit-s/16": "vit_small_patch16_224",
    "vit-b/16": "vit_base_patch16_224",
}


def timed(run, batch):
    """Milliseconds a picture of each repetition of a round, after one that does not count."""
    run()
    times = []
    for _ in range(REPEATS_A_ROUND):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3 / batch)
    return times


def peers(name, batch, folder):
    """What runs one pass, by peer."""
    images = torch.randn(batch, 3, 224, 224)
    model = timm.create_model(MODELS[name], pretrained=False).eval()
    path = folder / f"{MODELS[name]}-{batch}.onnx"
    torch.onnx.export(model, (images,), str(path), opset_version=17, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: images.numpy().astype(np.float32)}

    settings = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()

    def pytorch():
        with torch.inference_mode():
            model(images)

    return {
        "onnxruntime": lambda: session.run(None, feed),
        "openvino": lambda: request.infer([images.numpy()]),
        "pytorch": pytorch,
    }


def ours(program, name, batch, folder):
    """Milliseconds a picture of the bare model, with gradients and with DiffMask, one median a round."""
    path = folder / "ours.json"
    command = [program, "bench", "--model", name, "--batch", str(batch)]
    command += ["--method", "forward,backward,diffmask", "--threads", str(THREADS)]
    command += ["--repeat", str(REPEATS_A_ROUND), "--json", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    passes = json.loads(path.read_text())["passes"]
    return {row["method"]: [row["ms_per_image"]] for row in passes}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(
        "model      batch  forward  diffmask  backward  onnxruntime  openvino  pytorch"
        "  forward/ort  diffmask/forward  backward/forward"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in args.models.split(","):
            for batch in (1, 8):
                others = peers(name, batch, folder)
                times = {}
                for _ in range(args.rounds):
                    round_times = ours(args.program, name, batch, folder)
                    for peer, run in others.items():
                        round_times[peer] = timed(run, batch)
                    for what, values in round_times.items():
                        times.setdefault(what, []).extend(values)
                ms = {what: statistics.median(values) for what, values in times.items()}
                print(
                    f"{name:9}  {batch:5}  {ms['forward']:7.2f}  {ms['diffmask']:8.2f}"
                    f"  {ms['backward']:8.2f}  {ms['onnxruntime']:11.2f}  {ms['openvino']:8.2f}"
                    f"  {ms['pytorch']:7.2f}  {ms['forward'] / ms['onnxruntime']:11.2f}"
                    f"  {ms['diffmask'] / ms['forward']:16.2f}"
                    f"  {ms['backward'] / ms['forward']:16.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
