"""Chunks in local files that carry a compression ending (``.gz``, ``.br``, ...), as CloudVolume writes them.

Neither Neuroglancer nor tensorstore sees such files: a volume of them looks empty. So they are looked for,
and read. Where a chunk lies there twice, plain and compressed, nobody can tell which is newer: that is an
error.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from cloudseg.errors import CorruptDataError, MissingExtraError

ENDINGS = (".gz", ".br", ".zstd", ".bz2", ".xz")


def compressed_chunks(folder: str, names: Sequence[str]) -> dict[str, str]:
    """Return the path of each chunk that exists only with a compression ending, by its plain name.

    Parameters
    ----------
    folder
        Local folder of one scale.
    names
        Plain file names of the chunks asked for.

    Raises
    ------
    CorruptDataError
        If a chunk exists more than once.
    """
    found: dict[str, str] = {}
    for name in names:
        plain = os.path.join(folder, name)
        paths = [plain + ending for ending in ENDINGS if os.path.exists(plain + ending)]
        if not paths:
            continue
        if os.path.exists(plain):
            paths.insert(0, plain)
        if len(paths) > 1:
            raise CorruptDataError(
                f"the chunk {name} lies in {folder} more than once: {', '.join(os.path.basename(p) for p in paths)}; "
                "one of them is stale and cloudseg does not guess which: remove the wrong one, or write the volume anew"
            )
        found[name] = paths[0]
    return found


def read_compressed(path: str) -> bytes:
    """Return the decompressed bytes of a file, whole or not at all.

    Raises
    ------
    CorruptDataError
        If the file is empty, cut short, or not what its ending says.
    MissingExtraError
        If the decompressor for ``.br`` or ``.zstd`` is not installed.
    """
    with open(path, "rb") as file:
        data = file.read()
    return decompressed(data, os.path.splitext(path)[1], where=path)


def decompressed(data: bytes, ending: str, *, where: str) -> bytes:
    """Return the decompressed ``data``, whole or not at all; errors as for :func:`read_compressed`.

    Parameters
    ----------
    data
        Compressed bytes.
    ending
        One of ``ENDINGS``: how.
    where
        What they are, for messages.
    """
    if not data:
        raise CorruptDataError(f"{where} is empty, which no {ending} file is: write the chunk again")
    decompress = _decompressor(ending)
    try:
        return decompress(data)
    except Exception as error:
        raise CorruptDataError(f"{where} does not decompress ({error}): write the chunk again") from error


def _decompressor(ending: str) -> Callable[[bytes], bytes]:
    match ending:
        case ".gz":
            return gzip.decompress
        case ".bz2":
            return bz2.decompress
        case ".xz":
            return lzma.decompress
        case ".br":
            brotli: Callable[[bytes], bytes] = _module("brotli").decompress
            return brotli
        case _:
            zstd: Callable[[bytes], bytes] = _module("zstandard").ZstdDecompressor().decompress
            return zstd


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError.of(name, extra="tasks") from error
