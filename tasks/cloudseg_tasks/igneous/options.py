"""The settings of meshes and skeletons, each written once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cloudseg.specs import FrozenModel
from cloudseg.volumes.protocol import Positive3


class ShardingOptions(FrozenModel):
    """How labels are spread over shard files.

    Attributes
    ----------
    voxels_per_shard
        One shard (rounded up to a power of two) per so many voxels: a merge task holds one shard's pieces.
    keep_fragments
        Leave ``<root>/fragments/<stage>/`` where it is instead of deleting it in the stage's last step.
    check_labels
        How many labels of each shard are read back and must lie inside the volume.
    """

    voxels_per_shard: PositiveInt = 1 << 29
    keep_fragments: bool = False
    check_labels: NonNegativeInt = 4


class MeshOptions(FrozenModel):
    """How a segment becomes a mesh.

    Attributes
    ----------
    simplification_error_nm
        How far simplification may move a surface.
    dust_vx
        Pieces below so many voxels inside one block get no mesh; 0 keeps all.
    n_lods
        Levels of detail, at most: coarser ones are made only while a mesh spans more than ``lod_chunk_vx``.
    lod_chunk_vx
        Smallest cell, in voxels, that a level of detail is cut into.
    draco_level
        Compression effort, 0 to 10.
    quantization_bits
        Precision of a vertex inside its cell.
    """

    simplification_error_nm: NonNegativeFloat = 40.0
    dust_vx: NonNegativeInt = 0
    n_lods: PositiveInt = 3
    lod_chunk_vx: Positive3 = (128, 128, 128)
    draco_level: Annotated[int, Field(ge=0, le=10)] = 7
    quantization_bits: Literal[10, 16] = 16


class SkeletonOptions(FrozenModel):
    """How a segment becomes a skeleton (TEASAR: Sato et al. 2000, as in kimimaro).

    Attributes
    ----------
    scale, const_nm
        A path claims all within ``scale`` times its distance to the border, plus ``const_nm``.
    soma_detection_nm, soma_acceptance_nm
        A distance to the border above the first makes a body be looked for; above the second it is one.
    soma_invalidation_scale, soma_invalidation_const_nm
        The same two numbers for the region around a body's centre.
    dust_vx
        Pieces below so many voxels inside one block get no skeleton.
    min_cable_nm
        Disconnected pieces of the finished skeleton that are shorter are dropped.
    tick_nm
        Side branches of the finished skeleton that are shorter are dropped.
    """

    scale: PositiveFloat = 1.5
    const_nm: PositiveFloat = 300.0
    soma_detection_nm: PositiveFloat = 750.0
    soma_acceptance_nm: PositiveFloat = 3500.0
    soma_invalidation_scale: PositiveFloat = 2.0
    soma_invalidation_const_nm: PositiveFloat = 300.0
    dust_vx: NonNegativeInt = 500
    min_cable_nm: NonNegativeFloat = 200.0
    tick_nm: NonNegativeFloat = 400.0
