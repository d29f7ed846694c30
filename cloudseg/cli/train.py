"""``cloudseg train``: from labelled volumes to a model package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudseg.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cloudseg.geometry import XYZ
    from cloudseg.training.history import Progress

_SMOOTH = 0.95


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of CONFIG, e.g. schedule.n_steps=500; repeatable.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads to compute with [as many as there are]."
)
def train(config: Path, *, overrides: tuple[str, ...], threads: int | None) -> None:
    """Train the network that CONFIG describes and write its model package.

    The run writes checkpoints; the same command goes on where it stopped. docs/train.md explains every key. Several
    GPUs: torchrun --nproc-per-node=4 --no-python cloudseg train CONFIG.
    """
    try:
        from cloudseg.models.predict import use_threads
        from cloudseg.training.colours import fit_tracker, load_tracker_training
        from cloudseg.training.config import load_config
        from cloudseg.training.crew import Crew
        from cloudseg.training.fit import fit
        from cloudseg.training.flood import fit_flood, load_flood_training
        from cloudseg.training.history import REPORT_NAME
        from cloudseg.training.judge import METRICS
    except ModuleNotFoundError as error:
        raise MissingExtraError.of(str(error.name), extra="train") from error
    if threads is not None:
        use_threads(threads)
    tracker = load_tracker_training(config, overrides=overrides)
    if tracker is not None:
        with _Display(tracker.schedule.n_steps, shown=True) as display:
            made = fit_tracker(tracker, report=display.report)
        click.echo(f"{tracker.output}: model {made.name!r}, {made.weights.n_parameters:,} parameters")
        click.echo(f"use it with: model = {tracker.output!r} in the colour_track stage")
        return
    flood = load_flood_training(config, overrides=overrides)
    if flood is not None:
        with _Display(flood.schedule.n_steps, shown=True) as display:
            package = fit_flood(flood, make_phantom=_phantom, report=display.report)
        click.echo(f"{flood.output}: model {package.name!r}, {package.weights.n_parameters:,} parameters")
        if display.validation is not None:
            click.echo(f"validation loss {display.validation:.4f}")
        click.echo(f"use it with: model = {flood.output!r} in the ffn stage")
        return
    settings = load_config(config, overrides=overrides)
    crew = Crew.join(settings.schedule.device)
    with _Display(settings.schedule.n_steps, shown=crew.is_first) as display:
        spec = fit(settings, make_phantom=_phantom, report=display.report, crew=crew)
    if spec is None:  # another process of the same run has said it
        return
    click.echo(f"{settings.output}: model {spec.name!r}, {spec.weights.n_parameters:,} parameters")
    if display.validation is not None:
        click.echo(f"validation loss {display.validation:.4f}")
    for measured in spec.accuracy:
        click.echo(f"{METRICS[measured.metric]} {measured.value:.4f} of step {spec.training.n_steps:,}")
    click.echo(f"report: {settings.log_folder / REPORT_NAME}")
    stage = (
        spec.output
        if spec.output != "heads"
        else "soma_locate"
        if spec.heads == ("seed",)
        else "soma_segment"
    )
    click.echo(f"use it with: model = {settings.output!r} in the {stage} stage")


def _phantom(
    tissue: str, shape: XYZ, seed: int, voxel_size_nm: tuple[float, float, float]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
    from cloudseg.testing.cell_phantom import cell_phantom
    from cloudseg.testing.phantom import neurite_phantom

    if tissue == "cells":
        phantom = cell_phantom(shape, seed=seed, voxel_size_nm=voxel_size_nm)
    else:
        phantom = neurite_phantom(shape, seed=seed)
    return phantom.image, phantom.labels


class _Display:
    """A progress bar with the smoothed loss on a terminal; one line every hundred steps elsewhere."""

    def __init__(self, n_steps: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        console = Console(stderr=True)
        self._n_steps = n_steps
        self._on_terminal = console.is_terminal
        self._loss: float | None = None
        self.validation: float | None = None
        self._score: float | None = None
        self._bars = Bars(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and shown),
        )
        self._bar = self._bars.add_task("training", total=n_steps, text="reading the data")

    def __enter__(self) -> _Display:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def report(self, line: Progress) -> None:
        """Show one step."""
        self._loss = line.loss if self._loss is None else _SMOOTH * self._loss + (1 - _SMOOTH) * line.loss
        if line.validation is not None:
            self.validation = line.validation
        done = line.step + 1
        text = f"{done}/{self._n_steps} loss {self._loss:.4f}"
        if self.validation is not None:
            text += f", validation {self.validation:.4f}"
        if line.verdict is not None:
            self._score = line.verdict.score
        if self._score is not None:
            text += f", segmentation {self._score:.4f}"
        self._bars.update(self._bar, completed=done, text=text)
        if not self._on_terminal and (
            done % 100 == 0
            or done == self._n_steps
            or line.validation is not None
            or line.verdict is not None
        ):
            click.echo(f"step {text}, {line.seconds:.0f} s", err=True)
