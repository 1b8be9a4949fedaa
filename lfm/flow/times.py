"""At which times the loss is taken. Each density maps uniform draws to times, so it is tested against its own CDF.

All but `uniform` and `systematic` put one draw in each of B equal bins of probability: the mean loss of a batch varies
less than with independent times.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SEED_PERIOD = 1 - 1e-5  # the time that the seed takes as its last


def uniform(u: Tensor) -> Tensor:
    """Independent times: the draws as they are, (B,)."""
    return u


def stratified(u: Tensor, order: Tensor) -> Tensor:
    """One time in each of B equal bins of [0, 1).

    Args:
        u: where in its bin each time lies, uniform in [0, 1), (B,).
        order: a random order of 0 … B − 1, so that bins and labels are independent.
    """
    return (order.to(u) + u) / len(u)


def systematic(u: Tensor, order: Tensor) -> Tensor:
    """One offset for the whole batch, u[0] + i/B, modulo 1 − 1e-5: as the seed does it."""
    return (u[:1] + order.to(u) / len(u)) % SEED_PERIOD


def logit_normal(quantile: Tensor, choice: Tensor, mean: float, std: float, uniform_share: float) -> Tensor:
    """Times whose logit is N(mean, std²), most of them mid-way, mixed with uniform ones (Esser et al. 2024, eq. 19).

    Args:
        quantile: uniform draws in [0, 1), (B,); stratified ones give stratified times.
        choice: uniform draws in [0, 1), (B,): below `uniform_share` a time is its quantile as it is.
    """
    normal = torch.special.ndtri(quantile.double().clamp(1e-7, 1 - 1e-7)).to(quantile)
    return torch.where(choice < uniform_share, quantile, torch.sigmoid(mean + std * normal))


DENSITIES = ("uniform", "stratified", "systematic", "logit_normal")


def sample_times(
    density: str, u: Tensor, order: Tensor, choice: Tensor, mean: float, std: float, uniform_share: float
) -> Tensor:
    """Times (B,) of the density of that name from the draws that the functions above describe."""
    densities: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: uniform(u),
        "stratified": lambda: stratified(u, order),
        "systematic": lambda: systematic(u, order),
        "logit_normal": lambda: logit_normal(stratified(u, order), choice, mean, std, uniform_share),
    }
    return densities[density]()
