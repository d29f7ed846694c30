"""The place where igneous is imported, and where its tasks are bent to hand over results instead of uploading them.

igneous, kimimaro and zmesh are GPL-3 and come with the ``tasks`` extra; nothing else imports them.
"""

from __future__ import annotations

import importlib
from typing import Any

from cloudseg.errors import MissingExtraError
from cloudseg.geometry import XYZ


def engine(module: str) -> Any:
    """Return a module of igneous, imported now."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("igneous-pipeline", extra="tasks") from error


def map_buffer() -> Any:
    """Return the class of igneous's compact dictionary from ids to bytes."""
    return engine("igneous.tasks.mesh.multires").MapBuffer


def collecting_mesh_task() -> Any:
    """Return igneous's MeshTask, which hands over its meshes instead of uploading them."""
    mesh_task = engine("igneous.tasks.mesh.mesh").MeshTask

    class CollectingMeshTask(mesh_task):  # type: ignore[misc, valid-type]
        def __init__(self, shape: XYZ, offset: XYZ, layer_path: str, **options: Any) -> None:
            super().__init__(shape, offset, layer_path, **options)
            self.collected: dict[int, bytes] = {}

        def _upload_batch(self, meshes: dict[int, bytes], bbox: object) -> None:  # noqa: ARG002
            self.collected = {int(label): bytes(data) for label, data in meshes.items()}

    return CollectingMeshTask
