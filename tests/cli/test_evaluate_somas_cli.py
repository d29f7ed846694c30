"""`cloudseg evaluate somas` from end to end, on a phantom brain whose truth is spoiled on purpose."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloudseg.cli.main import cli
from cloudseg.errors import SpecError
from cloudseg.ops.contingency import contingency
from cloudseg.ops.instances import Overlaps, contacts_of, found_by_distance, split_pairs
from cloudseg.testing.phantom_brain import BrainSpec, brain_uri
from cloudseg.volumes import VolumeInfo, create_volume, evaluate, evaluate_somas, open_volume

SPEC = BrainSpec(seed=8, shape=(90, 80, 70), voxel_size_nm=(200.0, 200.0, 200.0), tissue="all", pairs=0.5)
TRUTH = brain_uri(SPEC, "labels")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """One body is lost, two touching ones are merged, one is made up, one loses a quarter."""
    truth = open_volume(TRUTH).read(SPEC.bounds)
    seg = truth.copy()
    ids, counts = np.unique(truth[truth > 0], return_counts=True)
    large = ids[np.argsort(-counts)]
    a, b = contacts_of(truth)[0]
    others = [i for i in large if i not in (a, b)]
    seg[seg == others[0]] = 0
    seg[seg == b] = a
    z = np.flatnonzero((truth == others[1]).any(axis=(0, 1)))
    seg[:, :, : z[len(z) // 3]][truth[:, :, : z[len(z) // 3]] == others[1]] = 0
    corner = np.argwhere(truth == 0)[0]
    seg[tuple(corner)] = 2**40
    uri = f"file://{tmp_path_factory.mktemp('somas')}/seg"
    info = VolumeInfo(
        bounds=SPEC.bounds, voxel_size_nm=SPEC.voxel_size_nm, dtype="uint64", layer="segmentation"
    )
    create_volume(uri, info).write(SPEC.bounds, seg)
    return uri, seg, truth


def run(*arguments):
    result = CliRunner().invoke(cli, ["evaluate", "somas", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_the_figures_are_those_of_the_whole_whatever_the_blocks(spoiled, monkeypatch):
    uri, seg, truth = spoiled
    monkeypatch.setattr(evaluate, "_BLOCK", (37, 80, 29))
    monkeypatch.setattr(evaluate_somas, "_MERGE_AT", 3)
    figures = json.loads(run(uri, TRUTH, "--json", "-", "--seconds", 2).stdout)["figures"]
    overlaps = Overlaps.of(contingency(seg, truth))
    n = len(overlaps.truth_ids)
    assert figures["n_true"] == n
    assert figures["n_found"] == n - 1  # one lost, one merged away, one made up
    pairs = [tuple(p) for p in contacts_of(truth).tolist()]
    apart, n_pairs = split_pairs(overlaps, pairs)
    assert figures["n_touching_pairs"] == n_pairs > 3
    assert figures["touching_pairs_split"] == apart / n_pairs < 1
    centre = {
        side: np.array(
            [(np.argwhere(labels == i).mean(axis=0) + 0.5) * 200.0 for i in np.unique(labels) if i]
        )
        for side, labels in (("seg", seg), ("truth", truth))
    }
    near = found_by_distance(centre["seg"], centre["truth"], distance_nm=1000.0)
    assert figures["f1"] == near.f1 < 1
    assert figures["recall"] < figures["precision"] + 0.1
    assert 0.5 < figures["ap"] < figures["ap50"] < 1
    assert 0.9 < figures["dice"] < 1
    assert figures["median_volume_error"] == 0
    assert figures["seconds_per_gigavoxel"] == pytest.approx(2 / (SPEC.bounds.n_voxels / 1e9))


def test_perfect_is_perfect_and_the_published_definitions_have_a_name(spoiled):
    figures = json.loads(run(TRUTH, TRUTH, "--json", "-").stdout)["figures"]
    for name in ("ap", "ap50", "f1", "mean_iou", "dice", "jaccard", "touching_pairs_split"):
        assert figures[name] == 1.0, name
    for name in ("median_volume_error", "adapted_rand_error", "voi_split", "voi_merge"):
        assert figures[name] == pytest.approx(0, abs=1e-12), name
    published = json.loads(run(TRUTH, TRUTH, "--definitions", "published", "--json", "-").stdout)["figures"]
    assert published["dice"] > 2, "it multiplies ids"
    assert published["n_true"] < figures["n_true"], "bodies below 2000 voxels are left out"


def test_scores_of_a_table_decide_who_counts_first(spoiled, tmp_path):
    uri, seg, _ = spoiled
    ids = [int(i) for i in np.unique(seg) if i]
    wrong_first = [float(i == 2**40) for i in ids]
    pq.write_table(pa.table({"soma_id": ids, "score": wrong_first}), tmp_path / "scores.parquet")
    by_score = json.loads(run(uri, TRUTH, "--scores", tmp_path / "scores.parquet", "--json", "-").stdout)
    by_size = json.loads(run(uri, TRUTH, "--json", "-").stdout)
    assert by_score["figures"]["ap50"] < by_size["figures"]["ap50"]
    pq.write_table(pa.table({"id": ids[1:], "score": wrong_first[1:]}), tmp_path / "few.parquet")
    with pytest.raises(SpecError, match="has no score of 1 of"):
        run(uri, TRUTH, "--scores", tmp_path / "few.parquet")


def test_a_person_gets_a_table_and_a_program_a_file(spoiled, tmp_path):
    out = run(spoiled[0], TRUTH, "--min-volume", 5, "--distance", 500, "--json", tmp_path / "f.json").stdout
    for word in ("AP50", "F1 at 500 nm", "touching pairs split", "volume error"):
        assert word in out
    assert json.loads((tmp_path / "f.json").read_text())["figures"]["min_size_vx"] == 625


def test_voxels_of_unknown_size_are_refused(tmp_path):
    np.save(tmp_path / "labels.npy", np.ones((4, 4, 4), np.uint64))
    with pytest.raises(SpecError, match="how large a voxel is"):
        run(tmp_path / "labels.npy", tmp_path / "labels.npy")
