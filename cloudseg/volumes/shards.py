"""Shards: building whole ones, and asking them which chunks they hold.

tensorstore 0.1.86 reads sharded volumes well, but when it writes them it leaves out every chunk of zeros, and
when it reads it takes every absent chunk for zeros, whatever it is told; a hole would look like background.
So a shard is built here, in memory, with all its chunks, and stored by one unconditional write; and a chunk
that reads as zeros is looked up.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import tensorstore as ts

from cloudseg.errors import CorruptDataError
from cloudseg.geometry import XYZ, Box, grid_shape
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.checks import chunk_name, chunks_of, missing_chunk
from cloudseg.volumes.infofile import InfoFile
from cloudseg.volumes.kvstore import context, kvstore_spec, threads_context, translated, uncached_context
from cloudseg.volumes.protocol import Array, VolumeInfo
from cloudseg.volumes.sharding import morton_axes


def build_shards(planar: Array, box: Box, *, info: VolumeInfo, scale: dict[str, Any]) -> dict[str, bytes]:
    """Return the shard files that hold the chunks of ``box``, by file name.

    Parameters
    ----------
    planar
        ``(x, y, z, c)``, the voxels of ``box``, which covers whole shards.
    box
        Where they are.
    info
        The scale.
    scale
        Its entry in the info document.
    """
    own = threads_context()
    memory = ts.KvStore.open({"driver": "memory"}, context=own).result()
    plain = {key: value for key, value in scale.items() if key != "sharding"} | {"key": "chunks"}
    array = array_in_memory(_document(info, plain), {}, strict=True, own=own)
    array[_index(box)].write(planar, can_reference_source_data_indefinitely=True).result()
    # tensorstore would compress at the highest level. Where that does not pay, the envelope is still worth its
    # CRC: it is the only check that a range of an object can carry. So we make it, and tensorstore stores it.
    pays = info.layer == "segmentation" and info.encoding not in ("png", "jpeg")
    checksum_only = not pays and scale["sharding"].get("data_encoding") == "gzip"
    stored = {**scale["sharding"], "data_encoding": "raw"} if checksum_only else scale["sharding"]
    spec = _sharded_spec({"driver": "memory", "path": "shards/"}, {"sharding": stored})
    shards = ts.KvStore.open(spec, context=own).result()
    bits = morton_axes(grid_shape(info.bounds, info.chunk_shape))
    with ts.Transaction() as transaction:
        pending = shards.with_transaction(transaction)
        for index, chunk in chunks_of(box, info):
            name = f"chunks/{chunk_name(chunk)}"
            data = memory[name]
            # Of the year 1970, so that the same voxels give the same bytes.
            pending[chunk_key(index, bits)] = gzip.compress(data, 0, mtime=0) if checksum_only else data
            memory[name] = None
    prefix = b"shards/"
    names = [name for name in memory.list().result() if name.startswith(prefix)]
    return {name.removeprefix(prefix).decode(): bytes(memory[name]) for name in names}


def check_zeros(
    planar: Array, box: Box, *, missing: str, info: VolumeInfo, scale: dict[str, Any], address: Address
) -> None:
    """Make sure that what reads as zeros was written as zeros, or is really absent where that is allowed.

    Parameters
    ----------
    planar
        ``(x, y, z, c)``, what was read.
    box
        Where from.
    missing
        ``error`` or ``zero``: what an absent chunk means.
    info, scale, address
        The scale, its entry in the info document, and where the volume lies.

    Raises
    ------
    MissingChunkError
        If a chunk of the box is in no shard, and ``missing`` is ``error``.
    CorruptDataError
        If a shard is empty or cut short, which tensorstore takes for an absent chunk.
    """
    empty = []
    for index, chunk in chunks_of(box, info):
        part = planar[chunk.intersect(box).slices_in(box)]
        # The corner first: most chunks are settled by it.
        if not part[0, 0, 0].any() and not part.any():
            empty.append((index, chunk))
    if not empty:
        return
    folder = kvstore_spec(address)
    folder["path"] += f"{scale['key']}/"
    bits = morton_axes(grid_shape(info.bounds, info.chunk_shape))
    with translated(address.uri, "read"):
        shards = ts.KvStore.open(_sharded_spec(folder, scale), context=context()).result()
        found = [(index, chunk, shards.read(chunk_key(index, bits))) for index, chunk in empty]
        absent = [(index, chunk) for index, chunk, read in found if read.result().state == "missing"]
        if absent and missing == "error":
            name = chunk_name(absent[0][1])
            raise missing_chunk(box, uri=address.uri, detail=f"chunk {name} is in no shard")
        if address.scheme == "file":
            return
        # tensorstore takes an empty answer to its request for a whole shard for zeros: see what is really stored.
        stored = {chunk: bytes(read.result().value) for _, chunk, read in found if read.result().value}
        plain = {key: value for key, value in scale.items() if key != "sharding"} | {"key": "chunks"}
        files = {chunk_name(chunk): data for chunk, data in stored.items()}
        array = array_in_memory(_document(info, plain), files, strict=False, own=threads_context())
        for chunk, read in [(c, array[_index(c.intersect(box))].read()) for c in stored]:
            if read.result().any():
                raise CorruptDataError(
                    f"chunk {chunk_name(chunk)} of {address.uri} arrived empty, and is not; check what lies between "
                    "here and the bucket"
                )
        if absent:
            # An index that arrived damaged can make a chunk look absent: the others are asked for without it.
            again = ts.KvStore.open(_sharded_spec(folder, scale), context=uncached_context()).result()
            looks = [again.read(chunk_key(index, bits)) for index, _ in absent]
            if any(look.result().state != "missing" for look in looks):
                raise CorruptDataError(
                    f"a shard of box {box} of {address.uri} says that it has a chunk, and that it has not; "
                    "check what lies between here and the bucket"
                )


def chunk_key(index: XYZ, bits: tuple[int, ...]) -> bytes:
    """Return the number of a chunk, its compressed Morton code, as the eight bytes of a key.

    Parameters
    ----------
    index
        Place in the chunk grid.
    bits
        What :func:`~cloudseg.volumes.sharding.morton_axes` gives for that grid.
    """
    code, used = 0, [0, 0, 0]
    for place, axis in enumerate(bits):
        code |= (index[axis] >> used[axis] & 1) << place
        used[axis] += 1
    return code.to_bytes(8, "big")


def array_in_memory(
    document: InfoFile, chunks: dict[str, bytes], *, strict: bool, own: ts.Context
) -> ts.TensorStore:
    """Open the first scale of an unsharded volume whose chunk files are given by name.

    Parameters
    ----------
    document
        Its info.
    chunks
        File name to content.
    strict
        Whether an absent chunk is an error.
    own
        A context of the caller's: tensorstore's memory store is one per context, and goes with it.
    """
    store = ts.KvStore.open({"driver": "memory"}, context=own).result()
    store["info"] = json.dumps(document).encode()
    for name, data in chunks.items():
        store[f"{document['scales'][0]['key']}/{name}"] = data
    return ts.open({**array_spec(strict=strict), "kvstore": {"driver": "memory"}}, context=own).result()


def array_spec(*, strict: bool) -> dict[str, Any]:
    """Return how arrays are opened everywhere; ``strict`` makes an absent chunk an error."""
    return {
        "driver": "neuroglancer_precomputed",
        "open": True,
        # A chunk of zeros is stored like any other, so that an absent chunk means: nobody wrote it.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": not strict,
    }


def _sharded_spec(base: dict[str, Any], scale: dict[str, Any]) -> dict[str, Any]:
    return {"driver": "neuroglancer_uint64_sharded", "base": base, "metadata": scale["sharding"]}


def _document(info: VolumeInfo, scale: dict[str, Any]) -> InfoFile:
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": info.layer,
        "data_type": info.dtype,
        "num_channels": info.n_channels,
        "scales": [scale],
    }


def _index(box: Box) -> tuple[slice, slice, slice]:
    x, y, z = (slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
    return (x, y, z)
