"""Every way to ask the same catalogue: in memory, scanned where it lies, through a server."""

from __future__ import annotations

import pytest
from made_catalogues import scanned, write

from cloudseg import Somas
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.testing.somas import soma_table

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


@pytest.fixture(scope="session", params=["resident", "scanned", "server"])
def somas(request, folder):
    """The catalogue of ``table``, asked in each way."""
    if request.param == "server":
        with (
            pytest.MonkeyPatch.context() as patch,
            running(create_app([], datasets=Datasets([folder]))) as url,
        ):
            patch.setattr("cloudseg.client.remote.PAGE_ROWS", 137)  # several pages for most questions
            with Somas(url) as found:
                yield found
        return
    with Somas(folder) if request.param == "resident" else scanned(folder) as found:
        yield found
