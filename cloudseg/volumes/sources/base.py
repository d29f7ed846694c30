"""What a source is, and the one place where a file's axes become x, y, z."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from cloudseg.errors import CloudsegError, CorruptDataError, SpecError
from cloudseg.geometry import XYZ, Box
from cloudseg.volumes.protocol import Array

NM_PER_UNIT = {
    "angstrom": 0.1,
    "å": 0.1,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "nm": 1.0,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "um": 1e3,
    "µm": 1e3,  # micro sign
    "μm": 1e3,  # Greek mu
    "\\u00b5m": 1e3,  # ImageJ writes the escape itself
    "millimeter": 1e6,
    "millimetre": 1e6,
    "mm": 1e6,
    "centimeter": 1e7,
    "cm": 1e7,
    "meter": 1e9,
    "metre": 1e9,
    "m": 1e9,
}
"""Nanometres in the units that formats write, in lower case."""

VoxelSize = tuple[float, float, float]


class Source(Protocol):
    """A volume that can be read, box by box, from a file or a folder."""

    @property
    def uri(self) -> str:
        """Where it lies, with the name of the array inside."""
        ...

    @property
    def shape(self) -> XYZ:
        """Size in voxels."""
        ...

    @property
    def n_channels(self) -> int:
        """1 gives arrays ``(x, y, z)``, more give ``(c, x, y, z)``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a value as the file has it."""
        ...

    @property
    def voxel_size_nm(self) -> VoxelSize | None:
        """Edge of a voxel, or None where the file does not say."""
        ...

    @property
    def offset(self) -> XYZ:
        """Position of the first voxel; zeros for formats that have none."""
        ...

    @property
    def natural_shape(self) -> XYZ:
        """The smallest piece that can be read without reading more than it: a section, a tile, a chunk."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the file does."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the file was understood."""
        ...

    def read(self, box: Box) -> Array:
        """Return the voxels of ``box`` (counted from 0), Fortran-ordered."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...

    def __enter__(self) -> Self:
        """Return the source itself; leaving the block closes it."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close."""
        ...


class Sliceable(Protocol):
    """An array that is read by slicing: numpy, h5py, nibabel and our TIFF pages all are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a value."""
        ...

    def __getitem__(self, slices: tuple[slice, ...], /) -> Any:
        """Return the values inside."""
        ...


class ArraySource:
    """A source over any sliceable array whose axes have names.

    Parameters
    ----------
    array
        Read by slicing with one slice an axis.
    axes
        One letter an axis, in the array's own order: ``x``, ``y`` (both needed), ``z`` (absent in a single
        section), ``c`` channels, ``t`` time of length 1.
    uri
        Where it lies; opens every message.
    voxel_size_nm, offset, fingerprint, notes
        As in :class:`Source`.
    natural_shape
        Along the array's own axes; None where any piece can be read alone.
    on_close
        Called by :meth:`close`.

    Raises
    ------
    SpecError
        If the axes do not name those of the array.
    """

    def __init__(
        self,
        array: Sliceable,
        *,
        axes: str,
        uri: str,
        fingerprint: str,
        voxel_size_nm: VoxelSize | None = None,
        offset: XYZ = (0, 0, 0),
        natural_shape: tuple[int, ...] | None = None,
        notes: tuple[str, ...] = (),
        on_close: Callable[[], None] | None = None,
    ) -> None:
        _check_axes(axes, array.shape, uri=uri)
        self._array = array
        self._axes = axes
        self._on_close = on_close
        self.uri = uri
        self.fingerprint = fingerprint
        self.voxel_size_nm = voxel_size_nm
        self.offset = offset
        self.notes = notes
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.n_channels = self._along("c", array.shape)
        self.shape: XYZ = (
            self._along("x", array.shape),
            self._along("y", array.shape),
            self._along("z", array.shape),
        )
        pieces = natural_shape or (1,) * len(axes)
        self.natural_shape: XYZ = (
            self._along("x", pieces),
            self._along("y", pieces),
            self._along("z", pieces),
        )

    def _along(self, letter: str, lengths: tuple[int, ...]) -> int:
        return int(lengths[self._axes.index(letter)]) if letter in self._axes else 1

    def read(self, box: Box) -> Array:
        """Return the voxels of ``box`` (counted from 0), Fortran-ordered: ``(x, y, z)`` or ``(c, x, y, z)``.

        Raises
        ------
        CorruptDataError
            If the file cannot be decoded there.
        """
        inside = dict(zip("xyz", box.slices_in(Box.of_shape(self.shape)), strict=True))
        slices = tuple(inside.get(letter, slice(0, length)) for letter, length in self._lengths())
        try:
            data = np.asarray(self._array[slices])
        except CloudsegError:
            raise
        except Exception as error:  # decoders raise whatever they like; none of it may pass as data
            raise CorruptDataError(
                f"{self.uri} cannot be read at {box} (x,y,z): {error}; the file may be damaged or incomplete"
            ) from error
        wanted = [
            letter for letter in "cxyz" if letter in self._axes and (letter != "c" or self.n_channels > 1)
        ]
        dropped = tuple(0 if letter not in wanted else slice(None) for letter in self._axes)
        kept = [letter for letter in self._axes if letter in wanted]
        data = data[dropped].transpose([kept.index(letter) for letter in wanted])
        if "z" not in self._axes:
            data = data[..., np.newaxis]
        return np.asarray(data, dtype=self.dtype, order="F")

    def _lengths(self) -> zip[tuple[str, int]]:
        return zip(self._axes, self._array.shape, strict=True)

    def close(self) -> None:
        """Let go of files."""
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def choose_dataset(
    candidates: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]], name: str | None, *, uri: str
) -> str:
    """Return the array to read: the one named, or the only one that can be a volume.

    Parameters
    ----------
    candidates
        Name, shape and dtype of every array in the file.
    name
        What the user asked for.

    Raises
    ------
    SpecError
        If the name does not exist, or none or several could be meant.
    """
    listing = ", ".join(f"{n} {s} {np.dtype(d)}" for n, (s, d) in sorted(candidates.items())) or "none"
    if name is not None:
        for spelling in (name, name.strip("/")):
            if spelling in candidates:
                return spelling
        raise SpecError(f"{uri} has no array named {name!r}; it has: {listing}")
    volumes = [n for n, (shape, _) in candidates.items() if len(shape) in (3, 4)]
    if len(volumes) == 1:
        return volumes[0]
    problem = "no array with 3 axes" if not volumes else "several arrays that could be meant"
    raise SpecError(f"{uri} has {problem}: name one with --dataset; it has: {listing}")


def nm_per(unit: object) -> float | None:
    """Return the nanometres in a unit, or None for an unknown one."""
    return NM_PER_UNIT.get(str(unit).strip().lower()) if unit is not None else None


def in_xyz(values: dict[str, float] | None) -> VoxelSize | None:
    """Return ``{"x": .., "y": .., "z": ..}`` as a tuple, or None if one is absent or not positive."""
    if values is None or any(not values.get(letter, 0) > 0 for letter in "xyz"):
        return None
    return (float(values["x"]), float(values["y"]), float(values["z"]))


def _check_axes(axes: str, shape: tuple[int, ...], *, uri: str) -> None:
    n = len(shape)
    if len(axes) != n:
        raise SpecError(
            f"{uri} has {n} axes of lengths {shape}, but its axes are given as {axes!r}: "
            "write one letter for each with --axes, e.g. zyx, xyz, czyx"
        )
    if len(set(axes)) != n or set(axes) - set("xyzct") or not {"x", "y"} <= set(axes):
        raise SpecError(
            f"axes {axes!r} of {uri} cannot be read: use each of x, y, z once, with c for channels and t for a time "
            "axis of length 1"
        )
    if "t" in axes and shape[axes.index("t")] != 1:
        raise SpecError(
            f"{uri} has {shape[axes.index('t')]} time points (axes {axes!r}, lengths {shape}): "
            "write one of them to a file of its own, or name the axes otherwise with --axes"
        )
    if 0 in shape:
        raise SpecError(f"{uri} holds no voxel: its shape is {shape}")
