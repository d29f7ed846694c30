"""The report says what a count by hand says, needs nothing but itself, and says so where nothing is known."""

from __future__ import annotations

import io
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pyarrow import csv

from cloudseg.cli.main import cli
from cloudseg.errors import NotFoundError
from cloudseg.somas.report import gather, page, write_report
from cloudseg.somas.report.plots import bins_of
from cloudseg.somas.report.tables import tables
from cloudseg.somas.store import CatalogSpec, publish, write_version
from cloudseg.volumes import clear_memory, open_objects
from cloudseg.volumes.tables import put_table

BOUNDS = ((0.0, 0.0, 0.0), (100_000.0, 60_000.0, 40_000.0))
BIG = np.uint64(2**60)


def rows(n, *, seed=0, atlas=True, neurons=True):
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 1, (n, 3)) * BOUNDS[1]
    radius = rng.lognormal(1, 0.2, n)
    columns = {
        "soma_id": np.arange(1, n + 1, dtype=np.uint64) + BIG,
        "n_voxels": np.where(np.arange(n) % 10 == 3, 0, 1000).astype(np.uint64),
        "volume_um3": 4 / 3 * np.pi * radius**3,
        "radius_um": radius.astype(np.float32),
        "edge_faces": rng.choice(np.array([0, 0, 0, 1, 2, 48], np.uint8), n),
        "nearest_um": rng.uniform(1, 30, n).astype(np.float32),
        "status": pa.array(
            rng.choice(["auto", "verified", "rejected", "merged", "manual"], n).tolist(), pa.string()
        ),
    }
    for i, axis in enumerate("xyz"):
        for name in (f"{axis}_nm", f"anchor_{axis}_nm", f"bbox_min_{axis}_nm", f"bbox_max_{axis}_nm"):
            columns[name] = at[:, i]
    if atlas:
        columns["region"] = pa.array(rng.choice(["a <b>", "c", None], n).tolist(), pa.string())
        columns["side"] = pa.array(rng.choice(["left", "right", "center", None], n).tolist(), pa.string())
    if neurons:
        segment = rng.integers(0, max(n // 2, 1), n).astype(np.uint64)
        columns["segment_id"] = pa.array(segment + BIG, mask=segment == 0)
    return pa.table(columns)


def made(table, *, made_from=None, root="memory://root"):
    clear_memory()
    objects = open_objects(f"{root}/somas")
    spec = CatalogSpec(dataset="toy", voxel_size_nm=(64, 64, 40), bounds_nm=BOUNDS, made_from=made_from or {})
    catalog = write_version(objects, table, spec, version=1).catalog
    publish(objects, 1)
    return objects, catalog


NEURONS = {"segments": "memory://root/neurons", "atlas": "memory://atlas"}


def known_segments(n):
    ids = np.arange(1, n + 1, dtype=np.uint64) + BIG
    put_table(
        open_objects("memory://root/neurons"),
        "statistics/part-0000-of-0001.parquet",
        {"id": ids, "volume_um3": np.where(np.arange(n) % 2, 1e6, 1e-3)},
    )


def test_every_number_is_that_of_a_count_by_hand():
    table = rows(400)
    objects, catalog = made(table, made_from=NEURONS)
    known_segments(300)
    found = gather(objects, catalog, segments=open_objects("memory://root/neurons"))
    every = table.to_pylist()
    living = [row for row in every if row["status"] not in ("rejected", "merged")]
    measured = [row for row in living if row["n_voxels"]]
    whole = [row for row in measured if row["edge_faces"] == 0]
    assert found.by_status == Counter(row["status"] for row in every)
    assert (found.n_living, found.n_measured, found.n_whole) == (len(living), len(measured), len(whole))
    assert found.by_place == Counter((row["region"], row["side"]) for row in living)
    assert found.by_face == [sum(row["edge_faces"] >> bit & 1 for row in living) for bit in range(6)]
    by_name = {quantity.name: quantity for quantity in found.quantities}
    assert sorted(by_name) == ["nearest_um", "radius_um", "volume_um3"]
    volume = by_name["volume_um3"]
    np.testing.assert_allclose(
        np.sort(volume.values), np.sort([row["volume_um3"] for row in whole]), rtol=1e-6
    )
    assert volume.n_left_out == len(living) - len(whole)
    sure = [
        row["nearest_um"]
        for row in living
        if all(
            row["nearest_um"] * 1e3 <= min(row[f"{a}_nm"], high - row[f"{a}_nm"])
            for a, high in zip("xyz", BOUNDS[1], strict=True)
        )
    ]
    np.testing.assert_allclose(np.sort(by_name["nearest_um"].values), np.sort(np.float32(sure)))
    assert found.density.counts.sum() == len(living)
    assert found.density.projected(2).shape == found.density.counts.shape[:2]
    counts = Counter(row["segment_id"] for row in living)
    without = counts.pop(None, 0)
    segments = found.segments
    assert dict(zip(segments.ids.tolist(), segments.n_somas.tolist(), strict=True)) == counts
    assert segments.n_somas_outside == without
    large = [int(BIG) + i + 1 for i in range(300) if i % 2]
    assert (segments.n_segments, segments.n_large) == (300, 150)
    assert segments.n_large_without == sum(segment not in counts for segment in large)
    for segment, somas in zip(segments.ids.tolist(), segments.first_somas, strict=True):
        assert somas == sorted(row["soma_id"] for row in living if row["segment_id"] == segment)[:3]


class Page(HTMLParser):
    """Collects the text, and whatever would be fetched or run."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.fetched, self.open_tags = [], Counter(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.fetched += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]
        if tag != "meta":
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_stands_alone_and_its_links_are_the_tables_beside_it():
    objects, catalog = made(rows(300), made_from=NEURONS)
    known_segments(20)
    numbers = gather(objects, catalog, segments=open_objects("memory://root/neurons"))
    folder = open_objects("memory://out")
    names = write_report(numbers, folder)
    assert sorted(folder.list()) == sorted(names)
    text = folder.get("index.html").decode()
    found = Page(text)
    assert not found.open_tags
    assert found.tags["script"] == found.tags["img"] == found.tags["link"] == 0
    assert set(found.fetched) <= set(names)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "a <b>" in found.texts  # escaped, not a tag
    words = " ".join(found.texts)
    assert f"n = {numbers.n_living:,} somas" in words
    assert len(re.findall(r"median \d", words)) == len([q for q in numbers.quantities if len(q.values)])
    assert "prefers-color-scheme: dark" in text
    for name, table in tables(numbers).items():
        stored = pq.read_table(io.BytesIO(folder.get(f"{name}.parquet")))
        assert stored.equals(table)
        read = csv.read_csv(io.BytesIO(folder.get(f"{name}.csv")))
        assert (read.num_rows, read.column_names) == (table.num_rows, table.column_names)
    assert pc.sum(tables(numbers)["counts"]["n_somas"]).as_py() == numbers.n_living
    assert pc.sum(tables(numbers)["density"]["n_somas"]).as_py() == numbers.n_living
    bars = tables(numbers)["distributions"].group_by("quantity").aggregate([("n_somas", "sum")]).to_pylist()
    assert {row["quantity"]: row["n_somas_sum"] for row in bars} == {
        q.name: len(q.values) for q in numbers.quantities
    }


@pytest.mark.parametrize("n", [0, 1, 2])
def test_what_is_not_known_is_said_and_not_drawn(n):
    objects, catalog = made(rows(n, atlas=False, neurons=False).slice(0, n))
    text = page(gather(objects, catalog))
    assert "made without an atlas" in text
    assert "No neurons were given" in text
    assert ("There are no somas to map" in text) == (n == 0)
    assert not Page(text).open_tags


def test_segments_that_nobody_has_counted_are_not_said_to_have_no_soma():
    objects, catalog = made(rows(50), made_from=NEURONS)
    found = gather(objects, catalog, segments=open_objects("memory://root/neurons"))
    assert found.segments.n_segments is None
    text = page(found)
    assert "How many segments have none is not known" in text
    assert "<td>0</td>" not in text


def test_the_report_is_a_function_of_the_catalogue():
    objects, catalog = made(rows(80), made_from=NEURONS)
    assert page(gather(objects, catalog)) == page(gather(objects, catalog))


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [0.0, 0.0],
        [1, 2, 3, 4, 5],
        np.random.default_rng(0).lognormal(0, 2, 500),
        [-1.0, 1.0],
        [1e-9, 1e9],
    ],
)
def test_every_value_is_in_a_bin(values):
    bins = bins_of(np.asarray(values))
    assert bins.counts.sum() == len(values)
    assert (np.diff(bins.edges) > 0).all()
    assert len(bins.edges) == len(bins.counts) + 1


def test_the_command_writes_into_the_version_and_says_where_a_catalogue_is_missing(tmp_path):
    objects, _ = made(rows(20))
    catalogue = open_objects(tmp_path / "run" / "somas")
    for key in objects.list():
        catalogue.put(key, objects.get(key))
    for root in (tmp_path / "run", tmp_path / "run" / "somas"):
        result = CliRunner().invoke(cli, ["somas", "report", str(root)], catch_exceptions=False)
        assert result.exit_code == 0
        assert result.stdout.strip().endswith("/run/somas/v1/report/index.html")
    assert (tmp_path / "run" / "somas" / "v1" / "report" / "segments.parquet").exists()
    result = CliRunner().invoke(
        cli,
        ["somas", "report", str(tmp_path / "run"), "--output", str(tmp_path / "out")],
        catch_exceptions=False,
    )
    assert (tmp_path / "out" / "index.html").exists()
    with pytest.raises(NotFoundError, match="there is no soma catalogue at .*elsewhere nor at"):
        CliRunner().invoke(cli, ["somas", "report", str(tmp_path / "elsewhere")], catch_exceptions=False)
