"""The report of a training run: one HTML file with plots and pictures, readable without a network or a server."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cloudseg.models.package import ModelSpec
from cloudseg.training.config import TrainingConfig
from cloudseg.training.history import PICTURES_NAME, REPORT_NAME, read_lines
from cloudseg.training.judge import METRICS
from cloudseg.training.picture import encode_png, grey_picture, side_by_side
from cloudseg.training.plot import Curve, plot
from cloudseg.training.sampling import Sampler

_N_EXAMPLES = 6
_PAGE_PX = 1000
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 64rem; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } th { font-weight: 600 }
.plots { display: flex; flex-wrap: wrap; gap: 1rem } svg { background: #fff }
img { image-rendering: pixelated; border: 1px solid #ccc; display: block; margin: .3rem 0; height: auto }
summary { font-size: 1.15rem; font-weight: 600; margin: 2.2rem 0 .4rem; cursor: pointer }
.small { color: #666; font-size: .87rem } figure { margin: .6rem 0 } pre { background: #f6f6f6; padding: .8rem;
overflow-x: auto; font-size: .82rem }
"""


def write_report(config: TrainingConfig, spec: ModelSpec, sampler: Sampler, folder: Path) -> Path:
    """Write ``report.html`` into ``folder`` from the log that lies there.

    Parameters
    ----------
    config, spec
        What was asked for, and what came out.
    sampler
        Shows examples of what was learned from.
    folder
        With ``steps.jsonl`` and ``sections/``.
    """
    lines = read_lines(folder)
    judged = [line for line in lines if "segmentation" in line]
    parts = [
        f"<h1>{html.escape(spec.name)}</h1>",
        f'<p class="small">{_summary(config, spec, lines)}</p>',
        _figures(judged, config),
        '<div class="plots">' + "".join(_plots(lines, judged, config)) + "</div>",
        _sections(folder, judged),
        _examples(sampler, config.schedule.seed),
        _data(config),
        f"<details><summary>Settings</summary><pre>{html.escape(config.model_dump_json(indent=1))}</pre></details>",
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(spec.name)}: training</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path = folder / REPORT_NAME
    path.write_text(page, encoding="utf-8")
    return path


def _summary(config: TrainingConfig, spec: ModelSpec, lines: Sequence[dict[str, Any]]) -> str:
    waited = sum(line["waited_s"] for line in lines)
    spent = sum(line["seconds"] for line in _ends(lines))
    facts = [
        f"{spec.architecture}, {spec.weights.n_parameters:,} parameters",
        f"weights of step {spec.training.n_steps:,} of {config.schedule.n_steps:,}",
        f"{len(lines):,} steps in {spent / 60:.1f} min, {waited / max(spent, 1e-9):.1%} of it waiting for examples",
    ]
    if lines and lines[-1]["step"] + 1 < config.schedule.n_steps:
        facts.append(f"stopped early after step {lines[-1]['step'] + 1:,}")
    return " · ".join(html.escape(fact) for fact in facts)


def _ends(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last line of each process: its clock began at 0."""
    return [
        line
        for i, line in enumerate(lines)
        if i + 1 == len(lines) or lines[i + 1]["seconds"] < line["seconds"]
    ]


def _figures(judged: Sequence[dict[str, Any]], config: TrainingConfig) -> str:
    if not judged or config.segmentation is None:
        return ""
    best = min(judged, key=lambda line: line["segmentation"]["score"])
    rows = []
    for volume, scores in zip(config.validation, best["segmentation"]["boxes"], strict=True):
        numbers = [
            f"{scores[k]:.4f}" for k in ("adapted_rand_error", "voi_split", "voi_merge", "cremi_score")
        ]
        cells = "".join(f'<td class="n">{n}</td>' for n in [*numbers, f"{scores['n_segments']:,}"])
        rows.append(f"<tr><td>{html.escape(volume.labels)}, box {volume.box or 'all'}</td>{cells}</tr>")
    metric = METRICS[config.segmentation.metric]
    found = best["segmentation"]
    return (
        f"<h2>Segmentation of the validation boxes</h2><p>Best {metric} <b>{found['score']:.4f}</b> at step "
        f"{best['step'] + 1:,}, threshold {found['threshold']:g}. These boxes chose the weights and the threshold: "
        "measure on data of their own what you want to publish.</p>"
        "<table><tr><th>box</th><th>adapted Rand error</th><th>VOI split</th><th>VOI merge</th>"
        f"<th>CREMI score</th><th>segments</th></tr>{''.join(rows)}</table>"
    )


def _plots(
    lines: Sequence[dict[str, Any]], judged: Sequence[dict[str, Any]], config: TrainingConfig
) -> list[str]:
    steps = [line["step"] + 1 for line in lines]
    losses = [line["loss"] for line in lines]
    curves = [Curve("training, smoothed", steps, _smooth(losses), "#2b6cb0")]
    validated = [(line["step"] + 1, line["validation"]) for line in lines if "validation" in line]
    if validated:
        curves.append(Curve("validation", *_columns(validated), "#c05621", dots=True))
    plots = [plot("Loss", curves)]
    if judged and config.segmentation is not None:
        points = [(line["step"] + 1, line["segmentation"]["score"]) for line in judged]
        metric = METRICS[config.segmentation.metric]
        title = metric[0].upper() + metric[1:]
        plots.append(plot(title, [Curve("validation", *_columns(points), "#2f855a", dots=True)]))
        best = min(judged, key=lambda line: line["segmentation"]["score"])
        points = [(t, s) for t, s in best["segmentation"]["curve"]]
        curve = Curve("best weights", *_columns(points), "#6b46c1", dots=True)
        plots.append(plot(f"{title} by threshold", [curve], x_title="threshold"))
    rates = [line["learning_rate"] for line in lines]
    plots.append(plot("Learning rate", [Curve("", steps, rates, "#718096")]))
    return plots


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """Average the last fiftieth of the run, at least one step."""
    n = max(1, len(values) // 50)
    total = np.concatenate([[0.0], np.cumsum(np.array(values, np.float64))])
    return [float((total[i + 1] - total[max(0, i + 1 - n)]) / min(i + 1, n)) for i in range(len(values))]


def _sections(folder: Path, judged: Sequence[dict[str, Any]]) -> str:
    if not judged:
        return ""
    best = min(judged, key=lambda line: line["segmentation"]["score"])
    chosen = dict.fromkeys([judged[0]["step"] + 1, best["step"] + 1, judged[-1]["step"] + 1])
    shown = []
    for step in chosen:
        path = folder / PICTURES_NAME / f"{step:08d}.png"
        if path.exists():
            note = " (best)" if step == best["step"] + 1 else ""
            shown.append(_image(path.read_bytes(), f"step {step:,}{note}", zoom=True))
    return (
        '<h2>A validation section</h2><p class="small">From the left: image, prediction (mean link within '
        "the section, or boundary), labels, segmentation.</p>" + "".join(shown)
    )


def _examples(sampler: Sampler, seed: int) -> str:
    shown = []
    for i in range(_N_EXAMPLES):
        sample = sampler.draw(np.random.default_rng([seed, i, 0]))
        z = sample.image.shape[3] // 2
        pictures = [grey_picture(sample.image[0, :, :, z], low=-2.5, high=2.5)]
        first = 0
        for target in sampler.targets:
            values = np.where(sample.known[first, :, :, z], sample.targets[first, :, :, z], 0.5)
            pictures.append(grey_picture(values, low=0, high=1))
            first += target.n_channels
        shown.append(_image(encode_png(side_by_side(pictures)), sample.where))
    kinds = ", ".join(target.kind for target in sampler.targets)
    return (
        '<h2>What it learned from</h2><p class="small">Middle sections of the first patches as the network saw '
        f"them, each with the first channel of its targets ({kinds}); unknown is grey.</p>" + "".join(shown)
    )


def _image(png: bytes, caption: str, *, zoom: bool = False) -> str:
    data = base64.b64encode(png).decode()
    # Small sections are shown larger, pixel by pixel; large ones no wider than the page.
    n_columns = int.from_bytes(png[16:20], "big")
    width = max(1, (_PAGE_PX if zoom else _PAGE_PX // 2) // n_columns) * n_columns
    return (
        f'<figure><img alt="{html.escape(caption)}" width="{min(width, _PAGE_PX)}" '
        f'src="data:image/png;base64,{data}"><figcaption class="small">{html.escape(caption)}</figcaption></figure>'
    )


def _data(config: TrainingConfig) -> str:
    rows = [
        f"<tr><td>{use}</td><td>{html.escape(v.image)}<br>{html.escape(v.labels)}</td><td>{v.box or 'all'}</td>"
        f'<td class="n">{v.weight:g}</td></tr>'
        for use, volumes in (("training", config.volume), ("validation", config.validation))
        for v in volumes
    ]
    rows += [
        f"<tr><td>training</td><td>{p.count} phantom(s) of {p.tissue} from seed {p.seed}</td><td>{p.shape}</td>"
        f'<td class="n">{p.weight:g}</td></tr>'
        for p in config.phantom
    ]
    return (
        "<h2>Data</h2><table><tr><th></th><th>image, labels</th><th>box</th><th>weight</th></tr>"
        + "".join(rows)
        + "</table>"
    )
