"""Labelled blocks in memory, from volumes in buckets; what does not fit is refused before training starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ
from cloudseg.models.package import ModelDescription
from cloudseg.training.config import LabelledVolume, PhantomVolumes
from cloudseg.training.sampling import LabelledBlock
from cloudseg.volumes.protocol import Volume

OpenVolume = Callable[..., Volume]
MakePhantom = Callable[[XYZ, int], tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]]
"""Image and labels of a phantom, from its shape and seed."""

_GREY_SCALE = {"uint8": 1.0, "uint16": 1.0 / 257.0, "float32": 255.0}


def load_block(
    volume: LabelledVolume, *, description: ModelDescription, open_volume: OpenVolume
) -> LabelledBlock:
    """Read one labelled volume into memory.

    Raises
    ------
    ModelError
        If its voxels differ too much from the model's.
    SpecError
        If image and labels differ in voxel size or do not overlap, the box leaves them, the types are wrong, or
        nothing in the box is labelled.
    """
    image = open_volume(volume.image, mip=volume.mip)
    labels = open_volume(volume.labels, mip=volume.mip)
    description.check_voxel_size(image.info.voxel_size_nm, uri=volume.image)
    if not np.allclose(image.info.voxel_size_nm, labels.info.voxel_size_nm, rtol=1e-3):
        raise SpecError(
            f"image {volume.image} has voxels of {image.info.voxel_size_nm} nm, its labels {volume.labels} have "
            f"{labels.info.voxel_size_nm} nm; give the scale of both (mip) at which they agree"
        )
    if image.info.dtype not in _GREY_SCALE or image.info.n_channels != 1:
        raise SpecError(
            f"{volume.image} must be one channel of {', '.join(_GREY_SCALE)}, "
            f"got {image.info.n_channels} of {image.info.dtype}"
        )
    if labels.info.dtype == "float32" or labels.info.n_channels != 1:
        raise SpecError(
            f"labels {volume.labels} must be one channel of integers, "
            f"got {labels.info.n_channels} of {labels.info.dtype}"
        )
    common = image.info.bounds.intersect(labels.info.bounds)
    if common.is_empty:
        raise SpecError(
            f"image {volume.image} covers {image.info.bounds}, its labels {volume.labels} cover "
            f"{labels.info.bounds}: they do not overlap; check the voxel offsets"
        )
    box = volume.box or common
    if box.is_empty or not common.contains(box):
        raise SpecError(f"box {box} is not inside {common}, where {volume.image} and {volume.labels} overlap")
    grey = image.read(box)
    if image.info.dtype != "uint8":
        grey = grey.astype(np.float32) * np.float32(_GREY_SCALE[image.info.dtype])
    try:
        return LabelledBlock(grey, labels.read(box), weight=volume.weight, dense=volume.dense)
    except SpecError as error:
        raise SpecError(f"{volume.labels}, box {box}: {error}") from error


def phantom_blocks(phantom: PhantomVolumes, *, make_phantom: MakePhantom) -> list[LabelledBlock]:
    """Return the phantoms of one ``[[phantom]]`` table."""
    blocks = []
    for i in range(phantom.count):
        image, labels = make_phantom(phantom.shape, phantom.seed + i)
        blocks.append(LabelledBlock(image, labels, weight=phantom.weight))
    return blocks


def patches_of(block: LabelledBlock, patch_shape: XYZ) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Cut a block into whole patches, side by side from its lower corner; one padded patch if it is smaller."""
    starts = [
        range(0, max(size - patch, 0) + 1, patch)
        for size, patch in zip(block.image.shape, patch_shape, strict=True)
    ]
    cuts = [
        (slice(x, x + patch_shape[0]), slice(y, y + patch_shape[1]), slice(z, z + patch_shape[2]))
        for z in starts[2]
        for y in starts[1]
        for x in starts[0]
    ]
    return [(block.image[cut], block.labels[cut]) for cut in cuts if block.labels[cut].any()]
