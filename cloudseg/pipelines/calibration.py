"""What a few real blocks took, and what it says about a whole volume.

Key under the root::

    pipeline/calibration.json    the figures of ``cloudseg plan --calibrate``, for later plans of the same pipeline
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import AwareDatetime, NonNegativeFloat, NonNegativeInt, PositiveInt

from cloudseg.errors import NotFoundError
from cloudseg.pipelines.plan import PipelinePlan
from cloudseg.pipelines.spec import HOW_KEYS, PipelineSpec
from cloudseg.specs import BoxField, FrozenModel, canonical_json
from cloudseg.volumes.objects import Objects

KEY = "pipeline/calibration.json"
# A step whose tasks grow with the volume has at least half as many as the volume is larger.
_GROWS = 0.5

Origin = Literal["measured", "extrapolated"]


class StepFigures(FrozenModel):
    """What the tasks of one step took on a part of the volume.

    Attributes
    ----------
    n_tasks
        Tasks that ran.
    n_voxels
        Voxels of the part.
    seconds_per_task
        Mean of a warm worker.
    peak_memory_bytes
        Of the largest.
    """

    name: str
    n_tasks: PositiveInt
    n_voxels: PositiveInt
    seconds_per_task: NonNegativeFloat
    peak_memory_bytes: NonNegativeInt


class Calibration(FrozenModel):
    """Figures of a pipeline, measured on one box of its image by one worker."""

    format: Literal["cloudseg-calibration/1"] = "cloudseg-calibration/1"
    pipeline_digest: str
    threads_per_worker: PositiveInt
    box: BoxField
    host: str
    measured: AwareDatetime
    versions: dict[str, str]
    steps: tuple[StepFigures, ...]


@dataclass(frozen=True, slots=True)
class StepTime:
    """What a whole step is expected to take.

    Attributes
    ----------
    seconds
        Of one worker.
    origin
        ``measured`` if its tasks grow in number, not in size; ``extrapolated`` if one task grows with the volume, or
        no task of the step could be measured and a step like it stands for it.
    peak_memory_bytes
        Measured, or None.
    """

    seconds: float
    origin: Origin
    peak_memory_bytes: int | None


def pipeline_digest(spec: PipelineSpec) -> str:
    """Return a digest of everything that says what a pipeline makes, and where."""
    return hashlib.sha256(
        canonical_json(spec.model_dump(mode="json", exclude=set(HOW_KEYS))).encode()
    ).hexdigest()


def load_calibration(objects: Objects) -> Calibration | None:
    """Return the figures that lie in a root, or None."""
    try:
        return Calibration.load(objects.get(KEY), where=f"{objects.uri}/{KEY}")
    except NotFoundError:
        return None


def usable(found: Calibration, spec: PipelineSpec) -> bool:
    """Whether figures are those of this very pipeline, with as many threads."""
    return (found.pipeline_digest, found.threads_per_worker) == (
        pipeline_digest(spec),
        spec.threads_per_worker,
    )


def step_times(expanded: PipelinePlan, found: Calibration) -> dict[str, StepTime]:
    """Return what each step of a plan is expected to take; steps that nothing is known of are left out."""
    figures = {step.name: step for step in found.steps}
    n_voxels = expanded.image.info.bounds.n_voxels
    times: dict[str, StepTime] = {}
    for step in expanded.steps():
        own = figures.get(step.name)
        like = own or _like(step.name, figures)
        if like is None:
            continue
        scale = n_voxels / like.n_voxels
        grows = own is not None and (step.n_tasks >= _GROWS * scale * like.n_tasks or scale <= 1)
        times[step.name] = StepTime(
            seconds=like.seconds_per_task * like.n_tasks * scale,
            origin="measured" if grows else "extrapolated",
            peak_memory_bytes=like.peak_memory_bytes if grows else None,
        )
    return times


def _like(name: str, figures: Mapping[str, StepFigures]) -> StepFigures | None:
    """Return the figures of the highest level that the part had, for one above it: ``level1`` for ``level5``."""
    stem = re.sub(r"\d+$", "", name)
    levels = [f for f in figures.values() if stem != name and re.fullmatch(re.escape(stem) + r"\d+", f.name)]
    return max(levels, key=lambda f: int(f.name.removeprefix(stem)), default=None)
