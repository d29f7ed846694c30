"""Columns of numbers in buckets: back as they were, and nothing heavy is imported for it."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloudseg.volumes import clear_memory, open_objects
from cloudseg.volumes.tables import get_table, put_table

N = 1003
COLUMNS = {
    "id": np.arange(N, dtype=np.uint64) + np.uint64(2**64 - N),
    "total": np.arange(N) - 500,
    "score": np.random.default_rng(0).random(N).astype(np.float32),
    "flag": np.arange(N) % 3 == 0,
    "every_other": np.arange(2 * N, dtype=np.int8)[::2],
}


@pytest.fixture
def objects():
    clear_memory()
    yield open_objects("memory://tables")
    clear_memory()


@pytest.mark.parametrize("n", [0, 1, 9, N])
def test_columns_come_back_with_type_and_values(objects, n):
    put_table(objects, "t", {name: column[:n] for name, column in COLUMNS.items()})
    back = get_table(objects, "t")
    assert list(back) == list(COLUMNS)
    for name, column in COLUMNS.items():
        assert back[name].dtype == column.dtype
        np.testing.assert_array_equal(back[name], column[:n])
        back[name][:1] = 0  # the reader's own


def test_the_bytes_are_those_that_arrow_writes_itself(objects):
    put_table(objects, "t", COLUMNS)
    sink = io.BytesIO()
    table = pa.table({name: pa.array(np.ascontiguousarray(column)) for name, column in COLUMNS.items()})
    pq.write_table(table, sink, compression="zstd")
    assert objects.get("t") == sink.getvalue()


def test_words_come_back_too(objects):
    put_table(objects, "t", {"kind": np.array(["neuron", "glia", ""]), "id": np.arange(3)})
    back = get_table(objects, "t")
    assert back["kind"].tolist() == ["neuron", "glia", ""]
    assert back["id"].tolist() == [0, 1, 2]


def test_some_columns_of_many_row_groups(objects):
    sink = io.BytesIO()
    pq.write_table(
        pa.table({"a": pa.array(range(N)), "flag": pa.array(COLUMNS["flag"])}), sink, row_group_size=100
    )
    objects.put("t", sink.getvalue())
    back = get_table(objects, "t", columns=["flag"])
    assert list(back) == ["flag"]
    np.testing.assert_array_equal(back["flag"], COLUMNS["flag"])


def test_a_worker_that_reads_and_writes_tables_does_not_load_pandas():
    code = (
        "import sys, numpy as np\n"
        "from cloudseg.volumes import open_objects\n"
        "from cloudseg.volumes.tables import get_table, put_table\n"
        "o = open_objects('memory://t'); put_table(o, 't', {'a': np.arange(3), 'b': np.arange(3) > 1})\n"
        "get_table(o, 't'); sys.exit('pandas' in sys.modules or 'pyarrow.dataset' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
