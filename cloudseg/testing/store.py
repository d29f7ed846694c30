"""Phantoms as volumes in a bucket."""

from __future__ import annotations

from collections.abc import Callable

from cloudseg.geometry import XYZ, Box, tile
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.testing.phantom_brain import BrainSpec, brain_uri, truth_table
from cloudseg.testing.phantom_brain.brain import PhantomBrain
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume
from cloudseg.volumes.tables import put_table


def store_phantom(root: str, *, shape: XYZ, seed: int) -> tuple[str, str]:
    """Write a phantom's image and truth under ``root``; return their addresses.

    Raises
    ------
    ConflictError
        If volumes with other properties lie there.
    """
    phantom = neurite_phantom(shape, seed=seed)
    bounds = Box.of_shape(shape)
    image_uri, truth_uri = f"{root.rstrip('/')}/image", f"{root.rstrip('/')}/truth"
    image = VolumeInfo(bounds=bounds, voxel_size_nm=phantom.voxel_size_nm)
    truth = VolumeInfo(
        bounds=bounds,
        voxel_size_nm=phantom.voxel_size_nm,
        dtype="uint64",
        layer="segmentation",
        encoding="compressed_segmentation",
    )
    create_volume(image_uri, image).write(bounds, phantom.image)
    create_volume(truth_uri, truth).write(bounds, phantom.labels)
    return image_uri, truth_uri


def store_brain(
    root: str, spec: BrainSpec, *, progress: Callable[[str, int, int], None] | None = None
) -> tuple[str, str]:
    """Write a phantom brain's image and truth under ``root``, block by block; return their addresses.

    Beside them lie ``bodies.parquet`` and ``contacts.parquet``: see
    :func:`~cloudseg.testing.phantom_brain.truth.truth_table`.

    Raises
    ------
    ConflictError
        If volumes with other properties lie there.
    """
    base = root.rstrip("/")
    made = []
    for name, what in (("image", "image"), ("truth", "labels")):
        source = open_volume(brain_uri(spec, "image" if what == "image" else "labels"))
        info = VolumeInfo(
            bounds=spec.bounds,
            voxel_size_nm=spec.voxel_size_nm,
            chunk_shape=source.info.chunk_shape,
            dtype=source.info.dtype,
            layer=source.info.layer,
        )
        volume = create_volume(f"{base}/{name}", info)
        x, y, z = (4 * c for c in info.chunk_shape)
        done = 0
        for block in tile(info.bounds, (x, y, z // 4)):
            volume.write(block, source.read(block))
            done += block.n_voxels
            if progress is not None:
                progress(name, done, info.bounds.n_voxels)
        made.append(f"{base}/{name}")
    bodies, contacts = truth_table(PhantomBrain(spec))
    objects = open_objects(base)
    put_table(objects, "bodies.parquet", bodies)
    put_table(objects, "contacts.parquet", contacts)
    return made[0], made[1]
