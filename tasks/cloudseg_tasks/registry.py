"""Which kinds a worker knows, and where each lives. What is sent is forever: add ``/2`` beside ``/1``, never rename."""

from __future__ import annotations

import importlib
import json
import os

from cloudseg.errors import SpecError, UnknownTaskError
from cloudseg.tasking.task import Task

KINDS: dict[str, str] = {
    "affinities/1": "cloudseg_tasks.affinities:AffinitiesTask",
    "supervoxels/1": "cloudseg_tasks.supervoxels:SupervoxelsTask",
    "supervoxel_faces/1": "cloudseg_tasks.supervoxels:SupervoxelFacesTask",
    "supervoxel_names/1": "cloudseg_tasks.supervoxels:SupervoxelNamesTask",
    "supervoxel_rename/1": "cloudseg_tasks.supervoxels:SupervoxelRenameTask",
    "region_graph/1": "cloudseg_tasks.agglomerate:RegionGraphTask",
    "agglomerate/1": "cloudseg_tasks.agglomerate:AgglomerateTask",
    "resolve/1": "cloudseg_tasks.agglomerate:ResolveTask",
    "relabel/1": "cloudseg_tasks.agglomerate:RelabelTask",
    "statistics/1": "cloudseg_tasks.statistics:StatisticsTask",
    "statistics_merge/1": "cloudseg_tasks.statistics:MergeStatisticsTask",
    "segment_properties/1": "cloudseg_tasks.statistics:SegmentPropertiesTask",
    "boundaries/1": "cloudseg_tasks.boundaries:BoundariesTask",
    "boundary_affinities/1": "cloudseg_tasks.boundary_affinities:BoundaryAffinitiesTask",
    "distance_watershed/1": "cloudseg_tasks.distance_watershed:DistanceWatershedTask",
    "basin_graph/1": "cloudseg_tasks.hmin:BasinGraphTask",
    "basin_merge/1": "cloudseg_tasks.hmin:BasinMergeTask",
    "basin_rename/1": "cloudseg_tasks.hmin:BasinRenameTask",
    "multicut/1": "cloudseg_tasks.multicut:MulticutTask",
    "multicut_relabel/1": "cloudseg_tasks.multicut:MulticutRelabelTask",
    "tissue/1": "cloudseg_tasks.tissue:TissueTask",
    "threshold/1": "cloudseg_tasks.threshold:ThresholdTask",
    "doubts/1": "cloudseg_tasks.doubts:DoubtsTask",
    "morphology/1": "cloudseg_tasks.morphology:MorphologyTask",
    "components/1": "cloudseg_tasks.components:ComponentsTask",
    "component_faces/1": "cloudseg_tasks.components:ComponentFacesTask",
    "component_names/1": "cloudseg_tasks.components:ComponentNamesTask",
    "component_rename/1": "cloudseg_tasks.components:ComponentRenameTask",
    "shapes/1": "cloudseg_tasks.classify:ShapesTask",
    "classify/1": "cloudseg_tasks.classify:ClassifyTask",
    "class_properties/1": "cloudseg_tasks.classify:ClassPropertiesTask",
    "paint_classes/1": "cloudseg_tasks.classify:PaintClassesTask",
    "soma_id_overlaps/1": "cloudseg_tasks.soma_ids:SomaIdOverlapsTask",
    "soma_ids/1": "cloudseg_tasks.soma_ids:SomaIdsTask",
    "soma_id_rename/1": "cloudseg_tasks.soma_ids:SomaIdRenameTask",
    "soma_partials/1": "cloudseg_tasks.soma_catalogue:SomaPartialsTask",
    "soma_merge/1": "cloudseg_tasks.soma_catalogue:SomaMergeTask",
    "soma_places/1": "cloudseg_tasks.soma_catalogue:SomaPlacesTask",
    "soma_catalogue/1": "cloudseg_tasks.soma_catalogue:SomaCatalogueTask",
    "soma_annotation_plan/1": "cloudseg_tasks.soma_annotations:SomaAnnotationPlanTask",
    "soma_annotations/1": "cloudseg_tasks.soma_annotations:SomaAnnotationsTask",
    "soma_annotation_publish/1": "cloudseg_tasks.soma_annotations:SomaAnnotationPublishTask",
    "soma_thumbnails/1": "cloudseg_tasks.soma_thumbnails:SomaThumbnailsTask",
    "soma_thumbnail_publish/1": "cloudseg_tasks.soma_thumbnails:SomaThumbnailPublishTask",
    "soma_heads/1": "cloudseg_tasks.soma_heads:SomaHeadsTask",
    "soma_peaks/1": "cloudseg_tasks.soma_locate:SomaPeaksTask",
    "soma_choose/1": "cloudseg_tasks.soma_locate:SomaChooseTask",
    "soma_seeds/1": "cloudseg_tasks.soma_segment:SomaSeedsTask",
    "soma_seed_faces/1": "cloudseg_tasks.soma_segment:SomaSeedFacesTask",
    "soma_seed_names/1": "cloudseg_tasks.soma_segment:SomaSeedNamesTask",
    "soma_grow/1": "cloudseg_tasks.soma_segment:SomaGrowTask",
    "soma_sizes/1": "cloudseg_tasks.soma_segment:SomaSizesTask",
    "soma_write/1": "cloudseg_tasks.soma_segment:SomaWriteTask",
    "section_overlaps/1": "cloudseg_tasks.max_extend:SectionOverlapsTask",
    "section_links/1": "cloudseg_tasks.max_extend:SectionLinksTask",
    "section_names/1": "cloudseg_tasks.max_extend:SectionNamesTask",
    "section_rename/1": "cloudseg_tasks.max_extend:SectionRenameTask",
    "ffn/1": "cloudseg_tasks.ffn:FloodTask",
    "ffn_cascade/1": "cloudseg_tasks.ffn:CascadeTask",
    "ffn_overlaps/1": "cloudseg_tasks.ffn_stitch:FloodOverlapsTask",
    "ffn_names/1": "cloudseg_tasks.ffn_stitch:FloodNamesTask",
    "ffn_rename/1": "cloudseg_tasks.ffn_stitch:FloodRenameTask",
    "ffn_report/1": "cloudseg_tasks.ffn_report:FloodReportTask",
    "consensus_count/1": "cloudseg_tasks.ffn_consensus:ConsensusCountTask",
    "consensus_decide/1": "cloudseg_tasks.ffn_consensus:ConsensusDecideTask",
    "consensus_write/1": "cloudseg_tasks.ffn_consensus:ConsensusWriteTask",
    "soma_patches/1": "cloudseg_tasks.soma_patches:SomaPatchesTask",
    "soma_edges/1": "cloudseg_tasks.soma_patches:SomaEdgesTask",
    "soma_stitch/1": "cloudseg_tasks.soma_stitch:SomaStitchTask",
    "soma_rename/1": "cloudseg_tasks.soma_stitch:SomaRenameTask",
    "colour_track/1": "cloudseg_tasks.colour_track:ColourTrackTask",
    "track_seams/1": "cloudseg_tasks.colour_track:TrackSeamsTask",
    "track_names/1": "cloudseg_tasks.colour_track:TrackNamesTask",
    "track_rename/1": "cloudseg_tasks.colour_track:TrackRenameTask",
    "igneous/1": "cloudseg_tasks.igneous:IgneousTask",
}


def known_kinds() -> dict[str, str]:
    """Return the kinds of this worker: ours, and those that ``CLOUDSEG_EXTRA_KINDS`` adds.

    The variable holds ``kind=module:Class`` pairs separated by commas; whoever may set it may run code anyway.

    Raises
    ------
    SpecError
        If the variable is malformed, or names one of our own kinds.
    """
    extra = {}
    for pair in filter(None, os.environ.get("CLOUDSEG_EXTRA_KINDS", "").split(",")):
        kind, _, address = pair.strip().partition("=")
        if not kind or ":" not in address:
            raise SpecError(f"CLOUDSEG_EXTRA_KINDS: expected kind=module:Class, got {pair!r}")
        if kind in KINDS:
            raise SpecError(
                f"CLOUDSEG_EXTRA_KINDS: {kind!r} is one of cloudseg's own kinds; choose another name"
            )
        extra[kind] = address
    return {**KINDS, **extra}


def task_class(kind: str) -> type[Task]:
    """Return the class of ``kind``.

    Raises
    ------
    UnknownTaskError
        If this worker has no such kind; the message lists the ones it has.
    """
    kinds = known_kinds()
    try:
        module, _, name = kinds[kind].partition(":")
    except KeyError as error:
        known = ", ".join(sorted(kinds))
        raise UnknownTaskError(f"unknown task kind {kind!r}; this worker has: {known}") from error
    cls: type[Task] = getattr(importlib.import_module(module), name)
    return cls


def load_task(message: str) -> Task:
    """Rebuild a task from its queue message, a JSON object with a ``kind``.

    Raises
    ------
    UnknownTaskError
        If the message is no JSON object or names no known kind.
    SpecError
        If the fields do not validate.
    """
    try:
        body = json.loads(message)
    except ValueError as error:
        raise UnknownTaskError(f"a task message must be a JSON object, got {message[:80]!r}") from error
    if not isinstance(body, dict):
        raise UnknownTaskError(f"a task message must be a JSON object, got {message[:80]!r}")
    kind = str(body.get("kind"))
    return task_class(kind).load(message, where=f"task message of kind {kind}")
