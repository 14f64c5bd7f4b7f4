"""Times one pass of ViT-Ti, -S and -B here, in ONNX Runtime, OpenVINO and PyTorch, in turns, and prints ratios.

    pip install onnxruntime onnx openvino timm torch
    cargo build --release && python3 tests/benches/peers/forward.py target/release/vitscope

All run on two threads with random weights, in every precision that they have; a figure is the median over all rounds,
in ms a picture. ONNX Runtime's int8 is its dynamic quantization with a scale per channel.
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
from onnxruntime.quantization import QuantType, quantize_dynamic

THREADS = 2
REPEATS_A_ROUND = 5
MODELS = {
    "vit-ti/16": "vit_tiny_patch16_224",
    "vit-s/16": "vit_small_patch16_224",
    "vit-b/16": "vit_base_patch16_224",
}
PRECISIONS = ("f32", "bf16", "int8")


def timed(run, batch):
    """Milliseconds a picture of each repetition of a round, after one that does not count."""
    run()
    times = []
    for _ in range(REPEATS_A_ROUND):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3 / batch)
    return times


def onnx_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )


def openvino_request(path, precision):
    settings = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": precision}
    return openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()


def peers(name, batch, folder):
    """What runs one pass, by peer and precision."""
    images = torch.randn(batch, 3, 224, 224)
    pixels = images.numpy().astype(np.float32)
    model = timm.create_model(MODELS[name], pretrained=False).eval()
    path = folder / f"{MODELS[name]}-{batch}.onnx"
    torch.onnx.export(model, (images,), str(path), opset_version=17, dynamo=False)
    small = path.with_suffix(".int8.onnx")
    quantize_dynamic(path, small, per_channel=True, weight_type=QuantType.QInt8)

    whole, quantized = onnx_session(path), onnx_session(small)
    feed = {whole.get_inputs()[0].name: pixels}
    f32, bf16 = (openvino_request(path, precision) for precision in ("f32", "bf16"))
    half_model, half_images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    model = timm.create_model(MODELS[name], pretrained=False).eval()

    def pytorch(model, images):
        with torch.inference_mode():
            model(images)

    return {
        ("onnxruntime", "f32"): lambda: whole.run(None, feed),
        ("onnxruntime", "int8"): lambda: quantized.run(None, feed),
        ("openvino", "f32"): lambda: f32.infer([pixels]),
        ("openvino", "bf16"): lambda: bf16.infer([pixels]),
        ("pytorch", "f32"): lambda: pytorch(model, images),
        ("pytorch", "bf16"): lambda: pytorch(half_model, half_images),
    }


def ours(program, name, batch, precisions, folder):
    """Milliseconds a picture of the bare model and with DiffMask, one median a round, by method and precision."""
    path = folder / "ours.json"
    command = [program, "bench", "--model", name, "--batch", str(batch)]
    command += ["--precision", ",".join(precisions), "--method", "forward,diffmask"]
    command += ["--threads", str(THREADS), "--repeat", str(REPEATS_A_ROUND), "--json", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    passes = json.loads(path.read_text())["passes"]
    return {
        (row["method"], row["model"].split()[-1]): [row["ms_per_image"]] for row in passes
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    precisions = args.precisions.split(",")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in args.models.split(","):
            for batch in map(int, args.batches.split(",")):
                others = peers(name, batch, folder)
                times = {}
                for _ in range(args.rounds):
                    round_times = ours(args.program, name, batch, precisions, folder)
                    for peer, run in others.items():
                        round_times[peer] = timed(run, batch)
                    for what, values in round_times.items():
                        times.setdefault(what, []).extend(values)
                ms = {what: statistics.median(values) for what, values in times.items()}
                print(f"{name}, batch {batch}" + "".join(f"{kind:>9}" for kind in PRECISIONS))
                for what in dict.fromkeys(what for what, _ in ms):
                    cells = [ms.get((what, kind)) for kind in PRECISIONS]
                    row = "".join("        –" if cell is None else f"{cell:9.2f}" for cell in cells)
                    print(f"{what:18}{row}")
                peer = min((ms[what], what) for what in others)
                best = min((ms["diffmask", kind], kind) for kind in precisions)
                print(
                    f"diffmask {best[1]} / {' '.join(peer[1])}: {best[0] / peer[0]:.2f}\n",
                    flush=True,
                )


if __name__ == "__main__":
    main()
