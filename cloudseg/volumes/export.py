"""Write a box of a volume to a file of another format, piece by piece, under its final name only when complete."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import struct
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from cloudseg.errors import ConflictError, MissingExtraError, NotFoundError, SpecError, StorageError
from cloudseg.geometry import Box, tile
from cloudseg.volumes.protocol import Array, Volume

Progress = Callable[[str, int, int], None]
Missing = Literal["error", "zero"]

FORMATS = (".npy", ".npz", ".tif", ".tiff", ".h5", ".hdf5", ".zarr", ".nii", ".nii.gz")

_SLAB_BYTES = 64 << 20
_DATASET = "data"


def export(
    volume: Volume,
    path: str | os.PathLike[str],
    *,
    box: Box | None = None,
    missing: Missing = "error",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the voxels of ``box`` to a local file; its ending chooses the format.

    ``.npy`` and ``.npz`` (array ``data``) keep the axes x, y, z; ``.tif``, ``.h5`` (dataset ``data``) and ``.zarr``
    (OME-Zarr 0.5) have z, y, x as their readers expect; ``.nii`` and ``.nii.gz`` have x, y, z. All but NumPy's
    files carry the voxel size; ``cloudseg ingest`` reads each of them back.

    Parameters
    ----------
    volume
        What to read.
    path
        Where to. The file appears when it is complete.
    box
        Which voxels; None takes all.
    missing
        What chunks that were never written mean: an error, or zeros.
    overwrite
        Whether a file that exists is replaced.
    progress
        Called after every piece.

    Raises
    ------
    SpecError
        If the ending is unknown, the format cannot hold the type, or the box is empty or outside.
    ConflictError
        If the file exists.
    NotFoundError
        If its folder does not.
    StorageError
        If the disk is full.
    """
    target = Path(path)
    ending = _ending(target)
    box = box or volume.info.bounds
    if box.is_empty or not volume.info.bounds.contains(box):
        raise SpecError(f"box {box} is not inside the volume {volume.uri}, which is {volume.info.bounds}")
    if not target.absolute().parent.is_dir():
        raise NotFoundError(f"there is no folder {target.absolute().parent} to write {target.name} to")
    if target.exists() and not overwrite:
        raise ConflictError(f"{target} exists: choose another name, or add --overwrite")
    _check_type(volume, ending)
    needed = box.n_voxels * volume.info.n_channels * volume.info.numpy_dtype.itemsize
    free = shutil.disk_usage(target.absolute().parent).free
    if ending in (".npy", ".nii", ".h5", ".hdf5", ".tif", ".tiff", ".zarr") and free < needed:
        raise StorageError(
            f"no space: {target} needs about {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
        )
    writers: dict[str, Callable[[Path, _Pieces], None]] = {
        ".npy": _write_npy,
        ".npz": _write_npz,
        ".tif": _write_tiff,
        ".tiff": _write_tiff,
        ".h5": _write_hdf5,
        ".hdf5": _write_hdf5,
        ".zarr": _write_zarr,
        ".nii": _write_nifti,
        ".nii.gz": _write_nifti,
    }
    # The ending stays last: some writers look at it.
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part{ending}")
    try:
        writers[ending](draft, _Pieces(volume, box, missing, progress))
        if draft.is_dir() and target.is_dir():
            shutil.rmtree(target)
        draft.replace(target)
    except OSError as error:
        if isinstance(error, (StorageError, NotFoundError)):
            raise
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)
    return target


class _Pieces:
    """The voxels to export: what they are, and how to get them in bounded pieces."""

    def __init__(self, volume: Volume, box: Box, missing: Missing, progress: Progress | None) -> None:
        self.volume, self.box = volume, box
        self.info = volume.info
        self._missing: Missing = missing
        self._progress = progress
        self._done = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """``(x, y, z)`` or ``(c, x, y, z)``."""
        return self.box.shape if self.info.n_channels == 1 else (self.info.n_channels, *self.box.shape)

    def blocks(self) -> Iterator[tuple[tuple[slice, ...], Array]]:
        """Yield slices of the result and their voxels, chunk by chunk or more."""
        itemsize = self.info.numpy_dtype.itemsize * self.info.n_channels
        chunk = self.info.chunk_shape
        n = max(1, int((_SLAB_BYTES / (math.prod(chunk) * itemsize)) ** (1 / 3)))
        aligned = self.box.align_out(chunk, bounds=self.info.bounds)
        for block in tile(aligned, (chunk[0] * n, chunk[1] * n, chunk[2] * n)):
            inside = block.intersect(self.box)
            slices: tuple[slice, ...] = inside.slices_in(self.box)
            yield slices if self.info.n_channels == 1 else (slice(None), *slices), self._read(inside)

    def slabs(self) -> Iterator[Array]:
        """Yield the voxels in slabs of whole sections, along z: the order in which most files lie on disk."""
        x, y, _ = self.box.shape
        plane = x * y * self.info.numpy_dtype.itemsize * self.info.n_channels
        thick = max(1, _SLAB_BYTES // plane)
        chunk = self.info.chunk_shape[2]
        thick = thick // chunk * chunk or thick
        first, last = self.box.start[2], self.box.stop[2]
        grid = self.info.bounds.start[2]
        z = first
        while z < last:
            end = min(last, grid + ((z - grid) // thick + 1) * thick)
            low, high = self.box.start, self.box.stop
            yield self._read(Box((low[0], low[1], z), (high[0], high[1], end)))
            z = end

    def _read(self, box: Box) -> Array:
        data = self.volume.read(box, missing=self._missing)
        self._done += box.n_voxels
        if self._progress is not None:
            self._progress("writing", self._done, self.box.n_voxels)
        return data


def _ending(target: Path) -> str:
    for ending in sorted(FORMATS, key=len, reverse=True):
        if target.name.lower().endswith(ending):
            return ending
    raise SpecError(f"{target} has no ending that cloudseg writes; choose one of {', '.join(FORMATS)}")


def _check_type(volume: Volume, ending: str) -> None:
    if ending in (".tif", ".tiff", ".nii", ".nii.gz", ".npz") and volume.info.n_channels > 1:
        raise SpecError(
            f"{volume.uri} has {volume.info.n_channels} channels, which {ending} files of cloudseg do not hold: "
            "choose .npy, .h5 or .zarr"
        )


def _write_npy(draft: Path, pieces: _Pieces) -> None:
    array = np.lib.format.open_memmap(
        draft,
        mode="w+",
        dtype=pieces.info.numpy_dtype,
        shape=pieces.shape,
        fortran_order=pieces.info.n_channels == 1,
    )
    for slices, data in pieces.blocks():
        array[slices] = data
    array.flush()


def _write_npz(draft: Path, pieces: _Pieces) -> None:
    descr = np.lib.format.dtype_to_descr(pieces.info.numpy_dtype)
    with (
        zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive,
        archive.open(f"{_DATASET}.npy", "w", force_zip64=True) as stream,
    ):
        header = {"descr": descr, "fortran_order": True, "shape": pieces.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        _write_sections(stream, pieces)


def _write_sections(stream: IO[bytes], pieces: _Pieces) -> None:
    """Write all voxels, x fastest."""
    for slab in pieces.slabs():
        stream.write(slab.ravel(order="F").tobytes())


def _write_tiff(draft: Path, pieces: _Pieces) -> None:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError.of("tifffile", extra="ingest") from error
    dtype = pieces.info.numpy_dtype
    x, y, z = pieces.box.shape
    ome = dtype.itemsize <= 4  # the OME schema has no 64-bit integers: those files carry no voxel size
    metadata: dict[str, Any] = {"axes": "ZYX"}
    if ome:
        for letter, size in zip("XYZ", pieces.info.voxel_size_nm, strict=True):
            metadata |= {f"PhysicalSize{letter}": size, f"PhysicalSize{letter}Unit": "nm"}
    big = x * y * z * dtype.itemsize > 2**31
    with tifffile.TiffWriter(draft, bigtiff=big, ome=ome) as file:
        sections = (section for slab in pieces.slabs() for section in slab.transpose(2, 1, 0))
        file.write(
            (np.ascontiguousarray(section) for section in sections),
            shape=(z, y, x),
            dtype=dtype,
            photometric="minisblack",
            metadata=metadata,
        )


def _zyx(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn ``(x, y, z)`` or ``(c, x, y, z)`` into ``(z, y, x)`` or ``(c, z, y, x)``."""
    return (*values[:-3], *reversed(values[-3:]))


def _swapped(data: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(data, -1, -3))


def _write_hdf5(draft: Path, pieces: _Pieces) -> None:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError.of("h5py", extra="ingest") from error
    shape = _zyx(pieces.shape)
    chunks = _zyx((1,) * (len(shape) - 3) + pieces.info.chunk_shape)
    with h5py.File(draft, "w") as file:
        data = file.create_dataset(
            _DATASET,
            shape=shape,
            dtype=pieces.info.numpy_dtype,
            chunks=tuple(min(c, n) for c, n in zip(chunks, shape, strict=True)),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        data.attrs["axes"] = "zyx" if len(shape) == 3 else "czyx"
        data.attrs["resolution"] = tuple(reversed(pieces.info.voxel_size_nm))
        data.attrs["offset_vx"] = tuple(reversed(pieces.box.start))
        for slices, block in pieces.blocks():
            data[_zyx(slices)] = _swapped(block)


def _write_zarr(draft: Path, pieces: _Pieces) -> None:
    import tensorstore as ts

    from cloudseg.volumes.kvstore import context, translated

    shape = _zyx(pieces.shape)
    names = ["c", "z", "y", "x"][-len(shape) :]
    chunks = _zyx((1,) * (len(shape) - 3) + pieces.info.chunk_shape)
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{draft}/0/"},
        "metadata": {
            "shape": shape,
            "data_type": pieces.info.dtype,
            "dimension_names": names,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}],
        },
    }
    with translated(str(draft), "write"):
        store = ts.open(spec, create=True, context=context()).result()
        for slices, block in pieces.blocks():
            store[_zyx(slices)].write(_swapped(block)).result()
    size = [1.0] * (len(shape) - 3) + list(reversed(pieces.info.voxel_size_nm))
    place = [
        s * o for s, o in zip(size, [0] * (len(shape) - 3) + list(reversed(pieces.box.start)), strict=True)
    ]
    axes = [
        {"name": n, "type": "channel"} if n == "c" else {"name": n, "type": "space", "unit": "nanometer"}
        for n in names
    ]
    transforms = [{"type": "scale", "scale": size}, {"type": "translation", "translation": place}]
    multiscale = {
        "name": _DATASET,
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": transforms}],
    }
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (draft / "zarr.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def _write_nifti(draft: Path, pieces: _Pieces) -> None:
    try:
        import nibabel as nib
    except ImportError as error:
        raise MissingExtraError.of("nibabel", extra="ingest") from error
    # Version 2: version 1 counts voxels along an axis in 16 bits.
    header: Any = nib.Nifti2Header()  # type: ignore[no-untyped-call]
    header.set_data_dtype(pieces.info.numpy_dtype)
    header.set_data_shape(pieces.box.shape)
    size_um = [s / 1000 for s in pieces.info.voxel_size_nm]
    affine = np.diag([*size_um, 1.0])
    affine[:3, 3] = [s * o for s, o in zip(size_um, pieces.box.start, strict=True)]
    header.set_sform(affine, code="scanner")
    header.set_zooms(size_um)
    header.set_xyzt_units("micron")
    header["vox_offset"] = start = 544  # 540 bytes of header, 4 that say that no extension follows
    header["magic"] = b"n+2"
    with (
        gzip.open(draft, "wb", compresslevel=4) if draft.name.endswith(".gz") else draft.open("wb") as stream
    ):
        header.write_to(stream)
        stream.write(struct.pack("4x") if stream.tell() == start - 4 else b"")
        assert stream.tell() == start
        _write_sections(stream, pieces)  # type: ignore[arg-type]
