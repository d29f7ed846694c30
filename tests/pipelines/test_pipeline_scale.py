"""Size: what is planned, listed and enqueued is counted, streamed and folded, never held."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from cloudseg.geometry import Box
from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.spec import load_spec
from cloudseg.volumes import VolumeInfo, create_volume

ALL_STAGES = ("affinities", "supervoxels", "agglomerate", "downsample", "meshes", "skeletons", "statistics")
TEN_TERAVOXELS = (20_000, 20_000, 25_000)


def only_info(folder: Path) -> Path:
    """Write the ``info`` of ten teravoxels, and not one of them."""
    info = VolumeInfo(bounds=Box.of_shape(TEN_TERAVOXELS), voxel_size_nm=(8, 8, 8), chunk_shape=(64, 64, 64))
    create_volume(folder, info)
    return folder


def test_ten_teravoxels_are_planned_by_counting_alone(tmp_path: Path) -> None:
    image = only_info(tmp_path / "image")
    stages = [{"kind": kind} for kind in ALL_STAGES]
    spec = load_spec({"image": str(image), "root": f"file://{tmp_path}/root", "stage": stages}, where="here")
    plan(spec, absent_image="allow")  # imports are no part of it
    tracemalloc.start()
    started = time.monotonic()
    expanded = plan(spec, absent_image="allow")
    seconds = time.monotonic() - started
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert expanded.n_tasks > 1_000_000
    assert peak_bytes < 4_000_000  # 4 bytes a task
    assert seconds < 10
    # The announced counts are those of real grids: 256-voxel blocks, cut at the far edges.
    steps = {step.name: step.n_tasks for step in expanded.steps()}
    assert steps["statistics.measure"] == 79 * 79 * 98
    assert steps["supervoxels.label"] == steps["agglomerate.graph"] == 79 * 79 * 98
    assert steps["agglomerate.level0"] == 79 * 79 * 98
    assert steps["agglomerate.level1"] == 40 * 40 * 49


def test_a_volume_that_is_only_announced_can_be_planned_and_is_refused_by_a_run(
    tmp_path: Path, command: Callable
) -> None:
    file = tmp_path / "announced.toml"
    file.write_text(
        f'image = "{only_info(tmp_path / "image")}"\nroot = "{tmp_path / "root"}"\n'
        '[[stage]]\nkind = "toy_invert"\nblock_shape = [2000, 2000, 2500]\n'
    )
    code, out, err = command("plan", file)
    assert (code, err) == (0, "")
    assert "its first voxel was never written" in out
    assert command("run", file)[0] == 1
    assert not (tmp_path / "root").exists()
