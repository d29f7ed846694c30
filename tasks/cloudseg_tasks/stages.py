"""Which stage kinds a pipeline file may name, and where each lives."""

from __future__ import annotations

import importlib

from cloudseg.errors import SpecError
from cloudseg.tasking.steps import Stage

STAGES: dict[str, str] = {
    "affinities": "cloudseg_tasks.affinities:AffinitiesStage",
    "supervoxels": "cloudseg_tasks.supervoxels:SupervoxelsStage",
    "agglomerate": "cloudseg_tasks.agglomerate:AgglomerateStage",
    "downsample": "cloudseg_tasks.igneous:DownsampleStage",
    "meshes": "cloudseg_tasks.igneous:MeshesStage",
    "skeletons": "cloudseg_tasks.igneous:SkeletonsStage",
    "statistics": "cloudseg_tasks.statistics:StatisticsStage",
}


def stage_class(kind: str) -> type[Stage]:
    """Return the class of the stage ``kind``, or say which kinds there are."""
    try:
        module, _, name = STAGES[kind].partition(":")
    except KeyError as error:
        raise SpecError(f"unknown stage kind {kind!r}; there are: {', '.join(STAGES)}") from error
    cls: type[Stage] = getattr(importlib.import_module(module), name)
    return cls
