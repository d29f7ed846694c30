"""Fragments: what each block leaves for the task that finishes a shard.

Each block's pieces are split by the shard that their label belongs to and written atomically, one object per block and
shard. So a merge reads every byte it needs once, in block order, nothing lists or indexes the volume, and an absent
fragment is an error and not a hole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from pydantic import NonNegativeInt

from cloudseg.errors import NotFoundError
from cloudseg.geometry import Box, grid_shape, tile
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.blocks import block_name
from cloudseg.tasking.task import Context
from cloudseg.volumes.protocol import Positive3
from cloudseg_tasks.igneous.engine import engine, map_buffer

# A minishard's index is read whole before its first label: 512 labels are 12 KiB.
_LABELS_PER_MINISHARD = 512
# Dense EM holds about one segment per so many voxels; it only sizes an index, any value is correct.
_VOXELS_PER_LABEL = 1 << 14


class Shards(FrozenModel):
    """Which label lies in which shard: the hashed sharding of the Precomputed specification, fixed when planned."""

    shard_bits: NonNegativeInt
    minishard_bits: NonNegativeInt

    @classmethod
    def for_voxels(cls, n_voxels: int, *, voxels_per_shard: int) -> Self:
        """Choose the number of shards from the size of the volume, which is known before any label is."""
        shard_bits = max(0, math.ceil(math.log2(n_voxels / voxels_per_shard)))
        n_labels = (n_voxels >> shard_bits) / _VOXELS_PER_LABEL
        minishard_bits = min(12, max(0, math.ceil(math.log2(max(1.0, n_labels / _LABELS_PER_MINISHARD)))))
        return cls(shard_bits=shard_bits, minishard_bits=minishard_bits)

    @property
    def n(self) -> int:
        """Number of shards."""
        return 1 << self.shard_bits

    def name(self, shard: int) -> str:
        """Return the shard's name, as the specification writes it."""
        return f"{shard:0{-(-self.shard_bits // 4) or 1}x}"

    def document(self, *, data_encoding: str) -> dict[str, Any]:
        """Return the ``sharding`` entry of an info file."""
        # The index is left raw: gzip would bring in a time stamp wherever libdeflate is not installed.
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "preshift_bits": 0,
            "hash": "murmurhash3_x86_128",
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "minishard_index_encoding": "raw",
            "data_encoding": data_encoding,
        }

    def owners(self, labels: Iterable[int]) -> dict[int, list[int]]:
        """Return the labels of each shard, sorted."""
        ids = np.fromiter(labels, dtype=np.uint64)
        if not len(ids):
            return {}
        computer = engine("igneous.task_creation.mesh").shardcomputer
        found = computer.assign_labels_to_shards(ids, 0, self.shard_bits, self.minishard_bits)
        return {int(name, 16): sorted(int(v) for v in members) for name, members in found.items()}


class Pieces(FrozenModel):
    """Where a stage's fragments lie: the grid of its blocks, and its shards."""

    fragments_uri: str
    bounds: BoxField
    block_shape: Positive3
    shards: Shards

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.prod(grid_shape(self.bounds, self.block_shape))

    def key(self, core: Box, shard: int) -> str:
        """Name the fragment of one block and shard."""
        return f"{self.shards.name(shard)}/{block_name(core.start)}.frags"

    def put(self, ctx: Context, core: Box, pieces: Mapping[int, bytes]) -> None:
        """Store a block's pieces, one object per shard: empty ones too, so that an absent one is a fault."""
        objects = ctx.open_objects(self.fragments_uri)
        owners = self.shards.owners(pieces)
        for shard in range(self.shards.n):
            members = {label: pieces[label] for label in owners.get(shard, ())}
            objects.put(
                self.key(core, shard), map_buffer()(members, compress="zstd").tobytes() if members else b""
            )

    def collect(self, ctx: Context, shard: int) -> dict[int, list[bytes]]:
        """Return the pieces of each label of a shard, labels ascending, pieces in block order."""
        objects = ctx.open_objects(self.fragments_uri)
        found: dict[int, list[bytes]] = {}
        for core in tile(self.bounds, self.block_shape):
            key = self.key(core, shard)
            try:
                data = objects.get(key)
            except NotFoundError as error:
                raise NotFoundError(
                    f"fragment {key} is not in {objects.uri}: the block {core} was not processed, or its fragments "
                    "were deleted; run the stage again from its first step"
                ) from error
            if data:
                for label, piece in map_buffer()(data).items():
                    found.setdefault(int(label), []).append(bytes(piece))
        return {label: found[label] for label in sorted(found)}
