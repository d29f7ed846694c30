"""Volumes in Neuroglancer's Precomputed format: the one place where voxels are read from and written to storage."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

import numpy as np
import tensorstore as ts

from cloudseg.errors import CorruptDataError, NotFoundError, SpecError, VolumeFormatError
from cloudseg.geometry import Box, tile
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.checked_chunks import CheckedChunks, read_shards
from cloudseg.volumes.checks import (
    check_read,
    check_write,
    chunk_name,
    chunks_of,
    from_planar,
    missing_chunk,
    new_array,
    to_planar,
)
from cloudseg.volumes.compressed_files import compressed_chunks, read_compressed
from cloudseg.volumes.infofile import InfoFile, new_document
from cloudseg.volumes.kvstore import (
    context,
    kvstore_spec,
    open_kvstore,
    renew_context,
    threads_context,
    translated,
)
from cloudseg.volumes.protocol import Array, VolumeInfo
from cloudseg.volumes.shards import array_in_memory, array_spec, build_shards, check_zeros

_MISSING = re.compile(r"chunk \{[-\d, ]+\} stored at .* is missing", re.DOTALL)


class PrecomputedVolume:
    """One scale of a Precomputed volume; made by :func:`cloudseg.volumes.open_volume`.

    Parameters
    ----------
    address
        The folder that holds ``info``.
    info
        What this scale is.
    document
        The whole info document.
    mip
        Which scale: 0 is the finest.
    """

    def __init__(self, address: Address, info: VolumeInfo, *, document: InfoFile, mip: int) -> None:
        self._address = address
        self._info = info
        self._mip = mip
        self._scale: dict[str, Any] = document["scales"][mip]
        self._key = str(self._scale["key"])
        self._document = document
        self._opened: dict[str, ts.TensorStore] = {}

    @property
    def uri(self) -> str:
        """Where it lives."""
        return self._address.uri

    @property
    def info(self) -> VolumeInfo:
        """What it is."""
        return self._info

    @property
    def mip(self) -> int:
        """Which scale it is: 0 is the finest."""
        return self._mip

    def read(
        self, box: Box, *, fill: int | None = None, missing: Literal["error", "zero"] = "error"
    ) -> Array:
        """Return the voxels of ``box`` as a new array; see :class:`~cloudseg.volumes.protocol.Volume`.

        Raises
        ------
        BoxOutOfBoundsError
            If the box reaches outside the volume and ``fill`` is None.
        MissingChunkError
            If a chunk was never written and ``missing`` is ``error``.
        CorruptDataError
            If a chunk does not decode.
        """
        check_read(box, fill=fill, missing=missing, info=self._info, uri=self.uri)
        inside = box.intersect(self._info.bounds)
        if inside == box and not box.is_empty:
            return from_planar(self._read(inside, missing=missing), self._info)
        out = new_array(box, self._info, fill=fill or 0)
        if not inside.is_empty:
            to_planar(out, self._info)[inside.slices_in(box)] = self._read(inside, missing=missing)
        return out

    def write(self, box: Box, data: Array) -> None:
        """Store ``data`` at ``box``, which covers whole chunks (or shards).

        Raises
        ------
        SpecError
            If box or data do not fit (see :func:`~cloudseg.volumes.checks.check_write`), or the address is
            read-only.
        StorageError
            If the storage refuses. Each chunk (shard) is then either the old one or the new one.
        """
        check_write(box, data, info=self._info, uri=self.uri)
        if self._address.is_read_only:
            raise SpecError(
                f"{self.uri} is a web address, which is read-only; write to file://, gs:// or s3:// instead"
            )
        if self._local_folder and (twins := self._compressed(box)):
            raise CorruptDataError(
                f"cannot write box {box} of {self.uri}: compressed files of these chunks lie there already (e.g. "
                f"{next(iter(twins.values()))}) and would become stale twins; remove them, or choose another address"
            )
        # Fortran order is what tensorstore writes fastest; this is no copy if the data have it. Never let it
        # keep a reference to them (can_reference_source_data_indefinitely): its cache would change with the
        # caller's array.
        planar = np.asfortranarray(to_planar(data, self._info))
        with translated(self.uri, "write"):
            if self._info.sharding is None:
                array = self._array("error")
                array[_index(box)].write(planar).result()
                return
            folder = open_kvstore(self._address)
            for cell in shards_of(box, self._info):
                part = planar[cell.slices_in(box)]
                files = build_shards(part, cell, info=self._info, scale=self._scale)
                # A shard is one object: all of it is replaced at once, or nothing is.
                for writing in [folder.write(f"{self._key}/{name}", data) for name, data in files.items()]:
                    writing.result()

    def __repr__(self) -> str:
        return f"PrecomputedVolume({self.uri}, mip {self._mip}, {self._info.bounds}, {self._info.dtype})"

    def _read(self, box: Box, *, missing: str) -> Array:
        if self._address.scheme in ("gs", "s3"):
            return self._read_bucket(box, missing=missing)
        if self._local_folder and (files := self._compressed(box)):
            return self._read_compressed(box, files, missing=missing)
        return self._read_plain(box, missing=missing)

    def _read_bucket(self, box: Box, *, missing: str) -> Array:
        if self._info.sharding is None:
            reader = CheckedChunks(self._address, self._info, document=self._document, mip=self._mip)
            return reader.read(box, missing=missing)

        def afresh() -> Array:
            renew_context()
            self._opened.clear()
            return self._read_plain(box, missing=missing)

        return read_shards(
            lambda: self._read_plain(box, missing=missing), afresh, self._info.sharding, uri=self.uri
        )

    def _read_plain(self, box: Box, *, missing: str) -> Array:
        planar = self._read_array(self._array(missing), box)
        if self._info.sharding is not None:
            check_zeros(
                planar, box, missing=missing, info=self._info, scale=self._scale, address=self._address
            )
        return planar

    def _read_array(self, array: ts.TensorStore, box: Box) -> Array:
        try:
            with translated(self.uri, "read"):
                # C order, the default, is 5 to 20 times slower here.
                read: Array = array[_index(box)].read(order="F").result()
                return read
        except NotFoundError as error:
            found = _MISSING.search(str(error))
            if found is None:
                raise
            raise missing_chunk(box, uri=self.uri, detail=found[0]) from error

    def _array(self, missing: str) -> ts.TensorStore:
        opened = self._opened.get(missing)
        if opened is None:
            opened = self._opened[missing] = open_array(self._address, self._mip, strict=missing == "error")
        return opened

    @property
    def _local_folder(self) -> str:
        """Folder of the chunk files; empty if this is no local volume of plain chunks."""
        if self._address.scheme != "file" or self._info.sharding is not None:
            return ""
        return os.path.join(self._address.path, self._key)

    def _compressed(self, box: Box) -> dict[str, str]:
        names = [chunk_name(chunk) for _, chunk in chunks_of(box, self._info)]
        return compressed_chunks(self._local_folder, names)

    def _read_compressed(self, box: Box, files: dict[str, str], *, missing: str) -> Array:
        """Read a box in which some chunk files carry a compression ending, by way of plain copies in memory."""
        files_in_memory: dict[str, bytes] = {}
        for _, chunk in chunks_of(box, self._info):
            name = chunk_name(chunk)
            plain = os.path.join(self._local_folder, name)
            if name in files:
                files_in_memory[name] = read_compressed(files[name])
            elif os.path.exists(plain):
                with open(plain, "rb") as file:
                    files_in_memory[name] = file.read()
        scale = {**self._scale, "key": "scale"}
        with translated(self.uri, "read"):
            document = {**self._document, "scales": [scale]}
            array = array_in_memory(
                document, files_in_memory, strict=missing == "error", own=threads_context()
            )
        return self._read_array(array, box)


def open_array(address: Address, mip: int, *, strict: bool) -> ts.TensorStore:
    """Open one scale with tensorstore; ``strict`` makes a missing chunk an error."""
    with translated(address.uri, "read"):
        spec = {**array_spec(strict=strict), "kvstore": kvstore_spec(address), "scale_index": mip}
        return ts.open(spec, context=context()).result()


def check_storable(info: VolumeInfo, *, uri: str) -> None:
    """Refuse a scale that tensorstore could not write later: it is made in memory first.

    Raises
    ------
    VolumeFormatError
        With tensorstore's reason.
    """
    try:
        array_in_memory(new_document(info), {}, strict=True, own=threads_context())
    except ValueError as error:
        reason = str(error).split(" [", 1)[0]
        raise VolumeFormatError(f"a volume like this cannot be stored at {uri}: {reason}") from error


def shards_of(box: Box, info: VolumeInfo) -> list[Box]:
    """Return the shards, clipped to the bounds, that make up an aligned ``box``."""
    return list(tile(box, info.write_grid))


def _index(box: Box) -> tuple[slice, slice, slice]:
    x, y, z = (slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
    return (x, y, z)
