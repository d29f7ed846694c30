"""Tasks that stock igneous clients queue: run if known, refused if not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from cloudseg.errors import SpecError, UnknownTaskError
from cloudseg_tasks.igneous.engine import engine

# What stock igneous clients may put into a queue that we serve. Left out: tasks that delete, and the unsharded
# skeleton merge, which unpickles what lies in the bucket.
FOREIGN: dict[str, str] = {
    "CCLEquivalancesTask": "igneous.tasks.image.ccl",
    "CCLFacesTask": "igneous.tasks.image.ccl",
    "CLAHETask": "igneous.tasks.image.image",
    "ContrastNormalizationTask": "igneous.tasks.image.image",
    "CountVoxelsTask": "igneous.tasks.image.image",
    "DownsampleTask": "igneous.tasks.image.image",
    "ImageShardDownsampleTask": "igneous.tasks.image.image",
    "ImageShardTransferTask": "igneous.tasks.image.image",
    "LuminanceLevelsTask": "igneous.tasks.image.image",
    "MeshManifestFilesystemTask": "igneous.tasks.mesh.mesh",
    "MeshManifestPrefixTask": "igneous.tasks.mesh.mesh",
    "MeshTask": "igneous.tasks.mesh.mesh",
    "MultiResShardedMeshMergeTask": "igneous.tasks.mesh.multires",
    "MultiResUnshardedMeshMergeTask": "igneous.tasks.mesh.multires",
    "RelabelCCLTask": "igneous.tasks.image.ccl",
    "ShardedSkeletonMergeTask": "igneous.tasks.skeleton",
    "SkeletonTask": "igneous.tasks.skeleton",
    "SpatialIndexTask": "igneous.tasks.spatial_index",
    "TouchTask": "igneous.tasks.image.image",
    "TransferTask": "igneous.tasks.image.image",
}


def run_foreign(payload: Mapping[str, Any] | list[Any]) -> None:
    """Run a task that a stock igneous client has queued.

    Parameters
    ----------
    payload
        task-queue's wire form: ``{"class": name, argument: value, ...}`` for a class, or
        ``[[module, name], positional, keywords, id]`` for a function.

    Raises
    ------
    UnknownTaskError
        If the name is not on the list of known igneous tasks; the list is in the message.
    SpecError
        If the arguments do not fit the task.
    """
    positional: list[Any] = []
    if isinstance(payload, Mapping):
        keywords = {str(k): v for k, v in payload.items() if k != "class"}
        name = str(payload.get("class"))
    else:
        try:
            (module, name), positional, keywords, _ = payload
        except (TypeError, ValueError) as error:
            raise UnknownTaskError(f"not a payload of task-queue: {str(payload)[:120]}") from error
        if FOREIGN.get(name) != module:
            name = f"{module}.{name}"
    if name not in FOREIGN:
        raise UnknownTaskError(f"unknown igneous task {name!r}; this worker runs: {', '.join(FOREIGN)}")
    target = getattr(engine(FOREIGN[name]), name)
    if not isinstance(target, type):
        # The function itself; calling task-queue's wrapper would be the same, but only inside a queue.
        run: Callable[..., Any] = target
    else:
        run = lambda *a, **k: target(*a, **k).execute()  # noqa: E731
    _check_arguments(target, name, positional, keywords)
    run(*positional, **keywords)


def _check_arguments(target: Any, name: str, positional: list[Any], keywords: Mapping[str, Any]) -> None:
    try:
        inspect.signature(target).bind(*positional, **keywords)
    except TypeError as error:
        raise SpecError(f"igneous task {name} does not take these arguments: {error}") from error
