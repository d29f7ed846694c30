"""What a volume is: an immutable description, and a protocol with two verbs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cloudseg.geometry import XYZ, Box
from cloudseg.specs import BoxField, FrozenModel

Array = npt.NDArray[Any]
"""``(x, y, z)`` for one channel, ``(c, x, y, z)`` for several."""

DType = Literal["uint8", "uint16", "uint32", "uint64", "float32"]
Encoding = Literal["raw", "compressed_segmentation", "jpeg", "png"]
Positive3 = tuple[PositiveInt, PositiveInt, PositiveInt]


class ShardingSpec(FrozenModel):
    """Parameters of ``neuroglancer_uint64_sharded_v1`` (Precomputed specification, sharded format)."""

    preshift_bits: Annotated[int, Field(ge=0, le=64)]
    minishard_bits: Annotated[int, Field(ge=0, le=32)]
    shard_bits: Annotated[int, Field(ge=0, le=64)]
    hash: Literal["identity", "murmurhash3_x86_128"] = "identity"
    data_encoding: Literal["raw", "gzip"] = "gzip"
    minishard_index_encoding: Literal["raw", "gzip"] = "gzip"


class VolumeInfo(FrozenModel):
    """Immutable description of one scale of a volume. All tuples are in X, Y, Z order.

    Attributes
    ----------
    bounds
        Half-open box of valid voxels; its start is the ``voxel_offset``.
    voxel_size_nm
        Edge of a voxel.
    chunk_shape
        Edge of a stored chunk in voxels; the chunk grid starts at ``bounds.start``.
    dtype, n_channels
        Type of a value; ``n_channels`` > 1 gives arrays ``(c, x, y, z)``.
    layer
        ``image`` or ``segmentation``.
    encoding
        Codec of a chunk; if not given, ``compressed_segmentation`` for a segmentation of uint32 or uint64,
        else ``raw``.
    sharding
        Set when chunks are packed into shards: then writes cover whole shards.
    """

    bounds: BoxField
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    chunk_shape: Positive3 = (64, 64, 64)
    dtype: DType = "uint8"
    n_channels: PositiveInt = 1
    layer: Literal["image", "segmentation"] = "image"
    encoding: Encoding = "raw"
    sharding: ShardingSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _segmentations_are_compressed(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("layer") == "segmentation" and "encoding" not in data:
            if str(data.get("dtype", "uint8")) in ("uint32", "uint64"):
                return {**data, "encoding": "compressed_segmentation"}
        return data

    @model_validator(mode="after")
    def _bounds_hold_voxels(self) -> Self:
        if self.bounds.is_empty:
            raise ValueError(f"bounds {self.bounds} hold no voxel")
        return self

    @model_validator(mode="after")
    def _segmentation_is_integer(self) -> Self:
        if self.layer == "segmentation" and self.dtype == "float32":
            raise ValueError(
                "a segmentation holds integer ids, got dtype float32: ids never pass through floats"
            )
        return self

    @model_validator(mode="after")
    def _codec_fits_dtype(self) -> Self:
        allowed = {
            "compressed_segmentation": ("uint32", "uint64"),
            "jpeg": ("uint8",),
            "png": ("uint8", "uint16"),
        }
        if self.encoding in allowed and self.dtype not in allowed[self.encoding]:
            raise ValueError(
                f"encoding {self.encoding} holds {allowed[self.encoding]}, got dtype {self.dtype}"
            )
        return self

    @property
    def shape(self) -> XYZ:
        """Size in voxels."""
        return self.bounds.shape

    @property
    def write_grid(self) -> XYZ:
        """The grid writes must respect: whole chunks, or whole shards (see :func:`shard_shape`)."""
        from cloudseg.volumes.sharding import shard_shape

        return self.chunk_shape if self.sharding is None else shard_shape(self)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The numpy type of a voxel."""
        return np.dtype(self.dtype)


class Volume(Protocol):
    """One scale of a chunked array in voxel space."""

    @property
    def uri(self) -> str:
        """Where it lives."""
        ...

    @property
    def info(self) -> VolumeInfo:
        """What it is."""
        ...

    def read(
        self, box: Box, *, fill: int | None = None, missing: Literal["error", "zero"] = "error"
    ) -> Array:
        """Return the voxels of ``box`` as a new Fortran-ordered array.

        Parameters
        ----------
        box
            Any box; it need not be aligned.
        fill
            Value of voxels outside the bounds; None raises :class:`~cloudseg.errors.BoxOutOfBoundsError` for
            them.
        missing
            What a chunk that was never written means: an error
            (:class:`~cloudseg.errors.MissingChunkError`), or zeros.
        """
        ...

    def write(self, box: Box, data: Array) -> None:
        """Store ``data`` at ``box``, which covers whole chunks (or shards). Writing twice is the same as once."""
        ...
