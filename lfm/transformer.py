"""The velocity model v(t, x, y): a diffusion transformer with adaLN-Zero (Peebles & Xie 2023, "Scalable diffusion models
with transformers")."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm.errors import ConfigError

TIME_SCALE, TIME_FREQUENCIES = (
    1000,
    128,
)  # sinusoids of period up to 10⁴ tell times apart in [0, 1000], not in [0, 1]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D) scaled and shifted by one (B, D) each a sample."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and MLP, both switched by the condition (adaLN-Zero: at first the block is the identity)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, int(mlp_ratio * width)),
            nn.GELU("tanh"),
            nn.Linear(int(mlp_ratio * width), width),
        )

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)  # (B, H, N, D/H) each
        # Written out: with this few tokens, torch's fused attention takes several times as long on a CPU.
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # (B, H, N, N)
        return self.project((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=-1)  # (B, D)
        norm = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        x = x + gate_a[:, None] * self.attention(modulate(norm, shift_a, scale_a))
        norm = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return x + gate_m[:, None] * self.mlp(modulate(norm, shift_m, scale_m))


class Transformer(nn.Module):
    """v(t, x, y) on latents.

    Args:
        channels, size: of the latents, which are square.
        patch_size: side of the square of latents that makes one token; must divide `size`.
        width, depth, heads, mlp_ratio: of the transformer; `heads` and 4 must divide `width`.
        classes: how many labels there are; the null label, for "no label", comes on top.

    Raises `ConfigError` where sizes do not divide.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        classes: int,
    ) -> None:
        super().__init__()
        if size % patch_size:
            fits = [n for n in range(1, size + 1) if size % n == 0]
            raise ConfigError(
                f"model.patch_size is {patch_size}, which does not divide latents of {size}×{size}; choose one of {fits}"
            )
        if width % heads or width % 4:
            raise ConfigError(f"model.width is {width}; it must be a multiple of 4 and of model.heads ({heads})")
        self.config = {
            "channels": channels, "size": size, "patch_size": patch_size, "width": width, "depth": depth,
            "heads": heads, "mlp_ratio": mlp_ratio, "classes": classes,
        }  # fmt: skip
        self.patch_size, self.null_label = patch_size, classes
        self.embed = nn.Linear(channels * patch_size**2, width)
        self.register_buffer("positions", positions(size // patch_size, width), persistent=False)  # (N, D)
        self.time = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, channels * patch_size**2)
        self.initialise()

    def initialise(self) -> None:
        """Xavier for linear layers, small normals for embeddings, zeros where adaLN-Zero wants them: v = 0 at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name in ("time.0.weight", "time.2.weight", "label.weight"):
                nn.init.normal_(weight, std=0.02)
            if "modulation" in name or name == "final.weight":
                nn.init.zeros_(weight)

    def forward(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Velocity (B, C, H, W) at times t ((B,) or a scalar), latents x (B, C, H, W) and labels y (B,) int64."""
        p = self.patch_size
        condition = F.silu(self.time(time_features(t.to(x.dtype).expand(len(x)))) + self.label(y))  # (B, D)
        tokens = F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)  # (B, N, C·p²)
        tokens = self.embed(tokens) + self.positions  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        tokens = self.final(modulate(F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), shift, scale))  # (B, N, C·p²)
        patches = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // p, x.shape[3] // p))  # (B, C·p², H/p, W/p)
        return F.pixel_shuffle(patches, p)


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of 1000·t at frequencies from 1 down to 10⁻⁴ (Vaswani et al. 2017): (B,) → (B, 256)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(TIME_FREQUENCIES, device=t.device) / TIME_FREQUENCIES)
    angles = TIME_SCALE * t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def positions(side: int, width: int) -> Tensor:
    """Fixed sines and cosines of row and column of each token, row by row: (side², width)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies  # (side, width/4)
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width/2)
    return torch.cat([one[:, None].expand(-1, side, -1), one.expand(side, -1, -1)], dim=-1).flatten(0, 1)
