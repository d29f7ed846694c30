"""TIFF stacks, in one file or a folder of sections, decoded strip by strip. Axes are z, y, x unless they say so."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import MissingExtraError, SpecError, VolumeFormatError
from cloudseg.volumes.sources.base import ArraySource, VoxelSize, in_xyz, nm_per
from cloudseg.volumes.sources.local import file_fingerprint

if TYPE_CHECKING:
    import tifffile

SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class _Page:
    """Where the strips or tiles of one section lie."""

    path: Path
    index: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class _Sections:
    """A stack of TIFF pages as one sliceable array; only the strips or tiles that a slice touches are decoded."""

    def __init__(
        self, pages: Sequence[_Page], *, leading: tuple[int, ...], keyframe: tifffile.TiffPage
    ) -> None:
        self._pages = pages
        self._leading = leading
        self._page_shape = tuple(int(n) for n in keyframe.shape)
        self.shape = leading + self._page_shape
        self.dtype = np.dtype(keyframe.dtype)
        self._file: tifffile.TiffFile | None = None
        self._path: Path | None = None

    def __getitem__(self, slices: tuple[slice, ...], /) -> npt.NDArray[Any]:
        ranges = [range(*s.indices(n)) for s, n in zip(slices, self.shape, strict=True)]
        n_lead = len(self._leading)
        out = np.empty([len(r) for r in ranges], self.dtype)
        for place in itertools.product(*(range(len(r)) for r in ranges[:n_lead])):
            where = [r[i] for r, i in zip(ranges[:n_lead], place, strict=True)]
            number = int(np.ravel_multi_index(where, self._leading)) if where else 0
            out[place] = self._region(
                self._pages[number], ranges[n_lead], ranges[n_lead + 1], slices[n_lead + 2 :]
            )
        return out

    def _region(self, page: _Page, rows: range, columns: range, rest: tuple[slice, ...]) -> npt.NDArray[Any]:
        import tifffile

        if (
            self._path != page.path
        ):  # one open file at a time: a folder may hold more sections than a process files
            self.close()
            self._file, self._path = tifffile.TiffFile(page.path), page.path
        assert self._file is not None
        key: Any = self._file.pages[page.index]
        if (key.planarconfig != 1 and key.samplesperpixel > 1) or key.imagedepth > 1:
            whole = key.asarray()  # channels in planes of their own, or volumetric pages: rare, read at once
            return np.asarray(whole[rows.start : rows.stop, columns.start : columns.stop][(..., *rest)])
        key = key.keyframe
        out = np.full((len(rows), len(columns), key.samplesperpixel), key.nodata, self.dtype)
        for index in _segments(key, rows, columns):
            data = None
            if page.sizes[index]:
                self._file.filehandle.seek(page.offsets[index])
                data = self._file.filehandle.read(page.sizes[index])
            segment, (_, _, y, x, _), shape = key.decode(data, index, jpegtables=key.jpegtables)
            if segment is None:
                continue
            y0, y1 = max(y, rows.start), min(y + shape[1], rows.stop, key.imagelength)
            x0, x1 = max(x, columns.start), min(x + shape[2], columns.stop, key.imagewidth)
            out[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = segment[
                0, y0 - y : y1 - y, x0 - x : x1 - x
            ]
        return out[(slice(None), slice(None), *rest)] if rest else out[..., 0]

    def close(self) -> None:
        """Close the file at hand."""
        if self._file is not None:
            self._file.close()
        self._file = self._path = None


def _segments(key: Any, rows: range, columns: range) -> list[int]:
    """Return the numbers of the strips or tiles that hold ``rows`` and ``columns``."""
    if not key.is_tiled:
        return list(range(rows.start // key.rowsperstrip, -(-rows.stop // key.rowsperstrip)))
    n_across = -(-key.imagewidth // key.tilewidth)
    down = range(rows.start // key.tilelength, -(-rows.stop // key.tilelength))
    across = range(columns.start // key.tilewidth, -(-columns.stop // key.tilewidth))
    return [i * n_across + j for i in down for j in across]


def open_tiff(path: Path, *, dataset: str | None = None, axes: str | None = None) -> ArraySource:
    """Open a TIFF file that holds a stack (or one section).

    Parameters
    ----------
    path
        The file.
    dataset
        Number of the image series, for files with several.
    axes
        One letter for each axis; by default what the file's OME or ImageJ metadata say, else z, y, x.

    Raises
    ------
    VolumeFormatError
        If the file is no TIFF file, is cut short, or misses sections.
    SpecError
        If several series could be meant.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(path) as file:
            series = _series(file, dataset, uri=str(path))
            shape, names = tuple(int(n) for n in series.shape), series.axes
            keyframe = series.keyframe
            notes: tuple[str, ...] = ()
            order = axes
            if order is None:
                order, notes = _axes_of(names, shape, uri=str(path))
            size = None if axes else _voxel_size(file)
            if series.dataoffset is not None:
                _check_end(path, series.dataoffset + series.nbytes)
                dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
                array: Any = np.memmap(path, dtype, "r", series.dataoffset, shape)
                on_close = None
            else:
                if any(page is None for page in series.pages):
                    raise VolumeFormatError(
                        f"{path} misses sections that its metadata promise: save it again"
                    )
                pages = [_page(path, page) for page in series.pages]
                n_page_axes = len(keyframe.shape)
                array = _Sections(pages, leading=shape[: len(shape) - n_page_axes], keyframe=keyframe)
                on_close = array.close
            natural = (1,) * (len(shape) - len(keyframe.shape)) + _piece(keyframe)
    except (tifffile.TiffFileError, OSError, EOFError, ValueError) as error:
        raise _readable(error, path) from error
    return ArraySource(
        array,
        axes=order,
        uri=str(path),
        fingerprint=file_fingerprint(path),
        voxel_size_nm=size,
        natural_shape=natural,
        notes=notes,
        on_close=on_close,
    )


def open_tiff_folder(folder: Path, *, axes: str | None = None) -> ArraySource:
    """Open a folder of sections, one TIFF file each, in natural order of their names (``s2`` before ``s10``).

    Every file's header is read first: a section of another size or type is refused before anything is written.

    Raises
    ------
    VolumeFormatError
        If a file is no TIFF file, is cut short, or holds several sections.
    SpecError
        If sections differ in size or type.
    """
    tifffile = _tifffile()
    paths = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")),
        key=lambda p: _natural_key(p.name),
    )
    if not paths:
        raise SpecError(f"{folder} holds no TIFF files ({', '.join(SUFFIXES)})")
    digest = hashlib.sha256()
    pages: list[_Page] = []
    first: Any = None
    for path in paths:
        try:
            with tifffile.TiffFile(path) as file:
                if len(file.pages) != 1:
                    raise SpecError(
                        f"{path} holds {len(file.pages)} pages: a folder of sections has one in each file; "
                        "give a stack that lies in one file by its own name"
                    )
                page = file.pages[0]
                if first is None:
                    first = page
                elif (page.shape, page.dtype) != (first.shape, first.dtype):
                    raise SpecError(
                        f"section {path} is {page.shape} {page.dtype}, but {paths[0].name} is {first.shape} "
                        f"{first.dtype}: all sections must have one size and type"
                    )
                pages.append(_page(path, page))
        except (tifffile.TiffFileError, OSError, EOFError, ValueError) as error:
            raise _readable(error, path) from error
        digest.update(f"{path.name} {file_fingerprint(path)}\n".encode())
    array = _Sections(pages, leading=(len(pages),), keyframe=first)
    return ArraySource(
        array,
        axes=axes or ("zyxc" if len(first.shape) == 3 else "zyx"),
        uri=str(folder),
        fingerprint=f"{len(paths)} sections, sha256 {digest.hexdigest()}",
        natural_shape=(1, *_piece(first)),
        on_close=array.close,
    )


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError.of("tifffile", extra="ingest") from error
    return tifffile


def _readable(error: Exception, path: Path) -> Exception:
    if isinstance(error, SpecError):
        return error
    return VolumeFormatError(f"{path} cannot be read as a TIFF file: {error}")


def _page(path: Path, page: Any) -> _Page:
    """Note where a page's data lie, after checking that the file reaches that far."""
    offsets, sizes = tuple(page.dataoffsets), tuple(page.databytecounts)
    _check_end(path, max((o + n for o, n in zip(offsets, sizes, strict=True)), default=0))
    return _Page(
        path=path,
        index=page.index if isinstance(page.index, int) else page.index[0],
        offsets=offsets,
        sizes=sizes,
    )


def _check_end(path: Path, needed: int) -> None:
    have = path.stat().st_size
    if have < needed:
        raise VolumeFormatError(f"{path} is cut short: its pages reach to byte {needed}, it has {have}")


def _piece(page: Any) -> tuple[int, ...]:
    """Return the size of a tile or strip, along the page's axes."""
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
    else:
        rows, columns = min(page.rowsperstrip, page.imagelength), page.imagewidth
    return (int(rows), int(columns), *(int(n) for n in page.shape[2:]))


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    return [
        (1, int(part), part) if part.isdigit() else (0, 0, part.lower()) for part in re.split(r"(\d+)", name)
    ]


def _series(file: Any, dataset: str | None, *, uri: str) -> Any:
    n = len(file.series)
    if dataset is not None:
        if not dataset.isdigit() or int(dataset) >= n:
            raise SpecError(f"{uri} has image series 0 to {n - 1}, there is no {dataset!r}")
        return file.series[int(dataset)]
    if n != 1:
        listing = ", ".join(f"{i}: {s.shape} {s.dtype}" for i, s in enumerate(file.series))
        raise SpecError(f"{uri} holds {n} image series: choose one with --dataset NUMBER; it has: {listing}")
    return file.series[0]


def _axes_of(names: str, shape: tuple[int, ...], *, uri: str) -> tuple[str, tuple[str, ...]]:
    """Return our letters for tifffile's; a stack of unnamed or time pages without a z axis runs along z."""
    letters = names.upper().replace("S", "C" if "C" not in names.upper() else "S")
    notes: tuple[str, ...] = ()
    if "Z" not in letters:
        for other in "IQT":
            if other in letters:
                letters = letters.replace(other, "Z", 1)
                notes = (
                    (f"pages are sections along z (the file calls their axis {other})",)
                    if other == "T"
                    else ()
                )
                break
    order = letters.lower()
    if set(order) - set("xyzct") or len(set(order)) != len(order):
        raise SpecError(f"{uri} has the axes {names} of lengths {shape}: name them with --axes")
    return order, notes


def _voxel_size(file: Any) -> VoxelSize | None:
    if file.is_ome:
        return _ome_voxel_size(file)
    meta = file.imagej_metadata
    if not meta:
        return None
    nm = nm_per(meta.get("unit"))
    try:
        per_unit = {
            letter: file.pages[0].tags[tag].value
            for letter, tag in (("x", "XResolution"), ("y", "YResolution"))
        }
        sizes = {letter: denominator / numerator for letter, (numerator, denominator) in per_unit.items()}
    except (KeyError, ZeroDivisionError, TypeError, ValueError):
        return None
    sizes["z"] = float(meta.get("spacing") or 0)
    return in_xyz({letter: size * nm for letter, size in sizes.items()}) if nm is not None else None


def _ome_voxel_size(file: Any) -> VoxelSize | None:
    import tifffile

    try:
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        sizes = {}
        for letter in "xyz":
            # The OME schema's default unit of physical sizes is the micrometre.
            nm = nm_per(pixels.get(f"PhysicalSize{letter.upper()}Unit", "um"))
            sizes[letter] = float(pixels[f"PhysicalSize{letter.upper()}"]) * (nm or 0)
    except (KeyError, TypeError, ValueError):
        return None
    return in_xyz(sizes)
