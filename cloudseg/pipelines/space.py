"""Room on the disk of a local root."""

from __future__ import annotations

import shutil
from pathlib import Path

from cloudseg.errors import SpecError


def free_bytes(root: str) -> int | None:
    """Return the free space where ``root`` will lie, or None where that has no meaning (a bucket)."""
    if not root.startswith("file://"):
        return None
    path = Path(root.removeprefix("file://"))
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_space(root: str, *, needed_bytes: int) -> None:
    """Refuse a local root whose disk is clearly too small.

    Raises
    ------
    SpecError
        If less than ``needed_bytes`` are free; the estimate assumes no compression of images.
    """
    free = free_bytes(root)
    if free is not None and free < needed_bytes:
        raise SpecError(
            f"{root} needs about {human_bytes(needed_bytes)} and its disk has {human_bytes(free)} free; "
            "free some space, or give another root with --set root=..."
        )


def human_bytes(n_bytes: float) -> str:
    """Return a size for people, e.g. ``1.5 GB`` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.4g} PB"
