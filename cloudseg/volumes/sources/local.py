"""Files on this machine: refusals, fingerprints, and unpacking what cannot be read piece by piece."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from typing import IO, Protocol

from cloudseg.errors import NotFoundError, StorageError

IN_MEMORY_BYTES = 256 << 20
"""Compressed arrays up to this size are unpacked in memory, larger ones into a temporary file."""


class SupportsRead(Protocol):
    """A stream to read from, however it is made."""

    def read(self, n: int = -1, /) -> bytes:
        """Return up to ``n`` bytes."""
        ...


def existing(path: Path) -> Path:
    """Return ``path`` if something lies there.

    Raises
    ------
    NotFoundError
        If nothing does; names the nearest folder that exists.
    """
    if path.exists():
        return path
    parent = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    raise NotFoundError(f"there is no {path}; the nearest folder that exists is {parent}")


def file_fingerprint(path: Path) -> str:
    """Return size and time of the last change."""
    status = path.stat()
    return f"{status.st_size} bytes, changed {status.st_mtime_ns}"


def unpack(stream: SupportsRead, *, n_bytes: int, uri: str) -> IO[bytes]:
    """Copy a stream that cannot seek cheaply into a temporary file, which disappears when closed.

    Raises
    ------
    StorageError
        If the folder for temporary files is too small.
    """
    folder = tempfile.gettempdir()
    advice = f"unpacking {uri} needs {n_bytes / 2**30:.1f} GiB in {folder}; point TMPDIR at a folder with more room"
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StorageError(f"{advice} ({free / 2**30:.1f} GiB are free)")
    target = tempfile.TemporaryFile(prefix="cloudseg-", dir=folder)  # noqa: SIM115  (the caller closes it)
    try:
        shutil.copyfileobj(stream, target, 1 << 20)
        target.flush()
    except BaseException as error:
        target.close()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise StorageError(advice) from error
        raise
    return target
