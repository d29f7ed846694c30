"""Random patches out of labelled blocks, augmented and turned into targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.specs import FrozenModel
from cloudseg.training import augment
from cloudseg.training.augmentation import Augmentation, ElectronAugmentation, without_bending
from cloudseg.training.labels import FIRST_OBJECT, UNKNOWN, Ids, Zero, renumber
from cloudseg.training.targets import Target, make_targets

_TRIES = 1000


class SamplingSettings(FrozenModel):
    """``[sampling]``: which patches to learn from.

    A patch is taken if more than ``min_labelled`` of its voxels belong to an object (are neither unknown, nor membrane,
    nor background); any other is taken with the probability ``slack_acceptance``. The rule, and 0.6 and 0.01, are
    PlantSeg's (Wolny et al. 2020); the defaults here only leave out what teaches next to nothing.
    """

    min_labelled: Annotated[float, Field(ge=0, lt=1)] = 0.02
    slack_acceptance: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, slots=True)
class LabelledBlock:
    """An image and its labels, both ``(x, y, z)``.

    Attributes
    ----------
    image
        Grey levels of uint8 (as uint8, or as float32 where the source has finer steps).
    ids
        See :mod:`cloudseg.training.labels`.
    weight
        How often this block is drawn, relative to the others.
    dense
        False where only single planes are labelled: such blocks are not bent (nearest-neighbour resampling would tear
        a plane one voxel thick).
    name, start
        What messages call it, and where its first voxel lies in the volume.
    """

    image: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    ids: Ids
    weight: float = 1.0
    dense: bool = True
    name: str = "a block"
    start: XYZ = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.image.shape != self.ids.shape:
            raise SpecError(f"image {self.image.shape} and labels {self.ids.shape} must have the same shape")
        if not (self.ids >= FIRST_OBJECT).any():
            raise SpecError(
                f"{self.name}: the labels of a training block are all 0: nothing can be learned from it; "
                "move the box to where objects are labelled"
            )

    @classmethod
    def of(
        cls,
        image: npt.NDArray[Any],
        labels: npt.NDArray[np.generic],
        *,
        zero: Zero = "unknown",
        weight: float = 1.0,
        dense: bool = True,
        name: str = "a block",
        start: XYZ = (0, 0, 0),
    ) -> LabelledBlock:
        """Return a block from the labels of a source."""
        return cls(image, renumber(labels, zero=zero), weight=weight, dense=dense, name=name, start=start)


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example.

    Attributes
    ----------
    image
        ``(1, x, y, z)``.
    targets, known
        ``(c, x, y, z)``: values from 0 to 1, and whether they are known.
    where
        Which voxels of which volume it was made from.
    """

    image: npt.NDArray[np.float32]
    targets: npt.NDArray[Any]
    known: npt.NDArray[np.bool_]
    where: str


@dataclass(frozen=True)
class Sampler:
    """Draws augmented patches.

    Parameters
    ----------
    blocks
        What to draw from.
    patch_shape
        Edges of a patch in voxels.
    targets
        What the network is to predict.
    mean, deviation
        Normalisation of grey levels, as the model package records it.
    voxel_size_nm
        Edges of a voxel.
    isotropic
        Whether z may be exchanged with x and y.
    augmentation
        Which random changes.
    settings
        Which patches are worth learning from.
    """

    blocks: Sequence[LabelledBlock]
    patch_shape: XYZ
    targets: Sequence[Target]
    mean: float
    deviation: float
    voxel_size_nm: tuple[float, float, float]
    isotropic: bool = True
    augmentation: Augmentation = field(default_factory=ElectronAugmentation)
    settings: SamplingSettings = field(default_factory=SamplingSettings)

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return one random example.

        Raises
        ------
        SpecError
            If a thousand patches of a block in a row had too few labelled voxels.
        """
        weights = np.array([b.weight for b in self.blocks], np.float64)
        block = self.blocks[int(rng.choice(len(self.blocks), p=weights / weights.sum()))]
        how = self.augmentation if block.dense else without_bending(self.augmentation)
        orientation = augment.draw_orientation(rng, isotropic=self.isotropic)
        if not how.flips:
            orientation = ((0, 1, 2), (False, False, False))
        shape = augment.shape_before(self.patch_shape, orientation)
        corner = self.draw_corner(block, shape, rng)
        position = how.moves(shape, rng=rng, voxel_size_nm=self.voxel_size_nm, isotropic=self.isotropic)
        if position is None:
            image, ids = self._cut(block, corner, shape)
        else:
            image, ids = augment.resample(block.image, block.ids, position, corner=corner)
        image = np.ascontiguousarray(augment.orient(image, orientation), np.float32)
        ids = np.ascontiguousarray(augment.orient(ids, orientation), np.int32)
        image = (image - np.float32(self.mean)) / np.float32(self.deviation)
        image = how.recoloured(image, rng=rng)
        return self._sample(image, ids, block, corner, shape)

    def draw_corner(self, block: LabelledBlock, shape: XYZ, rng: np.random.Generator) -> XYZ:
        """Return the lower corner of a random patch that has enough labelled voxels, or is taken all the same."""
        best = 0.0
        for _ in range(_TRIES):
            x, y, z = (
                int(rng.integers(max(s - p, 0) + 1)) for s, p in zip(block.ids.shape, shape, strict=True)
            )
            ids = block.ids[x : x + shape[0], y : y + shape[1], z : z + shape[2]]
            labelled = np.count_nonzero(ids >= FIRST_OBJECT) / ids.size
            if labelled > self.settings.min_labelled or rng.random() < self.settings.slack_acceptance:
                return (x, y, z)
            best = max(best, labelled)
        raise SpecError(
            f"{block.name}: of {_TRIES} random patches of {shape} voxels none had over "
            f"{self.settings.min_labelled:.0%} labelled voxels, the best had {best:.1%}; lower sampling.min_labelled, "
            "give sampling.slack_acceptance a value above 0, or move the box to where more is labelled"
        )

    def plain(self, block: LabelledBlock, corner: XYZ) -> Sample:
        """Return the example at ``corner`` without augmentation; outside of the block it is mirrored, unknown."""
        image, ids = self._cut(block, corner, self.patch_shape)
        image = (image - np.float32(self.mean)) / np.float32(self.deviation)
        return self._sample(image, ids, block, corner, self.patch_shape)

    def _cut(self, block: LabelledBlock, corner: XYZ, shape: XYZ) -> tuple[npt.NDArray[np.float32], Ids]:
        cut = tuple(slice(c, c + p) for c, p in zip(corner, shape, strict=True))
        image, ids = block.image[cut].astype(np.float32), block.ids[cut]
        lack = [(0, p - s) for s, p in zip(image.shape, shape, strict=True)]
        if any(b for _, b in lack):
            image = np.pad(image, lack, mode="reflect")
            ids = np.pad(ids, lack, constant_values=UNKNOWN)
        return image, ids

    def _sample(
        self, image: npt.NDArray[np.float32], ids: Ids, block: LabelledBlock, corner: XYZ, shape: XYZ
    ) -> Sample:
        values, known = make_targets(self.targets, ids, voxel_size_nm=self.voxel_size_nm)
        x, y, z = (a + b for a, b in zip(block.start, corner, strict=True))
        return Sample(
            np.ascontiguousarray(image)[None],
            values,
            known,
            f"{block.name}, patch {Box.of_shape(shape, at=(x, y, z))}",
        )
