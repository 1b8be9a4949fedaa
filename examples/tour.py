"""The tour of the API as a script; `python -m tools.notebook` executes it into examples/tour.ipynb."""

# %% [markdown]
# # A tour of `lfm`
#
# What one can do with a trained flow: draw, watch, invert, transfer, interpolate, measure. It needs no data and no
# network: the weights come with the package. Everything takes seconds on a CPU.

# %%
import numpy as np
from PIL import Image

from lfm import LatentFlow

model = LatentFlow.from_pretrained()
model


# %% [markdown]
# A helper that puts images side by side, a list of lists as rows.


# %%
def grid(rows: list[list[Image.Image]], zoom: int = 2) -> Image.Image:
    sheet = np.concatenate([np.concatenate([np.asarray(image) for image in row], 1) for row in rows])
    return Image.fromarray(sheet).resize((zoom * sheet.shape[1], zoom * sheet.shape[0]), Image.Resampling.NEAREST)


# %% [markdown]
# ## Draw
#
# Labels in, images out. The seed and the row number alone decide the noise, so the same call gives the same digits.

# %%
drawn = model.sample(range(10), n=8, seed=0)
print(f"{len(drawn.images)} images, {drawn.nfe:g} function evaluations each")
grid([drawn.images[8 * label : 8 * label + 8] for label in range(10)])

# %% [markdown]
# ## Watch noise become a digit
#
# `return_path` decodes the latents on the way. t = 0 is noise, t = 1 a digit.

# %%
path = model.sample([7, 2], seed=3, return_path=[0, 0.2, 0.4, 0.6, 0.8, 1])
print("t =", ", ".join(f"{t:.1f}" for t in path.times))
grid([[images[i] for images in path.path] for i in range(2)])

# %% [markdown]
# ## Guidance
#
# Scale 1 is the plain conditional model. More is truer to the label and less varied. (The model's own sampler guides in an
# interval alone, and away from a weaker model too: `model.sampler`.)

# %%
scales = [1, 3, 8]
plain = {"guidance_interval": (0, 1), "autoguidance_scale": 1}
guided = [model.sample([5], n=8, seed=1, guidance_scale=scale, **plain).images for scale in scales]
print("guidance scale, from the top:", scales)
grid(guided)

# %% [markdown]
# ## The same hand, other digits
#
# Followed backwards, an image becomes its noise: the hand it was written with. That noise, followed with other labels,
# writes other digits.

# %%
one = drawn.images[8 * 3]
others = model.transfer(one, to=range(10), labels=3)  # for each label the pictures of all images, here of one
grid([[one, *(pictures[0] for pictures in others)]])

# %% [markdown]
# ## Between two digits
#
# Through the noise between theirs, so that each step is a digit.

# %%
between = model.interpolate(drawn.images[8 * 4], drawn.images[8 * 9], n=10)
grid([[pictures[0] for pictures in between]])

# %% [markdown]
# ## How likely is an image?
#
# log p of its latents under each label, in nats. The largest is the flow's own guess of the label.

# %%
log_prob = model.log_prob([one] * 10, labels=range(10), probes=8)
print(", ".join(f"{label}: {nats:.0f}" for label, nats in enumerate(log_prob.nats)))
print("most likely:", log_prob.nats.argmax())

# %% [markdown]
# ## The parts
#
# Images to normalised latents and back, and the velocity itself: with these, any other sampler is a few lines. This one
# is Euler's rule.

# %%
import torch

latents = model.encode([one])
print("latents:", tuple(latents.shape))
x, steps = torch.randn(8, *model.latent_shape, generator=torch.Generator().manual_seed(0)), 20
with torch.no_grad():
    for step in range(steps):
        x = x + model.velocity(step / steps, x, labels=[8] * 8) / steps
grid([list(model.decode(x))])

# %% [markdown]
# From here: [the method from zero](../docs/method.md), [the whole training in one file](minimal.py), and
# [experiments](../docs/experiments.md).
