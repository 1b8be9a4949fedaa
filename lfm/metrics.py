"""How good images are: arrays in, floats out. Everything in float64 on the CPU."""

import numpy as np
import scipy.linalg
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features (Dowson & Landau 1982; Heusel et al. 2017).

    |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), where the last trace is the sum of the roots of the eigenvalues of Σa Σb, which
    are those of the symmetric Σa^½ Σb Σa^½.

    Args:
        a, b: features (N, D) and (M, D); N and M at least 2.
    """
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = scipy.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(scipy.linalg.eigvalsh(root @ cov_y @ root).clip(0)).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)
