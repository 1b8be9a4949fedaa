"""Is it better? Experiments over seeds, compared with a baseline in one table.

    python -m tools.compare                                          compare the experiments that there are
    python -m tools.compare --seeds 3 -S flow.path=gvp,vp --run      run what is missing, then compare

The baseline is params.yaml as it stands, or what --baseline changes in it; a variant is whatever else differs, seeds aside.
A difference is the mean over seeds that both have, with its 95 % interval (Student's t for paired differences).
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import click
from scipy.stats import t as student

from pipeline.errors import UserError
from pipeline.params import PARAMS, load_tree, validate_params
from pipeline.progress import say
from pipeline.run import ending_in_one_line

DVC = (sys.executable, "-m", "dvc")
METRICS = "reports/metrics.json"
SHOWN = ("fd_generated", "accuracy_generated", "recall", "nfe")
SEEDED = (
    "train.seed",
    "sample.seed",
)  # what a run's seed sets: weights, data order and noise of the training; noise of the samples
IGNORED = ("runtime.", "report.")  # parameters that change no figure
MOST_SEEDS = 1000
WAITING = "`dvc queue start` runs them, `python -m tools.compare` then compares"


class Metric(NamedTuple):
    """Which way is better (+1: more, −1: less, 0: neither), and parameters (prefixes) that change what is measured, so that
    values on both sides can't be compared."""

    sign: int
    units: tuple[str, ...] = ()


LATENTS = ("autoencoder.", "encode.")
FOR_ALL = ("data.", "classifier.", "evaluate.")
# Of the validation loss, whose noise and times never change; an error of predicted data counts more in the velocity.
TARGET = (*LATENTS, "flow.path", "flow.sigma_min", "flow.prediction")
SECOND = ("second_classifier.",)
# By the beginning of a figure's name; of several the longest.
DIRECTIONS = {
    "fd_": Metric(-1), "fd_validation": Metric(0), "fd_pixels_validation": Metric(0),
    "fd_second_": Metric(-1, SECOND), "fd_second_validation": Metric(0, SECOND),
    "fd_generated_sd": Metric(0), "fd_generated_error": Metric(0),
    "kid_": Metric(-1), "kid_validation": Metric(0),
    "precision": Metric(1), "recall": Metric(1), "density": Metric(1), "coverage": Metric(1),
    "two_sample_": Metric(-1), "two_sample_validation": Metric(0),
    "accuracy_": Metric(1), "accuracy_test": Metric(0), "class_imbalance": Metric(-1),
    "memorised": Metric(0),  # 1 is what unseen images give; less and more are both odd
    "indistinguishable_conditions_met": Metric(1), "psnr": Metric(1), "nfe": Metric(-1),
    "validation_loss": Metric(-1, TARGET), "bits_per_dim": Metric(-1, (*LATENTS, "likelihood.")),
}  # fmt: skip

Seeds = tuple[tuple[str, int], ...]
Changes = tuple[tuple[str, str], ...]  # sorted "section.key" and value against the baseline, () for itself


class Run(NamedTuple):
    """An experiment, or a commit."""

    name: str
    params: dict[str, Any]  # "section.key": value
    figures: dict[str, float]  # empty while it waits or runs, and where it failed
    state: str  # success | queued | running | failed


class Difference(NamedTuple):
    """The mean of paired differences and its 95 % interval; `more` pairs would tell it from 0 if mean and sd stayed."""

    pairs: int
    mean: float
    low: float
    high: float
    more: int | None  # None: more than MOST_SEEDS, or not to be said from so few

    def word(self, sign: int) -> str:
        if self.pairs < 2:
            return f"can't tell: {self.pairs} seed{'' if self.pairs == 1 else 's'} in common, 2 are the least"
        if self.low == self.high == 0:
            return "the same"
        if not self.low <= 0 <= self.high:
            return {1: "better", -1: "worse", 0: "differs"}[sign * (1 if self.mean > 0 else -1)]
        if self.more is None:
            return f"can't tell, nor would {MOST_SEEDS} seeds"
        return f"can't tell; about {self.more} more seed{'' if self.more == 1 else 's'} would"


def compare(differences: Sequence[float]) -> Difference:
    """Student's interval for the mean of differences, one for each seed."""
    n = len(differences)
    mean = fmean(differences) if n else math.nan
    if n < 2:
        return Difference(n, mean, -math.inf, math.inf, None)
    sd = stdev(differences)
    half = half_width(sd, n)
    more = bisect_left(range(MOST_SEEDS), True, key=lambda more: half_width(sd, n + more) < abs(mean))
    return Difference(n, mean, mean - half, mean + half, more if more < MOST_SEEDS else None)


def half_width(sd: float, n: int) -> float:
    """Of the 95 % interval of a mean of `n` values."""
    return float(student.ppf(0.975, n - 1)) * sd / math.sqrt(n)


def metric(name: str) -> Metric:
    """Raises `UserError` for a figure of which nothing is known."""
    known = [start for start in DIRECTIONS if name.startswith(start)]
    if not known:
        raise UserError(f"--metric is {name}: no figure of that name is known; one of those in {METRICS}")
    return DIRECTIONS[max(known, key=len)]


# --- reading -----------------------------------------------------------------------------------------------------------


def flat(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, leaves in tree.items() for key, value in leaves.items()}


def read_runs(revisions: Iterable[str] = ()) -> list[Run]:
    """Experiments of HEAD, or of some revisions, and these commits themselves. The working tree is none of them."""
    words = [word for revision in revisions for word in ("--rev", revision)]
    shown = subprocess.run([*DVC, "exp", "show", "--json", *words], stdout=subprocess.PIPE, encoding="utf-8")
    if shown.returncode:
        raise UserError("`dvc exp show` failed; the lines above say why")
    runs = []
    for commit in json.loads(shown.stdout):
        rows = [] if commit["rev"] == "workspace" else [(commit, "success")]
        for experiment in commit["experiments"] or []:
            state = (experiment["executor"] or {}).get("state") or "success"
            rows += [(row, state) for row in experiment["revs"]]
        for row, state in rows:
            data = row["data"] or {}
            params = data.get("params", {}).get(str(PARAMS), {}).get("data")
            figures = data.get("metrics", {}).get(METRICS, {}).get("data") if state == "success" else None
            if params and (figures or row is not commit):
                state = "failed" if state == "success" and not figures else state.lower()
                runs.append(Run(row["name"] or row["rev"][:7], flat(params), figures or {}, state))
    return runs


def seeds(params: Mapping[str, Any]) -> Seeds:
    return tuple((key, value) for key, value in sorted(params.items()) if key.endswith(".seed"))


def changes(params: Mapping[str, Any], baseline: Mapping[str, Any]) -> Changes:
    """What differs from the baseline and can change a figure; seeds are no change."""
    keys = sorted({*params, *baseline})
    differ = [key for key in keys if params.get(key) != baseline.get(key)]
    return tuple(
        (key, json.dumps(params.get(key)).replace('"', "").replace(" ", ""))
        for key in differ
        if not key.endswith(".seed") and not key.startswith(IGNORED)
    )


def by_variant(runs: Iterable[Run], baseline: Mapping[str, Any]) -> dict[Changes, dict[Seeds, Run]]:
    """The runs of every variant by seed, the baseline first. Raises `UserError` where two should be equal and are not."""
    groups: dict[Changes, dict[Seeds, Run]] = defaultdict(dict)
    groups[()] = {}
    for run in runs:
        if not run.figures:
            continue
        seen = groups[changes(run.params, baseline)].setdefault(seeds(run.params), run)
        if seen.figures != run.figures:
            raise UserError(
                f"experiments {seen.name} and {run.name} have the same parameters and different figures: code, data or machine "
                "differed; `dvc exp remove` the one that is not meant"
            )
    return dict(groups)


# --- the table ---------------------------------------------------------------------------------------------------------


def table(groups: Mapping[Changes, Mapping[Seeds, Run]], names: Sequence[str]) -> list[str]:
    """Markdown, a metric after the other; the last line says how many verdicts chance alone would give."""
    rows, verdicts = [["metric", "variant", "seeds", "mean ± sd", "difference [95 %]", ""]], 0
    base = groups[()]
    for name in names:
        sign, units = metric(name)
        for place, (variant, runs) in enumerate(groups.items()):
            values = {seed: run.figures[name] for seed, run in runs.items() if name in run.figures}
            cells = ["", "", ""]
            if variant and any(key.startswith((*FOR_ALL, *units)) for key, _ in variant):
                cells = [spread(list(values.values())), "", "not comparable: it changes what is measured"]
            elif variant:
                pairs = [values[s] - base[s].figures[name] for s in values if s in base and name in base[s].figures]
                difference = compare(pairs)
                verdicts += difference.pairs > 1
                cells = [spread(list(values.values())), interval(difference), difference.word(sign)]
            else:
                cells = [spread(list(values.values())), "", ""]
            way = {1: "more is better", -1: "less is better", 0: "neither way"}[sign]
            title = {0: name, 1: f"({way})"}.get(place, "")
            label = " ".join(f"{key}={value}" for key, value in variant) or "baseline"
            rows.append([title, label, str(len(values)), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    if verdicts > 1:
        lines += [
            "",
            f"{verdicts} comparisons; of equal variants about {0.05 * verdicts:.1f} would be called different by chance.",
        ]
    return lines


def digits(value: float) -> int:
    """Decimals at which two figures of `value` are seen."""
    return 0 if not value or not math.isfinite(value) else max(0, 1 - math.floor(math.log10(abs(value))))


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(set(values)) == 1:
        return f"{values[0]:.5g}" + " ± 0" * (len(values) > 1)
    places = digits(sd := stdev(values))
    return f"{fmean(values):.{places}f} ± {sd:.{places}f}"


def interval(difference: Difference) -> str:
    if not difference.pairs:
        return ""
    if difference.low == difference.high:
        return f"{difference.mean:.5g}"
    if difference.pairs == 1:
        return f"{difference.mean:+.2g}"
    places = digits((difference.high - difference.low) / 2 or difference.mean)
    return "{:+.{p}f} [{:+.{p}f}, {:+.{p}f}]".format(difference.mean, difference.low, difference.high, p=places)


# --- running -----------------------------------------------------------------------------------------------------------


def missing(variants: Sequence[str], number: int, runs: Iterable[Run]) -> list[list[str]]:
    """The `-S` flags of every run that isn't there or on its way: params.yaml as it stands and each combination of the
    variants' values, with seeds 0 … number − 1. Raises `UserError` for an unknown key, and for a value that isn't accepted."""
    there = [run.params for run in runs if run.state != "failed"]
    flags = []
    for variant in [[], *combinations(variants)] if variants else [[]]:
        for seed in range(number):
            words = [*variant, *(f"{key}={seed}" for key in SEEDED)]
            if (params := overridden(words)) not in there:
                flags.append(words)
                there.append(params)
    return flags


def combinations(variants: Sequence[str]) -> list[list[str]]:
    """Of the values of some -S flags, as DVC combines them: ["flow.path=gvp,vp"] → [["flow.path=gvp"], ["flow.path=vp"]]."""
    from dvc.utils.hydra import get_hydra_sweeps  # takes a second to import, which reading can do without

    with told_as_user_error(variants):
        return [sweep[str(PARAMS)] for sweep in get_hydra_sweeps({str(PARAMS): list(variants)})]


def overridden(words: Sequence[str]) -> dict[str, Any]:
    """params.yaml as some -S flags change it, validated, flat."""
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS
        shutil.copyfile(PARAMS, path)
        with told_as_user_error(words):
            apply_overrides(path, list(words))
        tree = load_tree(path)
    validate_params(tree, f"-S {' -S '.join(words)}")
    return flat(tree)


@contextmanager
def told_as_user_error(words: Sequence[str]) -> Iterator[None]:
    """DVC's and Hydra's errors about -S flags."""
    from dvc.exceptions import DvcException
    from hydra.errors import HydraException

    try:
        yield
    except (DvcException, HydraException) as error:
        reason = " ".join(str(error.__cause__ or error).split()).partition(" See http")[0]
        raise UserError(f"-S {' -S '.join(words)}: {reason}; write it as section.key=value of params.yaml") from error


def run(*words: str) -> None:
    if subprocess.run([*DVC, *words]).returncode:
        raise UserError(f"`dvc {' '.join(words[:3])} …` failed; the lines above say why")


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.option(
    "--seeds", "number", type=click.IntRange(1, MOST_SEEDS), help="Queue what is missing, for seeds 0 … N − 1."
)
@click.option("-S", "variants", multiple=True, metavar="KEY=A,B", help="A variant for each value, as `dvc exp run -S`.")
@click.option("--run", "now", is_flag=True, help="Run the queue at once, and wait for it.")
@click.option(
    "-j", "jobs", type=click.IntRange(1), default=1, show_default=True, help="Experiments at a time, with --run."
)
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help=f"Of {METRICS}; `all`. [default: {', '.join(SHOWN)}]"
)
@click.option("--baseline", multiple=True, metavar="KEY=VALUE", help="What it has other than params.yaml.")
@click.option("--rev", "revisions", multiple=True, help="Commits whose experiments are read.  [default: HEAD]")
def main(
    number: int | None,
    variants: tuple[str, ...],
    now: bool,
    jobs: int,
    metrics: tuple[str, ...],
    baseline: tuple[str, ...],
    revisions: tuple[str, ...],
) -> None:
    with ending_in_one_line():
        if number is None and (variants or now):
            raise UserError("-S and --run need --seeds: how many seeds each variant is run with, 3 say")
        runs = read_runs(revisions)
        if number is not None:
            flags = missing(variants, number, runs)
            for words in flags:
                run("exp", "run", "-q", "--queue", *(word for flag in words for word in ("-S", flag)))
            say(
                f"{len(flags)} experiments queued; {WAITING}"
                if flags and not now
                else f"{len(flags)} experiments are missing"
            )
            if now:
                if flags:
                    run("exp", "run", "--run-all", "-j", str(jobs))
                runs = read_runs(revisions)
        groups = by_variant(runs, overridden(baseline))
        known = list(next((r.figures for r in runs if r.figures), {}))
        if not known:
            raise UserError(
                f"no experiment of these commits has a {METRICS}; `--seeds 3 -S KEY=VALUE --run` makes some"
            )
        names = known if "all" in metrics else list(metrics or SHOWN)
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"--metric is {unknown[0]}: not in {METRICS}, which has {', '.join(known)}")
        print("\n".join(table(groups, names)))
        for state, count in Counter(r.state for r in runs if not r.figures).items():
            say(f"{count} {state}: not in the table; see `dvc exp show`, `dvc queue logs NAME`")


if __name__ == "__main__":
    main()
