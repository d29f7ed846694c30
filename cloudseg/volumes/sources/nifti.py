"""NIfTI files. Axes are x, y, z as stored; the voxel size comes from the header."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from cloudseg.errors import MissingExtraError, SpecError, VolumeFormatError
from cloudseg.volumes.sources.base import ArraySource, in_xyz, nm_per
from cloudseg.volumes.sources.local import file_fingerprint, unpack

_AXES = {3: "xyz", 4: "xyzt", 5: "xyztc"}
_UNITS = {"meter": "meter", "mm": "mm", "micron": "micron"}


def open_nifti(path: Path, *, axes: str | None = None) -> ArraySource:
    """Open a ``.nii`` or ``.nii.gz`` file; packed files are unpacked into a temporary one first.

    Voxels keep the order of the file. Where its affine says that an axis runs from right to left, back to front or
    down to up, a note says so: nothing is flipped.

    Raises
    ------
    VolumeFormatError
        If the file is no NIfTI file, or damaged.
    SpecError
        If values are stored with a scale, which would turn integers into floats.
    """
    try:
        import nibabel as nib
    except ImportError as error:
        raise MissingExtraError.of("nibabel", extra="ingest") from error
    file: Any = None
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path, "rb") as stream:
                # The last 4 bytes of a gzip file are its unpacked size modulo 2**32: a hint for the free space.
                file = unpack(stream, n_bytes=_unpacked_size(path), uri=str(path))
            file.seek(0)
            kind: Any = nib.Nifti2Image if _is_nifti2(file) else nib.Nifti1Image
            image: Any = kind.from_file_map(
                {"header": nib.FileHolder(fileobj=file), "image": nib.FileHolder(fileobj=file)}
            )
        else:
            image = nib.load(path)
        data = image.dataobj
        header = image.header
        if (float(data.slope), float(data.inter)) != (1.0, 0.0):
            raise SpecError(
                f"{path} stores values with a scale (slope {data.slope}, intercept {data.inter}): "
                "save it without one, so that grey levels and ids stay what they are"
            )
        _check_length(path, file, data)
    except (
        nib.filebasedimages.ImageFileError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        AttributeError,
    ) as error:
        if file is not None:
            file.close()
        if isinstance(error, SpecError):
            raise
        raise VolumeFormatError(f"{path} cannot be read as a NIfTI file: {error}") from error
    shape = tuple(data.shape)
    order = axes or _AXES.get(len(shape))
    if order is None:
        raise SpecError(f"{path} has {len(shape)} axes of lengths {shape}: name them with --axes")
    nm = nm_per(_UNITS.get(header.get_xyzt_units()[0]))
    size = None
    if nm is not None and not axes:
        size = in_xyz(dict(zip("xyz", (float(z) * nm for z in header.get_zooms()), strict=False)))
    codes = "".join(code or "?" for code in nib.orientations.aff2axcodes(image.affine))  # type: ignore[no-untyped-call]
    notes = () if codes == "RAS" else (f"the file's axes run {codes}, not RAS; voxels keep the file's order",)
    return ArraySource(
        data,
        axes=order,
        uri=str(path),
        fingerprint=file_fingerprint(path),
        voxel_size_nm=size,
        natural_shape=(*shape[:2], *(1 for _ in shape[2:])),
        notes=notes,
        on_close=file.close if file is not None else None,
    )


def _is_nifti2(file: IO[bytes]) -> bool:
    size = file.read(4)
    file.seek(0)
    return int.from_bytes(size, "little") == 540 or int.from_bytes(size, "big") == 540


def _unpacked_size(path: Path) -> int:
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        return int.from_bytes(stream.read(4), "little")


def _check_length(path: Path, file: IO[bytes] | None, data: Any) -> None:
    needed = int(data.offset) + int(np.prod(data.shape)) * np.dtype(data.dtype).itemsize
    if file is None:
        have = path.stat().st_size
    else:
        have = file.seek(0, 2)
        file.seek(0)
    if have < needed:
        raise VolumeFormatError(f"{path} is cut short: its header promises {needed} bytes, it has {have}")
