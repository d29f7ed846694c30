"""Every way to ask the same catalogue: in memory, scanned where it lies."""

from __future__ import annotations

import pytest
from made_catalogues import scanned, write

from cloudseg import Somas
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


@pytest.fixture(scope="session", params=["resident", "scanned"])
def somas(request, folder):
    """The catalogue of ``table``, asked in each way."""
    with Somas(folder) if request.param == "resident" else scanned(folder) as found:
        yield found
