"""Every way to ask the same catalogue: in memory, scanned where it lies, through servers."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from made_catalogues import scanned, write

from cloudseg import Somas
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.somas.postgres import engines, load
from cloudseg.somas.store import read_catalog
from cloudseg.testing.postgres import postgres_server
from cloudseg.testing.somas import soma_table
from cloudseg.volumes import open_objects

N_ROWS = 900


@pytest.fixture(scope="session")
def table():
    """Somas with ties, nulls, ids near 2^64, and tombstones."""
    return soma_table(N_ROWS, seed=3)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, table):
    """A catalogue on disk."""
    uri = f"file://{tmp_path_factory.mktemp('somas')}/run/somas"
    write(uri, table)
    return uri


@pytest.fixture(scope="session")
def postgres():
    """The URL of an empty database."""
    with postgres_server() as url:
        yield url


WAYS = ["resident", "scanned", "server", "postgres server"]


@contextmanager
def asked(way, folder, request):
    """Ask the catalogue in a folder in one of the WAYS."""
    if "server" not in way:
        with Somas(folder) if way == "resident" else scanned(folder) as found:
            yield found
        return
    open_engine = None
    if way == "postgres server":
        database = request.getfixturevalue("postgres")
        objects = open_objects(folder)
        load(database, objects, read_catalog(objects))
        open_engine = engines(database)
    datasets = Datasets([folder], open_engine=open_engine)
    with pytest.MonkeyPatch.context() as patch, running(create_app([], datasets=datasets)) as url:
        # Pages and streams for most questions.
        patch.setattr("cloudseg.client.remote.PAGE_ROWS", 137)
        patch.setattr("cloudseg.somas.catalogue.STREAM_ROWS", 50)
        with Somas(url) as found:
            yield found


@pytest.fixture(params=WAYS)
def ask_in(request):
    """What asks a catalogue in one of the ways, with the name of the way."""
    return lambda folder: asked(request.param, folder, request)


@pytest.fixture(scope="session", params=WAYS)
def somas(request, folder):
    """The catalogue of ``table``, asked in each way."""
    with asked(request.param, folder, request) as found:
        yield found
