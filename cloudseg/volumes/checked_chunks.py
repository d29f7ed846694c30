"""Voxels of a bucket from chunks that are known to be what was stored.

A chunk of its own is an object, and compared with the digest that the storage keeps of it. A chunk in a shard is a
range of an object, of which no storage keeps a digest: it is checked by the CRC of its gzip envelope, which all
shards written by cloudseg have; without one, two readings must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from cloudseg.errors import CorruptDataError, MissingChunkError
from cloudseg.geometry import XYZ, Box, tile
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.checked import CheckedObjects, Found, pause
from cloudseg.volumes.checks import chunk_name, chunks_of, missing_chunk
from cloudseg.volumes.infofile import InfoFile
from cloudseg.volumes.kvstore import n_retries, threads_context, translated
from cloudseg.volumes.protocol import Array, ShardingSpec, VolumeInfo
from cloudseg.volumes.shards import array_in_memory

T = TypeVar("T")

# Two windows are in memory at a time: one arrives while the other is decoded.
_WINDOW_BYTES = 32 << 20


class CheckedChunks:
    """One scale of unsharded chunks in a bucket.

    Parameters
    ----------
    address
        The folder that holds ``info``; ``gs://`` or ``s3://``.
    info
        What this scale is.
    document
        The whole info document.
    mip
        Which scale.
    """

    def __init__(self, address: Address, info: VolumeInfo, *, document: InfoFile, mip: int) -> None:
        self._uri = address.uri
        self._info = info
        self._scale: dict[str, Any] = document["scales"][mip]
        self._document = {**document, "scales": [self._scale]}
        self._objects = CheckedObjects(address)

    def read(self, box: Box, *, missing: str) -> Array:
        """Return the voxels of ``box`` as ``(x, y, z, c)``; errors as for a volume's ``read``."""
        aligned = box.align_out(self._info.chunk_shape, bounds=self._info.bounds)
        parts = [cell.intersect(box) for cell in tile(aligned, self._window(aligned.shape))]
        if len(parts) == 1:
            return self._decode(box, self._ask(box), missing=missing)
        out = np.empty((*box.shape, self._info.n_channels), self._info.numpy_dtype, order="F")
        asked = self._ask(parts[0])
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            arriving, asked = asked, self._ask(following) if following else {}
            out[part.slices_in(box)] = self._decode(part, arriving, missing=missing)
        return out

    def _window(self, shape: XYZ) -> XYZ:
        """Return how many voxels to hold in memory at a time: whole chunks, and x before y before z."""
        window = list(self._info.chunk_shape)
        voxel_bytes = self._info.n_channels * self._info.numpy_dtype.itemsize
        for axis in range(3):
            while window[axis] < shape[axis] and 2 * math.prod(window) * voxel_bytes <= _WINDOW_BYTES:
                window[axis] *= 2
        x, y, z = window
        return (x, y, z)

    def _ask(self, box: Box) -> dict[str, Future[Found]]:
        names = [chunk_name(chunk) for _, chunk in chunks_of(box, self._info)]
        reads = self._objects.read_all(f"{self._scale['key']}/{name}" for name in names)
        return dict(zip(names, reads, strict=True))

    def _decode(self, box: Box, arriving: dict[str, Future[Found]], *, missing: str) -> Array:
        files = {}
        for name, future in arriving.items():
            data, key = future.result().data, f"{self._scale['key']}/{name}"
            if data is None and missing == "error":
                # What lies between here and a bucket may deny what the bucket has. One more look, then, and no more.
                data = self._objects.read(key).data
                if data is None:
                    raise missing_chunk(box, uri=self._uri, detail=f"there is no {key}")
            if data is not None:
                files[name] = data
        x, y, z = (slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
        with translated(self._uri, "read"):
            array = array_in_memory(self._document, files, strict=missing == "error", own=threads_context())
            voxels: Array = array[x, y, z].read(order="F").result()
        return voxels


def read_shards(
    read: Callable[[], Array], read_afresh: Callable[[], Array], sharding: ShardingSpec, *, uri: str
) -> Array:
    """Return what is read from shards, once it can be believed.

    Parameters
    ----------
    read
        Reads, perhaps with what a cache holds.
    read_afresh
        Reads with nothing cached.
    sharding
        How the shards are packed: with gzip, what arrives damaged does not decode.
    uri
        The volume, for messages.

    Raises
    ------
    CorruptDataError
        If what arrives does not decode, or differs from one reading to the next, however often it is read.
    MissingChunkError
        If a chunk is absent in two readings.
    """
    proven = sharding.data_encoding == "gzip" and sharding.minishard_index_encoding == "gzip"
    return read_until_believed(read, read_afresh, proven=proven, same=np.array_equal, uri=uri)


def read_until_believed(
    read: Callable[[], T],
    read_afresh: Callable[[], T],
    *,
    proven: bool,
    same: Callable[[T, T], bool],
    uri: str,
) -> T:
    """Return what is read from shards of any content; see :func:`read_shards`.

    Parameters
    ----------
    proven
        Whether what arrives damaged does not decode. Else two readings must be the ``same``.
    """
    n_tries = 1 + n_retries()
    for n_failures in range(1, n_tries + 1):
        try:
            first = read() if n_failures == 1 else read_afresh()
            if proven or same(first, read_afresh()):
                return first
            raise CorruptDataError(
                f"the shards of {uri} were different each time they were read, and nothing in them says which "
                "reading is right; check what lies between here and the bucket"
            )
        except MissingChunkError:
            # What arrived damaged can look absent. One more look, then, and no more: it may well be absent.
            return read_afresh()
        except CorruptDataError:
            if n_failures == n_tries:
                raise
            pause(n_failures)
    raise AssertionError("the last try returns or raises")
