"""Line charts as inline SVG coloured by the style sheet of the page, for light and dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 290  # without the legend
LEFT, RIGHT, TOP, BOTTOM = 66, 32, 32, 44
KEYS_A_ROW, KEY_HEIGHT = 2, 22  # of the legend, below the chart

Line = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]  # x and y


class Axis:
    """Values → coordinates between `first` and `last`, linear or logarithmic."""

    def __init__(self, values: Sequence[float], first: float, last: float, log: bool) -> None:
        self.log, self.first, self.last = log, first, last
        low, high = min(values), max(values)
        self.ticks = _decades(low, high) if log else _round_numbers(low, high)
        ends = self.ticks if not log else [low / 1.1, high * 1.1]
        self.low, self.high = self._scale(min(low, ends[0])), self._scale(max(high, ends[-1]))

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        share = (self._scale(value) - self.low) / ((self.high - self.low) or 1)
        return round(self.first + share * (self.last - self.first), 2)


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to seven round numbers that enclose low … high."""
    step = 10 ** math.floor(math.log10((high - low) or abs(high) or 1))
    step = next(step * f for f in (0.2, 0.5, 1, 2) if (high - low) / (step * f) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside low … high."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [f * 10.0**e for e in powers for f in (1, 2, 5) if low / 1.1 <= f * 10.0**e <= high * 1.1]
    return inside if len(inside) <= 8 else [tick for tick in inside if f"{tick:e}".startswith("1")]


def chart(
    lines: Mapping[str, Line],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: bool = False,
    marked: tuple[float, float] | None = None,
    level: tuple[str, float] | None = None,
) -> str:
    """An SVG of lines that differ in colour and in dashes, with a legend if there are several.

    Args:
        lines: name → x and y, each (points,); positive on a logarithmic axis.
        marks: dots at the points.
        marked: x and y of a ring.
        level: name and y of a horizontal line.
    """
    levels = [level[1]] if level else []
    x = Axis([v for xs, _ in lines.values() for v in xs], LEFT, WIDTH - RIGHT, log_x)
    y = Axis([*(v for _, ys in lines.values() for v in ys), *levels], HEIGHT - BOTTOM, TOP, log_y)
    keys = _legend(list(lines)) if len(lines) > 1 else []
    height = HEIGHT + KEY_HEIGHT * math.ceil(len(keys) / KEYS_A_ROW)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(f"{y_label} against {x_label}")}">']
    parts += [*_frame(x, y, x_label, y_label), *keys]
    if level:
        parts.append(f'<path class="level" d="M{LEFT} {y(level[1])}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y(level[1]) - 5}" text-anchor="end">{escape(level[0])}</text>')
    for i, (xs, ys) in enumerate(lines.values()):
        points = [f"{x(a)} {y(b)}" for a, b in zip(xs, ys, strict=True)]
        parts.append(f'<path class="line c{i}" d="M{"L".join(points)}"/>')
        if marks:
            parts += [f'<circle class="c{i}" cx="{x(a)}" cy="{y(b)}" r="3.5"/>' for a, b in zip(xs, ys, strict=True)]
    if marked:
        parts.append(f'<circle class="ring" cx="{x(marked[0])}" cy="{y(marked[1])}" r="8"/>')
    return "".join([*parts, "</svg>"])


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    """Grid, ticks and labels of the axes."""
    bottom = HEIGHT - BOTTOM
    parts = [f'<text x="0" y="16">{escape(y_label)}</text>']
    for tick in y.ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 5}" text-anchor="end">{_number(tick)}</text>')
    for tick in x.ticks:
        parts.append(f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _number(value: float) -> str:
    return f"{value:,g}".replace("-", "−")


def _legend(names: Sequence[str]) -> list[str]:
    """A sample of each line with its name."""
    parts = []
    for i, name in enumerate(names):
        left = (WIDTH / KEYS_A_ROW) * (i % KEYS_A_ROW)
        middle = HEIGHT + KEY_HEIGHT * (i // KEYS_A_ROW) + KEY_HEIGHT / 2
        parts.append(
            f'<g class="legend"><path class="line c{i}" d="M{left:g} {middle:g}h28"/>'
            f'<text x="{left + 34:g}" y="{middle + 5:g}">{escape(name)}</text></g>'
        )
    return parts
