"""Tensors out of a TensorFlow checkpoint (``.index`` and ``.data-00000-of-00001``), read without TensorFlow.

The index is a table of LevelDB's format whose values are protocol buffers; only what checkpoints use is understood, and
everything is checked: the magic number, the digest of each block, the digest of each tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from cloudseg.errors import ModelError, NotFoundError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 9: "<i8", 10: "?"}  # as types.proto counts them


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int


def read_checkpoint(prefix: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the tensors of numbers of a checkpoint, by name.

    Parameters
    ----------
    prefix
        The path without ``.index`` and ``.data-...``, as TensorFlow takes it; with ``.index`` it is understood, too.

    Raises
    ------
    NotFoundError
        If one of the files is not there.
    ModelError
        If a file is damaged, or of another format.
    """
    prefix = prefix.with_suffix("") if prefix.suffix == ".index" else prefix
    index = prefix.with_name(prefix.name + ".index")
    data = _read(index)
    try:
        table = dict(_table(data, where=str(index)))
        n_shards = _header(table.pop(b"", b""))
        entries = {name.decode(): _entry(value) for name, value in table.items()}
    except (IndexError, struct.error, UnicodeDecodeError, KeyError) as error:
        raise ModelError(f"{index} is damaged, or no index of a TensorFlow checkpoint: {error!r}") from error
    shards = [_read(prefix.with_name(f"{prefix.name}.data-{n:05}-of-{n_shards:05}")) for n in range(n_shards)]
    return {
        name: _tensor(entry, shards[entry.shard], where=f"{prefix}: {name}")
        for name, entry in entries.items()
        if entry.dtype in _DTYPES
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no file {path}: a TensorFlow checkpoint is NAME.index beside NAME.data-00000-of-00001; give NAME"
        ) from error


def _tensor(entry: _Entry, shard: bytes, *, where: str) -> npt.NDArray[Any]:
    raw = shard[entry.offset : entry.offset + entry.size]
    dtype = np.dtype(_DTYPES[entry.dtype])
    if len(raw) != entry.size or entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise ModelError(
            f"{where} should be {entry.size} bytes for shape {entry.shape}, got {len(raw)}: the data file is cut "
            "short, or belongs to another index; fetch both again"
        )
    if _masked(google_crc32c.value(raw)) != entry.crc32c:
        raise ModelError(f"{where}: the bytes do not have the digest of the index; fetch both files again")
    return np.frombuffer(raw, dtype).reshape(entry.shape)


def _masked(crc: int) -> int:
    """Return a digest as LevelDB stores it, so that digests of digests do not collide."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# -- the table


def _table(data: bytes, *, where: str) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < _FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ModelError(
            f"{where} is no index of a TensorFlow checkpoint: it does not end with the magic number"
        )
    at = len(data) - _FOOTER_BYTES
    _, at = _varint(data, at)  # where the block of filters is
    _, at = _varint(data, at)
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    for _, handle in _block(data, offset, size, where=where):
        offset, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        yield from _block(data, offset, size, where=where)


def _block(data: bytes, offset: int, size: int, *, where: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; a key says how much it shares with the one before."""
    block, kind = data[offset : offset + size], data[offset + size]
    if kind != 0:
        raise ModelError(f"{where} is compressed (type {kind}); checkpoints of TensorFlow are not")
    (digest,) = struct.unpack("<I", data[offset + size + 1 : offset + size + 5])
    if _masked(google_crc32c.value(data[offset : offset + size + 1])) != digest:
        raise ModelError(f"{where} is damaged: a block does not have its digest; fetch the file again")
    (n_restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * n_restarts
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        n_key, at = _varint(block, at)
        n_value, at = _varint(block, at)
        key = key[:shared] + block[at : at + n_key]
        at += n_key
        yield key, block[at : at + n_value]
        at += n_value


# -- protocol buffers


def _header(data: bytes) -> int:
    """Return the number of data files (BundleHeaderProto)."""
    return int(dict(_fields(data)).get(1, 1))


def _entry(data: bytes) -> _Entry:
    """Read a BundleEntryProto."""
    fields = dict(_fields(data))
    shape = tuple(
        _signed(dict(_fields(dim)).get(1, 0)) for number, dim in _fields(fields.get(2, b"")) if number == 2
    )
    return _Entry(
        int(fields.get(1, 0)),
        shape,
        int(fields.get(3, 0)),
        int(fields.get(4, 0)),
        int(fields.get(5, 0)),
        int(fields.get(6, 0)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(data, at)
            yield number, data[at : at + size]
            at += size
        elif wire == 5:
            yield number, struct.unpack("<I", data[at : at + 4])[0]
            at += 4
        elif wire == 1:
            yield number, struct.unpack("<Q", data[at : at + 8])[0]
            at += 8
        else:
            raise KeyError(f"wire type {wire}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
