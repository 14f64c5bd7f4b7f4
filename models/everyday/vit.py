"""A DINOv2 ViT with registers, in PyTorch, for training: patches can be dropped, positions follow the grid."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        x = x + self.ls1 * self.proj(attended)
        return x + self.ls2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, heads_out, dim=384, blocks=12, heads=6, patch=14, grid=37, registers=4):
        super().__init__()
        self.patch, self.grid = patch, grid
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.cls, self.registers = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, registers, dim))
        self.cls_pos, self.pos = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, grid * grid, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.ModuleDict({name: nn.Linear(dim, classes) for name, classes in heads_out.items()})
        for head in self.out.values():
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def positions(self, height, width):
        if height == width == self.grid:
            return self.pos
        square = self.pos.float().view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        fitted = F.interpolate(square, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return fitted.permute(0, 2, 3, 1).reshape(1, height * width, -1)

    def patches(self, images):
        batch, _, height, width = images.shape
        p = self.patch
        cut = images.view(batch, 3, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return self.embed(cut.reshape(batch, (height // p) * (width // p), -1)) + self.positions(height // p, width // p)

    def features(self, images, keep=None):
        """`keep` (batch, kept): indices of the patches that stay. Returns the class token, normalised."""
        x = self.patches(images)
        batch = len(x)
        if keep is not None:
            x = x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        first = (self.cls + self.cls_pos).expand(batch, -1, -1)
        x = torch.cat([first, self.registers.expand(batch, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    @classmethod
    def of_folder(cls, folder, head):
        """What `export.py` wrote, 8-bit weights too, with one classifier."""
        stored = load_file(folder / "model.safetensors")
        t = {}
        for name, tensor in stored.items():
            if name.endswith(".scale"):
                continue
            t[name.removeprefix("dinov2_with_registers.")] = tensor.float()
            if f"{name}.scale" in stored:
                scale = stored[f"{name}.scale"].view([-1] + [1] * (tensor.ndim - 1))
                t[name.removeprefix("dinov2_with_registers.")] *= scale
        side = round((t["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
        model = cls({head: len(t["classifier.bias"])}, grid=side)
        model.set_backbone(t)
        model.out[head].weight.data = t["classifier.weight"][:, :model.norm.weight.shape[0]].contiguous()
        model.out[head].bias.data = t["classifier.bias"]
        return model

    def load_backbone(self, path):
        """The tensors of a Hugging Face folder of DINOv2 with registers."""
        self.set_backbone({name: tensor.float() for name, tensor in load_file(path).items()})

    def set_backbone(self, t):
        e = "embeddings."
        self.embed.weight.data = t[e + "patch_embeddings.projection.weight"].reshape(384, -1)
        self.embed.bias.data = t[e + "patch_embeddings.projection.bias"]
        self.cls.data, self.registers.data = t[e + "cls_token"], t[e + "register_tokens"]
        pos = t[e + "position_embeddings"]
        self.cls_pos.data, self.pos.data = pos[:, :1].clone(), pos[:, 1:].clone()
        for i, block in enumerate(self.blocks):
            at = f"encoder.layer.{i}."
            for kind in ("weight", "bias"):
                qkv = [t[f"{at}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
                getattr(block.qkv, kind).data = torch.cat(qkv)
                getattr(block.proj, kind).data = t[f"{at}attention.output.dense.{kind}"]
                for name in ("norm1", "norm2"):
                    getattr(getattr(block, name), kind).data = t[f"{at}{name}.{kind}"]
                for name in ("fc1", "fc2"):
                    getattr(getattr(block, name), kind).data = t[f"{at}mlp.{name}.{kind}"]
            block.ls1.data, block.ls2.data = t[at + "layer_scale1.lambda1"], t[at + "layer_scale2.lambda1"]
        self.norm.weight.data, self.norm.bias.data = t["layernorm.weight"], t["layernorm.bias"]

    def tensors(self, side):
        """The same names, positions fitted to `side` patches a side; without heads."""
        e = "embeddings."
        t = {
            e + "patch_embeddings.projection.weight": self.embed.weight.view(-1, 3, self.patch, self.patch),
            e + "patch_embeddings.projection.bias": self.embed.bias,
            e + "cls_token": self.cls,
            e + "register_tokens": self.registers,
            e + "position_embeddings": torch.cat([self.cls_pos, self.positions(side, side)], 1),
            "layernorm.weight": self.norm.weight,
            "layernorm.bias": self.norm.bias,
        }
        for i, block in enumerate(self.blocks):
            at = f"encoder.layer.{i}."
            for kind in ("weight", "bias"):
                for part, of in zip(("query", "key", "value"), getattr(block.qkv, kind).chunk(3)):
                    t[f"{at}attention.attention.{part}.{kind}"] = of
                t[f"{at}attention.output.dense.{kind}"] = getattr(block.proj, kind)
                for name in ("norm1", "norm2"):
                    t[f"{at}{name}.{kind}"] = getattr(getattr(block, name), kind)
                for name in ("fc1", "fc2"):
                    t[f"{at}mlp.{name}.{kind}"] = getattr(getattr(block, name), kind)
            t[at + "layer_scale1.lambda1"], t[at + "layer_scale2.lambda1"] = block.ls1, block.ls2
        return {name: tensor.detach().contiguous().clone() for name, tensor in t.items()}
