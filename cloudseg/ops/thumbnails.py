"""Small pictures of one object: three planes through it, its outline on the image."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[np.uint8]
Picture = npt.NDArray[np.uint8]

_N_GREYS = 253
OUTLINE, BAR, NOTHING = 253, 254, 255
"""Indices of the palette beside the greys: the outline, the scale bar, and what lies outside the volume."""

_COLOURS = {OUTLINE: (255, 200, 40), BAR: (255, 255, 255), NOTHING: (24, 28, 34)}


def sample_places(centre_nm: float, *, width_nm: float, n: int, voxel_nm: float) -> npt.NDArray[np.int64]:
    """Return the voxel in which each of ``n`` pixels along an axis has its middle.

    Parameters
    ----------
    centre_nm
        Middle of the picture; position 0 is the corner of voxel 0.
    width_nm
        What the picture shows.
    n
        Pixels.
    voxel_nm
        Edge of a voxel.

    Examples
    --------
    >>> sample_places(100.0, width_nm=80.0, n=4, voxel_nm=10.0).tolist()
    [7, 9, 11, 13]
    """
    middles = centre_nm + ((np.arange(n) + 0.5) / n - 0.5) * width_nm
    return np.floor(middles / voxel_nm).astype(np.int64)


def draw_plane(
    grey: npt.NDArray[np.generic], mask: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_]
) -> Picture:
    """Return one plane as indices of the palette.

    Parameters
    ----------
    grey
        ``(columns, rows)`` values of the image, of any type.
    mask
        Where the object is.
    there
        Where the volume is.

    Returns
    -------
    ``(columns, rows)``. The greys reach from the 1st to the 99th percentile of what is there; the outline is those
    pixels of the mask that have a side to the outside.
    """
    values = np.asarray(grey, np.float64)
    low, high = np.percentile(values[there], (1, 99)) if there.any() else (0.0, 1.0)
    scaled = (values - low) / max(high - low, 1e-9)
    drawn = (np.clip(scaled, 0, 1) * (_N_GREYS - 1) + 0.5).astype(np.uint8)
    drawn[~there] = NOTHING
    drawn[outline(mask)] = OUTLINE
    return drawn


def outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels of ``mask`` with a side to a pixel outside of it; the edge of the picture is no outside."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    found: npt.NDArray[np.bool_] = mask & ~inner
    return found


def strip(planes: list[Picture], *, bar_px: int) -> Picture:
    """Return planes side by side, a column of nothing between them, with a scale bar in the first.

    Parameters
    ----------
    planes
        ``(columns, rows)`` each, of one size.
    bar_px
        Length of the bar.

    Returns
    -------
    ``(rows, columns)``, as pictures are stored.
    """
    gap = np.full((2, planes[0].shape[1]), NOTHING, np.uint8)
    parts: list[Picture] = []
    for plane in planes:
        parts += [plane, gap]
    whole = np.concatenate(parts[:-1]).T.copy()
    whole[-5:-3, 4 : 4 + bar_px] = BAR
    return whole


def palette_png(picture: Picture, *, text: dict[str, str] | None = None) -> bytes:
    """Return a PNG file of ``(rows, columns)`` indices of the palette; the same picture gives the same bytes.

    Parameters
    ----------
    picture
        The indices.
    text
        Words to keep beside it, by keyword.
    """
    rows, columns = picture.shape
    palette = np.repeat(np.rint(np.linspace(0, 255, _N_GREYS)).astype(np.uint8)[:, None], 3, axis=1)
    colours = np.array([_COLOURS[i] for i in sorted(_COLOURS)], np.uint8)
    # Each line begins with its filter: 0, none.
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), picture], axis=1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.tobytes() + colours.tobytes()),
        *((b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in (text or {}).items()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
