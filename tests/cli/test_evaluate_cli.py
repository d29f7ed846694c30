"""`cloudseg evaluate` from end to end: the figures of scikit-image, streamed, in JSON and as a table."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from cloudvolume import CloudVolume, Skeleton
from skimage.metrics import adapted_rand_error, variation_of_information

from cloudseg.cli.main import cli
from cloudseg.errors import MissingChunkError, NotFoundError, SpecError, VolumeFormatError
from cloudseg.geometry import Box
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, scales
from cloudseg.volumes.skeletons import read_skeletons

SIZE = (8.0, 8.0, 8.0)
DATA = Path(os.environ.get("CLOUDSEG_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.fixture(autouse=True)
def _fresh_memory():
    clear_memory()


def store(uri: str, data: np.ndarray, *, at=(0, 0, 0), size=SIZE, layer="segmentation") -> str:
    info = VolumeInfo(
        bounds=Box.of_shape(data.shape, at=at),
        voxel_size_nm=size,
        chunk_shape=(16, 16, 16),
        dtype=data.dtype.name,
        layer=layer,
    )
    create_volume(uri, info).write(info.bounds, np.asfortranarray(data))
    return uri


def blobs(seed: int, n: int, shape=(40, 36, 20)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n, tuple(-(-s // 5) for s in shape))
    return np.kron(coarse, np.ones((5, 5, 5), int))[tuple(slice(s) for s in shape)].astype(np.uint64)


def evaluate(*arguments: str) -> dict:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def run(*arguments: str) -> Result:
    """Run the command; our own errors come out as they are."""
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_figures_equal_scikit_image_where_bounds_differ(monkeypatch):
    monkeypatch.setattr("cloudseg.volumes.evaluate._BLOCK", (16, 7, 9))
    seg, truth = blobs(1, 20), blobs(2, 15)
    store("memory://seg", seg[:30], at=(0, 0, 0))
    store("memory://truth", truth[8:].astype(np.uint32), at=(8, 0, 0))
    document = evaluate("memory://seg", "memory://truth")
    a, b = truth[8:30].astype(int), seg[8:30].astype(int)
    assert document["box"] == "8,0,0:30,36,20"
    assert document["scores"]["adapted_rand_error"] == pytest.approx(adapted_rand_error(a, b)[0], abs=1e-9)
    split, merge = variation_of_information(a, b, ignore_labels=(0,))
    assert document["scores"]["voi_split"] == pytest.approx(split, abs=1e-9)
    assert document["scores"]["voi_merge"] == pytest.approx(merge, abs=1e-9)
    assert "the segmentation covers 0,0,0:30,36,20, the truth 8,0,0:40,36,20" in document["notes"][0]
    assert sum(c["bits"] for c in document["worst_splits"]) <= split + 1e-9


def test_a_box_and_ignored_ids_choose_the_voxels():
    seg, truth = blobs(1, 5), blobs(2, 4)
    store("memory://seg", seg)
    store("memory://truth", truth)
    document = evaluate("memory://seg", "memory://truth", "--box", "3,4,5:33,30,19", "--ignore-truth", "none")
    a, b = truth[3:33, 4:30, 5:19].astype(int), seg[3:33, 4:30, 5:19].astype(int)
    assert document["scores"]["adapted_rand_error"] == pytest.approx(
        adapted_rand_error(a, b, ignore_labels=())[0], abs=1e-9
    )
    some = evaluate("memory://seg", "memory://truth", "--ignore-truth", "1,2", "--ignore-seg", "0")
    assert some["scores"]["n_voxels"] == int((~np.isin(truth, [1, 2]) & (seg != 0)).sum())
    assert some["scores"]["segmented_fraction"] == 1


def test_a_coarse_mask_leaves_voxels_out():
    seg, truth = blobs(1, 9), blobs(2, 9)
    mask = np.random.default_rng(0).integers(0, 2, (10, 18, 20), dtype=np.uint8)
    store("memory://seg", seg)
    store("memory://truth", truth)
    store("memory://mask", mask, size=(32, 16, 8), layer="image")
    document = evaluate("memory://seg", "memory://truth", "--mask", "memory://mask")
    inside = mask.repeat(4, 0).repeat(2, 1).astype(bool)
    expected = adapted_rand_error(truth[inside].astype(int), seg[inside].astype(int))[0]
    assert document["scores"]["adapted_rand_error"] == pytest.approx(expected, abs=1e-9)
    assert document["scores"]["n_voxels"] == int((inside & (truth != 0)).sum())


def test_voxels_outside_the_mask_volume_do_not_count():
    labels = blobs(1, 9) + np.uint64(1)
    store("memory://seg", labels)
    store("memory://mask", np.ones((10, 36, 20), np.uint8), at=(5, 0, 0), layer="image")
    document = evaluate("memory://seg", "memory://seg", "--mask", "memory://mask")
    assert document["scores"]["n_voxels"] == 10 * 36 * 20


def test_files_are_compared_with_volumes(tmp_path):
    seg, truth = blobs(1, 9), blobs(2, 9)
    np.savez(tmp_path / "seg.npz", a=seg, b=truth)
    store("memory://truth", truth)
    assert evaluate(tmp_path / "seg.npz#b", "memory://truth")["scores"]["voi_sum"] == pytest.approx(
        0, abs=1e-12
    )
    document = evaluate(tmp_path / "seg.npz#a", "memory://truth")
    assert document["scores"]["voi_sum"] > 1
    assert "seg.npz[a] does not say how large its voxels are" in document["notes"][0]


def test_the_table_names_the_figures_and_the_culprits(tmp_path):
    truth = np.ones((16, 16, 16), np.uint64)
    truth[8:] = 2
    store("memory://truth", truth)
    store("memory://seg", np.full((16, 16, 16), 2**63 + 5, np.uint64))
    result = run("memory://seg", "memory://truth", "--json", tmp_path / "scores.json")
    assert result.exit_code == 0
    assert "adapted Rand error" in result.stdout
    assert "segments that merge most" in result.stdout
    assert str(2**63 + 5) in result.stdout
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["worst_mergers"] == [{"id": str(2**63 + 5), "voxels": 4096, "parts": 2, "bits": 1.0}]
    assert document["worst_splits"] == []


def lines() -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Two straight neurons along x and their skeletons in voxel units."""
    truth = np.zeros((40, 16, 16), np.uint64)
    truth[:, 2:6], truth[:, 9:13] = 1, 2
    edges = np.stack([np.arange(39), np.arange(1, 40)], axis=1)
    return truth, [
        (i, np.stack([np.arange(40), np.full(40, y), np.full(40, 8)], axis=1).astype(float), edges)
        for i, y in ((1, 4), (2, 11))
    ]


def test_run_lengths_come_from_skeletons_in_npz_swc_and_precomputed_form(tmp_path):
    truth, skeletons = lines()
    seg = truth.copy()
    seg[20:, 2:6] = 7  # neuron 1 is split between x 19 and 20
    store("memory://truth", truth)
    store("memory://seg", seg)
    nodes = np.concatenate([n for _, n, _ in skeletons]) * 8
    edges = np.concatenate([e + 40 * i for i, (_, _, e) in enumerate(skeletons)])
    np.savez(tmp_path / "s.npz", nodes_nm=nodes, edges=edges, skeleton_ids=np.repeat([1, 2], 40))
    (tmp_path / "swc").mkdir()
    for name, n, _ in skeletons:
        rows = [f"{i + 1} 0 {x * 0.008} {y * 0.008} {z * 0.008} 1 {i or -1}" for i, (x, y, z) in enumerate(n)]
        (tmp_path / "swc" / f"neuron_{name}.swc").write_text("# traced\n" + "\n".join(rows))
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre/info").write_text(
        json.dumps({"@type": "neuroglancer_skeletons", "vertex_attributes": []})
    )
    for name, n, e in skeletons:
        data = (
            struct.pack("<II", len(n), len(e)) + (n * 8).astype("<f4").tobytes() + e.astype("<u4").tobytes()
        )
        (tmp_path / "pre" / str(name)).write_bytes(data)
    expected = (19 * 8) ** 2 * 2 + (39 * 8) ** 2
    for arguments in (
        ["--skeletons", str(tmp_path / "s.npz")],
        ["--skeletons", str(tmp_path / "swc"), "--skeleton-unit", "1000"],
        ["--skeletons", f"file://{tmp_path}/pre"],
    ):
        found = evaluate("memory://seg", "memory://truth", *arguments)["run_length"]
        assert found["erl_nm"] == pytest.approx(expected / (2 * 39 * 8))
        assert found["n_splits"] == 1
        assert found["n_skeletons"] == 2


def test_sharded_skeletons_are_read(tmp_path):
    """cloud-volume writes them, we read them: as the pipeline's own skeletons are stored."""
    _, skeletons = lines()
    uri = f"file://{tmp_path}/seg"
    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", SIZE, (0, 0, 0), (40, 16, 16), skeletons="sk"
    )
    volume = CloudVolume(uri, info=info)
    volume.commit_info()
    volume.skeleton.meta.info = {
        "@type": "neuroglancer_skeletons",
        "transform": [1, 0, 0, 100, 0, 1, 0, 0, 0, 0, 1, 0],
        "vertex_attributes": [],
        "sharding": {
            "@type": "neuroglancer_uint64_sharded_v1",
            "preshift_bits": 1,
            "hash": "murmurhash3_x86_128",
            "minishard_bits": 1,
            "shard_bits": 2,
            "minishard_index_encoding": "gzip",
            "data_encoding": "gzip",
        },
    }
    volume.skeleton.meta.commit_info()
    volume = CloudVolume(uri)
    binaries = {
        i: Skeleton((n * 8).astype(np.float32), e.astype(np.uint32), segid=i).to_precomputed()
        for i, n, e in skeletons
    }
    for name, shard in volume.skeleton.reader.spec.synthesize_shards(binaries).items():
        (tmp_path / "seg/sk" / name).write_bytes(shard)
    found = read_skeletons(f"{uri}/sk")
    assert np.unique(found.skeleton_ids).tolist() == [1, 2]
    np.testing.assert_array_equal(found.nodes_nm[:40], skeletons[0][1] * 8 + [100, 0, 0])
    assert found.edges.shape == (78, 2)
    assert found.edges.max() == 79


def test_skeleton_parts_outside_the_compared_voxels_are_cut_off(tmp_path):
    truth, skeletons = lines()
    store("memory://truth", truth)
    mask = np.ones(truth.shape, np.uint8)
    mask[:5] = 0
    store("memory://mask", mask, layer="image")
    name, nodes, edges = skeletons[0]
    np.savez(tmp_path / "s.npz", nodes_nm=nodes * 8, edges=edges, skeleton_ids=np.full(40, name))
    document = evaluate(
        "memory://truth", "memory://truth", "--skeletons", tmp_path / "s.npz", "--box", "0,0,0:30,16,16",
        "--mask", "memory://mask",
    )  # fmt: skip
    assert document["run_length"]["total_length_nm"] == pytest.approx(24 * 8)
    assert document["run_length"]["normalised_erl"] == 1
    assert any("10 of 40 skeleton nodes lie outside" in note for note in document["notes"])


def test_bad_skeletons_are_refused(tmp_path):
    truth, _ = lines()
    store("memory://truth", truth)
    same = ("memory://truth", "memory://truth", "--skeletons")
    np.savez(tmp_path / "a.npz", nodes_nm=np.zeros((2, 3)))
    with pytest.raises(VolumeFormatError, match="it has no edges, skeleton_ids"):
        run(*same, tmp_path / "a.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="holds no skeletons: neither an info file"):
        run(*same, tmp_path / "empty")
    (tmp_path / "a.swc").write_text("1 0 0 0 0 1 -1\n2 0 0 0 0 1 9\n")
    with pytest.raises(
        VolumeFormatError, match=r"a\.swc names a node twice, or a parent that it does not have"
    ):
        run(*same, tmp_path / "a.swc")
    (tmp_path / "b.swc").write_text("1 0 0\n")
    with pytest.raises(VolumeFormatError, match=r"b\.swc must have rows of 7 numbers"):
        run(*same, tmp_path / "b.swc")
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre/info").write_text(json.dumps({"@type": "neuroglancer_skeletons"}))
    (tmp_path / "pre/5").write_bytes(struct.pack("<II", 3, 9))
    with pytest.raises(
        VolumeFormatError, match=r"skeleton 5 of .* is cut short: 8 bytes for 3 nodes and 9 edges"
    ):
        run(*same, tmp_path / "pre")
    (tmp_path / "pre/info").write_text(json.dumps({"@type": "neuroglancer_legacy_mesh"}))
    with pytest.raises(
        VolumeFormatError, match=r"must describe skeletons .* got '@type': 'neuroglancer_legacy_mesh'"
    ):
        run(*same, tmp_path / "pre")
    far = {"nodes_nm": np.full((2, 3), 1e9), "edges": np.array([[0, 1]]), "skeleton_ids": np.ones(2, int)}
    np.savez(tmp_path / "far.npz", **far)
    with pytest.raises(SpecError, match=r"no skeleton node lies in the compared box .* check the units"):
        run(*same, tmp_path / "far.npz")


def test_what_cannot_be_compared_is_said(tmp_path):
    labels = blobs(1, 9)
    store("memory://seg", labels)
    store("memory://elsewhere", labels, at=(100, 0, 0))
    store("memory://coarse", labels, size=(16, 16, 16))
    store("memory://odd", np.ones((4, 4, 4), np.uint8), size=(12, 12, 12), layer="image")
    store("memory://floats", np.ones(labels.shape, np.float32), layer="image")
    with pytest.raises(
        SpecError, match=r"nothing to compare: the segmentation memory://seg covers 0,0,0:40,36,20"
    ):
        run("memory://seg", "memory://elsewhere")
    with pytest.raises(
        SpecError, match=r"voxels of the segmentation .* choose scales of one size with --seg-mip"
    ):
        run("memory://seg", "memory://coarse")
    with pytest.raises(SpecError, match="must be whole multiples of the labels'"):
        run("memory://seg", "memory://seg", "--mask", "memory://odd")
    with pytest.raises(SpecError, match="the truth must hold integer ids, got dtype float32"):
        run("memory://seg", "memory://floats")
    with pytest.raises(SpecError, match="nothing to compare in box 90,0,0:95,5,5"):
        run("memory://seg", "memory://seg", "--box", "90,0,0:95,5,5")
    with pytest.raises(NotFoundError, match="missing"):
        run(str(tmp_path / "missing"), "memory://seg")
    with pytest.raises(SpecError, match="--ignore-truth is written as ids from 0 up"):
        run("memory://seg", "memory://seg", "--ignore-truth", "-3")
    with pytest.raises(SpecError, match=r"--json .*: there is no folder"):
        run("memory://seg", "memory://seg", "--json", tmp_path / "no" / "x.json")
    with pytest.raises(SpecError, match="--skeleton-unit must be above 0"):
        run("memory://seg", "memory://seg", "--skeleton-unit", "0")


def test_chunks_that_were_never_written_are_an_error_unless_told_otherwise():
    store("memory://truth", blobs(1, 9))
    create_volume("memory://hole", scales("memory://truth")[0])
    with pytest.raises(MissingChunkError, match="never written"):
        run("memory://hole", "memory://truth")
    document = evaluate("memory://hole", "memory://truth", "--missing", "zero")
    assert document["scores"]["n_segments"] == 0
    assert document["scores"]["voi_split"] == 0


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data folder at {DATA} (CLOUDSEG_DATA)")
def test_a_published_segmentation_scores_as_scikit_image_says():
    folder = DATA / "fib25"
    box = "40,50,60:168,178,124"
    document = evaluate(
        folder / "ffn_published_sample2.npz", folder / "sample2_labels_z000_160.npz", "--box", box
    )
    place = Box.parse(box).slices_in(Box.of_shape((250, 250, 160)))
    seg = np.load(folder / "ffn_published_sample2.npz")["labels"][place].astype(int)
    truth = np.load(folder / "sample2_labels_z000_160.npz")["labels"][place].astype(int)
    assert document["scores"]["adapted_rand_error"] == pytest.approx(
        adapted_rand_error(truth, seg)[0], abs=1e-9
    )
    split, merge = variation_of_information(truth, seg, ignore_labels=(0,))
    assert document["scores"]["voi_sum"] == pytest.approx(split + merge, abs=1e-9)


def test_skeletons_can_be_made_from_the_truth(monkeypatch):
    monkeypatch.setattr("cloudseg.volumes.evaluate._TRACED_AT_VOXELS", 40 * 16 * 16 // 2)
    truth, _ = lines()
    seg = truth.copy()
    seg[20:, 2:6] = 7
    store("memory://truth", truth, size=(20, 20, 20), at=(5, 3, 1))
    store("memory://seg", seg, size=(20, 20, 20), at=(5, 3, 1))
    perfect = evaluate("memory://truth", "memory://truth", "--skeletons", "truth")["run_length"]
    assert perfect["n_skeletons"] == 2
    assert perfect["normalised_erl"] == 1
    assert perfect["total_length_nm"] >= 2 * 37 * 20  # from end to end; cells of 40 nm make it zigzag
    split = evaluate("memory://seg", "memory://truth", "--skeletons", "truth")["run_length"]
    assert split["n_splits"] == 1
    assert split["normalised_erl"] == pytest.approx(0.75, abs=0.05)


def test_truth_that_cannot_be_traced_is_refused(tmp_path, monkeypatch):
    truth, _ = lines()
    np.save(tmp_path / "truth.npy", truth)
    same = (tmp_path / "truth.npy", tmp_path / "truth.npy", "--skeletons", "truth")
    with pytest.raises(
        SpecError, match="neither the segmentation nor the truth says how large its voxels are"
    ):
        run(*same)
    store("memory://dust", np.eye(9, dtype=np.uint64)[..., np.newaxis] * np.arange(9, dtype=np.uint64))
    with pytest.raises(SpecError, match="the truth memory://dust in 0,0,0:9,9,9 holds no skeletons"):
        run("memory://dust", "memory://dust", "--skeletons", "truth")
    monkeypatch.setattr("cloudseg.volumes.evaluate._TRACED_VOXELS", 100)
    with pytest.raises(
        SpecError, match=r"would hold 729 voxels in memory, the limit is 100: choose a smaller --box"
    ):
        run("memory://dust", "memory://dust", "--skeletons", "truth")
