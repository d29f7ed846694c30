"""Calibration: real blocks, measured in a scratch root that is gone afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudseg.errors import MissingChunkError, SpecError, TaskFailedError
from cloudseg.geometry import Box
from cloudseg.pipelines.calibrate import calibrate
from cloudseg.pipelines.calibration import (
    KEY,
    Calibration,
    StepFigures,
    _like,
    load_calibration,
    step_times,
    usable,
)
from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.prices import estimate_stage, load_prices, total
from cloudseg.pipelines.spec import load_spec, read_spec
from cloudseg.volumes import VolumeInfo, create_volume, open_objects


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_blocks_are_measured_elsewhere_and_later_plans_use_their_figures(
    toy: Callable, command: Callable
) -> None:
    it = toy(sleep_s=0.2)
    code, out, err = command("plan", it.file, "--calibrate")
    assert (code, err) == (0, "")
    assert files(it.root) == [KEY]
    assert not [path for path in it.root.parent.iterdir() if "calibration-" in path.name]
    assert "measuring  toy_invert: 1 of 36 tasks" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["toy_invert"][-1] == "measured"
    assert rows["toy_sum"][-1] == "extrapolated"
    assert "Extrapolated, for one task grows or a level was out of reach: toy_sum.total." in out
    (figures, *_) = load_calibration(open_objects(it.root)).steps
    assert (figures.name, figures.n_tasks, figures.n_voxels) == ("toy_invert", 1, 16**3)
    assert 0.2 <= figures.seconds_per_task < 2
    n_runs = len(it.runs())
    code, again, _ = command("plan", it.file)
    assert code == 0
    assert "Hours were measured on 40,16,0:56,32,16 with one worker" in again
    assert len(it.runs()) == n_runs
    code, other, _ = command("plan", it.file, "--set", "toy_invert.sleep_s=0.3")
    assert code == 0
    assert "figures of a calibration with other settings; they are left out" in other
    assert "measured" not in {line.split()[-1] for line in other.splitlines() if line}
    assert command("run", it.file)[0] == 0


def test_seconds_are_multiplied_by_the_volume_and_levels_out_of_reach_stand_on_the_last_one(
    image: Path,
) -> None:
    spec = load_spec(
        {"image": str(image), "root": "memory://r", "workers": 4, "stage": [{"kind": "toy_invert"}]},
        where="here",
    )
    expanded = plan(spec)
    n_voxels = expanded.image.info.bounds.n_voxels
    figures = StepFigures(
        name="toy_invert", n_tasks=2, n_voxels=n_voxels // 18, seconds_per_task=100, peak_memory_bytes=7
    )
    found = Calibration(
        pipeline_digest="x",
        threads_per_worker=1,
        box=Box.of_shape((1, 1, 1)),
        host="h",
        measured="2026-01-01T00:00:00Z",
        versions={},
        steps=(figures,),
    )
    times = step_times(expanded, found)
    assert (times["toy_invert"].seconds, times["toy_invert"].origin) == (3600, "measured")
    (stage,) = expanded.stages
    estimate = estimate_stage(stage, expanded, load_prices(), times)
    assert (estimate.core_hours, estimate.hours, estimate.task_memory_bytes) == (1, 0.25, 7)
    assert estimate.dollars == pytest.approx(load_prices().dollars_per_core_hour)
    assert total([estimate]).origin == ""
    one = found.model_copy(update={"steps": (figures.model_copy(update={"n_voxels": n_voxels // 1800}),)})
    assert step_times(expanded, one)["toy_invert"].origin == "extrapolated"
    assert not usable(found, spec)
    level = figures.model_copy(update={"name": "a.level1"})
    known = {"a.level0": figures, "a.level1": level, "b.level7": figures, "toy": figures}
    assert _like("a.level5", known) is level
    assert _like("a.relabel", known) is None


def test_what_cannot_be_measured_is_refused_and_leaves_nothing(
    toy: Callable, command: Callable, tmp_path: Path
) -> None:
    it = toy("max_attempts = 1", poison="[13]")
    expanded = plan(read_spec(it.file))
    with pytest.raises(SpecError, match=r"calibration at \(0, 0, 0\) is outside the image, which is 8,0,-16"):
        calibrate(expanded, at=(0, 0, 0))
    it.poison.touch()
    poisoned = [task.core for task in next(expanded.steps()).tasks()][13]
    with pytest.raises(
        TaskFailedError, match=r"step 'toy_invert' failed: RuntimeError: block .* is poisoned"
    ):
        calibrate(expanded, at=poisoned.start)
    code, _, err = command("plan", it.file, "--calibrate-at", "9,9")
    assert code == 2
    assert "--calibrate-at is written X,Y,Z" in err
    hollow = tmp_path / "hollow"
    create_volume(
        hollow,
        VolumeInfo(bounds=Box.of_shape((32, 32, 32)), voxel_size_nm=(8, 8, 8), chunk_shape=(16, 16, 16)),
    )
    data = {"image": str(hollow), "root": f"file://{tmp_path}/r", "stage": [{"kind": "toy_invert"}]}
    with pytest.raises(MissingChunkError):
        calibrate(plan(load_spec(data, where="here"), absent_image="allow"))
    elsewhere = load_spec({**data, "image": str(it.root), "root": "memory://r"}, where="here")
    with pytest.raises(SpecError, match="lives in this process only, and a worker measures"):
        calibrate(plan(elsewhere.model_copy(update={"image": expanded.spec.image})))
    assert not it.root.exists()
    assert [path.name for path in tmp_path.iterdir() if "calibration-" in path.name] == []


def test_given_layers_are_cut_out_with_their_scales(image: Path, tmp_path: Path) -> None:
    data = {
        "image": str(image),
        "root": f"file://{tmp_path}/root",
        "inputs": {"inverted": str(image)},
        "stage": [{"kind": "toy_sum"}],
    }
    found = calibrate(plan(load_spec(data, where="here")))
    assert [step.name for step in found.steps] == ["toy_sum.blocks", "toy_sum.total"]
    assert found.box == Box.of_shape((64, 48, 48), at=(8, 0, -16))
    assert json.loads((tmp_path / "root" / KEY).read_text())["box"] == str(found.box)
