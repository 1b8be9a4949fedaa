"""Whether generated images can be told from real ones: each check as one figure and the limit it has to keep.

Every figure is a difference between generated and validation images, and its limit so many standard errors of that
difference: as many that of generators which draw from the validation images' own distribution 5 % miss any of the checks,
whatever the number of images. The false alarms are shared out evenly among the checks, and within a check among all that
could exceed its limit. (`python -m benchmarks.verdict` measures them on real images.)
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from scipy.special import stdtrit

from lfm.evaluation.metrics import Difference

SDS = 2  # what ± means everywhere: an interval is estimate ± 2 standard errors
FALSE_ALARMS = 0.05  # of the whole verdict
CHECKS = 8


class Condition(NamedTuple):
    """Holds where the figure is at most the limit."""

    name: str
    what: str  # what the figure is
    figure: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.figure <= self.limit


def check(
    name: str, what: str, *differences: Difference, both_ways: bool = False, degrees: float = math.inf
) -> Condition:
    """One check, of the one of the differences that is the most standard errors away.

    Args:
        both_ways: not only what lies above the reference counts.
        degrees: of freedom, of errors that were measured with so few.
    """
    sizes = [abs(d.value) if both_ways else d.value for d in differences]
    level = 1 - FALSE_ALARMS / CHECKS / len(differences) / (1 + both_ways)
    errors = NormalDist().inv_cdf(level) if math.isinf(degrees) else float(stdtrit(degrees, level))
    figure, limit = max(
        ((size, errors * d.error) for size, d in zip(sizes, differences, strict=True)),
        key=lambda found: found[0] / found[1] if found[1] else math.copysign(math.inf, found[0]) if found[0] else 0,
    )
    return Condition(name, what, figure, limit)


def indistinguishable(
    fd: Difference,
    kid: Difference,
    blocks: int,
    manifolds: Sequence[Difference],
    two_sample: Difference,
    accuracy: Difference,
) -> list[Condition]:
    """The conditions that all hold where nothing measured here tells generated images from real ones.

    Args:
        fd, kid, manifolds, accuracy: generated minus validation images, each against the test images; two_sample: points
            above chance, generated against validation images.
        blocks: how many the kernel distance and its error come from.
    """
    return [
        check("Fréchet distance", "above the reference", fd),
        check("KID", "away from the reference", kid, both_ways=True, degrees=blocks - 1),
        check(
            "precision/recall",
            "the largest difference of precision, recall, density, coverage",
            *manifolds,
            both_ways=True,
        ),
        check("two-sample test", "generated against validation images, points above chance", two_sample),
        check("accuracy", "points away from the reference", accuracy, both_ways=True),
    ]


def alarms(pixels: Difference, shares: Sequence[Difference], memorised: Difference) -> list[Condition]:
    """What the classifier's features are blind to.

    Args:
        pixels: Fréchet distances of pixels; shares: of each class among the images recognised, in percent; memorised: percent
            that lies close to a training image; all generated minus validation images.
    """
    return [
        check("pixels", "Fréchet distance of pixels above the reference", pixels),
        check("class balance", "the largest difference of a class's share, in points", *shares, both_ways=True),
        check("no memorising", "close to a training image, points above the reference", memorised),
    ]


def verdict(conditions: list[Condition], others: list[Condition]) -> str:
    """One line: which conditions of being indistinguishable hold, and which alarms ring."""
    met, missed = ([c.name for c in conditions if c.holds is wanted] for wanted in (True, False))
    rung = [c.name for c in others if not c.holds]
    line = f"{len(met)} of {len(conditions)} conditions of indistinguishable hold"
    line += f" ({', '.join(met)})" if met and missed else ""
    line += f"; not {', '.join(missed)}" if missed else ""
    return line + (f"; alarms: {', '.join(rung)}" if rung else "; no alarm")
