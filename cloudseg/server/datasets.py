"""The soma catalogues that a server knows: found below its roots, opened once, the published version looked up anew."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloudseg.errors import NotFoundError
from cloudseg.somas.catalogue import Catalogue
from cloudseg.somas.duck import DuckEngine
from cloudseg.somas.engine import Engine
from cloudseg.somas.store import Catalog, Latest, read_catalog, read_latest
from cloudseg.volumes.objects import VersionedObjects, open_objects

# How long an answer about what is published may be old.
_LOOK_S = 2.0
_OPEN_VERSIONS = 4
# How long Parquet stands in for a database that lacks a version, before it is asked again.
_LOOK_AGAIN_S = 30.0

log = logging.getLogger(__name__)

OpenEngine = Callable[[VersionedObjects, Catalog], Engine]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One catalogue, as it is published now."""

    name: str
    objects: VersionedObjects
    latest: Latest


@dataclass(frozen=True, slots=True)
class _Opened:
    """What answers about a version, and until when; a stand-in only until its database is looked at again."""

    catalogue: Catalogue
    until_s: float = math.inf


class Datasets:
    """Catalogues by the name of their dataset.

    Parameters
    ----------
    uris
        Roots of pipelines, with ``somas/`` below, or folders of catalogues. Those that have none yet are looked at
        again: a run may publish one later.
    open_engine
        What makes the database of a version; DuckDB in this process when None. Versions that it does not have are
        answered by DuckDB as well, until it has them: the answers are the same.
    """

    def __init__(self, uris: Sequence[str], *, open_engine: OpenEngine | None = None) -> None:
        self._places = [open_objects(place) for uri in uris for place in (uri, f"{uri.rstrip('/')}/somas")]
        self._open_engine: OpenEngine = open_engine or DuckEngine
        self._lock = threading.Lock()
        self._looked_s = float("-inf")
        self._found: dict[str, Dataset] = {}
        self._names: dict[str, str] = {}
        self._open: OrderedDict[tuple[str, int], _Opened] = OrderedDict()

    def all(self) -> dict[str, Dataset]:
        """Return the datasets that have a published version."""
        with self._lock:
            if time.monotonic() - self._looked_s > _LOOK_S:
                self._found = self._look()
                self._looked_s = time.monotonic()
            return dict(self._found)

    def named(self, name: str) -> Dataset:
        """Return one dataset.

        Raises
        ------
        NotFoundError
            If there is none of this name; those that there are are named.
        """
        found = self.all()
        if name not in found:
            there = (
                f"there are: {', '.join(sorted(found))}"
                if found
                else "no soma catalogue is published here yet"
            )
            raise NotFoundError(f"there is no dataset {name[:80]!r}; {there}")
        return found[name]

    def catalogue(self, name: str, version: int | None) -> tuple[Dataset, Catalog, Catalogue]:
        """Return a dataset, the description of a version (the published one for None) and what answers about it."""
        dataset = self.named(name)
        number = dataset.latest.version if version is None else version
        with self._lock:
            known = self._open.get((name, number))
            if known is not None:
                self._open.move_to_end((name, number))
                if time.monotonic() < known.until_s:
                    return dataset, known.catalogue.catalog, known.catalogue
        if number not in dataset.latest.versions:
            versions = ", ".join(map(str, dataset.latest.versions))
            raise NotFoundError(f"there is no version {number} of {name!r}; published versions: {versions}")
        opened = self._opened(dataset, number, known)
        with self._lock:
            # Of two that opened it at once, the first stays. What falls out is closed when nobody uses it any more.
            kept = self._open.get((name, number))
            if kept is known or kept is None:
                kept = self._open[name, number] = opened
            while len(self._open) > _OPEN_VERSIONS:
                self._open.popitem(last=False)
        return dataset, kept.catalogue.catalog, kept.catalogue

    def _opened(self, dataset: Dataset, number: int, known: _Opened | None) -> _Opened:
        """Open a version; where its database does not have it, open or keep the stand-in."""
        catalog = read_catalog(dataset.objects, number)
        try:
            return _Opened(Catalogue(self._open_engine(dataset.objects, catalog), from_json=True))
        except NotFoundError as error:
            again_s = time.monotonic() + _LOOK_AGAIN_S
            if known is not None:
                return _Opened(known.catalogue, again_s)
            log.warning("%s; until then its Parquet files answer", error)
            return _Opened(Catalogue(DuckEngine(dataset.objects, catalog), from_json=True), again_s)

    def _look(self) -> dict[str, Dataset]:
        found: dict[str, Dataset] = {}
        for objects in self._places:
            try:
                latest = read_latest(objects)
            except NotFoundError:
                continue
            if objects.uri not in self._names:
                self._names[objects.uri] = read_catalog(objects, latest.version).dataset
            name = self._names[objects.uri]
            found.setdefault(name, Dataset(name, objects, latest))
        return found
