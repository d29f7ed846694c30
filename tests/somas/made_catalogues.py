"""Catalogues made for tests, and the ways to open them."""

from __future__ import annotations

from cloudseg import Somas
from cloudseg.somas.catalogue import Catalogue
from cloudseg.somas.duck import DuckEngine
from cloudseg.somas.store import publish, read_catalog, write_version
from cloudseg.testing.somas import SPEC
from cloudseg.volumes import open_objects


def write(uri, rows, *, version=1, dataset=SPEC.dataset):
    objects = open_objects(uri)
    spec = SPEC.model_copy(update={"dataset": dataset})
    write_version(objects, rows, spec, version=version, rows_per_part=250, rows_per_group=60)
    publish(objects, version)
    return objects


def scanned(uri):
    """Ask Parquet where it lies, as for a table too large for memory."""
    somas = Somas(uri)
    objects = open_objects(uri)
    somas._source._engine = DuckEngine(objects, read_catalog(objects), resident_rows=0)
    somas._source._catalogue = Catalogue(somas._source._engine)
    return somas
