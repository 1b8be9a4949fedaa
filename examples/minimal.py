"""Latent flow matching for MNIST in one file: the whole method, to read from top to bottom.

    python examples/minimal.py                   # trains for a minute or two on two cores, writes digits.png
    python examples/minimal.py --data FOLDER     # where MNIST/raw is, or is to be downloaded to

It uses torch and the public names of `lfm`. The pipeline does the same with more care: see stages/train.py.
"""

import argparse

import torch
from PIL import Image
from torchvision.datasets import MNIST

from lfm import LatentFlow, Transformer, cfm_loss, integrate, make_path, time_grid

parser = argparse.ArgumentParser(description="Latent flow matching for MNIST in one file.")
parser.add_argument("--data", default="data", help="folder of MNIST/raw (default: data)")
parser.add_argument("--steps", type=int, default=1000, help="of the training (default: 1000)")
parser.add_argument("--output", default="digits.png", help="the grid of digits (default: digits.png)")
options = parser.parse_args()
torch.manual_seed(0)

# 1. Images → latents, once. The autoencoder is the one that comes with lfm: 28×28 pixels become 6×4×4 numbers, and
#    `encode` normalises each channel to mean 0 and variance 1, the scale of the noise that a flow starts from.
mnist = MNIST(options.data, train=True, download=True)
pretrained = LatentFlow.from_pretrained()
latents = pretrained.encode(mnist.data, batch_size=500)  # (60000, 6, 4, 4)
labels = mnist.targets

# 2. The model: a diffusion transformer v(t, x, y), 4 tokens of 2×2 latents. Label 10 means "no label".
CLASSES, NULL = 10, 10
model = Transformer(6, 4, patch_size=2, block="modern", width=128, depth=4, heads=2, mlp_ratio=4, classes=CLASSES)
average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=options.steps, pct_start=0.05)

# 3. The path from noise x0 to a latent x1: x_t = (1 − (1 − σ_min) t) x0 + t x1, whose velocity is x1 − (1 − σ_min) x0.
#    Conditional flow matching regresses v(t, x_t, y) on that velocity; what it learns is the mean over all pairs
#    (x0, x1) whose paths cross at x_t, and that mean carries the whole of the noise to the whole of the data.
path = make_path("cond_ot", sigma_min=1e-3)
for step in range(options.steps):
    rows = torch.randint(len(latents), (256,))
    x1, y = latents[rows], labels[rows]
    x0 = torch.randn_like(x1)
    t = torch.sigmoid(torch.randn(len(x1)))  # most times mid-way, where the velocity is hardest to tell
    y = torch.where(torch.rand(len(y)) < 0.1, NULL, y)  # one label in ten is dropped, for guidance below
    loss = cfm_loss(model, path, x0, x1, t, y)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    average.update_parameters(model)
    if step % 100 == 0 or step == options.steps - 1:
        print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)

# 4. Noise → latents: follow dx/dt = v(t, x) from t = 0 to 1, by the midpoint rule in 10 steps. In the middle of the
#    way, classifier-free guidance pushes on from what any digit would do there to what this digit does.
y = torch.arange(CLASSES).repeat_interleave(10)
average.eval()


def velocity(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    v = average(t, x, y)
    if not 0.6 <= t <= 0.9:
        return v
    without_label = average(t, x, torch.full_like(y, NULL))
    return without_label + 3.0 * (v - without_label)


with torch.no_grad():
    samples = integrate(velocity, torch.randn(len(y), 6, 4, 4), time_grid(10), "midpoint").x[-1]

# 5. Latents → images, a digit a row.
images = pretrained.decode(samples, "np", batch_size=100)  # (100, 1, 28, 28), 8-bit
grid = images.reshape(CLASSES, 10, 28, 28).swapaxes(1, 2).reshape(CLASSES * 28, 10 * 28)
Image.fromarray(grid).resize((560, 560), Image.Resampling.NEAREST).save(options.output)
print(f"wrote {options.output}")
