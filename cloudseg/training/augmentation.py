"""Which random changes a patch undergoes, and how likely each is: settings for electron and for light microscopy."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from cloudseg.geometry import XYZ
from cloudseg.specs import FrozenModel
from cloudseg.training import augment, grey
from cloudseg.training.augment import Image, Positions

Probability = Annotated[float, Field(ge=0, le=1)]
VoxelSize = tuple[float, float, float]


class _Change(Protocol):
    def __call__(self, image: Image, *, rng: np.random.Generator) -> Image: ...


class Geometry(FrozenModel):
    """What all kinds of microscopy share. Numbers without a unit are probabilities.

    Attributes
    ----------
    flips
        Whether to flip and transpose.
    rotate, rotation_deg
        Rotation, and the largest angle.
    bend, bend_vx
        Smooth bending, and the deviation of its displacements in voxels of x. Along z it is weaker where voxels are
        longer.
    """

    flips: bool = True
    rotate: Probability = 0.2
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 45.0
    bend: Probability = 0.4
    bend_vx: Annotated[float, Field(ge=0, le=20)] = 3.0

    def moves(
        self, shape: XYZ, *, rng: np.random.Generator, voxel_size_nm: VoxelSize, isotropic: bool
    ) -> Positions | None:
        """Return where to read each voxel of a patch from, ``(3, x, y, z)``; None: where it is."""
        rotated, bent = rng.random() < self.rotate, rng.random() < self.bend
        position = self.slid(shape, rng=rng)
        if not rotated and not bent:
            return position
        position = augment.grid(shape) if position is None else position
        if rotated:
            augment.rotate(position, rng=rng, most_deg=self.rotation_deg, isotropic=isotropic)
        if bent:
            x_nm = voxel_size_nm[0]
            strength = [self.bend_vx * min(x_nm / s, 1.0) for s in voxel_size_nm]
            spacing = [max(32.0 * x_nm / s, 2.0) for s in voxel_size_nm]
            augment.bend(
                position,
                rng=rng,
                strength_vx=(strength[0], strength[1], strength[2]),
                spacing_vx=(spacing[0], spacing[1], spacing[2]),
            )
        return position

    def slid(self, shape: XYZ, *, rng: np.random.Generator) -> Positions | None:  # noqa: ARG002
        """Return positions with sections out of place, or None; only electron microscopy of sections has it."""
        return None

    def _changes(self) -> list[tuple[float, _Change]]:
        return []

    def recoloured(self, image: Image, *, rng: np.random.Generator) -> Image:
        """Return the image with other grey levels."""
        for probability, change in self._changes():
            if rng.random() < probability:
                image = change(image, rng=rng)
        return image.astype(np.float32, copy=False)


class ElectronAugmentation(Geometry):
    """``kind = "em"``: what electron microscopy does to an image. Numbers without a unit are probabilities.

    Attributes
    ----------
    contrast, gamma, blur, noise
        Of the whole patch.
    misalign, misalign_vx
        All sections above some one slide along x and y, labels and all; the largest shift.
    shifted_section
        One section slides; its labels stay.
    missing_section
        One or two sections are lost.
    section_contrast, contrast_jump
        Contrast of one section; of all sections above some one.
    defocused_section
        One section is blurred.
    """

    kind: Literal["em"] = "em"
    contrast: Probability = 1.0
    gamma: Probability = 0.3
    blur: Probability = 0.25
    noise: Probability = 0.4
    misalign: Probability = 0.05
    misalign_vx: Annotated[float, Field(ge=0, le=64)] = 8.0
    shifted_section: Probability = 0.05
    missing_section: Probability = 0.05
    section_contrast: Probability = 0.05
    contrast_jump: Probability = 0.05
    defocused_section: Probability = 0.05

    def slid(self, shape: XYZ, *, rng: np.random.Generator) -> Positions | None:
        """Return positions with sections out of place, or None."""
        if rng.random() >= self.misalign or shape[2] < 2:
            return None
        position = augment.grid(shape)
        augment.slide(position, rng=rng, most_vx=self.misalign_vx)
        return position

    def _changes(self) -> list[tuple[float, _Change]]:
        return [
            (self.contrast, grey.stretch),
            (self.gamma, grey.gamma),
            (self.blur, grey.blur),
            (self.noise, grey.noise),
            (self.shifted_section, grey.shift_section),
            (self.defocused_section, grey.defocus_section),
            (self.section_contrast, grey.recolour_section),
            (self.contrast_jump, grey.jump),
            (self.missing_section, grey.lose_sections),
        ]


class LightAugmentation(Geometry):
    """``kind = "light"``: what light microscopy does to an image. Numbers without a unit are probabilities.

    Attributes
    ----------
    contrast, gamma, blur
        Of the whole patch; the blur is twice as strong along z.
    noise, shot_noise
        Of the camera; of the photons, stronger where it is bright.
    dim_with_depth
        Light fades along z.
    haze
        Light from out of focus.
    stripes
        Shadows of a light sheet.
    """

    kind: Literal["light"] = "light"
    contrast: Probability = 1.0
    gamma: Probability = 0.4
    blur: Probability = 0.3
    noise: Probability = 0.3
    shot_noise: Probability = 0.3
    dim_with_depth: Probability = 0.3
    haze: Probability = 0.2
    stripes: Probability = 0.1

    def _changes(self) -> list[tuple[float, _Change]]:
        return [
            (self.dim_with_depth, grey.dim_with_depth),
            (self.haze, grey.haze),
            (self.stripes, grey.stripes),
            (self.blur, _long_blur),
            (self.shot_noise, grey.shot_noise),
            (self.contrast, grey.stretch),
            (self.gamma, grey.gamma),
            (self.noise, grey.noise),
        ]


class SomaAugmentation(Geometry):
    """``kind = "soma"``: as the published soma pipeline (EMADS, CVPR 2023) trains; with faults of sections, if wanted.

    Attributes
    ----------
    elastic, alpha_vx, sigma_vx
        Elastic deformation within sections, all alike; strength and smoothness of its displacements.
    grey
        Contrast, brightness and gamma of the patch, or of each section by itself.
    misalign, misalign_vx, missing_section, section_contrast, contrast_jump
        As for ``em``; the published code has most of these and leaves them off. Sections of real stacks need them.
    """

    kind: Literal["soma"] = "soma"
    rotate: Probability = 0.3
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 20.0
    bend: Probability = 0.0
    elastic: Probability = 0.5
    alpha_vx: Annotated[float, Field(ge=0, le=64)] = 16.0
    sigma_vx: Annotated[float, Field(gt=0, le=64)] = 4.0
    grey: Probability = 0.5
    misalign: Probability = 0.0
    misalign_vx: Annotated[float, Field(ge=0, le=64)] = 16.0
    missing_section: Probability = 0.0
    section_contrast: Probability = 0.0
    contrast_jump: Probability = 0.0

    def slid(self, shape: XYZ, *, rng: np.random.Generator) -> Positions | None:
        """Return positions with sections out of place or elastically deformed, or None."""
        slides, deforms = rng.random() < self.misalign and shape[2] > 1, rng.random() < self.elastic
        if not slides and not deforms:
            return None
        position = augment.grid(shape)
        if slides:
            augment.slide(position, rng=rng, most_vx=self.misalign_vx)
        if deforms:
            augment.elastic(position, rng=rng, alpha_vx=self.alpha_vx, sigma_vx=self.sigma_vx)
        return position

    def _changes(self) -> list[tuple[float, _Change]]:
        return [
            (self.grey, grey.published_grey),
            (self.section_contrast, grey.recolour_section),
            (self.contrast_jump, grey.jump),
            (self.missing_section, grey.lose_sections),
        ]


class NoAugmentation(Geometry):
    """``kind = "none"``: patches as they are, or only with the geometry that is asked for."""

    kind: Literal["none"] = "none"
    flips: bool = False
    rotate: Probability = 0.0
    bend: Probability = 0.0


def _long_blur(image: Image, *, rng: np.random.Generator) -> Image:
    return grey.blur(image, rng=rng, along_z=2.0)


Augmentation = Annotated[
    ElectronAugmentation | LightAugmentation | SomaAugmentation | NoAugmentation, Field(discriminator="kind")
]


def without_bending(augmentation: Augmentation) -> Augmentation:
    """Return the settings for blocks with single labelled planes: resampling would tear these."""
    changes: dict[str, Any] = {
        name: 0.0
        for name in ("bend", "rotate", "misalign", "elastic")
        if name in type(augmentation).model_fields
    }
    return augmentation.model_copy(update=changes)
