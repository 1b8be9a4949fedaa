"""The ruler, against closed forms and an independent implementation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from lfm.metrics import frechet_distance
from lfm.psnr import psnr


def whitened(n: int, d: int) -> torch.Tensor:
    """n points with mean exactly 0 and covariance exactly the identity."""
    x = np.random.default_rng(0).standard_normal((n, d))
    x -= x.mean(0)
    return torch.from_numpy(x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T)


def test_frechet_distance_of_known_gaussians() -> None:
    x = whitened(500, 4)
    shift, scale = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = (shift.square().sum() + (scale - 1).square().sum()).item()  # commuting covariances
    assert frechet_distance(x, x * scale + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_agrees_with_the_matrix_square_root() -> None:
    g = np.random.default_rng(1)
    a, b = g.standard_normal((300, 8)) @ g.standard_normal((8, 8)), g.standard_normal((200, 8)) + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-8)


def test_psnr_of_known_errors() -> None:
    a = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 255) == pytest.approx(0)
    assert psnr(a, a + 5) == pytest.approx(20 * math.log10(255 / 5))
