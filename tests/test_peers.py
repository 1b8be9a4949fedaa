"""The same numbers as torchcfm and flow_matching, computed with their packages: paths, targets, conversions, couplings,
inversion and likelihood. `make test` installs them (tests/peers.txt)."""

import math
from functools import partial

import pytest
import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler, CosineScheduler, VPScheduler
from flow_matching.solver import ODESolver
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)
from torchcfm.optimal_transport import OTPlanSampler

from lfm.flow.coupling import optimal_transport
from lfm.flow.path import ProbPath, convert, interpolate, make_path
from lfm.sampling.likelihood import log_likelihood
from lfm.sampling.solver import integrate, time_grid
from tests.gaussians import mixture_velocity

SCHEDULERS = {"cond_ot": CondOTScheduler(), "gvp": CosineScheduler(), "vp": VPScheduler(0.1, 20.0)}
G = torch.Generator().manual_seed(0)
X0, X1 = torch.randn(2, 5, 4, 4, 4, generator=G, dtype=torch.float64)
T = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_and_paths_are_those_of_flow_matching(name: str) -> None:
    ours, theirs = make_path(name, 0.0)(T), SCHEDULERS[name](T)
    for a, b in zip(ours, (theirs.alpha_t, theirs.sigma_t, theirs.d_alpha_t, theirs.d_sigma_t), strict=True):
        close(a, b)
    x_t, u_t = interpolate(make_path(name, 0.0), X0, X1, T)
    sample = AffineProbPath(SCHEDULERS[name]).sample(x_0=X0, x_1=X1, t=T)
    close(x_t, sample.x_t)
    close(u_t, sample.dx_t)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_conversions_are_those_of_flow_matching(name: str) -> None:
    path, peer, t = make_path(name, 0.0), AffineProbPath(SCHEDULERS[name]), T[:, None, None, None]
    value, x = X0, X1
    pairs = {
        ("data", "velocity"): peer.target_to_velocity(value, x, t),
        ("data", "noise"): peer.target_to_epsilon(value, x, t),
        ("velocity", "data"): peer.velocity_to_target(value, x, t),
        ("velocity", "noise"): peer.velocity_to_epsilon(value, x, t),
        ("noise", "velocity"): peer.epsilon_to_velocity(value, x, t),
        ("noise", "data"): peer.epsilon_to_target(value, x, t),
    }
    for (source, target), expected in pairs.items():
        close(convert(path, source, target, value, x, T), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma_min", [0.0, 1e-3, 0.1])
def test_the_straight_path_is_that_of_torchcfm(sigma_min: float) -> None:
    x_t, u_t = interpolate(make_path("cond_ot", sigma_min), X0, X1, T)
    peer = TargetConditionalFlowMatcher(sigma=sigma_min)
    close(x_t, peer.sample_xt(X0, X1, T, X0))
    close(u_t, peer.compute_conditional_flow(X0, X1, T, x_t))
    if sigma_min == 0:
        plain = ConditionalFlowMatcher(0.0)
        close(x_t, plain.sample_xt(X0, X1, T, torch.zeros_like(X0)))
        close(u_t, plain.compute_conditional_flow(X0, X1, T, x_t))


def test_the_trigonometric_path_is_torchcfms_variance_preserving_one() -> None:
    x_t, u_t = interpolate(make_path("gvp", 0.0), X0, X1, T)
    peer = VariancePreservingConditionalFlowMatcher(sigma=0.0)
    close(x_t, peer.sample_xt(X0, X1, T, torch.zeros_like(X0)))
    close(u_t, peer.compute_conditional_flow(X0, X1, T, x_t))


def test_the_exact_assignment_is_that_of_torchcfm() -> None:
    x0, x1 = torch.randn(2, 64, 8, generator=G, dtype=torch.float64)
    plan = torch.from_numpy(OTPlanSampler(method="exact").get_map(x0, x1)) * len(x0)  # (noise, data), a permutation
    close(optimal_transport(x0, x1, None), plan.T @ x0)


class Field(nn.Module):
    """A known velocity in the form that flow_matching's solver asks for."""

    def __init__(self, path: ProbPath) -> None:
        super().__init__()
        self.velocity = mixture_velocity(path)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.velocity(t, x[:, 0])[:, None]


@pytest.mark.parametrize("name", ["cond_ot", "gvp"])
def test_solutions_inversions_and_likelihoods_are_those_of_flow_matching(name: str) -> None:
    field, x0 = Field(make_path(name, 0.0)), torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    solver, grid = ODESolver(field), time_grid(20)
    there = solver.sample(x_init=x0, step_size=None, method="midpoint", time_grid=grid)
    ours = integrate(lambda t, x: field(x, t), x0, grid, "midpoint").x[-1]
    close(ours, there)
    back = solver.sample(x_init=there, step_size=None, method="midpoint", time_grid=grid.flip(0))
    close(integrate(lambda t, x: field(x, t), ours, grid.flip(0), "midpoint").x[-1], back)

    def log_normal(x: Tensor) -> Tensor:
        return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)

    _, theirs = solver.compute_likelihood(
        x_1=there, log_p0=log_normal, step_size=1 / 20, method="midpoint", exact_divergence=True
    )
    found = log_likelihood(lambda t, x: field(x, t), there, grid, "midpoint")
    close(found, theirs, rtol=1e-8, atol=1e-8)
