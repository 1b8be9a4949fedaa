"""Latent flow matching: handwritten digits out of noise.

>>> from lfm import LatentFlow
>>> model = LatentFlow.from_pretrained()
>>> model.sample([3, 1, 4], seed=0).images
[<PIL.Image.Image image mode=L size=28x28 at ...>, ...]

`LatentFlow` is what people use. The rooms beneath it hold what it is made of: `lfm.nets` (what has weights), `lfm.flow`
(path, loss, coupling, times: what training needs), `lfm.sampling` (solvers, guidance, likelihood) and `lfm.evaluation`
(sets of images in, figures out). Nothing here reads params.yaml or the working directory, or prints.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfm.errors import ConfigError
    from lfm.flow.loss import cfm_loss
    from lfm.flow.path import make_path
    from lfm.model import LatentFlow, LogProb, Samples
    from lfm.nets.autoencoder import ImageAutoencoder
    from lfm.nets.transformer import Transformer
    from lfm.sample_data import mnist_sample
    from lfm.sampling.sampler import Sampler
    from lfm.sampling.solver import integrate, time_grid

__version__ = "0.2.0"
__all__ = [
    "ConfigError",
    "ImageAutoencoder",
    "LatentFlow",
    "LogProb",
    "Sampler",
    "Samples",
    "Transformer",
    "cfm_loss",
    "integrate",
    "make_path",
    "mnist_sample",
    "time_grid",
]
_HOMES = {
    "ConfigError": "lfm.errors",
    "ImageAutoencoder": "lfm.nets.autoencoder",
    "LatentFlow": "lfm.model",
    "LogProb": "lfm.model",
    "Sampler": "lfm.sampling.sampler",
    "Samples": "lfm.model",
    "Transformer": "lfm.nets.transformer",
    "cfm_loss": "lfm.flow.loss",
    "integrate": "lfm.sampling.solver",
    "make_path": "lfm.flow.path",
    "mnist_sample": "lfm.sample_data",
    "time_grid": "lfm.sampling.solver",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: torch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lfm' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
