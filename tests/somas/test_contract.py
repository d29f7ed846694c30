"""Every way to ask gives the answers of loops over the rows: boxes, filters, ties, empty lists, ids near 2^64."""

from __future__ import annotations

import os

import brute
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_catalogues import write

from cloudseg.somas.store import read_latest
from cloudseg.testing.somas import BOUNDS_NM, REGIONS, SPEC, soma_table

# The gate tries few, for there are many ways to ask; `make test-all` searches.
_SEARCH = os.environ.get("HYPOTHESIS_PROFILE") == "search"
MANY = settings(
    max_examples=100 if _SEARCH else 15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(MANY, max_examples=30 if _SEARCH else 6)

lengths = st.sampled_from([-10_000.0, 0.0, 10_000.0, 120_000.0, 4e5]) | st.floats(-1e5, 9e5)
points = st.tuples(lengths, lengths, lengths)


@st.composite
def boxes(draw):
    a, b = draw(points), draw(points)
    return [[min(p) for p in zip(a, b, strict=True)], [max(p) for p in zip(a, b, strict=True)]]


ids = st.integers(0, 1000) | st.integers(2**64 - 1000, 2**64 - 1)
whole = st.integers(-2, 70_000) | st.just(2**70)
numbers = st.sampled_from([0.0, 60.0, 90.0, 2.5]) | st.floats(-1, 400)
texts = st.sampled_from([*REGIONS, "left", "right", "", "' OR 1=1 --", "é\U0001f600"])
VALUES = {
    "soma_id": ids,
    "segment_id": ids,
    "volume_um3": numbers,
    "sphericity": numbers,
    "radius_um": numbers,
    "edge_faces": whole,
    "n_blocks": whole,
    "x_nm": lengths,
    "region": texts,
    "side": texts,
    "status": st.sampled_from(["auto", "rejected", "merged"]),
}


@st.composite
def conditions(draw):
    where = {}
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=3, unique=True)):
        ops = ["==", "!=", "in", "not_in", "is_null"]
        if name not in ("region", "side", "status"):
            ops += ["<", "<=", ">", ">="]
        where[name] = {}
        for op in draw(st.lists(st.sampled_from(ops), min_size=1, max_size=2, unique=True)):
            if op == "is_null":
                where[name][op] = draw(st.booleans())
            elif op in ("in", "not_in"):
                where[name][op] = draw(st.lists(VALUES[name], max_size=5))
            else:
                where[name][op] = draw(VALUES[name])
    return where


selections = st.fixed_dictionaries(
    {},
    optional={
        "where": conditions(),
        "bbox": boxes(),
        "predicate": st.sampled_from(["centroid", "intersects"]),
        "tombstones": st.booleans(),
    },
)


@pytest.fixture(scope="module")
def rows(table):
    return brute.stored_rows(table)


def test_the_made_up_rows_hold_what_the_contract_is_about(rows):
    assert any(r["soma_id"] > 2**63 for r in rows)
    assert any(r["segment_id"] is None for r in rows)
    assert any(r["status"] == "rejected" for r in rows)
    assert len({r["volume_um3"] for r in rows}) < len(rows) / 1.5
    assert len({(r["x_nm"], r["y_nm"], r["z_nm"]) for r in rows}) < len(rows)


@MANY
@given(
    selection=selections,
    order=st.sampled_from(
        ["soma_id", "-soma_id", "volume_um3", "-volume_um3", "region", "-region", "-sphericity", "segment_id"]
    ),
    limit=st.none() | st.integers(0, 30),
)
def test_rows(somas, rows, selection, order, limit):
    found = somas.query_arrow(order=order, limit=limit, **selection)
    chosen = brute.chosen(rows, **selection)
    assert found.to_pylist() == brute.ordered(chosen, order, limit)
    facts = somas.query(order=order, limit=limit, columns=["soma_id"], **selection).attrs
    assert facts["total"] == len(chosen)
    assert facts["truncated"] is (limit is not None and limit < len(chosen))


@pytest.mark.parametrize("predicate", ["centroid", "intersects"])
def test_a_box_is_half_open_on_every_side(somas, rows, predicate):
    row = brute.chosen(rows)[3]
    at = [row[f"{axis}_nm"] for axis in "xyz"]
    sizes = []
    for axis in range(3):
        for side in (-1, 1):
            other = [v + 2e4 for v in at]
            low = [v - 2e4 for v in at]
            low[axis], other[axis] = (at[axis], at[axis] + 2e4) if side > 0 else (at[axis] - 2e4, at[axis])
            expected = sorted(
                r["soma_id"] for r in brute.chosen(rows, bbox=[low, other], predicate=predicate)
            )
            assert somas.query(bbox=[low, other], predicate=predicate)["soma_id"].tolist() == expected
            sizes.append(row["soma_id"] in expected)
    assert sizes == ([False, True] * 3 if predicate == "centroid" else [True] * 6)
    assert len(somas.query(bbox=[at, at], predicate=predicate)) == 0, (
        "an empty box holds and overlaps nothing"
    )


@FEW
@given(
    selection=selections,
    by=st.lists(st.sampled_from(["region", "side", "status", "n_blocks"]), max_size=2, unique=True),
)
def test_counts(somas, rows, selection, by):
    chosen = brute.chosen(rows, **selection)
    assert somas.count(**selection) == len(chosen)
    if by:
        frame = somas.count(by=by, **selection)
        found = {tuple(None if v != v or v is None else v for v in row[:-1]): row[-1]
                 for row in frame.astype(object).where(frame.notna(), None).itertuples(index=False)}  # fmt: skip
        assert found == brute.counted(chosen, by)
        keys = [tuple((v is None, v) for v in key) for key in found]
        assert keys == sorted(keys, key=lambda key: [(none, "" if none else v) for none, v in key])


@FEW
@given(
    selection=selections,
    name=st.sampled_from(["volume_um3", "radius_um", "sphericity", "edge_faces", "x_nm"]),
)
def test_statistics(somas, rows, selection, name):
    chosen = brute.chosen(rows, **selection)
    (found,) = somas.stats(name, **selection).itertuples(index=False)
    expected = brute.statistics(chosen, name)
    np.testing.assert_allclose(
        np.array(found, float), np.array([np.nan if v is None else v for v in expected]), rtol=1e-9, atol=1e-9
    )


def test_statistics_by_groups(somas, rows):
    frame = somas.stats("volume_um3", by=["side"])
    assert frame["side"].tolist()[:3] == ["center", "left", "right"]
    for row in frame.itertuples(index=False):
        group = [r for r in brute.chosen(rows) if r["side"] == (None if row.side != row.side else row.side)]
        np.testing.assert_allclose(np.array(row[1:], float), brute.statistics(group, "volume_um3"), rtol=1e-9)


@FEW
@given(
    selection=selections,
    name=st.sampled_from(["volume_um3", "radius_um", "sphericity", "edge_faces"]),
    bins=st.integers(1, 40),
    ends=st.none() | st.sampled_from([(0.0, 100.0), (60.0, 60.0), (1.0, 3.0)]),
)
def test_histograms(somas, rows, selection, name, bins, ends):
    values = [r[name] for r in brute.chosen(rows, **selection)]
    some = np.array([v for v in values if v is not None], np.float64)
    found = somas.histogram(name, bins=bins, range=ends, **selection)
    counts, edges = np.histogram(some, bins, range=ends)
    np.testing.assert_array_equal(found["n"], counts)
    np.testing.assert_allclose(
        [*found["low"].tolist(), found["high"].iloc[-1]], edges, rtol=1e-12, atol=1e-12
    )
    assert found.attrs["n_null"] == values.count(None)
    assert found["n"].sum() + found.attrs["n_null"] + found.attrs["n_below"] + found.attrs["n_above"] == len(
        values
    )


@MANY
@given(
    selection=selections,
    asked=st.lists(points, max_size=4),
    k=st.integers(1, 12) | st.just(2000),
    within=st.none() | st.sampled_from([0.0, 10.0, 50.0, 500.0]),
)
def test_neighbours(somas, rows, selection, asked, k, within):
    selection = {key: value for key, value in selection.items() if key in ("where", "tombstones")}
    found = somas.nearest(asked, k, max_distance_um=within, columns=["soma_id", "volume_um3"], **selection)
    chosen = brute.chosen(rows, **selection)
    reach = np.inf if within is None else within * 1000
    expected = [(n, d, i) for n, p in enumerate(asked) for d, i in brute.neighbours(chosen, p, k, reach)]
    assert list(zip(found["query_index"], found["distance_nm"], found["soma_id"], strict=True)) == expected
    volume = {r["soma_id"]: r["volume_um3"] for r in rows}
    assert found["volume_um3"].tolist() == [volume[i] for _, _, i in expected]


@FEW
@given(asked=st.lists(ids, max_size=8), tombstones=st.booleans())
def test_somas_of_segments(somas, rows, asked, tombstones):
    real = [r["segment_id"] for r in rows if r["segment_id"] is not None][: len(asked)]
    asked = [*asked, *real]
    found = somas.of_segments(asked, columns=["soma_id", "region"], tombstones=tombstones)
    chosen = brute.chosen(rows, tombstones=tombstones)
    expected = []
    for segment in dict.fromkeys(asked):
        mine = sorted(r["soma_id"] for r in chosen if r["segment_id"] == segment)
        expected += [(segment, i) for i in mine] or [(segment, None)]
    pairs = zip(
        found["segment_id"],
        found["soma_id"].astype(object).where(found["soma_id"].notna(), None),
        strict=True,
    )
    assert [tuple(pair) for pair in pairs] == expected


@pytest.mark.parametrize("comparison", [">1", "==1", ">=3", "2", "!=1", 1])
def test_segments_with_a_number_of_somas(somas, rows, comparison):
    groups = brute.counted([r for r in brute.chosen(rows) if r["segment_id"] is not None], ["segment_id"])
    text = str(comparison)
    op = text.rstrip("0123456789") or "=="
    number = int(text.removeprefix(op))
    compare = brute.COMPARE[op]
    among = [key[0] for key in groups] + [123456789, 2**64 - 5_000_000]
    for given_ids in (None, among):
        if given_ids is None and compare(0, number):
            continue
        found = somas.segments_with(comparison, among=given_ids)
        known = groups if given_ids is None else groups | {(i,): 0 for i in among if (i,) not in groups}
        expected = sorted((key[0], n) for key, n in known.items() if compare(n, number))
        assert list(zip(found["segment_id"], found["n_somas"], strict=True)) == expected
        assert expected


def test_somas_by_id(somas, rows):
    wanted = [rows[5]["soma_id"], rows[7]["soma_id"], 999_999_999]
    expected = brute.ordered([r for r in rows if r["soma_id"] in wanted], "soma_id", None)
    assert somas.get(wanted)["volume_um3"].tolist() == [r["volume_um3"] for r in expected]
    assert somas.get(np.array(wanted, np.uint64))["soma_id"].tolist() == [r["soma_id"] for r in expected]
    assert somas.get(rows[5]["soma_id"]).shape == (1, 41)


def test_nothing_asked_is_nothing_found_and_of_the_same_types(somas):
    everything = somas.query()
    for empty in (
        somas.get([]),
        somas.query({"soma_id": []}),
        somas.query({"region": {"in": []}}),
        somas.query(limit=0),
    ):
        assert len(empty) == 0
        assert (empty.dtypes == everything.dtypes).all()
    assert len(somas.of_segments([])) == len(somas.segments_with(among=[])) == len(somas.nearest([])) == 0
    assert str(everything["soma_id"].dtype) == "uint64"
    assert str(everything["segment_id"].dtype) == "UInt64"
    assert everything["soma_id"].max() > 2**63


@pytest.mark.parametrize(
    ("units", "suffix", "scale"), [("um", "um", [1000] * 3), ("voxel", "vx", SPEC.voxel_size_nm)]
)
def test_one_word_sets_the_units_of_what_goes_in_and_comes_out(somas, rows, units, suffix, scale):
    box = np.array([[0, 0, 0], [400_000, 400_000, 200_000]], float)
    expected = brute.ordered(brute.chosen(rows, bbox=box.tolist()), "soma_id", None)
    found = somas.query(bbox=(box / scale).tolist(), units=units)
    assert found["soma_id"].tolist() == [r["soma_id"] for r in expected]
    assert not [name for name in found if name.endswith("_nm")]
    for axis, name in enumerate("xyz"):
        assert found[f"{name}_{suffix}"].tolist() == [r[f"{name}_nm"] / scale[axis] for r in expected]
    point = (np.array([100_000, 200_000, 50_000]) / scale).tolist()
    near = somas.nearest(point, 3, units=units, columns=["soma_id", "x_nm"])
    assert near.columns.tolist() == [
        "query_index",
        "distance_um" if units == "um" else "distance_nm",
        "soma_id",
        f"x_{suffix}",
    ]
    assert near["soma_id"].tolist() == somas.nearest([100_000, 200_000, 50_000], 3)["soma_id"].tolist()
    mean = somas.stats("z_nm", units=units)["mean"][0]
    np.testing.assert_allclose(mean * scale[2], somas.stats("z_nm")["mean"][0])
    histogram = somas.histogram("z_nm", units=units)
    np.testing.assert_array_equal(histogram["n"], somas.histogram("z_nm")["n"])
    assert histogram.attrs["column"] == f"z_{suffix}"


def test_batches_are_the_rows(somas):
    batches = list(somas.query_batches({"side": "left"}, columns=["soma_id", "region"], order="-region"))
    whole = somas.query_arrow({"side": "left"}, columns=["soma_id", "region"], order="-region")
    assert [row for batch in batches for row in batch.to_pylist()] == whole.to_pylist()
    assert whole.num_rows > 100


@pytest.mark.parametrize("order", ["soma_id", "-volume_um3", "-region", "segment_id"])
def test_an_answer_stays_with_its_version_though_another_is_published_meanwhile(ask_in, tmp_path, order):
    name = f"switched.{order}"  # all share one database
    first = soma_table(700, seed=11)
    objects = write(str(tmp_path), first, dataset=name)
    expected = brute.ordered(brute.chosen(brute.stored_rows(first)), order, None)
    with ask_in(str(tmp_path)) as somas:
        batches = somas.query_batches(order=order)
        found = next(batches).to_pylist()
        write(str(tmp_path), soma_table(40, seed=12), version=2, dataset=name)
        assert read_latest(objects).version == 2
        later = [row for batch in batches for row in batch.to_pylist()]
        if somas.info()["address"].startswith("http"):
            assert len(later) > len(found), "it came in pieces"
        assert found + later == expected
        assert somas.query_arrow(order=order).to_pylist() == expected
        assert (somas.version, somas.count()) == (1, len(expected))


def test_an_answer_says_what_it_is(somas):
    facts = somas.query({"side": "left"}, bbox=BOUNDS_NM, limit=3).attrs
    assert {"dataset": "made-up", "version": 1, "units": "nm", "truncated": True}.items() <= facts.items()
    assert facts["query"]["where"] == {"side": {"==": "left"}}
    assert facts["total"] > 100
    assert facts["time"].endswith("Z")
    assert somas.info()["n_somas"] == 900
    assert somas.versions() == [1]
    assert somas.columns()["name"].tolist() == somas.query(limit=0).columns.tolist()
