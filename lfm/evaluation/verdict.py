"""Whether generated images can be told from real ones: each condition as one figure and the limit it has to keep.

What real images are granted is what another set of real images reaches, not an ideal. (MNIST's test digits
were written by other people than its training digits, and a two-sample test notices that.)
"""

from typing import NamedTuple

from lfm.evaluation.metrics import Comparison

SDS = 2  # an interval is estimate ± 2 standard deviations
COVER_POINTS = 0.015  # precision, recall, density, coverage
TWO_SAMPLE_POINTS = 2  # percent right above what real images give, which would be 50
ACCURACY_POINTS = 0.3
IMBALANCE_POINTS = 1
MEMORISED_TIMES = 2  # as many images close to a training image as among unseen real ones


class Condition(NamedTuple):
    """Holds where the figure is at most the limit."""

    name: str
    what: str  # what the figure is
    figure: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.figure <= self.limit


def indistinguishable(
    generated: Comparison, real: Comparison, excess_sd: float, accuracy: float, accuracy_real: float
) -> list[Condition]:
    """The conditions that all hold where nothing measured here tells generated images from real ones.

    Args:
        generated, real: the generated images, and other real images, each against the test images.
        excess_sd: bootstrap standard deviation of generated.fd − real.fd.
        accuracy, accuracy_real: percent of labels recognised.
    """
    kid_errors = SDS * (generated.kid_error + real.kid_error)
    gap = max(abs(a - b) for a, b in zip(generated.manifolds, real.manifolds, strict=True))
    excess = generated.two_sample - real.two_sample
    return [
        Condition("Fréchet distance", "above the reference, limit 2 sd", generated.fd - real.fd, SDS * excess_sd),
        Condition("KID", "away from the reference, limit both intervals", abs(generated.kid - real.kid), kid_errors),
        Condition(
            "precision/recall", "the largest difference of precision, recall, density, coverage", gap, COVER_POINTS
        ),
        Condition("two-sample test", "points above real images", excess, TWO_SAMPLE_POINTS),
        Condition("accuracy", "points away from real images", abs(accuracy - accuracy_real), ACCURACY_POINTS),
    ]


def alarms(
    generated: Comparison, real: Comparison, excess_sd: float, imbalance: float, memorised: float, expected: float
) -> list[Condition]:
    """What the classifier's features are blind to.

    Args:
        excess_sd: bootstrap standard deviation of generated.fd_pixels − real.fd_pixels.
        imbalance: percent of the images that would have to change class to have the test images' shares.
        memorised, expected: percent of generated, and of unseen real images, that lie close to a training image.
    """
    excess = generated.fd_pixels - real.fd_pixels
    return [
        Condition("pixels", "Fréchet distance of pixels above the reference, limit 2 sd", excess, SDS * excess_sd),
        Condition("class balance", "points off the test images", imbalance, IMBALANCE_POINTS),
        Condition("no memorising", "percent close to a training image", memorised, MEMORISED_TIMES * expected),
    ]


def verdict(conditions: list[Condition], others: list[Condition]) -> str:
    """One line: which conditions of being indistinguishable hold, and which alarms ring."""
    met, missed = ([c.name for c in conditions if c.holds is wanted] for wanted in (True, False))
    rung = [c.name for c in others if not c.holds]
    line = f"{len(met)} of {len(conditions)} conditions of indistinguishable hold"
    line += f" ({', '.join(met)})" if met and missed else ""
    line += f"; not {', '.join(missed)}" if missed else ""
    return line + (f"; alarms: {', '.join(rung)}" if rung else "; no alarm")
