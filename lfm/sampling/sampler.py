"""How a trained velocity is turned into samples: one set of values, and the one function that uses them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lfm.errors import ConfigError
from lfm.flow.path import ProbPath
from lfm.sampling.guidance import Guidance
from lfm.sampling.solver import ADAPTIVE, FIXED_STEP, Solution, euler_maruyama, integrate

SOLVERS = (*FIXED_STEP, *ADAPTIVE, "euler_maruyama")  # of the flow
ALL_SOLVERS = (*SOLVERS, "flow_map")  # of a model with a flow map
MOST_STEPS = 10_000
INTERVALS = ("guidance_interval", "autoguidance_interval")  # values that are tuples


class Sampler(NamedTuple):
    """The values that sampling needs.

    >>> Sampler("rk4", steps=0).check()
    Traceback (most recent call last):
        ...
    lfm.errors.ConfigError: steps is 0; accepted: a whole number from 1 to 10,000
    """

    solver: str = "midpoint"  # one of `SOLVERS`
    steps: int = 20
    time_shift: float = 1.0  # above 1: more steps near the noise; below: near the data
    rtol: float = 1e-5  # tolerances of an adaptive solver
    atol: float = 1e-6
    noise_strength: float = 1.0  # of the stochastic equation
    guidance_scale: float = 1.0  # 1: the conditional model as it is
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # guide from the first to the second t
    autoguidance_scale: float = 1.0  # away from the weak model; 1 takes none
    autoguidance_interval: tuple[float, float] = (0.0, 1.0)

    def check(self) -> "Sampler":
        """These values; raises `ConfigError` that names the one which can't be used."""
        limits: dict[str, tuple[Callable[[Any], bool], str]] = {
            "solver": (lambda v: v in ALL_SOLVERS, f"one of {', '.join(ALL_SOLVERS)}"),
            "steps": (lambda v: _whole(v) and 1 <= v <= MOST_STEPS, f"a whole number from 1 to {MOST_STEPS:,}"),
            "time_shift": (lambda v: 0.01 <= v <= 100, "0.01 to 100"),
            "rtol": (lambda v: 1e-7 <= v < 1, "from 1e-7 to below 1"),
            "atol": (lambda v: 1e-7 <= v < 1, "from 1e-7 to below 1"),
            "noise_strength": (lambda v: 0 <= v <= 10, "0 to 10"),
            "guidance_scale": (lambda v: 0 <= v <= 100, "0 to 100"),
            "guidance_interval": (_rising, "two rising times from 0 to 1"),
            "autoguidance_scale": (lambda v: 0 <= v <= 100, "0 to 100"),
            "autoguidance_interval": (_rising, "two rising times from 0 to 1"),
        }
        for name, (fits, accepted) in limits.items():
            value = getattr(self, name)
            try:
                good = fits(value)
            except (TypeError, ValueError):  # of another type
                good = False
            if not good:
                raise ConfigError(f"{name} is {value!r}; accepted: {accepted}")
        (a, b), (c, d) = self.guidance_interval, self.autoguidance_interval
        return self._replace(guidance_interval=(float(a), float(b)), autoguidance_interval=(float(c), float(d)))

    def as_json(self) -> dict[str, Any]:
        """The values as JSON and YAML have them; `Sampler(**values).check()` is the way back."""
        return {name: list(value) if name in INTERVALS else value for name, value in self._asdict().items()}

    @property
    def by_labels(self) -> Guidance:
        """Classifier-free guidance."""
        return Guidance(self.guidance_scale, self.guidance_interval)

    @property
    def by_weak(self) -> Guidance:
        """Autoguidance."""
        return Guidance(self.autoguidance_scale, self.autoguidance_interval)

    def __call__(
        self,
        velocity: Callable[[Tensor, Tensor], Tensor],
        path: ProbPath,
        x0: Tensor,
        grid: Tensor,
        noise: Callable[[int], Tensor],
        at: list[int] | None = None,
    ) -> Solution:
        """Noise x0 (B, ...) → states (T, B, ...) at places `at` of the grid, by default at its end alone.

        Args:
            velocity: (t, x) ↦ dx/dt, already guided.
            path: what the velocity was trained on; the stochastic equation needs its σ.
            noise: step ↦ standard normal draws of x0's shape, for the stochastic equation.
        """
        if self.solver == "euler_maruyama":
            return euler_maruyama(velocity, path, x0, grid, noise, self.noise_strength, at)
        return integrate(velocity, x0, grid, self.solver, at, self.rtol, self.atol)


def _rising(v: Sequence[float]) -> bool:
    return len(v) == 2 and 0 <= v[0] <= v[1] <= 1


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
