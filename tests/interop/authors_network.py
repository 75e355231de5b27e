"""A second, plain implementation of the network in the authors' checkpoints, by the names of its weights."""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class AuthorsNetwork(nn.Module):
    """Backbone by timm's names, projection head, decoder; its weights are those facts that are known of the format."""

    def __init__(self, width=24, depth=2, heads=3, size=16, patch=8, channels=3, mlp=4, hidden=20, out=12):
        super().__init__()
        self.heads, self.patch = heads, patch
        self.backbone = nn.Module()
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.backbone.patch_embed = nn.Module()
        self.backbone.patch_embed.proj = nn.Conv2d(channels, width, patch, patch)
        self.backbone.blocks = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.qkv, block.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, mlp * width), nn.Linear(mlp * width, width)
            self.backbone.blocks.append(block)
        self.backbone.norm = nn.LayerNorm(width)
        self.head = nn.Module()
        self.head.mlp = nn.Sequential(
            *(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.GELU()),
            *(nn.Linear(hidden, out), nn.BatchNorm1d(out, affine=False)),
        )
        self.head_recons = nn.Module()
        layers = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.GELU())]
        self.head_recons.mlp = nn.Sequential(*layers)
        self.head_recons.convTrans = nn.ConvTranspose2d(width, channels, patch, patch)

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        net = self.backbone
        x = torch.stack(
            [
                net.patch_embed.proj(images[:, :, top : top + self.patch, left : left + self.patch])[:, :, 0, 0]
                for top in range(0, images.shape[2], self.patch)
                for left in range(0, images.shape[3], self.patch)
            ],
            dim=1,
        )
        x = torch.cat([net.cls_token.repeat(len(x), 1, 1), x], dim=1) + net.pos_embed
        for block in net.blocks:
            q, k, v = block.attn.qkv(self.norm(block.norm1, x)).chunk(3, dim=-1)
            outputs = [
                torch.softmax(a @ b.transpose(1, 2) / a.shape[-1] ** 0.5, dim=-1) @ c
                for a, b, c in zip(*(part.chunk(self.heads, dim=-1) for part in (q, k, v)), strict=True)
            ]
            x = x + block.attn.proj(torch.cat(outputs, dim=-1))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(self.norm(block.norm2, x))))
        return self.norm(net.norm, x)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, reconstruction and projection."""
        tokens = self.tokens(images)
        patches = self.head_recons.mlp(tokens[:, 1:]).transpose(1, 2)
        side = int(patches.shape[-1] ** 0.5)
        reconstruction = self.head_recons.convTrans(patches.reshape(len(tokens), -1, side, side))
        return tokens, reconstruction, self.head.mlp(tokens[:, 0])

    @staticmethod
    def norm(layer: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, eps=1e-6)


def random_network(seed: int, **sizes) -> AuthorsNetwork:
    """In evaluation mode, with nothing at 0 or 1 that could hide a mistake."""
    torch.manual_seed(seed)
    network = AuthorsNetwork(**sizes)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.normal_(std=0.3)
    return network.eval()


def save_checkpoint(path: Path, student: nn.Module, teacher: nn.Module | None = None, **others) -> Path:
    """As the authors' training code leaves it, with flags and learning rates of NumPy beside the weights."""

    def weights(network):
        return {f"module.{name}": value for name, value in network.state_dict().items()}

    optimizer = torch.optim.AdamW(student.parameters())
    optimizer.param_groups[0]["lr"] = np.float64(1e-4)
    contents = {"student": weights(student), "optimizer": optimizer.state_dict(), "epoch": 7}
    if teacher is not None:
        contents["teacher"] = weights(teacher)
    contents["args"] = argparse.Namespace(lr=1e-4, model="vit_small", batch=np.float32(3))
    torch.save({**contents, **others}, path)
    return path
