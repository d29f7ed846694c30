"""Which stage kinds a pipeline file may name, and where each lives."""

from __future__ import annotations

import difflib
import importlib
import os

from cloudseg.errors import SpecError
from cloudseg.tasking.steps import Stage

STAGES: dict[str, str] = {
    "affinities": "cloudseg_tasks.affinities:AffinitiesStage",
    "supervoxels": "cloudseg_tasks.supervoxels:SupervoxelsStage",
    "agglomerate": "cloudseg_tasks.agglomerate:AgglomerateStage",
    "boundaries": "cloudseg_tasks.boundaries:BoundariesStage",
    "boundary_affinities": "cloudseg_tasks.boundary_affinities:BoundaryAffinitiesStage",
    "distance_watershed": "cloudseg_tasks.distance_watershed:DistanceWatershedStage",
    "hmin_watershed": "cloudseg_tasks.hmin:HMinWatershedStage",
    "multicut": "cloudseg_tasks.multicut:MulticutStage",
    "tissue": "cloudseg_tasks.tissue:TissueStage",
    "threshold": "cloudseg_tasks.threshold:ThresholdStage",
    "doubts": "cloudseg_tasks.doubts:DoubtsStage",
    "morphology": "cloudseg_tasks.morphology:MorphologyStage",
    "components": "cloudseg_tasks.components:ComponentsStage",
    "classify": "cloudseg_tasks.classify:ClassifyStage",
    "soma_ids": "cloudseg_tasks.soma_ids:SomaIdsStage",
    "soma_catalogue": "cloudseg_tasks.soma_catalogue:SomaCatalogueStage",
    "soma_annotations": "cloudseg_tasks.soma_annotations:SomaAnnotationsStage",
    "soma_thumbnails": "cloudseg_tasks.soma_thumbnails:SomaThumbnailsStage",
    "soma_heads": "cloudseg_tasks.soma_heads:SomaHeadsStage",
    "soma_locate": "cloudseg_tasks.soma_locate:SomaLocateStage",
    "soma_segment": "cloudseg_tasks.soma_segment:SomaSegmentStage",
    "max_extend": "cloudseg_tasks.max_extend:MaxExtendStage",
    "ffn": "cloudseg_tasks.ffn:FloodStage",
    "ffn_cascade": "cloudseg_tasks.ffn:CascadeStage",
    "ffn_stitch": "cloudseg_tasks.ffn_stitch:FloodStitchStage",
    "ffn_report": "cloudseg_tasks.ffn_report:FloodReportStage",
    "consensus": "cloudseg_tasks.ffn_consensus:ConsensusStage",
    "soma_patches": "cloudseg_tasks.soma_patches:SomaPatchesStage",
    "soma_stitch": "cloudseg_tasks.soma_stitch:SomaStitchStage",
    "colour_track": "cloudseg_tasks.colour_track:ColourTrackStage",
    "downsample": "cloudseg_tasks.igneous:DownsampleStage",
    "meshes": "cloudseg_tasks.igneous:MeshesStage",
    "skeletons": "cloudseg_tasks.igneous:SkeletonsStage",
    "statistics": "cloudseg_tasks.statistics:StatisticsStage",
}


def stage_kinds() -> dict[str, str]:
    """Return every stage kind and the address of its class.

    ``CLOUDSEG_EXTRA_STAGES="kind=module:Class,..."`` adds kinds of another package; the tests use it for toy stages.

    Raises
    ------
    SpecError
        If the variable is malformed, or redefines a kind of ours.
    """
    kinds = dict(STAGES)
    for entry in filter(None, os.environ.get("CLOUDSEG_EXTRA_STAGES", "").split(",")):
        kind, equals, address = entry.strip().partition("=")
        if not equals or ":" not in address or kind in STAGES:
            raise SpecError(
                f"CLOUDSEG_EXTRA_STAGES must list new kinds as kind=module:Class,... and cannot replace "
                f"{', '.join(STAGES)}; got {entry!r}"
            )
        kinds[kind] = address
    return kinds


def stage_class(kind: str) -> type[Stage]:
    """Return the class of the stage ``kind``, or say which kinds there are."""
    kinds = stage_kinds()
    try:
        module, _, name = kinds[kind].partition(":")
    except KeyError as error:
        close = difflib.get_close_matches(kind, kinds, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise SpecError(f"unknown stage kind {kind!r}{hint}; there are: {', '.join(kinds)}") from error
    cls: type[Stage] = getattr(importlib.import_module(module), name)
    return cls
