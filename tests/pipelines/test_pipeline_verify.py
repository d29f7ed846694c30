"""Verifying: a sound run passes, and each kind of damage is named."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cloudseg.errors import CorruptDataError, MissingChunkError
from cloudseg.geometry import Box
from cloudseg.pipelines.execute import execute
from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.progress import LineProgress
from cloudseg.pipelines.spec import load_spec, read_spec
from cloudseg.pipelines.verify import count_differing, verify
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, sharding_for
from cloudseg.volumes.second_opinion import SecondOpinion


@pytest.fixture
def finished(toy: Callable) -> Path:
    """The root of a complete run."""
    it = toy(block_shape="[32, 32, 32]")
    execute(plan(read_spec(it.file)), progress=LineProgress(Console(file=StringIO())))
    return it.root


def problems(root: Path, **options: object) -> str:
    return "\n".join(verify(open_objects(root), **options).problems)


def test_a_sound_run_passes_and_every_kind_of_damage_is_named(finished: Path, command: Callable) -> None:
    code, out, _ = command("verify", finished)
    assert code == 0
    assert "all 33 tasks have receipts" in out
    (chunks,) = (path for path in (finished / "inverted").iterdir() if path.is_dir())
    victim = chunks / "40-72_32-48_16-32"
    whole = victim.read_bytes()

    victim.write_bytes(whole[:-1])
    assert "chunk 40,32,16:72,48,32: " in problems(finished)
    victim.with_suffix(".gz").write_bytes(gzip.compress(whole))
    victim.write_bytes(whole)
    assert "40,32,16:72,48,32" in problems(finished)
    victim.with_suffix(".gz").unlink()
    assert not problems(finished)

    victim.unlink()
    code, out, _ = command("verify", finished)
    assert code == 1
    assert "chunk 40,32,16:72,48,32: " in out
    victim.write_bytes(whole)

    receipt = next((finished / "pipeline" / "receipts" / "toy_invert").iterdir())
    receipt.rename(finished / "pipeline" / receipt.name)
    assert "step 'toy_invert' has 7 receipts for 8 tasks; run it to its end first" in problems(finished)
    shutil.rmtree(finished / "inverted")
    assert "layer 'inverted': " in problems(finished)


def test_a_chunk_that_no_task_was_to_write_may_be_absent(image: Path, tmp_path: Path) -> None:
    stages = [{"kind": "toy_invert", "block_shape": [32, 32, 32], "skip": [3]}]
    data = {"image": str(image), "root": str(tmp_path / "root"), "workers": 1, "stage": stages}
    execute(plan(load_spec(data, where="here")), progress=LineProgress(Console(file=StringIO())))
    (chunks,) = (path for path in (tmp_path / "root" / "inverted").iterdir() if path.is_dir())
    assert len(list(chunks.iterdir())) == 7
    assert not problems(tmp_path / "root")
    next(chunks.iterdir()).unlink()
    assert "was never written" in problems(tmp_path / "root")


def test_a_sample_is_chosen_by_its_seed(finished: Path) -> None:
    seen: list[tuple[str, int]] = []
    report = verify(open_objects(finished), sample=0.3, on_layer=lambda name, n: seen.append((name, n)))
    (layer,) = report.layers
    assert (layer.n_chunks, layer.n_read) == (8, 3)
    assert seen == [("inverted mip 0", 3)]
    (chunks,) = (path for path in (finished / "inverted").iterdir() if path.is_dir())
    found = []
    for chunk in sorted(chunks.iterdir()):
        whole = chunk.read_bytes()
        chunk.write_bytes(b"")
        found.append([bool(problems(finished, sample=0.3, seed=seed)) for seed in (0, 0, 5)])
        chunk.write_bytes(whole)
    by_seed = np.array(found)
    assert by_seed.sum(axis=0).tolist() == [3, 3, 3]
    assert (by_seed[:, 0] == by_seed[:, 1]).all()
    assert (by_seed[:, 0] != by_seed[:, 2]).any()


def test_differing_values_are_counted_without_wrapping_around() -> None:
    a = np.array([[[0, 5, 255]]], dtype=np.uint8)
    b = np.array([[[2, 9, 0]]], dtype=np.uint8)
    assert [count_differing(a, b, tolerance=t) for t in (0, 3, 4)] == [3, 2, 1]
    assert count_differing(a, a) == 0
    assert count_differing(a, b[..., :2]) == 3


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_cloud_volume_reads_what_we_write(tmp_path: Path, dtype: str, is_sharded: bool) -> None:
    layer = "segmentation" if dtype == "uint64" else "image"
    info = VolumeInfo(
        bounds=Box.of_shape((70, 40, 33), at=(5, -3, 2)),
        voxel_size_nm=(8, 8, 40),
        chunk_shape=(32, 32, 16),
        dtype=dtype,
        layer=layer,
        encoding="compressed_segmentation" if layer == "segmentation" else "raw",
    )
    if is_sharded:
        info = info.model_copy(update={"sharding": sharding_for(info, target_bytes=10**6)})
    voxels = np.asfortranarray(np.random.default_rng(1).integers(0, 200, info.shape).astype(dtype))
    create_volume(tmp_path / "v", info).write(info.bounds, voxels)
    box = Box((10, 0, 3), (60, 37, 30))
    assert np.array_equal(SecondOpinion(tmp_path / "v").read(box), voxels[box.slices_in(info.bounds)])


def test_cloud_volume_s_complaints_become_ours(tmp_path: Path) -> None:
    info = VolumeInfo(
        bounds=Box.of_shape((32, 16, 16)), voxel_size_nm=(8, 8, 8), chunk_shape=(16, 16, 16), n_channels=3
    )
    volume = create_volume(tmp_path / "v", info)
    first = Box.of_shape((16, 16, 16))
    voxels = np.asfortranarray(np.random.default_rng(1).integers(0, 200, (3, 16, 16, 16), dtype=np.uint8))
    volume.write(first, voxels)
    opinion = SecondOpinion(tmp_path / "v")
    assert np.array_equal(opinion.read(first), voxels)
    with pytest.raises(MissingChunkError, match=r"cloud-volume finds no chunk for 16,0,0:32,16,16"):
        opinion.read(info.bounds.intersect(first.shift((16, 0, 0))))
    (chunk,) = (tmp_path / "v").glob("8_8_8/0-16*")
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(CorruptDataError, match="cloud-volume cannot read 0,0,0:16,16,16"):
        opinion.read(first)
