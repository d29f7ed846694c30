"""NPY files, memory-mapped, and arrays of NPZ files. Axes are x, y, z (c first if there are four)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from cloudseg.errors import SpecError, VolumeFormatError
from cloudseg.volumes.sources.base import ArraySource, choose_dataset
from cloudseg.volumes.sources.local import IN_MEMORY_BYTES, file_fingerprint, unpack

_AXES = {2: "xy", 3: "xyz", 4: "cxyz"}


def open_npy(path: Path, *, axes: str | None = None) -> ArraySource:
    """Open an NPY file; only the boxes asked for are read.

    Raises
    ------
    VolumeFormatError
        If the file is no NPY file, is cut short, or holds Python objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise VolumeFormatError(f"{path} cannot be read as an NPY file: {error}") from error
    return ArraySource(
        array,
        axes=axes or _default_axes(array.shape, uri=str(path)),
        uri=str(path),
        fingerprint=file_fingerprint(path),
        natural_shape=_natural(array),
    )


def open_npz(path: Path, *, dataset: str | None = None, axes: str | None = None) -> ArraySource:
    """Open one array of an NPZ file: unpacked once, which also checks it; large ones into a temporary file.

    Raises
    ------
    VolumeFormatError
        If the file is no NPZ file, or damaged.
    SpecError
        If the array is not named and several could be meant.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {
                Path(entry).stem if "/" not in entry else entry.removesuffix(".npy"): (
                    entry,
                    _header(archive, entry),
                )
                for entry in archive.namelist()
                if entry.endswith(".npy")
            }
            shapes = {name: (header[0], header[2]) for name, (_, header) in headers.items()}
            name = choose_dataset(shapes, dataset, uri=str(path))
            entry, (shape, fortran, dtype, start) = headers[name]
            if dtype.hasobject:
                raise VolumeFormatError(f"array {name!r} of {path} holds Python objects, not numbers")
            uri = f"{path}[{name}]"
            n_bytes = archive.getinfo(entry).file_size
            with archive.open(entry) as stream:
                if n_bytes <= IN_MEMORY_BYTES:
                    array, file = np.lib.format.read_array(stream, allow_pickle=False), None
                    if stream.read(1):
                        raise VolumeFormatError(f"{uri} holds more bytes than its header says")
                else:
                    file = unpack(stream, n_bytes=n_bytes, uri=uri)
                    order: Any = "F" if fortran else "C"
                    array = np.memmap(file, dtype, "r", start, shape, order)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        if isinstance(error, (SpecError, VolumeFormatError)):
            raise
        raise VolumeFormatError(f"{path} cannot be read as an NPZ file: {error}") from error
    return ArraySource(
        array,
        axes=axes or _default_axes(array.shape, uri=uri),
        uri=uri,
        fingerprint=file_fingerprint(path),
        natural_shape=_natural(array) if file is not None else None,
        on_close=file.close if file is not None else None,
    )


def _header(archive: zipfile.ZipFile, entry: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, Fortran order, dtype and where the data begin, without unpacking the data."""
    with archive.open(entry) as stream:
        return _read_header(stream)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"NPY version {version} is not known")
    shape, fortran, dtype = readers[version](stream)
    return shape, fortran, dtype, stream.tell()


def _natural(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """Ask for whole rows of what lies together in the file: small reads across them touch every page of it."""
    if array.flags.f_contiguous:
        return (*array.shape[:-1], 1)
    return (1, *array.shape[1:])


def _default_axes(shape: tuple[int, ...], *, uri: str) -> str:
    if len(shape) not in _AXES:
        raise SpecError(
            f"{uri} has {len(shape)} axes of lengths {shape}; a volume has 3, or 4 with channels first"
        )
    return _AXES[len(shape)]
