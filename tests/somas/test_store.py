"""Versions are whole, immutable and published by one put; rows are complete, typed and finite."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudseg.errors import ConflictError, CorruptDataError, NotFoundError, SpecError, VolumeFormatError
from cloudseg.ops.morton import morton_codes
from cloudseg.somas.opinions import Opinion, append_opinions, in_effect, read_opinions
from cloudseg.somas.rows import checked, sorted_rows
from cloudseg.somas.schema import NAMES, arrow_schema
from cloudseg.somas.store import (
    iter_batches,
    next_version,
    publish,
    read_catalog,
    read_latest,
    write_version,
)
from cloudseg.testing.somas import BOUNDS_NM, SPEC, soma_table
from cloudseg.volumes import open_objects

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["file", "gs", "s3"])
def objects(request, tmp_path):
    if request.param == "file":
        return open_objects(f"file://{tmp_path}/somas")
    request.getfixturevalue({"gs": "gcs", "s3": "aws"}[request.param])
    return open_objects(f"{request.param}://vol/{tmp_path.name}/somas")


@pytest.fixture
def local(tmp_path):
    return open_objects(f"file://{tmp_path}/somas")


def test_what_is_written_is_read_and_nothing_shows_before_it_is_published(objects):
    table = soma_table(700)
    written = write_version(objects, table, SPEC, version=1, rows_per_part=300, rows_per_group=64)
    with pytest.raises(NotFoundError, match="there is no soma catalogue at .*latest.json; check the address"):
        read_catalog(objects)
    publish(objects, 1)
    catalog = read_catalog(objects)
    assert catalog == written.catalog
    assert [part.n_rows for part in catalog.parts] == [300, 300, 100]
    stored = pa.Table.from_batches(iter_batches(objects, catalog), schema=arrow_schema())
    expected = sorted_rows(checked(table, lower=BOUNDS_NM[0], upper=BOUNDS_NM[1]))
    assert stored.to_pylist() == expected.to_pylist()
    assert next_version(objects) == 2
    # The same again is the same; other rows under the same number are refused.
    write_version(objects, table, SPEC, version=1, rows_per_part=300, rows_per_group=64)
    with pytest.raises(
        ConflictError, match="version 1 of the somas .* holds other rows: versions never change"
    ):
        write_version(objects, soma_table(5), SPEC, version=1)
    assert read_catalog(objects) == catalog


def test_one_can_go_back_to_an_older_version(local):
    for version in (1, 2):
        write_version(local, soma_table(10, seed=version), SPEC, version=version)
        publish(local, version)
    publish(local, 1)
    latest = read_latest(local)
    assert (latest.version, latest.versions) == (1, (1, 2))
    with pytest.raises(NotFoundError, match="there is no version 7 .* published versions: 1, 2"):
        publish(local, 7)


def test_an_empty_catalogue_is_one(local):
    write_version(local, soma_table(0), SPEC, version=1)
    publish(local, 1)
    assert read_catalog(local).n_somas == 0
    assert list(iter_batches(local, read_catalog(local))) == []


def test_batches_in_order_give_the_bytes_of_the_table(tmp_path):
    table = sorted_rows(checked(soma_table(500), lower=BOUNDS_NM[0], upper=BOUNDS_NM[1]))
    whole, piecewise = (open_objects(f"file://{tmp_path}/{name}") for name in "ab")
    one = write_version(whole, table, SPEC, version=1, rows_per_part=200)
    batches = table.to_batches(max_chunksize=37)
    many = write_version(piecewise, iter(batches), SPEC, version=1, rows_per_part=200)
    assert one.catalog.n_somas == many.catalog.n_somas == 500
    assert list(iter_batches(whole, one.catalog)) == list(iter_batches(piecewise, many.catalog))
    with pytest.raises(SpecError, match="must come sorted by .Morton code, soma id., but soma"):
        write_version(piecewise, reversed(batches), SPEC, version=2)


def _with(name: str, values: pa.Array) -> pa.Table:
    table = soma_table(3)
    at = table.column_names.index(name)
    return table.set_column(at, name, values)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (soma_table(3).drop_columns(["x_nm", "status"]), "soma rows lack the columns x_nm, status"),
        (soma_table(3).rename_columns({"x_nm": "x_mn"}), "unknown column 'x_mn'; did you mean x_nm"),
        (
            _with("soma_id", pa.array([1.0, 2.0, 3.0])),
            "'soma_id' must hold whole numbers of type uint64, got double",
        ),
        (_with("soma_id", pa.array([1, 2, 0])), "soma_id 0 is the background"),
        (_with("soma_id", pa.array([1, 2, 2])), "each soma must come once, but soma 2 comes twice"),
        (_with("soma_id", pa.array([1, 2, -2])), "'soma_id' must be of type uint64"),
        (_with("volume_um3", pa.array([1.0, float("nan"), 2.0])), "'volume_um3' holds NaN"),
        (
            _with("volume_um3", pa.array([1.0, None, 2.0])),
            "'volume_um3' must have a value in every row, 1 are null",
        ),
        (_with("x_nm", pa.array(["1", "2", "c"])), "'x_nm' must be of type float64"),
    ],
)
def test_rows_that_do_not_fit_are_refused(local, table, message):
    with pytest.raises(SpecError, match=message):
        write_version(local, table, SPEC, version=1)
    assert [key for key in local.list() if key.endswith("catalog.json")] == []


def test_damage_is_found(local):
    catalog = write_version(local, soma_table(10), SPEC, version=1).catalog
    local.put(catalog.parts[0].key, b"PAR1")
    with pytest.raises(CorruptDataError, match="does not have the SHA-256 that its catalog.json names"):
        list(iter_batches(local, catalog))
    local.put("v1/catalog.json", b"{}")
    with pytest.raises(VolumeFormatError, match="is no catalogue that this cloudseg reads"):
        read_catalog(local, 1)
    local.put("latest.json", b"[]")
    with pytest.raises(VolumeFormatError, match="latest.json is not what cloudseg writes there"):
        read_latest(local)


@given(st.lists(st.tuples(*[st.floats(-10, 110)] * 3), max_size=20))
def test_a_morton_code_interleaves_the_bits_of_the_cells(points):
    codes = morton_codes(np.array(points).reshape(-1, 3), lower=(0, 0, 0), upper=(100, 50, 25))
    for point, code in zip(points, codes.tolist(), strict=True):
        cells = [min(max(int(np.floor(v * (2**21 / 100))), 0), 2**21 - 1) for v in point]
        assert code == sum(((cells[a] >> bit) & 1) << (3 * bit + a) for bit in range(21) for a in range(3))


def test_morton_codes_need_points_and_an_extent():
    with pytest.raises(SpecError, match=r"points must be \(n, 3\)"):
        morton_codes(np.zeros((2, 2)), lower=(0, 0, 0), upper=(1, 1, 1))
    with pytest.raises(SpecError, match="bounds must have an extent above 0"):
        morton_codes(np.zeros((2, 3)), lower=(0, 0, 0), upper=(0, 0, 0))


def test_the_columns_are_forever():
    assert len(NAMES) == len(set(NAMES)) == 41
    assert arrow_schema().metadata == {b"cloudseg_somas_schema": b"1"}
    assert NAMES[:4] == ("soma_id", "x_nm", "y_nm", "z_nm")


def test_opinions_are_appended_and_the_latest_counts(objects):
    first = Opinion(soma_id=2**64 - 1, system="status", value="rejected", source="ann", time=NOW, score=0.25)
    later = Opinion(
        soma_id=2**64 - 1, system="status", value="verified", source="ben", time=NOW + timedelta(seconds=1)
    )
    kind = Opinion(soma_id=7, system="kind", value="glia", source="ben", time=NOW, version=1, target_id="9")
    keys = [append_opinions(objects, rows) for rows in ([later], [first, kind], [first, kind])]
    assert keys[1] == keys[2], "a repeated request is stored once"
    assert read_opinions(objects) == [first, kind, later]
    assert in_effect(read_opinions(objects)) == {(2**64 - 1, "status"): later, (7, "kind"): kind}


def test_opinions_that_are_none_are_refused(local):
    with pytest.raises(SpecError, match="no opinions to append"):
        append_opinions(local, [])
    with pytest.raises(ValueError, match="an id is a whole number or its decimal text"):
        Opinion(soma_id=1.0, system="status", value="x", source="a", time=NOW)
    local.put(f"opinions/{'0' * 20}-{'0' * 16}.json", b'{"rows": [{}]}')
    with pytest.raises(CorruptDataError, match="is no batch of reference rows: missing key 'soma_id'"):
        read_opinions(local)
