"""What a phantom brain is like: seed, size, and how much there is of everything."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from cloudseg.geometry import Box
from cloudseg.specs import FrozenModel
from cloudseg.volumes.protocol import Positive3

Share = Annotated[float, Field(ge=0, le=1)]

# Home cells of bodies are numbered by their place in this many; ids stay below 2**53, which JSON readers keep.
_MOST_HOMES = 2**50


class BrainSpec(FrozenModel):
    """A brain. The same settings give the same voxels, whichever box is asked for.

    Attributes
    ----------
    seed
        Which one.
    shape
        Size in voxels.
    voxel_size_nm
        Edges of a voxel. Another size shows the same anatomy, coarser or finer, with other detector noise.
    tissue
        ``brain``: a rounded block that the first and last sections cut, empty round it. ``all``: tissue, and rind,
        everywhere.
    radius_nm, pitch_nm
        Typical radius of a cell body; edge of the cell of space that is home to one body or to a pair.
    filling, filling_inside
        Share of homes that have a body, in the rind below the surface and deeper.
    rind_nm
        Thickness of that rind.
    pairs
        Share of homes that have two bodies pressed against each other. Others touch by chance.
    glia
        Share of small, dark, elongated bodies.
    vessels, axons
        Share of lattice lines that carry a vessel; a thick axon.
    contrast
        Of membranes: 1 is well stained.
    noise
        Deviation of the detector noise, in grey levels.
    artefacts
        Factor on how often sections are lost, slip, or differ in contrast; 0: never.
    """

    seed: int = 0
    shape: Positive3 = (512, 512, 400)
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (64.0, 64.0, 40.0)
    tissue: Literal["brain", "all"] = "brain"
    radius_nm: PositiveFloat = 1800.0
    pitch_nm: PositiveFloat = 4500.0
    filling: Share = 0.85
    filling_inside: Share = 0.12
    rind_nm: PositiveFloat = 14_000.0
    pairs: Share = 0.2
    glia: Share = 0.12
    vessels: Share = 0.35
    axons: Share = 0.35
    contrast: PositiveFloat = 1.0
    noise: Annotated[float, Field(ge=0)] = 9.0
    artefacts: Annotated[float, Field(ge=0, le=10)] = 1.0

    @model_validator(mode="after")
    def _bodies_fit_their_homes(self) -> Self:
        if not 2.2 * self.radius_nm <= self.pitch_nm:
            raise ValueError(
                f"pitch_nm must be at least 2.2 radii, so that bodies have room: got {self.pitch_nm:g} for radius_nm "
                f"{self.radius_nm:g}"
            )
        return self

    @model_validator(mode="after")
    def _ids_can_be_counted(self) -> Self:
        n_x, n_y, n_z = self.homes
        if n_x * n_y * n_z > _MOST_HOMES:
            raise ValueError(
                f"shape {self.shape} has {n_x * n_y * n_z:.2g} homes of bodies, more than ids for: widen pitch_nm"
            )
        return self

    @property
    def bounds(self) -> Box:
        """All voxels."""
        return Box.of_shape(self.shape)

    @property
    def extent_nm(self) -> tuple[float, float, float]:
        """Size."""
        x, y, z = (n * s for n, s in zip(self.shape, self.voxel_size_nm, strict=True))
        return (x, y, z)

    @property
    def homes(self) -> tuple[int, int, int]:
        """How many homes of bodies there are along each axis, two more than the volume needs on each side."""
        x, y, z = (int(e // self.pitch_nm) + 5 for e in self.extent_nm)
        return (x, y, z)
