"""What a network is taught to predict at each voxel, made from ids (see :mod:`cloudseg.training.labels`).

Every target lies between 0 and 1, so one sigmoid serves all channels. Sources: affinities, Turaga et al. 2010
(https://doi.org/10.1162/neco.2009.10-08-881); boundaries two voxels thick, PlantSeg, Wolny et al. 2020
(https://doi.org/10.7554/eLife.57613); boundaries closed between sections, DeepEM3D, Zeng et al. 2017
(https://doi.org/10.1093/bioinformatics/btx188); local shape descriptors, Sheridan et al. 2022
(https://doi.org/10.1038/s41592-022-01711-z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat
from scipy import ndimage

from cloudseg.geometry import XYZ
from cloudseg.ops.affinities import NEAREST, labels_to_affinities, shifted_pairs
from cloudseg.specs import FrozenModel
from cloudseg.training.labels import FIRST_OBJECT, MEMBRANE, Ids
from cloudseg.training.shape import local_shape

Values = npt.NDArray[Any]
Known = npt.NDArray[np.bool_]
VoxelSize = tuple[float, float, float]


class AffinityTarget(FrozenModel):
    """``kind = "affinities"``: whether voxel v and voxel v + offset belong to the same object.

    Attributes
    ----------
    offsets
        One channel each, the three nearest neighbours first; none: the offsets of ``[network]``.
    thick
        Break all nearest links of the two voxels at an interface: membranes then have a width. Longer links bridge
        membranes anyway and stay exact.
    weight
        Share in the loss, relative to the other targets.
    """

    kind: Literal["affinities"] = "affinities"
    offsets: tuple[XYZ, ...] = ()
    thick: bool = True
    weight: PositiveFloat = 1.0

    binary: ClassVar[bool] = True

    @property
    def n_channels(self) -> int:
        """Channels that it takes."""
        return len(self.offsets)

    def make(self, ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:  # noqa: ARG002
        """Return ``(c, x, y, z)`` links and which of them are known."""
        membrane = ids == MEMBRANE
        # Unknown is 0 there; a membrane is an object all of whose links are broken.
        links, known = labels_to_affinities(
            ids + 1, offsets=self.offsets, boundary=membrane if membrane.any() else None
        )
        near = [c for c, offset in enumerate(self.offsets) if sum(map(abs, offset)) == 1]
        if self.thick and near:
            whole = ~boundary_of(ids, mode="thick", planar=False)
            for c in near:
                here, there = shifted_pairs(self.offsets[c])
                links[c][here] &= whole[here] & whole[there]
        return links, known


class BoundaryTarget(FrozenModel):
    """``kind = "boundary"``: whether a voxel lies on the interface of two objects, or on an annotated membrane.

    Attributes
    ----------
    mode
        ``thick``: the voxels on both sides of an interface. ``thin``: those on the upper side only, one voxel wide.
    planar
        Look for interfaces within sections only, as boundaries drawn in 2D have them.
    smooth_vx
        Deviation of a Gaussian that rounds the boundary off before it is cut at one half (PlantSeg: 1.0). 0: none. A
        rounded boundary is found through faces and edges, as pytorch-3dunet does: oblique ones are too thin otherwise,
        and vanish.
    weight
        Share in the loss, relative to the other targets.
    """

    kind: Literal["boundary"] = "boundary"
    mode: Literal["thick", "thin"] = "thick"
    planar: bool = False
    smooth_vx: Annotated[float, Field(ge=0)] = 0.0
    weight: PositiveFloat = 1.0

    binary: ClassVar[bool] = True
    n_channels: ClassVar[int] = 1

    def make(self, ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:  # noqa: ARG002
        """Return the ``(1, x, y, z)`` boundary and where it is known."""
        boundary = boundary_of(ids, mode=self.mode, planar=self.planar, edges=self.smooth_vx > 0)
        if self.smooth_vx:
            deviation = (self.smooth_vx, self.smooth_vx, 0.0 if self.planar else self.smooth_vx)
            boundary = ndimage.gaussian_filter(boundary.astype(np.float32), deviation) > 0.5
        return boundary[None].astype(np.uint8), (ids >= 0)[None]


class ClosedBoundaryTarget(FrozenModel):
    """``kind = "closed_boundary"``: membranes drawn in 2D, closed between sections (DeepEM3D's enhancement).

    A drawn membrane leaves a hole wherever a process ends below another one: one section shows the first, the next
    section the second, and no membrane between them. Here such voxels are boundary too.

    Attributes
    ----------
    widen_vx
        Widen the result within sections by so many voxels; 0 as published.
    weight
        Share in the loss, relative to the other targets.
    """

    kind: Literal["closed_boundary"] = "closed_boundary"
    widen_vx: Annotated[int, Field(ge=0)] = 0
    weight: PositiveFloat = 1.0

    binary: ClassVar[bool] = True
    n_channels: ClassVar[int] = 1

    def make(self, ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:  # noqa: ARG002
        """Return the ``(1, x, y, z)`` boundary and where it is known."""
        boundary = boundary_of(ids, mode="thick", planar=False)
        if self.widen_vx:
            cross = ndimage.generate_binary_structure(2, 1)[:, :, None]
            boundary = ndimage.binary_dilation(boundary, cross, iterations=self.widen_vx)
        return boundary[None].astype(np.uint8), (ids >= 0)[None]


class ShapeTarget(FrozenModel):
    """``kind = "shape"``: local shape descriptors, ten channels; see :func:`cloudseg.training.shape.local_shape`.

    They only help the network to learn its other targets, and are dropped from the model package.

    Attributes
    ----------
    sigma_nm
        Size of the neighbourhood that is described (deviation of its Gaussian).
    coarse
        Compute on every n-th voxel along each axis; much faster and hardly different.
    weight
        Share in the loss, relative to the other targets.
    """

    kind: Literal["shape"] = "shape"
    sigma_nm: PositiveFloat = 80.0
    coarse: Annotated[int, Field(ge=1, le=8)] = 2
    weight: PositiveFloat = 1.0

    binary: ClassVar[bool] = False
    n_channels: ClassVar[int] = 10

    def make(self, ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:
        """Return ``(10, x, y, z)`` descriptors and where they are known: within objects."""
        known = np.broadcast_to(ids > MEMBRANE, (self.n_channels, *ids.shape))
        return local_shape(
            ids, sigma_nm=self.sigma_nm, voxel_size_nm=voxel_size_nm, coarse=self.coarse
        ), known


class DistanceTarget(FrozenModel):
    """``kind = "distance"``: how far a voxel is from the surface of its object, ``tanh(distance / scale)``.

    Attributes
    ----------
    scale_nm
        Distance at which the target is 0.76; far inside large objects it hardly changes any more.
    inside
        Whether the target is 0 outside of objects, as for cell bodies and nuclei.
    weight
        Share in the loss, relative to the other targets.
    """

    kind: Literal["distance"] = "distance"
    scale_nm: PositiveFloat = 100.0
    inside: bool = False
    weight: PositiveFloat = 1.0

    binary: ClassVar[bool] = False
    n_channels: ClassVar[int] = 1

    def make(self, ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:
        """Return ``(1, x, y, z)`` and where it is known.

        A voxel at the patch's border may be near a surface outside of it. That is left as it is: the error is
        largest where the network sees least, too.
        """
        value = np.tanh(surface_distance(ids, voxel_size_nm=voxel_size_nm) / self.scale_nm)
        if self.inside:
            value = np.where(ids >= FIRST_OBJECT, value, 0.0)
        return value[None].astype(np.float32), (ids >= 0)[None]


class InteriorTarget(FrozenModel):
    """``kind = "interior"``: whether a voxel belongs to an object, for cell bodies and nuclei with tissue between them.

    Attributes
    ----------
    weight
        Share in the loss, relative to the other targets.
    """

    kind: Literal["interior"] = "interior"
    weight: PositiveFloat = 1.0

    binary: ClassVar[bool] = True
    n_channels: ClassVar[int] = 1

    def make(self, ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:  # noqa: ARG002
        """Return the ``(1, x, y, z)`` interior and where it is known."""
        return (ids >= FIRST_OBJECT)[None].astype(np.uint8), (ids >= 0)[None]


class SeedTarget(FrozenModel):
    """``kind = "seed"``: whether a voxel lies deep inside an object, so that even touching objects have seeds apart.

    Attributes
    ----------
    depth_nm
        Least distance to the surface; objects that are nowhere so deep have no seed.
    weight
        Share in the loss, relative to the other targets.
    """

    kind: Literal["seed"] = "seed"
    depth_nm: PositiveFloat = 800.0
    weight: PositiveFloat = 1.0

    binary: ClassVar[bool] = True
    n_channels: ClassVar[int] = 1

    def make(self, ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:
        """Return the ``(1, x, y, z)`` seeds and where they are known."""
        deep = surface_distance(ids, voxel_size_nm=voxel_size_nm) >= self.depth_nm
        return (deep & (ids >= FIRST_OBJECT))[None].astype(np.uint8), (ids >= 0)[None]


Target = Annotated[
    AffinityTarget
    | BoundaryTarget
    | ClosedBoundaryTarget
    | ShapeTarget
    | DistanceTarget
    | InteriorTarget
    | SeedTarget,
    Field(discriminator="kind"),
]


_EDGES: tuple[XYZ, ...] = ((-1, -1, 0), (-1, 1, 0), (-1, 0, -1), (-1, 0, 1), (0, -1, -1), (0, -1, 1))


def boundary_of(ids: Ids, *, mode: Literal["thick", "thin"], planar: bool, edges: bool = False) -> Known:
    """Return ``(x, y, z)``: annotated membranes, and voxels that touch another object through a face.

    Parameters
    ----------
    ids
        ``(x, y, z)``; see :mod:`cloudseg.training.labels`.
    mode
        ``thick`` marks both sides of an interface, ``thin`` the upper side only.
    planar
        Whether only neighbours within a section count.
    edges
        Whether voxels that share no more than an edge touch, too.
    """
    objects = np.maximum(ids, 0)
    boundary = ids == MEMBRANE
    for offset in NEAREST + _EDGES if edges else NEAREST:
        if planar and offset[2]:
            continue
        here, there = shifted_pairs(offset)
        a, b = objects[here], objects[there]
        differ = (a != b) & (a != 0) & (b != 0)
        boundary[here] |= differ
        if mode == "thick":
            boundary[there] |= differ
    return boundary


def surface_distance(ids: Ids, *, voxel_size_nm: VoxelSize) -> npt.NDArray[np.float64]:
    """Return ``(x, y, z)``: nm from each voxel to the nearest one at an interface; infinite where there is none."""
    surface = boundary_of(ids, mode="thick", planar=False)
    if not surface.any():
        return np.full(ids.shape, np.inf)
    distance: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~surface, sampling=voxel_size_nm)
    return distance


def make_targets(targets: Sequence[Target], ids: Ids, *, voxel_size_nm: VoxelSize) -> tuple[Values, Known]:
    """Return the channels of all ``targets``, one after the other, and where each is known.

    The values are uint8 if all targets are binary, float32 otherwise.
    """
    made = [target.make(ids, voxel_size_nm=voxel_size_nm) for target in targets]
    if len(made) == 1:
        return made[0]
    return np.concatenate([values for values, _ in made]), np.concatenate([known for _, known in made])
