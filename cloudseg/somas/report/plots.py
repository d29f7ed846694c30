"""Plots of the report as SVG text: colours come from the page, so they are right in light and in dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 26, 46
_LEVELS = 8
# Beyond this ratio of the largest to the middle value, even bins would show one bar and a long nothing.
_SKEWED = 12.0


@dataclass(frozen=True, slots=True)
class Bins:
    """A histogram: ``n + 1`` edges, ``n`` counts, and whether the edges are evenly spaced in the logarithm."""

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    is_log: bool


def bins_of(values: npt.NDArray[Any]) -> Bins:
    """Cut the range of ``values`` into bins with round edges; into a few to the decade where it is skewed.

    Parameters
    ----------
    values
        Finite numbers; none gives a histogram without bins.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Bins(np.zeros(1), np.zeros(0, np.int64), is_log=False)
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > _SKEWED * float(np.median(values)):
        first, last = math.floor(math.log10(low) * 10), math.floor(math.log10(high) * 10) + 1
        edges = 10.0 ** (np.arange(first, last + 1) / 10)
        is_log = True
    else:
        about = int(min(max(10, 2 * len(values) ** (1 / 3)), 50))
        edges = np.asarray(_round_numbers(low, high, about=about))
        is_log = False
    counts, _ = np.histogram(values, edges)
    return Bins(edges, counts.astype(np.int64), is_log)


def histogram(bins: Bins, *, x_title: str, marks: Sequence[tuple[str, float]] = ()) -> str:
    """Return an ``<svg>`` of bars, number of somas over the value.

    Parameters
    ----------
    bins
        At least one.
    x_title
        With the unit.
    marks
        Vertical lines: text and value.
    """
    edges = np.log10(bins.edges) if bins.is_log else bins.edges
    top = _round_numbers(0, max(1, int(bins.counts.max())), about=4, whole=True)
    plot_w, plot_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    first, extent = float(edges[0]), float(edges[-1] - edges[0])

    def across(value: float) -> float:
        return round(_LEFT + (value - first) / extent * plot_w, 1)

    def up(count: float) -> float:
        return round(_HEIGHT - _BOTTOM - count / top[-1] * plot_h, 1)

    parts = [_svg(_WIDTH, _HEIGHT, f"histogram, {x_title}")]
    for tick in top:
        parts.append(f'<path class="grid" d="M{_LEFT} {up(tick)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up(tick) + 4}" text-anchor="end">{tick:,.0f}</text>')
    for low, high, count in zip(edges[:-1], edges[1:], bins.counts, strict=True):
        x, right, y = across(low), across(high), up(float(count))
        width = max(0.8, round(right - x - (1 if right - x > 3 else 0), 1))
        ends = [10**low, 10**high] if bins.is_log else [low, high]
        parts.append(
            f'<rect class="bar" x="{x}" y="{y}" width="{width}" height="{round(up(0) - y, 1)}">'
            f"<title>{ends[0]:.4g} to {ends[1]:.4g}: {count:,}</title></rect>"
        )
    for tick, text in _x_ticks(edges, is_log=bins.is_log):
        parts.append(f'<path class="axis" d="M{across(tick)} {up(0)}v4"/>')
        parts.append(f'<text x="{across(tick)}" y="{up(0) + 17}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {up(0)}H{_WIDTH - _RIGHT}"/>')
    for text, value in marks:
        x = across(math.log10(value) if bins.is_log else value)
        is_right = x > _LEFT + plot_w * 0.7
        parts.append(f'<path class="mark" d="M{x} {_TOP - 6}V{up(0)}"/>')
        anchor, at = ("end", x - 5) if is_right else ("start", x + 5)
        parts.append(
            f'<text class="strong" x="{at}" y="{_TOP - 8}" text-anchor="{anchor}">{html.escape(text)}</text>'
        )
    scale = " (log scale)" if bins.is_log else ""
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{html.escape(x_title + scale)}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">bars: number of somas</text></svg>'
    )
    return "".join(parts)


def heat_map(
    counts: npt.NDArray[np.int64],
    *,
    cell_um: float,
    cell_px: float,
    names: tuple[str, str],
    largest: int,
    lower_um: tuple[float, float],
) -> str:
    """Return an ``<svg>`` of a projected map: the more somas in a column of cells, the stronger the colour.

    Parameters
    ----------
    counts
        ``(a, b)``; a to the right, b downwards.
    cell_um
        Edge of a cell.
    cell_px
        The same in the picture.
    names
        Of the two axes.
    largest
        Count of the strongest colour, one for all maps.
    lower_um
        Where the map begins.
    """
    n_a, n_b = counts.shape
    size = cell_px
    width, height = size * n_a, size * n_b
    full_w, full_h = max(width, 90) + 66, height + 40
    parts = [
        _svg(full_w, full_h, f"density of somas, {names[0]} and {names[1]}"),
        f'<rect class="ground" x="52" y="4" width="{width:.1f}" height="{height:.1f}"/>',
    ]
    level = levels_of(counts, largest)
    for step in range(1, _LEVELS + 1):
        a, b = np.nonzero(level == step)
        path = "".join(
            f"M{52 + i * size:.1f} {4 + j * size:.1f}h{size:.1f}v{size:.1f}h-{size:.1f}z"
            for i, j in zip(a.tolist(), b.tolist(), strict=True)
        )
        if path:
            parts.append(f'<path class="heat" fill-opacity="{opacity(step)}" d="{path}"/>')
    for low, n, is_across, name in ((lower_um[0], n_a, True, names[0]), (lower_um[1], n_b, False, names[1])):
        for at, value in ((0.0, low), (size * n, low + cell_um * n)):
            if is_across:
                anchor = "start" if at == 0 else "end"
                parts.append(
                    f'<text x="{52 + at:.1f}" y="{height + 18:.1f}" text-anchor="{anchor}">{value:,.0f}</text>'
                )
            else:
                parts.append(f'<text x="47" y="{4 + (at or 9):.1f}" text-anchor="end">{value:,.0f}</text>')
        if is_across:
            parts.append(
                f'<text class="strong" x="{52 + width / 2:.1f}" y="{height + 34:.1f}" text-anchor="middle">'
                f"{name} / µm</text>"
            )
        else:
            parts.append(
                f'<text class="strong" x="47" y="{4 + height / 2 + 4:.1f}" text-anchor="end">{name} / µm</text>'
            )
    return "".join(parts) + "</svg>"


def levels_of(counts: npt.NDArray[np.int64], largest: int) -> npt.NDArray[np.int64]:
    """Return 0 where there is nothing, else 1 to 8 in even steps up to ``largest``."""
    return np.where(counts > 0, np.ceil(counts * (_LEVELS / max(largest, 1))), 0).astype(np.int64)


def legend(largest: int) -> str:
    """Return what the colours mean, as an ``<svg>``."""
    n = min(_LEVELS, max(largest, 1))
    tops = sorted({math.floor(largest * step / _LEVELS) for step in range(1, _LEVELS + 1)} - {0})[-n:]
    parts = [_svg(62 * len(tops), 34, "legend")]
    low = 1
    for place, high in enumerate(tops):
        step = int(levels_of(np.array([high]), largest)[0])
        text = f"{high:,}" if low == high else f"{low:,}-{high:,}"
        parts.append(
            f'<rect class="ground" x="{place * 62}" y="2" width="56" height="11"/>'
            f'<rect class="heat" fill-opacity="{opacity(step)}" x="{place * 62}" y="2" width="56" height="11"/>'
            f'<text x="{place * 62 + 28}" y="27" text-anchor="middle">{text}</text>'
        )
        low = high + 1
    return "".join(parts) + "</svg>"


def opacity(step: int) -> float:
    """Return how strong the colour of a level is: the first is seen, the last is full."""
    return round(0.14 + 0.86 * (step - 1) / (_LEVELS - 1), 2)


def bar(share: float) -> str:
    """Return a small horizontal bar for a cell of a table, ``share`` of its full width."""
    return f'<span class="share"><span style="width:{100 * min(max(share, 0), 1):.1f}%"></span></span>'


def _svg(width: float, height: float, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{html.escape(label, quote=True)}">'
    )


def _x_ticks(edges: npt.NDArray[np.float64], *, is_log: bool) -> list[tuple[float, str]]:
    low, high = float(edges[0]), float(edges[-1])
    if not is_log:
        inside = [v for v in _round_numbers(low, high, about=7) if low - 1e-9 <= v <= high + 1e-9]
        return [(v, f"{v:g}") for v in inside]
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    found = []
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in steps:
            at = power + math.log10(step)
            if low - 1e-9 <= at <= high + 1e-9:
                found.append((at, f"{step * 10.0**power:g}"))
    return found


def _round_numbers(low: float, high: float, *, about: int, whole: bool = False) -> list[float]:
    """Return evenly spaced round numbers from ``low`` or below to above ``high``."""
    if high <= low:
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, max(last, first + 1) + 1)]
