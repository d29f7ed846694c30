"""Phantoms as volumes in a bucket."""

from __future__ import annotations

from cloudseg.geometry import XYZ, Box
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.volumes import VolumeInfo, create_volume


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
