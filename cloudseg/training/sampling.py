"""Random patches out of labelled blocks, augmented and turned into targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ
from cloudseg.ops.affinities import labels_to_affinities, thick_boundary
from cloudseg.training import augment


@dataclass(frozen=True, slots=True)
class LabelledBlock:
    """An image and its labels, both ``(x, y, z)``.

    Attributes
    ----------
    image
        Grey levels of uint8 (as uint8, or as float32 where the source has finer steps).
    labels
        Integers, 0 = unknown.
    weight
        How often this block is drawn, relative to the others.
    dense
        False where only single planes are labelled: such blocks are not bent (nearest-neighbour resampling would tear
        a plane one voxel thick).
    """

    image: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    labels: npt.NDArray[np.generic]
    weight: float = 1.0
    dense: bool = True

    def __post_init__(self) -> None:
        if self.image.shape != self.labels.shape:
            raise SpecError(
                f"image {self.image.shape} and labels {self.labels.shape} must have the same shape"
            )
        if not self.labels.any():
            raise SpecError(
                "the labels of a training block are all 0 (unknown): nothing can be learned from it"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example: ``(1, x, y, z)`` image, ``(c, x, y, z)`` targets (0 or 1) and whether they are known."""

    image: npt.NDArray[np.float32]
    targets: npt.NDArray[np.uint8]
    known: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sampler:
    """Draws augmented patches.

    Parameters
    ----------
    blocks
        What to draw from.
    patch_shape
        Edges of a patch in voxels.
    offsets
        Affinity channels; the first three are the nearest neighbours.
    mean, deviation
        Normalisation of grey levels, as the model package records it.
    isotropic
        Whether z may be exchanged with x and y.
    """

    blocks: Sequence[LabelledBlock]
    patch_shape: XYZ
    offsets: Sequence[XYZ]
    mean: float
    deviation: float
    isotropic: bool

    def draw(self, rng: np.random.Generator) -> Sample:
        """Return one random example; patches with under 2 % known voxels are drawn again."""
        weights = np.array([b.weight for b in self.blocks], np.float64)
        for _ in range(100):
            block = self.blocks[int(rng.choice(len(self.blocks), p=weights / weights.sum()))]
            corner = [
                int(rng.integers(max(s - p, 0) + 1))
                for s, p in zip(block.image.shape, self.patch_shape, strict=True)
            ]
            cut = tuple(slice(c, c + p) for c, p in zip(corner, self.patch_shape, strict=True))
            labels = block.labels[cut]
            if np.count_nonzero(labels) > 0.02 * labels.size:
                break
        else:
            raise SpecError(
                "100 random patches in a row had under 2 % labelled voxels; widen the boxes or the labels"
            )
        image, labels = self._normalised(block.image[cut], labels)
        image, labels = augment.orient(image, labels, rng=rng, isotropic=self.isotropic)
        if block.dense and rng.random() < 0.4:
            image, labels = augment.bend(image, labels, rng=rng)
        image = augment.recolour(image, rng=rng)
        if rng.random() < 0.1:
            image = augment.spoil_sections(image, rng=rng)
        return self._targets(image, np.ascontiguousarray(labels))

    def plain(self, image: npt.NDArray[np.generic], labels: npt.NDArray[np.generic]) -> Sample:
        """Return the example that ``image`` and ``labels`` (at most a patch) make, without augmentation."""
        normalised, padded = self._normalised(image, labels)
        return self._targets(normalised, np.ascontiguousarray(padded))

    def _normalised(
        self, image: npt.NDArray[np.generic], labels: npt.NDArray[np.generic]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.generic]]:
        grey = (image.astype(np.float32) - np.float32(self.mean)) / np.float32(self.deviation)
        padded = np.asarray(_pad(grey, self.patch_shape, mode="reflect"), np.float32)
        return padded, _pad(labels, self.patch_shape, mode="constant")

    def _targets(self, image: npt.NDArray[np.float32], labels: npt.NDArray[np.generic]) -> Sample:
        near, far = self.offsets[:3], self.offsets[3:]
        # Membranes get a width of two voxels for the nearest links only: long links bridge them anyway.
        near_targets, near_known = labels_to_affinities(labels, offsets=near, boundary=thick_boundary(labels))
        far_targets, far_known = labels_to_affinities(labels, offsets=far)
        return Sample(
            np.ascontiguousarray(image)[None],
            np.concatenate([near_targets, far_targets]),
            np.concatenate([near_known, far_known]),
        )


def _pad(array: npt.NDArray[np.generic], shape: XYZ, *, mode: str) -> npt.NDArray[np.generic]:
    lack = [(0, p - s) for s, p in zip(array.shape, shape, strict=True)]
    return np.pad(array, lack, mode=mode) if any(b for _, b in lack) else array  # type: ignore[call-overload]
