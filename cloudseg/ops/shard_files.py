"""Shard files of small values by number, as the Precomputed format lays them out ("neuroglancer_uint64_sharded_v1").

A key is hashed; the low bits of the hash pick a minishard, the next ones the shard. A shard is one file: an index of
its minishards, the values, and for each minishard a list of its keys, where their values lie and how long they are.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError

Keys = npt.NDArray[np.uint64]

_MASK = np.uint64(0xFFFFFFFF)
# A minishard's list is read whole before its first value: 24 bytes a key, before compression.
_KEYS_PER_MINISHARD = 512
_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Sharding:
    """How keys are spread over shards.

    Attributes
    ----------
    hash
        ``identity`` where neighbouring keys are read together, ``murmurhash3_x86_128`` where they are not.
    preshift_bits, minishard_bits, shard_bits
        Low bits that are dropped before hashing; bits of the hash that pick the minishard, and then the shard.
    compressed
        Whether each value is gzipped. The lists always are.
    """

    hash: Literal["identity", "murmurhash3_x86_128"]
    preshift_bits: int
    minishard_bits: int
    shard_bits: int
    compressed: bool

    @property
    def document(self) -> dict[str, Any]:
        """The entry ``sharding`` of an ``info``."""
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "hash": self.hash,
            "preshift_bits": self.preshift_bits,
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "minishard_index_encoding": "gzip",
            "data_encoding": "gzip" if self.compressed else "raw",
        }

    @property
    def n_shards(self) -> int:
        """How many shards there can be."""
        return 1 << self.shard_bits

    def name(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return f"{shard:0{-(-self.shard_bits // 4)}x}.shard"

    def shards(self, keys: Keys) -> Keys:
        """Return the shard of each key."""
        return (self._hashed(keys) >> np.uint64(self.minishard_bits)) & np.uint64(self.n_shards - 1)

    def minishards(self, keys: Keys) -> Keys:
        """Return the minishard of each key, in its shard."""
        return self._hashed(keys) & np.uint64((1 << self.minishard_bits) - 1)

    def _hashed(self, keys: Keys) -> Keys:
        shifted = np.asarray(keys, np.uint64) >> np.uint64(self.preshift_bits)
        return shifted if self.hash == "identity" else murmurhash3_x86_128(shifted)


def hashed_sharding(n_keys: int, n_bytes: int, *, target_bytes: int, compressed: bool = False) -> Sharding:
    """Return a sharding by hash, whose shards hold about ``target_bytes`` at most.

    Parameters
    ----------
    n_keys, n_bytes
        How many values there are, and their sizes together.
    target_bytes
        How large a shard may be, on average.
    compressed
        See :class:`Sharding`.
    """
    shard_bits = max(0, -(-n_bytes // target_bytes) - 1).bit_length()
    in_shard = max(0, -(-n_keys // (_KEYS_PER_MINISHARD << shard_bits)) - 1).bit_length()
    return Sharding("murmurhash3_x86_128", 0, in_shard, shard_bits, compressed)


def build_shard(keys: Keys, values: Sequence[bytes], sharding: Sharding) -> bytes:
    """Return the bytes of one shard file.

    Parameters
    ----------
    keys
        ``(n,)`` uint64, each once, all of this shard, in any order: the same bytes come out.
    values
        One for each key.
    sharding
        How keys are spread.

    Raises
    ------
    SpecError
        If a key comes twice, or there is not one value for each.
    """
    keys = np.asarray(keys, np.uint64)
    if len(values) != len(keys) or len(np.unique(keys)) != len(keys):
        raise SpecError(
            f"a shard wants one value for each key, each key once; got {len(values)} values and {len(keys)} keys, "
            f"of which {len(np.unique(keys))} differ"
        )
    minishard = sharding.minishards(keys)
    order = np.lexsort((keys, minishard))
    stored = [_gzip(values[i]) if sharding.compressed else values[i] for i in order]
    sizes = np.array([len(value) for value in stored], np.uint64)
    stops = np.cumsum(sizes, dtype=np.uint64)
    n_minishards = 1 << sharding.minishard_bits
    cuts = np.searchsorted(minishard[order], np.arange(n_minishards + 1, dtype=np.uint64))
    index = np.zeros((n_minishards, 2), "<u8")
    lists: list[bytes] = []
    at = int(stops[-1]) if len(stops) else 0
    for number, (low, high) in enumerate(itertools.pairwise(cuts.tolist())):
        if low == high:
            continue
        mine = keys[order[low:high]]
        entries = np.zeros((3, high - low), "<u8")
        entries[0] = np.diff(mine, prepend=np.uint64(0))
        # The values of a minishard follow one another: only the first has a distance to what lies before it.
        entries[1, 0] = stops[low] - sizes[low]
        entries[2] = sizes[low:high]
        lists.append(_gzip(entries.tobytes()))
        index[number] = at, at + len(lists[-1])
        at += len(lists[-1])
    return b"".join([index.tobytes(), *stored, *lists])


def murmurhash3_x86_128(keys: Keys) -> Keys:
    """Return the low 64 bits of MurmurHash3_x86_128 (seed 0) of each key, taken as eight bytes, lowest first.

    The function is Austin Appleby's; for eight bytes it has no whole block, only a tail.
    """
    c1, c2, c3 = (np.uint64(c) for c in (0x239B961B, 0xAB0E9789, 0x38B34AE5))
    keys = np.asarray(keys, np.uint64)
    k1, k2 = keys & _MASK, keys >> np.uint64(32)
    length = np.uint64(8)
    h1 = (_rotated(k1 * c1 & _MASK, 15) * c2 & _MASK) ^ length
    h2 = (_rotated(k2 * c2 & _MASK, 16) * c3 & _MASK) ^ length
    h3 = h4 = np.full_like(keys, length)
    for mix in (_finished, lambda h: h):
        h1 = (h1 + h2 + h3 + h4) & _MASK
        h2, h3, h4 = ((h + h1) & _MASK for h in (h2, h3, h4))
        h1, h2, h3, h4 = (mix(h) for h in (h1, h2, h3, h4))
    return h1 | h2 << np.uint64(32)


def _rotated(values: Keys, bits: int) -> Keys:
    return (values << np.uint64(bits) | values >> np.uint64(32 - bits)) & _MASK


def _finished(h: Keys) -> Keys:
    h = (h ^ h >> np.uint64(16)) * np.uint64(0x85EBCA6B) & _MASK
    h = (h ^ h >> np.uint64(13)) * np.uint64(0xC2B2AE35) & _MASK
    return h ^ h >> np.uint64(16)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, _LEVEL, mtime=0)
