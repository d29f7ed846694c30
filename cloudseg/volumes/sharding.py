"""Which chunks share a shard, and how many chunks should.

The rules are those of the Precomputed specification: a chunk's number is the compressed Morton code of its
place in the grid; ``preshift_bits`` low bits are dropped, the next ``minishard_bits`` pick a minishard, the
next ``shard_bits`` pick the shard. So a shard is a box of chunks, and a task that writes whole shards meets
no other.
"""

from __future__ import annotations

import math

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ, grid_shape
from cloudseg.volumes.protocol import ShardingSpec, VolumeInfo

# A minishard's index has 24 bytes a chunk and is read whole before the first chunk: 512 entries are 12 KiB.
_MINISHARD_CHUNK_BITS = 9
# The shard's own index has 16 bytes a minishard and is read first: 2^12 entries are 64 KiB.
_MAX_MINISHARD_BITS = 12


def morton_axes(grid: XYZ) -> tuple[int, ...]:
    """Return the axis (0, 1, 2 for x, y, z) that each bit of the compressed Morton code belongs to, lowest first."""
    bits = tuple((n - 1).bit_length() for n in grid)
    return tuple(axis for level in range(max(bits)) for axis in range(3) if level < bits[axis])


def shard_shape(info: VolumeInfo) -> XYZ:
    """Return the box of voxels that one shard holds: the grid that writes to a sharded volume must respect.

    Where a shard is not a box (a hash other than ``identity``, or too few ``shard_bits`` for the grid), only
    the whole volume covers whole shards, and its size in whole chunks is returned.

    Parameters
    ----------
    info
        A sharded scale.

    Raises
    ------
    SpecError
        If the scale is not sharded.
    """
    if info.sharding is None:
        raise SpecError(f"a volume without sharding has no shards: writes cover chunks of {info.chunk_shape}")
    axes = morton_axes(grid_shape(info.bounds, info.chunk_shape))
    in_shard = info.sharding.preshift_bits + info.sharding.minishard_bits
    if info.sharding.hash != "identity" or in_shard + info.sharding.shard_bits < len(axes):
        in_shard = len(axes)
    x, y, z = (c << axes[:in_shard].count(axis) for axis, c in enumerate(info.chunk_shape))
    return (x, y, z)


def sharding_for(info: VolumeInfo, *, target_bytes: int = 256 << 20) -> ShardingSpec:
    """Return the sharding whose shards hold at most ``target_bytes`` of uncompressed voxels (and at least one chunk).

    Parameters
    ----------
    info
        The scale to shard; its own ``sharding`` is not looked at.
    target_bytes
        What a task that writes one shard may hold in memory.

    Notes
    -----
    Data and indices are in gzip envelopes: their CRCs are all that can tell that a part of a shard arrived
    damaged. What does not get smaller is put in uncompressed, which costs nothing.

    Raises
    ------
    SpecError
        If ``target_bytes`` is not positive.
    """
    if target_bytes < 1:
        raise SpecError(f"target_bytes must be positive, got {target_bytes}")
    chunk_bytes = math.prod(info.chunk_shape) * info.n_channels * info.numpy_dtype.itemsize
    n_bits = len(morton_axes(grid_shape(info.bounds, info.chunk_shape)))
    in_shard = min(n_bits, max(0, (target_bytes // chunk_bytes).bit_length() - 1))
    minishard_bits = min(_MAX_MINISHARD_BITS, max(0, in_shard - _MINISHARD_CHUNK_BITS))
    return ShardingSpec(
        preshift_bits=in_shard - minishard_bits,
        minishard_bits=minishard_bits,
        shard_bits=n_bits - in_shard,
    )
