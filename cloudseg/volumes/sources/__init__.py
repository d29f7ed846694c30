"""Volumes in other people's files: one reader a format, all behind one small protocol."""

from __future__ import annotations

from cloudseg.volumes.sources.base import Source
from cloudseg.volumes.sources.open import open_source

__all__ = ["Source", "open_source"]
