"""Areas of finished meshes, read back by cloud-volume."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import MissingExtraError, NotFoundError
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.infofile import read_info


def mesh_areas_um2(uri: str, ids: Iterable[int]) -> npt.NDArray[np.float64]:
    """Return the area of each segment's finest mesh; NaN for a segment without one.

    Parameters
    ----------
    uri
        The segmentation, with meshes as the stage ``meshes`` makes them.
    ids
        The segments.

    Raises
    ------
    NotFoundError
        If the segmentation has no meshes.
    MissingExtraError
        If cloud-volume is not installed.
    """
    address = Address.parse(uri)
    if not read_info(address.uri).get("mesh"):
        raise NotFoundError(
            f"{address.uri} has no meshes: its info names no folder of them; run a stage 'meshes' over it first"
        )
    try:
        import cloudvolume
    except ImportError as error:
        raise MissingExtraError.of("cloud-volume", extra="tasks") from error
    meshes: Any = cloudvolume.CloudVolume(
        f"precomputed://{address.uri}", cache=False, progress=False, parallel=1
    ).mesh
    return np.array([_area_nm2(meshes, int(segment)) * 1e-6 for segment in ids], np.float64)


def triangles_area(vertices: npt.NDArray[Any], faces: npt.NDArray[Any]) -> float:
    """Return the summed area of triangles.

    Parameters
    ----------
    vertices
        ``(n, 3)`` places.
    faces
        ``(m, 3)`` indices into them, or the same numbers in one row.

    Examples
    --------
    >>> triangles_area(np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0]]), np.array([0, 1, 2]))
    6.0
    """
    corners = np.asarray(vertices, np.float64)[np.asarray(faces).reshape(-1, 3)]
    sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.linalg.norm(sides, axis=1).sum() / 2)


def _area_nm2(meshes: Any, segment: int) -> float:
    import cloudvolume

    try:
        found = meshes.get(segment)
    except cloudvolume.exceptions.MeshMissingError:  # too small to have one
        return float("nan")
    mesh = found[segment] if isinstance(found, dict) else found
    return triangles_area(mesh.vertices, mesh.faces)
