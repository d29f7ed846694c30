"""What a plan costs, in hours and dollars, from an editable price file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.pipelines.calibration import StepTime
from cloudseg.pipelines.plan import PipelinePlan, PlannedStage
from cloudseg.specs import FrozenModel

NonNegative = Annotated[float, Field(ge=0)]


class Prices(FrozenModel):
    """What one core needs for a megavoxel, and what it costs.

    Attributes
    ----------
    dollars_per_core_hour, dollars_per_gigabyte_month
        For computing, and for keeping what was written.
    seconds_per_task
        Fixed cost of a task, of one core.
    seconds_per_megavoxel
        By stage kind, of one core, for a megavoxel of the image; ``default`` stands for kinds that are not listed.
    """

    dollars_per_core_hour: NonNegative
    dollars_per_gigabyte_month: NonNegative
    seconds_per_task: NonNegative
    seconds_per_megavoxel: dict[str, NonNegative]

    def seconds_for(self, kind: str) -> float:
        """Return the seconds of one core for a megavoxel of ``kind``."""
        return self.seconds_per_megavoxel.get(kind, self.seconds_per_megavoxel.get("default", 0.0))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a stage, or a whole pipeline, is expected to need.

    ``origin`` says where its hours come from: ``price file``, ``measured``, or ``extrapolated`` where a part of it is.
    """

    n_tasks: int
    outputs_bytes: int
    task_memory_bytes: int
    core_hours: float
    hours: float
    dollars: float
    dollars_per_month: float
    origin: str = ""


def load_prices(path: str | Path | None = None) -> Prices:
    """Load a price file, or the one of the package.

    Raises
    ------
    NotFoundError, SpecError
        If there is no such file, or it does not validate.
    """
    if path is None:
        text, where = (
            files("cloudseg.pipelines").joinpath("prices.toml").read_text(encoding="utf-8"),
            "prices.toml",
        )
    else:
        where = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no price file {path}") from error
    try:
        return Prices.load(tomllib.loads(text), where=where)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where} is not valid TOML: {error}") from error


def estimate_stage(
    stage: PlannedStage, expanded: PipelinePlan, prices: Prices, times: Mapping[str, StepTime] | None = None
) -> Estimate:
    """Return what one stage of a plan is expected to need.

    Parameters
    ----------
    stage, expanded
        The stage and the plan it is part of.
    prices
        Dollars, and the seconds of a stage that was not measured.
    times
        Of measured steps, by name; see :func:`cloudseg.pipelines.calibration.step_times`.
    """
    spec = expanded.spec
    n_tasks = sum(step.n_tasks for step in stage.plan.steps)
    megavoxels = expanded.image.info.bounds.n_voxels / 1e6
    known = [times[step.name] for step in stage.plan.steps if step.name in times] if times else []
    if known and len(known) == len(stage.plan.steps):
        return _from_times(stage, expanded, prices, known)
    core_seconds = megavoxels * prices.seconds_for(stage.stage.kind) + n_tasks * prices.seconds_per_task
    # A step with few tasks leaves workers idle: no more of them help than there are tasks.
    widest = max((step.n_tasks for step in stage.plan.steps), default=1)
    memory = expanded.memory_bytes()
    cores = max(1, min(max(spec.n_workers, 1), widest)) * spec.threads_per_worker
    return Estimate(
        n_tasks=n_tasks,
        outputs_bytes=stage.plan.outputs_bytes,
        task_memory_bytes=max((memory[step.name] for step in stage.plan.steps), default=0),
        core_hours=core_seconds / 3600,
        hours=core_seconds / 3600 / cores,
        dollars=core_seconds / 3600 * prices.dollars_per_core_hour,
        dollars_per_month=stage.plan.outputs_bytes / 1e9 * prices.dollars_per_gigabyte_month,
        origin="price file",
    )


def _from_times(
    stage: PlannedStage, expanded: PipelinePlan, prices: Prices, times: list[StepTime]
) -> Estimate:
    spec, memory = expanded.spec, expanded.memory_bytes()
    steps = list(zip(stage.plan.steps, times, strict=True))
    core_hours = sum(time.seconds for time in times) * spec.threads_per_worker / 3600
    return Estimate(
        n_tasks=sum(step.n_tasks for step in stage.plan.steps),
        outputs_bytes=stage.plan.outputs_bytes,
        task_memory_bytes=max(time.peak_memory_bytes or memory[step.name] for step, time in steps),
        core_hours=core_hours,
        # One step after the other; no more workers help than it has tasks.
        hours=sum(time.seconds / max(1, min(max(spec.n_workers, 1), step.n_tasks)) for step, time in steps)
        / 3600,
        dollars=core_hours * prices.dollars_per_core_hour,
        dollars_per_month=stage.plan.outputs_bytes / 1e9 * prices.dollars_per_gigabyte_month,
        origin="measured" if all(time.origin == "measured" for time in times) else "extrapolated",
    )


def total(estimates: list[Estimate]) -> Estimate:
    """Return the sum of estimates; the memory is that of the largest task."""
    return Estimate(
        n_tasks=sum(e.n_tasks for e in estimates),
        outputs_bytes=sum(e.outputs_bytes for e in estimates),
        task_memory_bytes=max((e.task_memory_bytes for e in estimates), default=0),
        core_hours=sum(e.core_hours for e in estimates),
        hours=sum(e.hours for e in estimates),
        dollars=sum(e.dollars for e in estimates),
        dollars_per_month=sum(e.dollars_per_month for e in estimates),
    )
