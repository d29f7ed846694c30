"""The client's own matters: refusals, versions that stay, caches of buckets, links, and what an import costs."""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.parse import unquote

import numpy as np
import pytest
from made_catalogues import scanned, write

import cloudseg
from cloudseg import NotFoundError, QueryError, Somas, SpecError
from cloudseg.client.viewer import link_with_somas
from cloudseg.testing.somas import soma_table


@pytest.fixture(scope="module")
def somas(folder):
    with Somas(folder) as found:
        yield found


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.query({"volum_um3": 3}), "where: there is no column 'volum_um3'; did you mean volume_um3"),
        (lambda s: s.query({"x; DROP TABLE somas": 1}), "there is no column 'x; DROP TABLE somas'; there are: soma_id"),
        (lambda s: s.query({"volume_um3": {"=>": 3}}), "where.volume_um3: there is no operator '=>'; did you mean"),
        (lambda s: s.query({"volume_um3": {"gte": 3}}), "there is no operator 'gte'; did you mean >="),
        (lambda s: s.query({"volume_um3": {}}), "where.volume_um3: no operator given; there are =="),
        (lambda s: s.query({"volume_um3": "3"}), "where.volume_um3.==: volume_um3 is a number, got '3'"),
        (lambda s: s.query({"volume_um3": float("nan")}), "expected a finite number, got nan"),
        (lambda s: s.query({"volume_um3": {">": [3]}}), "expected one value, got a list; for lists there are in"),
        (lambda s: s.query({"region": {"<": "M"}}), "'<' compares numbers, and region is text"),
        (lambda s: s.query({"region": 3}), "region is text, got 3"),
        (lambda s: s.query({"region": "a\0b"}), "at most 1000 characters, no NUL, and is valid Unicode"),
        (lambda s: s.query({"region": "\ud800"}), "and is valid Unicode"),
        (lambda s: s.query({"segment_id": 1.0}), "expected a whole number, got 1.0; a float cannot hold every id"),
        (lambda s: s.query({"segment_id": None}), 'null is no value; to ask for rows .* {"is_null": true}'),
        (lambda s: s.query({"segment_id": {"is_null": 1}}), "where.segment_id.is_null: expected true or false, got 1"),
        (lambda s: s.query({"segment_id": {"in": 5}}), "where.segment_id.in: expected a list of values, got 5"),
        (lambda s: s.query({"edge_faces": 1.5}), "expected a whole number, got 1.5"),
        (lambda s: s.query({"edge_faces": True}), "expected a whole number, got True"),
        (lambda s: s.query([1]), r"where: expected a mapping from columns to conditions.*got \[1\]"),
        (lambda s: s.query(bbox=[[0, 0, 5], [1, 1, 4]]), "bbox: the box is upside down along z: 5.0 is above 4.0 nm"),
        (lambda s: s.query(bbox=[[0, 0], [1, 1]]), "bbox.0.2: Field required|missing key .bbox.0.2."),
        (lambda s: s.query(bbox=[[0, 0, 0], [1, 1, float("inf")]]), "bbox.1.2: .*finite"),
        (lambda s: s.query(columns="soma_id", order="-nothing"), "order: there is no column 'nothing'"),
        (lambda s: s.query(columns=["soma_id", "soma_id"]), "columns: 'soma_id' is named twice"),
        (lambda s: s.query(columns=[]), "columns: none is named; leave it out for all"),
        (lambda s: s.query(units="pm"), "units: Input should be 'nm', 'um' or 'voxel'"),
        (lambda s: s.query(limit=-1), "limit: Input should be greater than or equal to 0"),
        (lambda s: s.query_arrow(limt=1), "query has no argument 'limt'; did you mean limit"),
        (lambda s: s.count(box=1), "there is no argument 'box'; did you mean bbox"),
        (lambda s: s.get([-1]), r"ids: an id is a whole number from 0 to 2\^64 - 1, got -1"),
        (lambda s: s.get([1.5]), "ids: expected a whole number, got 1.5"),
        (lambda s: s.get(np.array([1.0])), "ids: expected a whole number, got 1.0; a float cannot hold every id"),
        (lambda s: s.of_segments(["x"]), "segment_ids: expected a whole number, got 'x'"),
        (lambda s: s.get(range(1_000_001)), "ids: at most 1000000 values at once, got 1000001; ask in several parts"),
        (lambda s: s.stats("region"), "column: region holds texts, of which there are no statistics"),
        (lambda s: s.stats("soma_id"), "column: soma_id holds ids, of which there are no statistics"),
        (lambda s: s.histogram("volume_um3", range=(2, 1)), "range: it is upside down: 2.0 is above 1.0"),
        (lambda s: s.histogram("volume_um3", range=(1, 1 + 1e-15), bins=100), "too narrow for 100 bins"),
        (lambda s: s.histogram("volume_um3", range=(-1.7e308, 1.7e308)), "is too wide for floats"),
        (lambda s: s.histogram("volume_um3", bins=0), "bins: Input should be greater than 0"),
        (lambda s: s.nearest([[1, 2]]), r"points: expected one position x, y, z or a list of them, got shape \(1, 2\)"),
        (lambda s: s.nearest("here"), "points: expected positions x, y, z, got something else"),
        (lambda s: s.nearest([1e308, 0, 0], units="um"), "is too far away for a float"),
        (lambda s: s.nearest([0, 0, 0], k=0), "k: Input should be greater than 0"),
        (lambda s: s.segments_with("about 2"), "n_somas: expected a number or a comparison, e.g. '>1', got 'about 2'"),
        (lambda s: s.segments_with("==0"), "also means segments without a soma, .* name the segments in `among`"),
        (lambda s: s.annotate([]), "there are no opinions to append"),
        (lambda s: s.annotate([{"soma_id": 1, "system": "x y"}]), "opinion 0: .*system"),
        (lambda s: s.neuroglancer(base="https://host/#nothing"), "base: expected a Neuroglancer link"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_words(somas, ask, message):
    with pytest.raises(SpecError, match=message):
        ask(somas)


def test_a_wrong_question_is_a_query_error(somas):
    with pytest.raises(QueryError):
        somas.query({"volum_um3": 3})
    with pytest.raises(ValueError, match="volume_um3"):
        somas.query({"volum_um3": 3})


def test_what_is_not_there_is_said(folder, tmp_path):
    with pytest.raises(NotFoundError, match="there is no soma catalogue at .*; check the address"):
        Somas(tmp_path)
    with pytest.raises(NotFoundError, match="there is no version 9 .* published versions: 1"):
        Somas(folder, version=9)
    with pytest.raises(NotFoundError, match="are of the dataset 'made-up', not 'fafb'"):
        Somas(folder, dataset="fafb")


def test_a_version_stays_until_somebody_asks_for_another(tmp_path):
    write(str(tmp_path), soma_table(20), version=1)
    before = Somas(tmp_path)
    batches = before.query_batches(columns=["soma_id"])
    write(str(tmp_path), soma_table(30), version=2)
    assert sum(batch.num_rows for batch in batches) == 20 - (before.count({"status": ["rejected", "merged"]}))
    assert (before.version, before.count(tombstones=True), before.versions()) == (1, 20, [1, 2])
    assert (Somas(tmp_path).version, Somas(tmp_path).count(tombstones=True)) == (2, 30)
    assert Somas(tmp_path, version=1).get([]).attrs["version"] == 1


def test_an_empty_catalogue_answers_everything(tmp_path):
    write(str(tmp_path), soma_table(0))
    for somas in (Somas(tmp_path), scanned(str(tmp_path))):
        assert somas.count() == 0
        assert len(somas.query()) == len(somas.nearest([0, 0, 0], 3)) == len(somas.segments_with()) == 0
        assert somas.histogram("volume_um3")["n"].sum() == 0
        assert somas.stats("volume_um3")["n"].tolist() == [0]
        assert somas.of_segments([5])["soma_id"].isna().tolist() == [True]


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_is_asked_through_a_cache_that_cannot_go_out_of_date(
    request, scheme, tmp_path, monkeypatch, table
):
    request.getfixturevalue({"gs": "gcs", "s3": "aws"}[scheme])
    monkeypatch.setenv("CLOUDSEG_CACHE", str(tmp_path / "cache"))
    uri = f"{scheme}://vol/{tmp_path.name}/somas"
    objects = write(uri, table)
    expected = write(f"file://{tmp_path}/local", table)
    with Somas(uri) as far, Somas(expected.uri) as near:
        assert far.query_arrow().to_pylist() == near.query_arrow().to_pylist()
    cached = sorted((tmp_path / "cache" / "somas").iterdir())
    assert len(cached) == 4
    for key in list(objects.list("v1/part")):
        objects.delete(key)
    with Somas(uri) as again:
        assert again.count(tombstones=True) == 900
    cached[0].unlink()
    with Somas(uri) as broken, pytest.raises(NotFoundError, match="there is no 'v1/part"):
        broken.count()


def test_opinions_are_appended_and_read(tmp_path):
    write(str(tmp_path), soma_table(5))
    with Somas(tmp_path) as somas:
        assert len(somas.opinions()) == 0
        somas.annotate(
            [{"soma_id": 2**64 - 1, "system": "status", "value": "rejected", "source": "ann", "version": 1}]
        )
        found = somas.opinions()
    assert found[["soma_id", "value", "source"]].to_numpy().tolist() == [[2**64 - 1, "rejected", "ann"]]
    assert str(found["target_id"].dtype) == "UInt64"


def test_a_link_shows_the_somas_and_selects_their_segments(somas):
    def state(link):
        return json.loads(unquote(link.partition("#!")[2]))

    alone = state(somas.neuroglancer({"side": "left"}, limit=7))
    (layer,) = alone["layers"]
    assert len(layer["annotations"]) == 7
    biggest = somas.query({"side": "left"}, order="-volume_um3", limit=7)
    assert [a["id"] for a in layer["annotations"]] == [str(i) for i in biggest["soma_id"]]
    assert layer["annotations"][0]["point"] == biggest.loc[0, ["x_nm", "y_nm", "z_nm"]].tolist()
    base = 'http://127.0.0.1:1/v/0/#!{"layers":[{"type":"segmentation","name":"segmentation"}],"layout":"xy"}'
    link = somas.neuroglancer({"side": "left", "segment_id": {"is_null": False}}, base=base, limit=3)
    assert link.startswith("http://127.0.0.1:1/v/0/#!")
    added = state(somas.neuroglancer(base=link, limit=2))
    assert added["layout"] == "xy"
    assert [each["name"] for each in added["layers"]] == ["segmentation", "somas"], (
        "added once, however often"
    )
    assert added["layers"][1]["linkedSegmentationLayer"] == {"segment": "segmentation"}
    assert all(isinstance(i, str) for i in added["layers"][0]["segments"])
    assert state(link_with_somas([], somas.info(), base=None))["layers"][0]["annotations"] == []


def test_the_client_is_imported_fast_and_light():
    code = (
        "import sys, time; start = time.process_time(); from cloudseg import Somas; "
        "took = time.process_time() - start; "
        "print(took, {'numpy', 'pandas', 'duckdb', 'pyarrow', 'torch', 'pydantic', 'tensorstore'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    took, _, heavy = result.stdout.partition(" ")
    assert heavy.strip() == "set()", result.stderr
    assert float(took) < 0.3


def test_the_catalogue_is_promised():
    assert "Somas" in cloudseg.__all__
