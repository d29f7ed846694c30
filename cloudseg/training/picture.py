"""Pictures of sections: grey levels, ids as colours, several side by side, as PNG files that need no library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""``(rows, columns, 3)``: x runs to the right, y downwards."""

_GAP = 4


def grey_picture(section: npt.NDArray[np.generic], *, low: float, high: float) -> Picture:
    """Return ``(x, y)`` numbers as grey levels, ``low`` black and ``high`` white."""
    level = (section.T.astype(np.float32) - low) / max(high - low, 1e-6)
    grey = (np.clip(level, 0.0, 1.0) * 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def id_picture(section: npt.NDArray[np.generic], *, over: Picture | None = None) -> Picture:
    """Return ``(x, y)`` ids as colours; ids of 0 and less are black. ``over``: a picture that shines through."""
    ids = section.T.astype(np.int64)
    # Multiplicative hashing: neighbours in number get far-away hues.
    mixed = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    channels = [((mixed >> np.uint64(8 * c)) & np.uint64(0xFF)).astype(np.float32) for c in range(3)]
    colour = 55.0 + 200.0 * np.stack(channels, axis=2) / 255.0
    colour[ids <= 0] = 0.0
    if over is not None:
        colour = np.where((ids > 0)[:, :, None], 0.55 * colour + 0.45 * over, over)
    return colour.astype(np.uint8)


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Return pictures of one height in a row, with a blue gap between them."""
    rows = pictures[0].shape[0]
    gap = np.empty((rows, _GAP, 3), np.uint8)
    gap[:] = (140, 180, 220)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def encode_png(picture: Picture) -> bytes:
    """Return the bytes of a PNG file."""
    rows, columns, _ = picture.shape
    # Each line begins with its filter: 0, none.
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), picture.reshape(rows, columns * 3)], axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
