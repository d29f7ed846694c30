"""Where each soma is best pointed at: its deepest voxel; the region there; and what its mesh says."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, PositiveInt

from cloudseg.geometry import XYZ, Box
from cloudseg.ops.soma_places import deepest_voxel
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes.protocol import Volume
from cloudseg.volumes.tables import Column, get_table, put_table
from cloudseg_tasks.soma_catalogue.tables import merged_key, places_key

MOST_VOXELS = 1 << 24
"""A bounding box with more voxels is looked at in steps of several voxels, so that memory is bounded."""


class SomaPlacesTask(Task):
    """Find the deepest voxel of each soma of one portion of a partition, in its whole mask.

    Attributes
    ----------
    src_uri, graph_uri
        The somas, and the folder of the tables.
    portion, n_portions
        Which rows of the partition: every ``n_portions``-th from ``portion`` on.
    atlas_uri
        Regions, of any voxel size; empty: none. The one at the deepest voxel counts.
    with_meshes
        Whether the area of each soma's mesh is measured.
    """

    kind: Literal["soma_places/1"] = "soma_places/1"
    src_uri: str
    graph_uri: str
    partition: NonNegativeInt
    portion: NonNegativeInt
    n_portions: PositiveInt
    atlas_uri: str = ""
    with_meshes: bool = False

    def run(self, ctx: Context) -> None:
        """Read each bounding box, find the deepest voxel, look up what lies there, store."""
        objects = ctx.open_objects(self.graph_uri)
        wanted = ["id", *(f"{end}_{axis}_vx" for end in ("start", "stop") for axis in "xyz")]
        table = get_table(objects, merged_key(self.partition), columns=wanted)
        mine = slice(self.portion, None, self.n_portions)
        ids = table["id"][mine]
        start, stop = (
            np.stack([table[f"{end}_{axis}_vx"][mine] for axis in "xyz"], axis=1) for end in ("start", "stop")
        )
        volume = ctx.open_volume(self.src_uri)
        anchors, depths = np.zeros((len(ids), 3)), np.zeros(len(ids))
        with ctx.step("compute"):
            for row, soma in enumerate(ids):
                box = Box(tuple(start[row].tolist()), tuple(stop[row].tolist()))
                anchors[row], depths[row] = find_anchor(volume, box, soma)
        regions = np.zeros(len(ids), np.uint64)
        if self.atlas_uri:
            with ctx.step("read"):
                regions = _ids_at(ctx.open_volume(self.atlas_uri), anchors)
        surface = np.full(len(ids), np.nan)
        if self.with_meshes:
            from cloudseg.volumes.meshes import mesh_areas_um2

            with ctx.step("read"):
                surface = mesh_areas_um2(self.src_uri, ids)
        with ctx.step("write"):
            columns: dict[str, Column] = {"id": ids}
            columns |= {f"anchor_{axis}_nm": anchors[:, i] for i, axis in enumerate("xyz")}
            columns |= {"depth_nm": depths, "region": regions, "surface_um2": surface}
            put_table(objects, places_key(self.partition, self.portion), columns)
        ctx.count(somas=len(ids))


def find_anchor(volume: Volume, box: Box, soma: np.uint64) -> tuple[tuple[float, float, float], float]:
    """Return the centre of the deepest voxel of a soma, in nm, and how deep it lies.

    Parameters
    ----------
    volume
        The somas.
    box
        The bounding box of this one.
    soma
        Its id.

    Notes
    -----
    In a box of more than :data:`MOST_VOXELS` only every so-many-th voxel is looked at: what is found lies inside all
    the same, and is as deep as those voxels can tell.
    """
    size = volume.info.voxel_size_nm
    step = steps(box.shape, size)
    mask, first = _mask(volume, box, soma, step)
    if not mask.any():
        assert first is not None, f"soma {soma} has no voxel in its own bounding box {box}"
        at, depth_nm = first, 0.0
    else:
        index, depth_nm = deepest_voxel(
            mask, voxel_size_nm=(size[0] * step[0], size[1] * step[1], size[2] * step[2])
        )
        at = tuple(b + i * s for b, i, s in zip(box.start, index, step, strict=True))  # type: ignore[assignment]
    x, y, z = ((v + 0.5) * s for v, s in zip(at, size, strict=True))
    return (x, y, z), depth_nm


def steps(shape: XYZ, voxel_size_nm: tuple[float, float, float]) -> XYZ:
    """Return how many voxels to go on along each axis, so that at most :data:`MOST_VOXELS` are looked at.

    Examples
    --------
    >>> steps((100, 100, 100), (8, 8, 40)), steps((1024, 1024, 256), (8, 8, 40))
    ((1, 1, 1), (4, 4, 1))
    """
    step = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(shape, step, strict=True)]) > MOST_VOXELS:
        finest = min(range(3), key=lambda axis: step[axis] * voxel_size_nm[axis])
        step[finest] *= 2
    return (step[0], step[1], step[2])


def _mask(volume: Volume, box: Box, soma: np.uint64, step: XYZ) -> tuple[npt.NDArray[np.bool_], XYZ | None]:
    """Return every so-many-th voxel of the mask, and the first voxel of all of it."""
    if step == (1, 1, 1):
        return volume.read(box) == soma, None
    sections = max(1, MOST_VOXELS // (box.shape[0] * box.shape[1]))
    parts, first = [], None
    for low in range(box.start[2], box.stop[2], sections):
        slab = Box((*box.start[:2], low), (*box.stop[:2], min(low + sections, box.stop[2])))
        mask = volume.read(slab) == soma
        if first is None and mask.any():
            x, y, z = (int(axis[0]) for axis in np.nonzero(mask))
            first = (slab.start[0] + x, slab.start[1] + y, slab.start[2] + z)
        parts.append(mask[:: step[0], :: step[1], -(low - box.start[2]) % step[2] :: step[2]])
    return np.concatenate(parts, axis=2), first


def _ids_at(volume: Volume, points_nm: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Return the id at each point; 0 where the volume has no voxel."""
    found = np.zeros(len(points_nm), np.uint64)
    voxels = np.floor(points_nm / np.asarray(volume.info.voxel_size_nm)).astype(np.int64)
    for row, (x, y, z) in enumerate(voxels.tolist()):
        found[row] = volume.read(Box.of_shape((1, 1, 1), at=(x, y, z)), fill=0)[0, 0, 0]
    return found
