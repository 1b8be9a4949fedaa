"""The picture of docs/method.md: pairs whose lines cross, and the field that is the mean of their velocities.

python -m tools.method
"""

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lfm.flow.path import convert, make_path
from lfm.sampling.solver import integrate, time_grid

PICTURE = Path("docs/method/paths.png")
PANEL, REACH, SMOOTH = (
    380,
    2.9,
    3,
)  # pixels of a panel, half its side in units of x; SMOOTH pixels are drawn for each kept
NOISES, STEPS = 48, 200
BLUE, ORANGE, GREY = (60, 100, 200), (240, 130, 30), (150, 160, 175)


def paths() -> tuple[Tensor, Tensor, Tensor]:
    """Eight points as data (8, 2), a point for each noise (B, 2), and the paths (T, B, 2) of noise through their field."""
    angle = torch.arange(8) * (math.pi / 4)
    data = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    path = make_path("cond_ot", 1e-3)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        """E[u_t | x_t = x]: for data that are points, their mean weighted by how likely each led to x."""
        c = path(t)
        weights = torch.softmax(-(torch.cdist(x, c.alpha * data) ** 2) / (2 * c.sigma**2), 1)
        return convert(path, "data", "velocity", weights @ data, x, t)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NOISES, 2, generator=generator)
    partner = data[torch.randint(len(data), (NOISES,), generator=generator)]
    return data, partner, integrate(velocity, noise, time_grid(STEPS), "midpoint", list(range(STEPS + 1))).x


def draw() -> Image.Image:
    data, partner, drift = paths()
    image = Image.new("RGB", (2 * PANEL * SMOOTH, PANEL * SMOOTH), "white")
    pen = ImageDraw.Draw(image)
    for panel, lines in enumerate((torch.stack([drift[0], partner]), drift)):
        place = (lines / REACH + 1) / 2 * PANEL * SMOOTH + torch.tensor([panel * PANEL * SMOOTH, 0])
        points = (data / REACH + 1) / 2 * PANEL * SMOOTH + torch.tensor([panel * PANEL * SMOOTH, 0])
        for line in place.unbind(1):
            pen.line([tuple(point) for point in line.tolist()], GREY, SMOOTH)
        for dots, colour, radius in ((place[0], BLUE, 3), (points, ORANGE, 6)):
            for x, y in dots.tolist():
                r = radius * SMOOTH
                pen.ellipse((x - r, y - r, x + r, y + r), colour)
    return image.resize((2 * PANEL, PANEL), Image.Resampling.LANCZOS).quantize(64)


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    draw().save(PICTURE, optimize=True)
    print(PICTURE)
