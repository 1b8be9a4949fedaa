"""What the flow sees of an autoencoder: draws from the posterior, normalised per channel."""

from typing import NamedTuple

from torch import Tensor


class LatentScale(NamedTuple):
    """Per-channel mean and standard deviation of the training latents, (c,) each: the one home of the latent scale.

    The variance is that of draws from the posterior: Var(mean) + E(std²).
    """

    mean: Tensor
    std: Tensor

    def normalise(self, latents: Tensor) -> Tensor:
        """(B, c, h, w) → zero mean and unit variance a channel."""
        return (latents - self.mean.to(latents)[:, None, None]) / self.std.to(latents)[:, None, None]

    def restore(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latents * self.std.to(latents)[:, None, None] + self.mean.to(latents)[:, None, None]


def draw(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """A draw from the posterior N(mean, std²); one cached draw would freeze the autoencoder's noise."""
    return mean + std * noise
