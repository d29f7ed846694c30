"""`cloudseg compare`: one table over the same voxels, boundary F1 by definition, a picture that can be looked at."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.segmentation import find_boundaries

from cloudseg.cli.compare import named_after, short_names
from cloudseg.cli.main import cli
from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.ops.boundary_score import BoundaryScore, halo_of, score_boundaries
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume


@pytest.fixture(autouse=True)
def _fresh_memory():
    clear_memory()


def store(uri, data, *, at=(0, 0, 0), layer="segmentation"):
    info = VolumeInfo(
        bounds=Box.of_shape(data.shape, at=at),
        voxel_size_nm=(8.0, 8.0, 8.0),
        chunk_shape=(8, 8, 8),
        dtype=data.dtype.name,
        layer=layer,
    )
    create_volume(uri, info).write(info.bounds, np.asfortranarray(data))
    return uri


def blobs(seed=0, n=9, shape=(24, 20, 16)):
    coarse = np.random.default_rng(seed).integers(1, n, tuple(-(-s // 4) for s in shape))
    return np.kron(coarse, np.ones((4, 4, 4), int))[tuple(slice(s) for s in shape)].astype(np.uint64)


def run(*arguments):
    result = CliRunner().invoke(cli, ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@settings(max_examples=30)
@given(
    seed=st.integers(0, 50),
    block=st.tuples(*[st.integers(2, 12)] * 3),
    tolerance=st.integers(0, 3),
    zero=st.booleans(),
)
def test_boundary_counts_add_up_over_blocks_and_follow_the_definition(seed, block, tolerance, zero):
    shape = (12, 10, 8)
    truth, seg = blobs(seed, 4, shape), blobs(seed + 1, 4, shape)
    seg[seg == 1] = 0
    if zero:
        truth[truth == 1] = 0
    bounds = Box.of_shape(shape)
    options = {"tolerance_vx": tolerance, "zero_is_boundary": zero}
    total = BoundaryScore()
    for core in tile(bounds, block):
        outer = core.grow(halo_of(tolerance)).intersect(bounds)
        cut = outer.slices_in(bounds)
        total += score_boundaries(seg[cut], truth[cut], core.slices_in(outer), **options)
    whole = (slice(None),) * 3
    assert total == score_boundaries(seg, truth, whole, **options)
    if not zero:
        found, true = (find_boundaries(a, connectivity=1, mode="thick") for a in (seg, truth))
        assert (total.n_seg, total.n_truth) == (found.sum(), true.sum())
        for mask, other, hits in ((found, true, total.n_seg_hit), (true, found, total.n_truth_hit)):
            away = ndimage.distance_transform_cdt(~other, metric="taxicab") if other.any() else None
            assert hits == (0 if away is None else (mask & (away <= tolerance)).sum())


def test_a_perfect_segmentation_scores_best_and_a_merged_one_shows():
    truth = blobs()
    a = store("memory://compare/perfect/segmentation", truth * 7)
    merged = truth.copy()
    merged[merged == 2] = 3
    b = store("memory://compare/merged/segmentation", merged)
    t = store("memory://compare/truth", truth)
    document = json.loads(run(a, b, "--truth", t, "--json", "-"))
    perfect, worse = document["rows"]
    assert (perfect["name"], worse["name"]) == ("perfect", "merged")
    assert perfect["scores"]["adapted_rand_error"] == pytest.approx(0)
    assert perfect["boundary"]["f1"] == 1.0
    assert worse["scores"]["voi_merge"] > 0 == worse["scores"]["voi_split"]
    assert worse["boundary"]["precision"] == 1.0 > worse["boundary"]["recall"]
    assert perfect["run"] is worse["run"] is None
    table = run(a, b, "--truth", t, "--name", "one", "--name", "two")
    assert "F1" in table
    assert table.index(" one ") < table.index(" two ")


def test_all_are_measured_over_the_same_voxels():
    truth = blobs()
    t = store("memory://compare/truth", truth)
    a = store("memory://compare/a", truth)
    b = store("memory://compare/b", truth[8:, :, :8], at=(8, 0, 0))
    document = json.loads(run(a, b, "--truth", t, "--json", "-"))
    assert document["box"] == "8,0,0:24,20,8"
    assert {row["scores"]["n_voxels"] for row in document["rows"]} == {16 * 20 * 8}


def test_time_and_memory_come_from_the_receipts_of_the_run(tmp_path):
    from cloudseg.pipelines.plan import LayerRecord, PlanRecord, StageRecord, StepRecord
    from cloudseg.tasking.receipts import Receipt, Receipts
    from cloudseg.volumes import open_objects

    root = f"file://{tmp_path}/run"
    truth = blobs()
    seg = store(f"{root}/segmentation", truth)
    t = store("memory://compare/truth", truth)
    objects = open_objects(root)
    info = VolumeInfo(bounds=Box.of_shape(truth.shape), voxel_size_nm=(8, 8, 8), chunk_shape=(8, 8, 8))

    def stage(name, *layers):
        return StageRecord(
            label=name,
            kind=name,
            outputs_bytes=0,
            layers=tuple(LayerRecord(name=n, uri=f"{root}/{n}", info=info) for n in layers),
            steps=(StepRecord(name=name, n_tasks=1, tasks_digest="0" * 64),),
        )

    record = PlanRecord(
        root=root,
        image=LayerRecord(name="image", uri="memory://compare/image", info=info),
        stages=(stage("affinities", "affinities"), stage("agglomerate", "segmentation"), stage("meshes")),
        versions={},
    )
    objects.put("pipeline/plan.json", record.canonical_json().encode())
    start = datetime(2020, 1, 1, tzinfo=UTC)
    for n, (name, seconds) in enumerate([("affinities", 10), ("agglomerate", 5), ("meshes", 100)]):
        Receipts(objects, name).write(
            Receipt(
                task_id=f"{n:032x}",
                kind="x/1",
                step=name,
                peak_memory_bytes=(n + 1) * 100_000_000,
                started=start,
                finished=start + timedelta(seconds=seconds),
            )
        )
    (row,) = json.loads(run(seg, "--truth", t, "--json", "-"))["rows"]
    # What came after the segmentation did not make it.
    assert row["run"] == {"task_s": 15.0, "wall_s": 10.0, "peak_memory_bytes": 200_000_000}
    assert " 15.0 " in run(seg, "--truth", t)


def test_the_picture_shows_image_truth_and_segmentations(tmp_path):
    truth = blobs()
    t = store("memory://compare/truth", truth)
    a = store("memory://compare/a", truth + np.uint64(50))
    image = store("memory://compare/image", (truth * 20).astype(np.uint8), layer="image")
    path = tmp_path / "p.png"
    out = run(a, "--truth", t, "--image", image, "--picture", path, "--sections", 2)
    assert "from left to right image, truth, a" in out
    picture = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    assert picture.shape == (2 * 20 + 4, 3 * 24 + 2 * 4, 3)
    # The same partition gets the same colours, whatever its ids are.
    np.testing.assert_array_equal(picture[:, 28:52], picture[:, 56:80])
    assert picture[:, 28:52].std() > 5


def test_a_split_gets_a_new_colour_and_a_merger_one():
    true = np.repeat([[1, 1, 1, 1, 2, 2]], 4, axis=0)
    split = np.repeat([[5, 5, 5, 6, 7, 7]], 4, axis=0)
    named = named_after(split, true)[0].tolist()
    assert named[0] == 1
    assert named[4] == 2
    assert named[3] not in (0, 1, 2)
    assert named_after(np.full((4, 6), 9), true)[0].tolist() == [1] * 6
    assert named_after(np.zeros((4, 6), int), true)[0].tolist() == [0] * 6


def test_bad_requests_are_refused(tmp_path):
    truth = blobs()
    t = store("memory://compare/truth", truth)
    far = store("memory://compare/far", truth, at=(100, 0, 0))
    with pytest.raises(SpecError, match=r"nothing to compare: memory://compare/far covers"):
        run(far, "--truth", t)
    with pytest.raises(SpecError, match=r"--name must be given once for each of the 1 segmentations, got 2"):
        run(t, "--truth", t, "--name", "a", "--name", "b")
    with pytest.raises(SpecError, match=r"--picture .*: there is no folder"):
        run(t, "--truth", t, "--picture", tmp_path / "no" / "p.png")
    small = store("memory://compare/small", truth[:8].astype(np.uint8), layer="image")
    with pytest.raises(SpecError, match=r"the image .*small covers .*: not all of the compared box"):
        run(t, "--truth", t, "--image", small, "--picture", tmp_path / "p.png")


def test_names_tell_addresses_apart():
    assert short_names(["gs://b/a/seg", "gs://b/c/seg"]) == ["a", "c"]
    assert short_names(["gs://b/a", "gs://b/c"]) == ["a", "c"]
    assert short_names(["gs://b/a", "gs://b/a"]) == ["a", "a"]
    assert short_names(["truth.npz#labels"]) == ["truth.npz#labels"]
