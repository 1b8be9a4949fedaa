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


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each head, (B, H, N, D/H) each, joined to (B, N, D).

    Written out: with this few tokens, torch's fused attention takes several times as long on a CPU.
    """
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # (B, H, N, N)
    return (weights @ v).transpose(1, 2).flatten(2)


class DiTBlock(nn.Module):
    """Attention and MLP, both switched by the condition (adaLN-Zero: at first the block is the identity)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, side: int) -> None:
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

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)  # (B, H, N, D/H) each
        return self.project(attend(q, k, v))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=-1)  # (B, D)
        x = x + gate_a[:, None] * self.attention(modulate(self.norm(x), shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulate(self.norm(x), shift_m, scale_m))


class SwiGLU(nn.Module):
    """silu(x W₁) · (x W₂) W₃ with ⅔ of the hidden width, so that it has as many weights as a plain MLP (Shazeer 2020)."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = max(8, round(mlp_ratio * width * 2 / 3 / 8) * 8)
        self.expand = nn.Linear(width, 2 * hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.expand(x).chunk(2, dim=-1)
        return self.contract(F.silu(gate) * value)


class ModernBlock(DiTBlock):
    """The same with RMSNorm, SwiGLU, normalised queries and keys (Henry et al. 2020) and rotary positions (Su et al. 2021)
    along both axes, as Yao et al. 2025 ("LightningDiT") put them together."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, side: int) -> None:
        super().__init__(width, heads, mlp_ratio, side)
        self.mlp = SwiGLU(width, mlp_ratio)  # type: ignore[assignment]
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads, eps=1e-6), nn.RMSNorm(width // heads, eps=1e-6)
        turns = rotations(side, width // heads)  # (N, D/2H) each
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", turns.cos(), persistent=False)
        self.register_buffer("sin", turns.sin(), persistent=False)

    def norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-6)

    def turn(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)  # (B, H, N, D/H) each
        return self.project(attend(self.turn(self.query_norm(q)), self.turn(self.key_norm(k)), v))


BLOCKS: dict[str, type[DiTBlock]] = {"dit": DiTBlock, "modern": ModernBlock}


class Transformer(nn.Module):
    """v(t, x, y) on latents.

    Args:
        channels, size: of the latents, which are square.
        patch_size: side of the square of latents that makes one token; must divide `size`.
        block: a key of `BLOCKS`.
        width, depth, heads, mlp_ratio: of the transformer; `heads` and 4 must divide `width`, and for `modern` 4 · heads.
        classes: how many labels there are; the null label, for "no label", comes on top. 0: a model that knows no labels.

    Raises `ConfigError` where sizes do not divide.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        patch_size: int,
        block: str,
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
        if block == "modern" and width % (4 * heads):
            raise ConfigError(
                f"model.width is {width}; with model.block modern it must be a multiple of 4 · heads ({4 * heads})"
            )
        self.config = {
            "channels": channels, "size": size, "patch_size": patch_size, "block": block, "width": width, "depth": depth,
            "heads": heads, "mlp_ratio": mlp_ratio, "classes": classes,
        }  # fmt: skip
        self.channels, self.size, self.patch_size, self.null_label = channels, size, patch_size, classes
        side = size // patch_size
        self.embed = nn.Linear(channels * patch_size**2, width)
        self.positions: Tensor
        self.register_buffer("positions", positions(side, width), persistent=False)  # (N, D)
        self.time = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.blocks = nn.ModuleList(BLOCKS[block](width, heads, mlp_ratio, side) for _ in range(depth))
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
        """Velocity (B, C, H, W) at times t ((B,) or a scalar, which may be on the CPU), latents x (B, C, H, W) and labels y
        (B,) int64 (of which a model without labels takes no notice)."""
        return self.conditioned(x, self.condition(for_each(t, x), y))

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """What times (B,) and labels (B,) say to the blocks: (B, D)."""
        condition = self.time(time_features(t))
        return condition if self.label is None else condition + self.label(y)

    def conditioned(self, x: Tensor, condition: Tensor) -> Tensor:
        """Latents (B, C, H, W) through the blocks: (B, C, H, W)."""
        p, condition = self.patch_size, F.silu(condition)
        tokens = F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)  # (B, N, C·p²)
        tokens = self.embed(tokens) + self.positions  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        tokens = self.final(modulate(F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), shift, scale))  # (B, N, C·p²)
        patches = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // p, x.shape[3] // p))  # (B, C·p², H/p, W/p)
        return F.pixel_shuffle(patches, p)


def for_each(t: Tensor, x: Tensor) -> Tensor:
    """Times (B,), or one scalar for all, as (B,) beside x (B, ...).

    A scalar on the CPU becomes an argument of a kernel: the host does not wait for the GPU, as it would to copy it there.
    """
    t = t.to(x.dtype)
    return t.expand(len(x)) if t.dim() else x.new_zeros(len(x)) + t


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


def rotations(side: int, head_width: int) -> Tensor:
    """The angles by which rotary positions turn each pair of a head, half of them by row, half by column: (side², D/2H)."""
    count = head_width // 4
    angles = torch.arange(side)[:, None] * 1e2 ** (-torch.arange(count) / count)  # (side, D/4H)
    return torch.cat([angles[:, None].expand(-1, side, -1), angles.expand(side, -1, -1)], dim=-1).flatten(0, 1)
