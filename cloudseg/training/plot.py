"""Line plots as SVG text: a few curves, round numbers at the axes."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 40
_MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: its name (none: no legend), points, colour, and whether the points are marked."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dots: bool = False


def plot(title: str, curves: Sequence[Curve], *, x_title: str = "step") -> str:
    """Return an ``<svg>`` element; points that are no finite numbers are left out."""
    points = [
        [(x, y) for x, y in zip(c.x, c.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for c in curves
    ]
    everything = [p for some in points for p in some] or [(0.0, 0.0)]
    x_ticks = ticks(min(x for x, _ in everything), max(x for x, _ in everything))
    y_ticks = ticks(min(y for _, y in everything), max(y for _, y in everything))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">',
        '<g font-family="system-ui, sans-serif" font-size="11" fill="#444">',
        f'<text x="{_LEFT}" y="16" font-size="13" font-weight="600">{html.escape(title)}</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{html.escape(x_title)}</text>',
    ]
    for tick in x_ticks:
        x, y = place(tick, y_ticks[0])
        parts.append(f'<text x="{x}" y="{y + 15}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        x, y = place(x_ticks[0], tick)
        parts.append(f'<path d="M{x} {y}H{_WIDTH - _RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    right = _WIDTH - _RIGHT
    for curve, some in zip(curves, points, strict=True):
        places = [place(x, y) for x, y in some[:: max(1, len(some) // _MOST_POINTS)]]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{curve.colour}" stroke-width="1.6"/>')
        if curve.dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{curve.colour}"/>' for x, y in places]
        if curve.name:
            parts.append(
                f'<text x="{right}" y="16" text-anchor="end" fill="{curve.colour}">{html.escape(curve.name)}</text>'
            )
            right -= 8 + 6 * len(curve.name)
    return "".join(parts) + "</g></svg>"


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return round numbers, about ``about`` of them, from ``low`` or below to ``high`` or above."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, max(last, first + 1) + 1)]
