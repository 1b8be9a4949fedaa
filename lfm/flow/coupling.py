"""Which noise goes with which datum. Noise alone is re-ordered, so labels stay with their data."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def independent(x0: Tensor, x1: Tensor, y: Tensor | None) -> Tensor:
    """Noise as it came, (B, ...): the coupling of plain flow matching."""
    return x0


def optimal_transport(x0: Tensor, x1: Tensor, y: Tensor | None) -> Tensor:
    """The batch's noise in the order that makes Σ |x0 − x1|² least: an exact assignment, a permutation without
    replacement (Tong et al. 2024, "Improving and generalizing flow-based generative models with minibatch optimal
    transport"; Pooladian et al. 2023).

    With labels the order is sought within each class: over all of the batch it would make the noise depend on the label,
    and sampling draws noise without looking at it.

    Args:
        x0, x1: noise and data, (B, ...).
        y: labels (B,), or None for a model without.
    """
    a, b = x0.flatten(1).cpu(), x1.flatten(1).cpu()  # where the assignment is solved, and where there is float64
    labels = torch.zeros(len(b), dtype=torch.int64) if y is None else y.cpu()
    order = torch.arange(len(b))
    for label in labels.unique():
        rows = torch.where(labels == label)[0]
        cost = torch.cdist(b[rows].double(), a[rows].double()).square().numpy()  # (data, noise)
        order[rows] = rows[torch.from_numpy(linear_sum_assignment(cost)[1])]
    return x0[order.to(x0.device)]


COUPLINGS = {"independent": independent, "ot": optimal_transport}
