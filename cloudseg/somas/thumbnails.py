"""Thumbnails of somas: three planes through each, all of a version in few objects, found by id.

::

    somas/v3/thumbnails/info            size, number, sharding; it comes last
    somas/v3/thumbnails/1f.shard        some thousand PNG files by soma id

One picture holds the planes xy, xz and yz side by side, with the outline of the mask and a scale bar of a quarter of
the width, which is in the picture's text ``width_um``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import NotFoundError, VolumeFormatError
from cloudseg.geometry import Box
from cloudseg.ops.shard_files import Sharding, build_shard, hashed_sharding
from cloudseg.ops.thumbnails import draw_plane, palette_png, sample_places, strip
from cloudseg.somas.store import Catalog, catalog_key, iter_batches, read_catalog
from cloudseg.volumes.numbered import NumberedObjects
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.protocol import Volume

FORMAT = "cloudseg-thumbnails/1"
EDGE_PX = 96

WIDTHS_UM = (2, 4, 8, 16, 32, 64, 128)
"""A picture shows the least of these that leaves a margin round the soma: few scales are to be learnt."""

_MARGIN = 1.35
_BYTES_EACH = 18_000
_SHARD_BYTES = 8 << 20
_PLANES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
"""Axes along columns and rows of each plane, and the one across it: xy, xz, yz."""

_COLUMNS = [
    "soma_id",
    "n_voxels",
    *(f"anchor_{axis}_nm" for axis in "xyz"),
    *(f"bbox_{end}_{axis}_nm" for end in ("min", "max") for axis in "xyz"),
]


def thumbnails_key(version: int) -> str:
    """Return the folder of a version's thumbnails, in that of the catalogue."""
    return f"v{version}/thumbnails"


def thumbnail_sharding(catalog: Catalog) -> Sharding:
    """Return how the thumbnails of a version are spread over objects: it follows from their number."""
    return hashed_sharding(catalog.n_somas, catalog.n_somas * _BYTES_EACH, target_bytes=_SHARD_BYTES)


def has_thumbnails(objects: Objects, version: int) -> bool:
    """Whether the thumbnails of a version are there, and whole."""
    return objects.exists(f"{thumbnails_key(version)}/info")


def read_thumbnail(objects: Objects, soma_id: int, *, version: int) -> bytes:
    """Return the PNG file of one soma.

    Parameters
    ----------
    objects
        The catalogue's folder.
    soma_id
        Which.
    version
        Of the catalogue.

    Raises
    ------
    NotFoundError
        If the version has no thumbnails, or none of this soma: one that was added by hand has no mask.
    """
    folder = thumbnails_key(version)
    try:
        info = json.loads(objects.get(f"{folder}/info"))
    except NotFoundError as error:
        raise NotFoundError(
            f"version {version} of the somas at {objects.uri} has no thumbnails; add the stage soma_thumbnails to the "
            "pipeline"
        ) from error
    if info.get("format") != FORMAT:
        raise VolumeFormatError(
            f"{objects.uri}/{folder}/info says {info.get('format')!r}, expected {FORMAT!r}; a newer cloudseg wrote it"
        )
    data = NumberedObjects(f"{objects.uri}/{folder}", info["sharding"]).get(soma_id)
    if data is None:
        raise NotFoundError(f"there is no thumbnail of soma {soma_id} in version {version} at {objects.uri}")
    return data


def write_shards(
    objects: Objects,
    catalog: Catalog,
    images: list[Volume],
    masks: list[Volume],
    *,
    part: int = 0,
    n_parts: int = 1,
) -> int:
    """Draw and store every ``n_parts``-th shard; one shard and the planes of one soma are in memory.

    Parameters
    ----------
    objects, catalog
        Folder and version of the catalogue.
    images, masks
        The scales of the image and of the segmentation of somas, the finest first.
    part, n_parts
        Which shards.

    Returns
    -------
    The number of somas that were drawn.
    """
    sharding = thumbnail_sharding(catalog)
    mine = np.arange(part, sharding.n_shards, n_parts, dtype=np.uint64)
    of_shard: dict[int, list[Sitter]] = {}
    for number, sitter in _sitters(objects, catalog, sharding, mine):
        of_shard.setdefault(number, []).append(sitter)
    for number, sitters in sorted(of_shard.items()):
        ids = np.array([sitter.soma for sitter in sitters], np.uint64)
        data = build_shard(ids, [draw_soma(images, masks, sitter) for sitter in sitters], sharding)
        objects.put(f"{thumbnails_key(catalog.version)}/{sharding.name(number)}", data)
    return sum(map(len, of_shard.values()))


def publish_thumbnails(objects: Objects, version: int) -> None:
    """Put the ``info``, after all shards."""
    catalog = read_catalog(objects, version)
    info = {
        "format": FORMAT,
        "edge_px": EDGE_PX,
        "planes": ["xy", "xz", "yz"],
        "catalog": catalog_key(version),
        "sharding": thumbnail_sharding(catalog).document,
    }
    objects.put(f"{thumbnails_key(version)}/info", json.dumps(info, sort_keys=True).encode())


@dataclass(frozen=True, slots=True)
class Sitter:
    """A soma to be drawn.

    Attributes
    ----------
    soma
        Its label.
    centre_nm
        Middle of the pictures.
    inside_nm
        A place inside of it, through which the planes go.
    width_um
        What the pictures show.
    """

    soma: int
    centre_nm: tuple[float, float, float]
    inside_nm: tuple[float, float, float]
    width_um: float


def draw_soma(images: list[Volume], masks: list[Volume], sitter: Sitter) -> bytes:
    """Return the PNG file of a soma.

    Parameters
    ----------
    images, masks
        Scales of the image and of the segmentation, the finest first: of those whose voxels are no larger than a pixel
        the coarsest is read.
    sitter
        Which soma, where, and how much round it.
    """
    pixel_nm = sitter.width_um * 1000 / EDGE_PX
    image, mask = (_scale(volumes, pixel_nm) for volumes in (images, masks))
    drawn = []
    for axes in _PLANES:
        grey, there = _plane(image, sitter, axes)
        labels, labelled = _plane(mask, sitter, axes)
        drawn.append(draw_plane(grey, (labels == np.uint64(sitter.soma)) & labelled, there))
    return palette_png(strip(drawn, bar_px=EDGE_PX // 4), text={"width_um": f"{sitter.width_um:g}"})


def _scale(volumes: list[Volume], pixel_nm: float) -> Volume:
    fine = [volume for volume in volumes if max(volume.info.voxel_size_nm[:2]) <= pixel_nm]
    return fine[-1] if fine else volumes[0]


def _plane(
    volume: Volume, sitter: Sitter, axes: tuple[int, int, int]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return what a plane shows, nearest voxel by nearest voxel, and which of it lies in the volume."""
    size = volume.info.voxel_size_nm
    width_nm = sitter.width_um * 1000
    places = [
        sample_places(sitter.centre_nm[a], width_nm=width_nm, n=EDGE_PX, voxel_nm=size[a]) for a in axes[:2]
    ]
    places.append(np.array([math.floor(sitter.inside_nm[axes[2]] / size[axes[2]])]))
    start, stop, inside = [0, 0, 0], [0, 0, 0], []
    for axis, at in zip(axes, places, strict=True):
        low, high = volume.info.bounds.start[axis], volume.info.bounds.stop[axis]
        inside.append((at >= low) & (at < high))
        start[axis] = int(np.clip(at.min(), low, high - 1))
        stop[axis] = int(np.clip(at.max(), low, high - 1)) + 1
    there = inside[0][:, None] & inside[1][None, :] & inside[2]
    data = volume.read(Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])), missing="zero")
    if data.ndim == 4:
        data = data[0]
    index = [np.zeros(0, np.int64)] * 3
    for axis, at in zip(axes, places, strict=True):
        index[axis] = np.clip(at - start[axis], 0, stop[axis] - start[axis] - 1)
    found = data[np.ix_(*index)].squeeze(axis=axes[2])
    # What is left is in the order x, y, z, which is that of columns and rows in all three planes.
    return found, there


def _sitters(
    objects: Objects, catalog: Catalog, sharding: Sharding, shards: npt.NDArray[np.uint64]
) -> Iterator[tuple[int, Sitter]]:
    """Yield the somas with a mask that belong to ``shards``, each with its shard; rejected and merged ones too."""
    for batch in iter_batches(objects, catalog, columns=_COLUMNS):
        columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in _COLUMNS}
        owner = sharding.shards(columns["soma_id"])
        for row in np.flatnonzero(np.isin(owner, shards) & (columns["n_voxels"] > 0)).tolist():
            low, high, inside = (
                [float(columns[f"{prefix}{axis}_nm"][row]) for axis in "xyz"]
                for prefix in ("bbox_min_", "bbox_max_", "anchor_")
            )
            longest_um = max(b - a for a, b in zip(low, high, strict=True)) / 1000
            width = next((w for w in WIDTHS_UM if w >= longest_um * _MARGIN), WIDTHS_UM[-1])
            x, y, z = ((a + b) / 2 for a, b in zip(low, high, strict=True))
            soma = int(columns["soma_id"][row])
            yield int(owner[row]), Sitter(soma, (x, y, z), (inside[0], inside[1], inside[2]), float(width))
