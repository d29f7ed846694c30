"""The report as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import numpy as np

from cloudseg.somas.report.numbers import FACES, DensityMap, Numbers, Quantity, SegmentCounts
from cloudseg.somas.report.plots import bar, bins_of, heat_map, histogram, legend

_MOST_REGIONS = 40
_MOST_SEGMENTS = 20
_MAP_PX = 440
_SIDES = ("left", "center", "right")
_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1d1d1b; --soft: #63625e; --line: #e3e2de; --tint: #f2f1ee;
--accent: #2a6fbb; --mark: #b4531a }
@media (prefers-color-scheme: dark) { :root { --page: #191918; --ink: #ecebe7; --soft: #a5a39d; --line: #383735;
--tint: #242422; --accent: #6fabee; --mark: #f0a06a } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
max-width: 72rem; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem }
h3 { font-size: 1rem; margin: 0 0 .2rem } p { margin: .3rem 0 .8rem } .soft, figcaption { color: var(--soft) }
figcaption, .small { font-size: .87rem } figure { margin: 0 0 1.4rem; max-width: 35rem }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 } .tiles div { background: var(--tint);
border-radius: 6px; padding: .6rem 1rem; min-width: 8rem } .tiles b { display: block; font-size: 1.5rem;
font-variant-numeric: tabular-nums } .pair { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem; align-items: flex-start }
.wide { overflow-x: auto } table { border-collapse: collapse } th { text-align: left; font-weight: 600 }
td, th { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: middle }
.n { text-align: right; font-variant-numeric: tabular-nums } .share { display: inline-block; width: 9rem; height: .7rem;
background: var(--tint) } .share span { display: block; height: 100%; background: var(--accent) }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; display: block } svg text { fill: var(--soft) }
svg .strong { fill: var(--ink) } .grid, .axis { stroke: var(--line); fill: none } .axis { stroke: var(--soft) }
.bar, .heat { fill: var(--accent) } .mark { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 4 3 }
.ground { fill: var(--tint) } code { font-size: .87rem; overflow-wrap: anywhere } a { color: var(--accent) }
.none { background: var(--tint); border-radius: 6px; padding: .6rem 1rem; max-width: 46rem }
"""


def page(numbers: Numbers) -> str:
    """Return the page.

    Parameters
    ----------
    numbers
        From :func:`~cloudseg.somas.report.numbers.gather`.
    """
    catalog = numbers.catalog
    title = f"Somas of {catalog.dataset}, version {catalog.version}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{_frame(numbers)}</p>',
        _tiles(numbers),
        _regions(numbers),
        _sizes(numbers),
        _density(numbers.density),
        _border(numbers),
        _segments(numbers),
        _sources(numbers),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _frame(numbers: Numbers) -> str:
    catalog = numbers.catalog
    voxel = " × ".join(f"{v:g}" for v in catalog.voxel_size_nm)
    edges = [(b - a) * 1e-3 for a, b in zip(*catalog.bounds_nm, strict=True)]
    extent = " × ".join(f"{e:,.0f}" if e >= 100 else f"{e:.3g}" for e in edges)
    return f"Voxels of {voxel} nm; volume of {extent} µm; coordinates in {html.escape(catalog.frame)}."


def _tiles(numbers: Numbers) -> str:
    status, n = numbers.by_status, numbers.n_living
    cut = numbers.n_measured - numbers.n_whole
    facts = [
        (n, "somas"),
        (numbers.n_whole, "whole"),
        (cut, "cut by the border"),
        (status["manual"], "added by hand"),
        (status["verified"], "verified"),
        (status["rejected"], "rejected"),
        (status["merged"], "merged into others"),
    ]
    tiles = "".join(f"<div><b>{value:,}</b>{name}</div>" for value, name in facts)
    rest = n - numbers.n_measured
    hand = (
        f" {rest:,} of them have a place but no mask, and count in no distribution of sizes." if rest else ""
    )
    return (
        f'<div class="tiles">{tiles}</div><p class="small soft">Somas that were rejected or merged into others are not '
        f"among the {n:,}, nor in anything below.{hand}</p>"
    )


def _regions(numbers: Numbers) -> str:
    head = "<h2>Counts by region and side</h2>"
    if not numbers.has_atlas:
        if numbers.catalog.made_from.get("atlas"):
            return head + _none("No soma lies in a region of the atlas.")
        return head + _none(
            "No soma has a region: this version was made without an atlas. The stage <code>soma_catalogue</code> "
            "takes one (<code>atlas</code>)."
        )
    totals: dict[str | None, int] = {}
    for (region, _), count in numbers.by_place.items():
        totals[region] = totals.get(region, 0) + count
    ranked = sorted(totals, key=lambda region: (-totals[region], region is None, region or ""))
    shown = ranked[:_MOST_REGIONS]
    most = max(totals.values())
    has_other = any(side not in _SIDES for _, side in numbers.by_place)
    rows = []
    for region in shown:
        sides = [numbers.by_place.get((region, side), 0) for side in _SIDES]
        other = [totals[region] - sum(sides)] if has_other else []
        cells = "".join(f'<td class="n">{count:,}</td>' for count in [*sides, *other, totals[region]])
        name = html.escape(region) if region is not None else '<span class="soft">outside of the atlas</span>'
        share = totals[region] / numbers.n_living
        rows.append(f"<tr><td>{name}</td>{cells}<td>{bar(totals[region] / most)} {share:.1%}</td></tr>")
    columns = [*_SIDES, *(["no side"] if has_other else []), "all"]
    heads = "".join(f'<th class="n">{name}</th>' for name in columns)
    rest = f"The {len(shown)} largest of {len(ranked)}; " if len(ranked) > len(shown) else "All of them; "
    return (
        f'{head}<p class="small soft">{rest}all are in <a href="counts.csv">counts.csv</a>. n = {numbers.n_living:,} '
        "somas; a soma belongs to the region in which its deepest voxel lies.</p>"
        f'<div class="wide"><table><tr><th>region</th>{heads}<th></th></tr>{"".join(rows)}</table></div>'
    )


def _sizes(numbers: Numbers) -> str:
    head = "<h2>Sizes, shapes and distances</h2>"
    shown = [q for q in numbers.quantities if len(q.values)]
    if not shown:
        return head + _none("There is no whole soma with a mask, so there is nothing to measure.")
    plots = "".join(_distribution(quantity) for quantity in shown)
    missing = [q.axis for q in numbers.quantities if not len(q.values)]
    have = {q.name for q in numbers.quantities}
    if "sphericity" not in have:
        missing.append("sphericity (there are no meshes: meshes = true in the stage soma_catalogue)")
    if "score" not in have:
        missing.append("score (no interior map was given)")
    note = (
        f'<p class="small soft">Not shown, for want of values: {"; ".join(missing)}.</p>' if missing else ""
    )
    return f'{head}<div class="pair">{plots}</div>{note}<p class="small soft">{_files()}</p>'


def _distribution(quantity: Quantity) -> str:
    values = np.asarray(quantity.values, np.float64)
    low, median, high = np.percentile(values, [25, 50, 75])
    unit = f" {quantity.unit}" if quantity.unit else ""
    title = quantity.axis + (f" / {quantity.unit}" if quantity.unit else "")
    left = f" {quantity.n_left_out:,} left out: {quantity.note}." if quantity.n_left_out else ""
    plot = histogram(
        bins_of(values), x_title=title, marks=[(f"median {_figure(median)}{unit}", float(median))]
    )
    return (
        f"<figure><h3>{html.escape(quantity.title)}</h3>{plot}<figcaption>n = {len(values):,}; half of them from "
        f"{_figure(low)} to {_figure(high)}{unit}; least {_figure(values.min())}, greatest {_figure(values.max())}."
        f"{html.escape(left)}</figcaption></figure>"
    )


def _figure(value: float) -> str:
    """Write three digits, or all before the point."""
    if not value:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits < 7 else f"{value:.3g}"


def _density(density: DensityMap | None) -> str:
    head = "<h2>Density map</h2>"
    if density is None:
        return head + _none("There are no somas to map.")
    views = [("x", "y", 2), ("x", "z", 1), ("z", "y", 0)]
    maps = {axis: density.projected(axis) for _, _, axis in views}
    largest = max(int(each.max()) for each in maps.values())
    cell_um = density.cell_nm * 1e-3
    lower = dict(zip("xyz", (v * 1e-3 for v in density.lower_nm), strict=True))
    plots = []
    for a, b, axis in views:
        counts = maps[axis].T if (a, b) == ("z", "y") else maps[axis]
        plot = heat_map(
            counts,
            cell_um=cell_um,
            cell_px=_MAP_PX / max(density.counts.shape),
            names=(a, b),
            largest=largest,
            lower_um=(lower[a], lower[b]),
        )
        plots.append(f"<figure>{plot}<figcaption>{a} and {b}, seen along {'xyz'[axis]}</figcaption></figure>")
    return (
        f'{head}<p class="small soft">Somas in columns of {_figure(cell_um)} × {_figure(cell_um)} µm through the whole '
        "volume, by centroid. A column is as deep as the volume, tissue or not; counts in cells are in "
        f'<a href="density.csv">density.csv</a>. n = {int(density.counts.sum()):,}.</p>'
        f'<p class="small soft">somas in a column:</p>{legend(largest)}<div class="pair">{"".join(plots)}</div>'
    )


def _border(numbers: Numbers) -> str:
    head = "<h2>Somas cut by the border of the volume</h2>"
    cut = numbers.n_measured - numbers.n_whole
    if not numbers.n_measured:
        return head + _none("There are no somas with a mask.")
    if not cut:
        return head + f"<p>None of {numbers.n_measured:,} touches a face of the volume.</p>"
    most = max(numbers.by_face)
    rows = "".join(
        f'<tr><td>{face}</td><td class="n">{count:,}</td><td>{bar(count / most)}</td></tr>'
        for face, count in zip(FACES, numbers.by_face, strict=True)
    )
    return (
        f"{head}<p>{cut:,} of {numbers.n_measured:,} ({cut / numbers.n_measured:.1%}) touch a face of the volume; a "
        "soma at an edge counts at each of its faces. Their volumes and radii are lower bounds, and left out above.</p>"
        f'<table><tr><th>face</th><th class="n">somas</th><th></th></tr>{rows}</table>'
    )


def _segments(numbers: Numbers) -> str:
    head = "<h2>Somas of neuron segments</h2>"
    found = numbers.segments
    if found is None:
        return head + _none(
            "No neurons were given. The stage <code>soma_catalogue</code> takes a segmentation of them "
            "(<code>segments</code>)."
        )
    counts = [int((found.n_somas == n).sum()) for n in (1, 2, 3)] + [int((found.n_somas > 3).sum())]
    rows: list[tuple[str, int]] = []
    if found.n_segments is not None:
        rows.append(("0", max(0, found.n_segments - len(found.ids))))
    rows += list(zip(("1", "2", "3", "more"), counts, strict=True))
    most = max(1, *(count for name, count in rows if name != "0"))
    cells = "".join(
        f'<tr><td>{name}</td><td class="n">{count:,}</td><td>{bar(count / most) if name != "0" else ""}</td></tr>'
        for name, count in rows
    )
    return (
        f"{head}<p>{_segments_text(found)}</p>"
        f'<div class="pair"><table><tr><th>somas</th><th class="n">segments</th><th></th></tr>{cells}</table>'
        f"{_merged(found)}</div>"
        f'<p class="small soft">A soma belongs to the segment that it shares most voxels with. All segments with somas '
        'are in <a href="segments.csv">segments.csv</a>.</p>'
    )


def _segments_text(found: SegmentCounts) -> str:
    several = int((found.n_somas > 1).sum())
    text = [
        f"{len(found.ids):,} segments have a soma, {several:,} of them more than one: look there first for mergers.",
        f"{found.n_somas_outside:,} somas lie in no segment.",
    ]
    if found.n_segments is None:
        text.append(
            "How many segments have none is not known: the segmentation has no table of statistics (stage "
            "<code>statistics</code>)."
        )
    elif found.n_large is not None:
        text.append(
            f"Of {found.n_segments:,} segments, {found.n_large:,} are at least as large as the median soma; "
            f"{found.n_large_without:,} of these have none: axons from elsewhere, split neurons, or missed somas."
        )
    return " ".join(text)


def _merged(found: SegmentCounts) -> str:
    order = np.lexsort((found.ids, -found.n_somas))
    rows = []
    for row in order[:_MOST_SEGMENTS]:
        if found.n_somas[row] < 2:
            break
        more = ", ..." if found.n_somas[row] > len(found.first_somas[row]) else ""
        somas = ", ".join(map(str, found.first_somas[row])) + more
        rows.append(
            f'<tr><td>{found.ids[row]}</td><td class="n">{found.n_somas[row]}</td><td class="small">{somas}</td></tr>'
        )
    if not rows:
        return ""
    return (
        '<div class="wide"><table><tr><th>segment with the most</th><th class="n">somas</th><th>which</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _sources(numbers: Numbers) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td><td><code>{html.escape(str(value))}</code></td></tr>"
        for name, value in sorted(numbers.catalog.made_from.items())
        if value not in (None, "")
    )
    return f'<h2>Made from</h2><div class="wide"><table>{rows}</table></div>' if rows else ""


def _files() -> str:
    names: Sequence[str] = ("quantities", "distributions")
    return "The numbers are in " + _joined(f'<a href="{n}.csv">{n}.csv</a>' for n in names) + "."


def _joined(texts: Iterable[str]) -> str:
    return " and ".join(texts)


def _none(text: str) -> str:
    return f'<p class="none soft">{text}</p>'
