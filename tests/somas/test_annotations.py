"""Annotations of somas: every soma in exactly one level, the same bytes from any number of parts, read by everybody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_catalogues import write

from cloudseg.errors import ConflictError, NotFoundError, SpecError, VolumeFormatError
from cloudseg.ops.annotations import cells_of, ellipsoid_radii, levels_of, rank, record_dtype
from cloudseg.ops.shard_files import Sharding, build_shard
from cloudseg.somas.annotations import (
    SHAPES,
    annotations_key,
    has_annotations,
    plan_annotations,
    publish_annotations,
    read_ranges,
    write_annotations,
    write_part,
)
from cloudseg.somas.store import read_catalog
from cloudseg.testing.somas import soma_table
from cloudseg.volumes import open_objects
from cloudseg.volumes.annotations import Annotations
from cloudseg.volumes.numbered import NumberedObjects

LIMIT = 120


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory, table):
    """A catalogue with annotations, of a few to a cell; and its folder."""
    uri = f"file://{tmp_path_factory.mktemp('annotated')}/run/somas"
    objects = write(uri, table)
    write_annotations(objects, read_catalog(objects), limit=LIMIT)
    return uri, objects


@pytest.fixture(scope="module")
def living(table):
    """The somas that are shown, by id."""
    rows = [row for row in table.to_pylist() if row["status"] not in ("rejected", "merged")]
    return {row["soma_id"]: row for row in rows}


def folder(uri, shape):
    return f"{uri}/{annotations_key(1, shape)}"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_living_soma_is_in_exactly_one_level(catalogue, living, shape):
    annotations = Annotations(folder(catalogue[0], shape))
    levels = annotations.info["spatial"]
    assert len(levels) > 2
    seen = []
    for number, level in enumerate(levels):
        mine, fullest = set(), 0
        size = np.asarray(level["chunk_size"])
        assert (size * level["grid_shape"] + annotations.info["lower_bound"]).tolist() == annotations.info[
            "upper_bound"
        ]
        for place in np.ndindex(*level["grid_shape"]):
            ids, records = annotations.cell(number, place)
            low = np.asarray(annotations.info["lower_bound"]) + size * place
            centre, radii = records["geometry"][:, :3], records["geometry"][:, 3:]
            reach = radii if radii.size else 0
            # A 32-bit nm is rounded; a cell's own edge is not.
            assert (centre + reach >= low - 1).all(), place
            assert (centre - reach <= low + size + 1).all(), place
            mine |= set(ids.tolist())
            fullest = max(fullest, len(ids))
        assert fullest == level["limit"]
        assert fullest <= LIMIT or number == len(levels) - 1
        seen.append(mine)
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(living)
    assert set().union(*seen) == set(living)
    assert set(annotations.all()[0].tolist()) == set(living)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_stored_by_id_is_what_the_table_says(catalogue, living, shape):
    annotations = Annotations(folder(catalogue[0], shape))
    for number, row in list(living.items())[::7]:
        record, related = annotations.by_id(number)
        prefix = "anchor_" if shape == "points" else ""
        expected = np.array([row[f"{prefix}{axis}_nm"] for axis in "xyz"], np.float32)
        np.testing.assert_array_equal(record["geometry"][:3], expected)
        for name in ("volume_um3", "radius_um", "score", "nearest_um"):
            np.testing.assert_array_equal(
                record[name], np.float32("nan") if row.get(name) is None else np.float32(row[name])
            )
        assert record["n_segments"] == (row.get("n_segments") or 0)
        labels = {
            each["id"]: each["enum_labels"]
            for each in annotations.info["properties"]
            if "enum_labels" in each
        }
        assert labels["side"][record["side"]] == (row["side"] or "unknown")
        assert labels["status"][record["status"]] == row["status"]
        assert related == {"segment": (row["segment_id"],) if row["segment_id"] else (), "soma": (number,)}
    with pytest.raises(NotFoundError, match="no annotation 12345"):
        annotations.by_id(12345)


def test_the_ranges_are_those_of_the_somas_that_are_shown(catalogue, living):
    volumes = [np.float32(row["volume_um3"]) for row in living.values()]
    assert read_ranges(catalogue[1], 1)["volume_um3"] == (min(volumes), max(volumes))
    assert "nearest_um" not in read_ranges(catalogue[1], 1), "no soma of this table has one"


def test_the_somas_of_a_segment_are_listed_under_it(catalogue, living):
    annotations = Annotations(folder(catalogue[0], "points"))
    of_segment: dict[int, set[int]] = {}
    for number, row in living.items():
        of_segment.setdefault(row["segment_id"] or 0, set()).add(number)
    assert of_segment.pop(0), "some somas have no segment"
    assert max(map(len, of_segment.values())) > 1
    for segment, somas in of_segment.items():
        assert set(annotations.related("segment", segment)[0].tolist()) == somas
    assert len(annotations.related("segment", 0)[0]) == 0


def test_any_number_of_parts_writes_the_same_bytes(catalogue, table):
    whole, n_parts = catalogue[1], 7
    objects = write("memory://parts/somas", table)
    catalog = read_catalog(objects)
    plan = plan_annotations(objects, catalog, limit=LIMIT, shard_bytes=16_000)
    again = plan_annotations(whole, read_catalog(whole), limit=LIMIT, shard_bytes=16_000)
    assert plan == again
    written = [write_part(objects, catalog, plan, part=part, n_parts=n_parts) for part in range(n_parts)]
    assert not has_annotations(objects, 1), "the info comes last"
    publish_annotations(objects, plan)
    assert has_annotations(objects, 1)
    keys = list(objects.list("v1/annotations/"))
    assert len(keys) == sum(written) + 3
    assert sum(written) > 20, "small shards, so that the parts have something to share"
    first = {key: objects.get(key) for key in keys}
    for key in keys:
        objects.delete(key)
    write_part(objects, catalog, plan)
    publish_annotations(objects, plan)
    assert {key: objects.get(key) for key in objects.list("v1/annotations/")} == first
    with pytest.raises(ConflictError, match="versions never change"):
        publish_annotations(objects, plan_annotations(objects, catalog, limit=LIMIT + 1))


def test_neuroglancers_own_reader_agrees(catalogue, living):
    from neuroglancer.read_precomputed_annotations import AnnotationReader

    points = AnnotationReader(folder(catalogue[0], "points"))
    assert sorted(int(each.id) for each in points.get_within_spatial_bounds()) == sorted(living)
    ellipsoids = AnnotationReader(folder(catalogue[0], "ellipsoids"))
    for number, row in list(living.items())[::50]:
        assert list(points.by_id[number].segments[0]) == ([row["segment_id"]] if row["segment_id"] else [])
        assert [int(each.id) for each in points.relationships["soma"][number]] == [number]
        np.testing.assert_allclose(
            ellipsoids.by_id[number].center, [row[f"{axis}_nm"] for axis in "xyz"], rtol=1e-6
        )


def test_cloud_volume_agrees_where_it_can_read(catalogue, living):
    # It reads points; of ellipsoids it decodes none, of several levels it reads one at a time.
    from cloudvolume.datasource.precomputed.annotation import PrecomputedAnnotationSource

    source = PrecomputedAnnotationSource(f"precomputed://{folder(catalogue[0], 'points')}")
    n_levels = len(source.reader.meta.info["spatial"])
    found = np.concatenate([source.get_all(mip=level).ids for level in range(n_levels)])
    assert sorted(found.tolist()) == sorted(living)
    number, row = next((n, r) for n, r in living.items() if r["segment_id"])
    assert source.get_by_id([number])[number].properties["volume_um3"][0] == np.float32(row["volume_um3"])
    assert number in source.get_by_relationship("segment", row["segment_id"]).ids


def test_a_catalogue_without_somas_has_annotations_too(tmp_path):
    objects = write(f"file://{tmp_path}/somas", soma_table(5, seed=1).slice(0, 0))
    plan = write_annotations(objects, read_catalog(objects))
    assert plan.n_somas == 0
    assert len(Annotations(f"{tmp_path}/somas/v1/annotations/points").all()[0]) == 0


def test_what_is_no_folder_of_annotations_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="no info file"):
        Annotations(tmp_path)
    open_objects(tmp_path).put("info", b'{"annotation_type": "LINE", "properties": []}')
    with pytest.raises(VolumeFormatError, match="points or ellipsoids"):
        Annotations(tmp_path)


# ------------------------------------------------------------------------------------------ pure parts

coordinates = st.integers(0, 63).map(float)


@given(
    points=st.lists(st.tuples(coordinates, coordinates, coordinates), max_size=80),
    reach=st.integers(0, 9),
    limit=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_a_level_takes_the_largest_even_share_that_fits(points, reach, limit, seed):
    ids = np.random.default_rng(seed).permutation(1000)[: len(points)].astype(np.uint64)
    at = np.array(points, float).reshape(-1, 3)
    boxes = np.stack([at - reach, at + reach], axis=1)
    lower, upper = np.full(3, -10.0), np.array([74.0, 74.0, 158.0])
    levels = levels_of(ids, boxes, lower=lower, upper=upper, limit=limit)
    assert [level.grid for level in levels[:3]] == [(1, 1, 1), (1, 1, 2), (2, 2, 4)][: len(levels)]
    todo = sorted(range(len(ids)), key=lambda i: rank(ids)[i])
    for level in levels:
        cells: dict[tuple[int, ...], int] = {}
        edge = (upper - lower) / level.grid
        mine = [i for i in todo if level.from_rank <= int(rank(ids)[i]) <= level.to_rank]
        assert mine == todo[: len(mine)], "those of lowest rank, wherever they lie"
        for extra, i in enumerate([*mine, *todo[len(mine) :][:1]]):
            low, high = ((boxes[i] - lower) // edge).astype(int)
            before = dict(cells)
            for place in np.ndindex(*(high - low + 1)):
                cell = tuple(low + place)
                cells[cell] = cells.get(cell, 0) + 1
            if extra == len(mine):  # one more, and a cell would be too full
                assert max(cells.values()) > limit
                cells = before
        assert max(cells.values(), default=0) == level.most
        assert sum(cells.values()) == level.n_listed
        assert level.most <= limit or level is levels[-1]
        todo = todo[len(mine) :]
    assert not todo


@given(st.integers(1, 40), st.sampled_from([(1, 1, 1), (2, 4, 1), (8, 2, 4)]), st.integers(0, 99))
def test_cells_are_those_that_a_box_touches(n, grid, seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 16, (n, 3))
    boxes = np.stack([low, low + rng.uniform(0, 6, (n, 3))], axis=1)
    lower, upper = np.zeros(3), np.full(3, 24.0)
    rows, cells = cells_of(boxes, grid=grid, lower=lower, upper=upper)
    found = set(zip(rows.tolist(), cells.tolist(), strict=True))
    assert len(found) == len(rows)
    expected = set()
    for row in range(n):
        for place in np.ndindex(*grid):
            edge = upper / grid
            if (boxes[row, 1] >= place * edge).all() and (boxes[row, 0] < (place + np.ones(3)) * edge).all():
                code, out = 0, 0
                for bit in range(3):
                    for axis in range(3):
                        if grid[axis] > 1 << bit:
                            code |= (place[axis] >> bit & 1) << out
                            out += 1
                expected.add((row, code))
    assert found == expected


@settings(max_examples=25)
@given(
    st.sampled_from(["identity", "murmurhash3_x86_128"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 99),
)
def test_tensorstore_reads_the_shards(tmp_path_factory, hash_, preshift, minishard, shard, compressed, seed):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(seed)
    keys = np.unique(rng.integers(0, 2**64 if hash_ != "identity" else 200, 60, dtype=np.uint64))
    values = {int(key): rng.bytes(int(rng.integers(1, 30))) for key in keys}
    sharding = Sharding(hash_, preshift, minishard, shard, compressed)
    owner = sharding.shards(keys)
    for number in range(sharding.n_shards):
        mine = keys[owner == number]
        if len(mine):
            data = build_shard(mine[::-1], [values[int(k)] for k in mine[::-1]], sharding)
            assert data == build_shard(mine, [values[int(k)] for k in mine], sharding)
            (folder / sharding.name(number)).write_bytes(data)
    read = NumberedObjects(f"file://{folder}", sharding.document)
    assert dict(zip(values, read.get_all(values), strict=True)) == values
    absent = next(n for n in range(1000) if n not in values)
    assert read.get(absent) is None


def test_a_key_that_comes_twice_is_refused():
    with pytest.raises(SpecError, match="3 values and 3 keys, of which 2 differ"):
        build_shard(np.array([1, 1, 2], np.uint64), [b"a"] * 3, Sharding("identity", 0, 0, 0, False))


def test_an_upright_ellipsoid_keeps_its_volume():
    axes = np.array([[4.0, 2, 2], [4, 2, 2], [3, 2, 1]])
    along = np.array([[0.0, 1, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]])
    found = ellipsoid_radii(axes, along)
    np.testing.assert_allclose(found.prod(axis=1), axes.prod(axis=1))
    np.testing.assert_allclose(found[0], [2, 4, 2])
    assert found[1, 1] > found[1, 0] > found[1, 2]
    assert found[2, 2] > found[2, 1] > found[2, 0]


def test_records_that_readers_would_misread_are_refused():
    with pytest.raises(SpecError, match="order of their sizes"):
        record_dtype({"a": "uint8", "b": "float32"}, n_coordinates=3)
    with pytest.raises(SpecError, match="264 bytes"):
        record_dtype({f"p{i}": "float32" for i in range(63)}, n_coordinates=3)
    assert record_dtype({"a": "float32", "b": "uint8"}, n_coordinates=3).itemsize == 20
