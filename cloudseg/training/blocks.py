"""Labelled blocks in memory, from volumes in buckets; what does not fit is refused before training starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.training.config import LabelledVolume, PhantomVolumes
from cloudseg.training.labels import FIRST_OBJECT
from cloudseg.training.sampling import LabelledBlock
from cloudseg.volumes.protocol import Volume

OpenVolume = Callable[..., Volume]
MakePhantom = Callable[
    [str, XYZ, int, tuple[float, float, float]], tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]
]
"""Tissue, shape, seed and voxel size in nm to image and labels."""
"""Image and labels of a phantom, from its shape and seed."""


class _KnowsItsVoxels(Protocol):
    def check_voxel_size(self, voxel_size_nm: tuple[float, float, float], *, uri: str) -> None: ...


_FULL_SCALE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float32": (0.0, 1.0)}
_SAME_VOXELS = 0.02


def load_block(
    volume: LabelledVolume, *, description: _KnowsItsVoxels, open_volume: OpenVolume
) -> LabelledBlock:
    """Read one labelled volume into memory.

    Raises
    ------
    ModelError
        If its voxels differ too much from the model's.
    SpecError
        If image and labels differ in voxel size or do not overlap, the box leaves them, the types are wrong, the image
        holds NaN, ids are negative, or nothing in the box is labelled.
    """
    image = open_volume(volume.image, mip=volume.mip)
    labels = open_volume(volume.labels, mip=volume.mip)
    description.check_voxel_size(image.info.voxel_size_nm, uri=volume.image)
    if not np.allclose(image.info.voxel_size_nm, labels.info.voxel_size_nm, rtol=1e-3):
        raise SpecError(
            f"image {volume.image} has voxels of {image.info.voxel_size_nm} nm, its labels {volume.labels} have "
            f"{labels.info.voxel_size_nm} nm; give the scale of both (mip) at which they agree"
        )
    if image.info.dtype not in _FULL_SCALE or image.info.n_channels != 1:
        raise SpecError(
            f"{volume.image} must be one channel of {', '.join(_FULL_SCALE)}, "
            f"got {image.info.n_channels} of {image.info.dtype}"
        )
    if labels.info.dtype == "float32" or labels.info.n_channels != 1:
        raise SpecError(
            f"labels {volume.labels} must be one channel of integers, "
            f"got {labels.info.n_channels} of {labels.info.dtype}: ids beyond 16,777,216 do not survive float32; "
            "store them as uint32 or uint64"
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
    name = f"{volume.labels}, box {box}"
    try:
        return LabelledBlock.of(
            _grey(image.read(box), volume),
            labels.read(box),
            zero=volume.zero,
            weight=volume.weight,
            dense=volume.dense,
            name=name,
            start=box.start,
        )
    except SpecError as error:
        raise SpecError(str(error) if name in str(error) else f"{name}: {error}") from error


def check_same_voxels(volumes: Sequence[LabelledVolume], *, open_volume: OpenVolume) -> None:
    """Refuse volumes whose voxels differ: a network would learn two scales at once.

    Raises
    ------
    SpecError
        With both volumes and sizes.
    """
    sizes = {v.image: open_volume(v.image, mip=v.mip).info.voxel_size_nm for v in volumes}
    for (a, size_a), (b, size_b) in itertools.combinations(sizes.items(), 2):
        if not np.allclose(size_a, size_b, rtol=_SAME_VOXELS):
            raise SpecError(
                f"{a} has voxels of {size_a} nm, but {b} has {size_b} nm; give the scales (mip) at which they agree, "
                "resample one of them, or set mixed_voxel_sizes = true if the network is to learn both"
            )


def check_apart(
    learned: Sequence[tuple[LabelledVolume, LabelledBlock]],
    held_back: Sequence[tuple[LabelledVolume, LabelledBlock]],
) -> None:
    """Refuse validation boxes that share voxels with training boxes: measured there, every network looks good.

    Raises
    ------
    SpecError
        With both boxes and what they share.
    """
    for (a, block_a), (b, block_b) in itertools.product(learned, held_back):
        box_a, box_b = (Box.of_shape(block.ids.shape, at=block.start) for block in (block_a, block_b))
        shared = box_a.intersect(box_b)
        if (a.image, a.mip) == (b.image, b.mip) and not shared.is_empty:
            raise SpecError(
                f"validation box {box_b} of {b.image} shares {shared} with the training box {box_a}: a network that is "
                "measured on what it learned looks better than it is; move one of the boxes"
            )


def check_scorable(blocks: Sequence[LabelledBlock]) -> None:
    """Refuse boxes with one object only: one large segment would be a perfect score there.

    Raises
    ------
    SpecError
        With the box.
    """
    for block in blocks:
        n_objects = len(np.unique(block.ids[block.ids >= FIRST_OBJECT]))
        if n_objects < 2:
            raise SpecError(
                f"{block.name} holds {n_objects} object: its segmentation cannot be scored: all merged into one "
                "would be perfect; take a larger validation box"
            )


def _grey(image: npt.NDArray[np.generic], volume: LabelledVolume) -> npt.NDArray[np.uint8 | np.float32]:
    """Return grey levels on the scale of uint8."""
    low, high = volume.grey_range or _FULL_SCALE[image.dtype.name]
    if image.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return image.astype(np.uint8, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # found right below, with its place
        grey = (image.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    if not np.isfinite(grey).all():
        bad = tuple(int(v) for v in np.argwhere(~np.isfinite(grey))[0])
        raise SpecError(
            f"{volume.image} holds {image[bad]} (first at voxel {bad} of the box); "
            "replace what is no grey level before training"
        )
    return grey


def phantom_blocks(
    phantom: PhantomVolumes, *, voxel_size_nm: tuple[float, float, float], make_phantom: MakePhantom
) -> list[LabelledBlock]:
    """Return the phantoms of one ``[[phantom]]`` table."""
    blocks = []
    for i in range(phantom.count):
        image, labels = make_phantom(phantom.tissue, phantom.shape, phantom.seed + i, voxel_size_nm)
        name = f"phantom of seed {phantom.seed + i}"
        blocks.append(LabelledBlock.of(image, labels, weight=phantom.weight, name=name))
    return blocks


def corners_of(block: LabelledBlock, patch_shape: XYZ) -> list[XYZ]:
    """Return the corners of the labelled patches side by side in a block; one if the block is smaller than a patch."""
    steps = [
        range(0, max(size - patch, 0) + 1, patch)
        for size, patch in zip(block.ids.shape, patch_shape, strict=True)
    ]
    corners = [(x, y, z) for z in steps[2] for y in steps[1] for x in steps[0]]

    def ids(corner: XYZ) -> npt.NDArray[np.int32]:
        return block.ids[tuple(slice(c, c + p) for c, p in zip(corner, patch_shape, strict=True))]

    return [corner for corner in corners if (ids(corner) >= FIRST_OBJECT).any()]
