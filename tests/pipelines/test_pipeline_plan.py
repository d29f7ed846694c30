"""Planning: everything that can be known is checked and counted, and nothing is touched."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cloudseg.errors import ConflictError, MissingChunkError, NotFoundError, SpecError
from cloudseg.geometry import Box
from cloudseg.pipelines.plan import digest_of, plan
from cloudseg.pipelines.prices import estimate_stage, load_prices, total
from cloudseg.pipelines.space import check_space, human_bytes
from cloudseg.pipelines.spec import load_spec, read_spec
from cloudseg.tasking.memory import base_bytes
from cloudseg.tasking.task import Task
from cloudseg.volumes import VolumeInfo, create_volume

INFO = VolumeInfo(bounds=Box.of_shape((32, 32, 32)), voxel_size_nm=(8, 8, 8), chunk_shape=(16, 16, 16))
INVERT = {"kind": "toy_invert"}
SUM = {"kind": "toy_sum"}


def planned(image: object, *stages: dict[str, object], root: str = "memory://plan-root") -> object:
    return plan(load_spec({"image": str(image), "root": root, "stage": list(stages)}, where="here"))


def test_a_plan_touches_nothing_and_prints_what_a_run_would_do(toy: Callable, command: Callable) -> None:
    it = toy()
    code, out, _ = command("plan", it.file)
    assert code == 0
    assert not it.root.exists()
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["toy_invert"][1] == "36"
    assert rows["toy_sum"][1:4] == ["blocks,", "total", "25"]
    assert rows["total"][1] == "61"
    assert "enough" in out


def test_a_stage_sees_only_the_layers_of_the_stages_it_comes_after(image: Path) -> None:
    assert planned(image, INVERT, SUM).n_tasks == 61
    with pytest.raises(
        SpecError, match=r"stage 'toy_sum': stage 'toy_sum' needs a layer 'inverted'.*only make: image"
    ):
        planned(image, INVERT, {**SUM, "after": []})


def test_two_stages_cannot_write_the_same_layer_nor_the_image(image: Path) -> None:
    with pytest.raises(ConflictError, match=r"'b' would write .*inverted, which is made by stage 'a'"):
        planned(image, {**INVERT, "name": "a"}, {**INVERT, "name": "b"})
    with pytest.raises(ConflictError, match=r"would write .*image, which is made by the input image"):
        planned(image, {**INVERT, "output": "image"}, root=str(image.parent))


def test_an_image_that_is_missing_or_empty_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        planned(tmp_path / "nothing", INVERT)
    create_volume(tmp_path / "hollow", INFO)
    with pytest.raises(MissingChunkError):
        planned(tmp_path / "hollow", INVERT)


def test_a_root_on_a_web_server_is_refused(image: Path) -> None:
    with pytest.raises(SpecError, match="web address, which is read-only"):
        planned(image, INVERT, root="https://example.org/root")


def test_the_digest_of_a_task_list_is_the_same_twice_and_changes_with_any_option(image: Path) -> None:
    digests = []
    for options in ({}, {}, {"sleep_s": 1.0}, {"block_shape": [32, 16, 16]}):
        (step,) = planned(image, {**INVERT, **options}).steps()
        digests.append(digest_of(step.tasks()))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert [n for n, _ in digests] == [36, 36, 36, 18]


def test_counting_tasks_keeps_none_of_them() -> None:
    class Small(Task):
        kind: str = "small/1"
        number: int

    def many(n: int) -> Iterator[Task]:
        return (Small(number=i) for i in range(n))

    digest_of(many(10))
    tracemalloc.start()
    n_tasks, _ = digest_of(many(20_000))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_tasks == 20_000
    assert peak_bytes < 500_000  # 25 bytes a task would fit, a task would not


def test_costs_come_from_the_price_file(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        "dollars_per_core_hour = 3600\ndollars_per_gigabyte_month = 1e9\nseconds_per_task = 1\n"
        "[seconds_per_megavoxel]\ntoy_sum = 0\ndefault = 1e6\n"
    )
    prices = load_prices(file)
    spec = load_spec(
        {"image": str(image), "root": "memory://r", "workers": 4, "stage": [INVERT, SUM]}, where="here"
    )
    expanded = plan(spec)
    invert, summed = (estimate_stage(stage, expanded, prices) for stage in expanded.stages)
    n_voxels = 64 * 48 * 48
    assert invert.dollars == pytest.approx(n_voxels + 36)
    assert invert.hours == pytest.approx((n_voxels + 36) / 3600 / 4)
    assert invert.dollars_per_month == pytest.approx(n_voxels)
    assert summed.dollars == pytest.approx(25)
    assert total([invert, summed]).n_tasks == 61
    assert load_prices().seconds_for("no such kind") == load_prices().seconds_per_megavoxel["default"]
    file.write_text("dollars_per_core_hour = -1\n")
    with pytest.raises(
        SpecError, match=r"prices.toml: dollars_per_core_hour: .*missing key 'seconds_per_task'"
    ):
        load_prices(file)
    with pytest.raises(NotFoundError, match="there is no price file"):
        load_prices(tmp_path / "none.toml")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    toy: Callable, command: Callable
) -> None:
    it = toy(extra_bytes=10**17)
    code, _, err = command("run", it.file)
    assert code == 2
    assert "needs about 100 PB and its disk has" in err
    assert not it.root.exists()
    assert "too little" in command("plan", it.file)[1]
    check_space("gs://bucket/root", needed_bytes=10**30)
    assert [human_bytes(n) for n in (999, 1500, 2.5e9, 1e17)] == ["999 B", "1.5 kB", "2.5 GB", "100 PB"]


def test_a_step_that_yields_other_than_it_announced_is_refused(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudseg.pipelines.plan import record

    expanded = planned(image, INVERT)
    (stage,) = expanded.stages
    broken = dataclasses.replace(stage.plan.steps[0], n_tasks=7)
    stage = dataclasses.replace(stage, plan=dataclasses.replace(stage.plan, steps=(broken,)))
    with pytest.raises(SpecError, match="announced 7 tasks but yields 36"):
        record(dataclasses.replace(expanded, stages=(stage,)))


def test_the_file_on_disk_is_what_is_planned(toy: Callable) -> None:
    spec = read_spec(toy(sleep_s=0.25).file)
    assert spec.stages[0].model_dump()["sleep_s"] == 0.25
    assert np.prod(plan(spec).image.info.shape) == 64 * 48 * 48


def test_a_worker_keeps_the_libraries_of_earlier_steps_and_each_thread_takes_its_share(image: Path) -> None:
    expanded = planned(image, INVERT, SUM)
    first, second = expanded.stages
    (invert,) = first.plan.steps
    libraries = {"libraries": ("torch",), "task_memory_bytes": base_bytes(["torch"]) + 7}
    invert = dataclasses.replace(invert, thread_memory_bytes=1000, **libraries)
    sums = tuple(
        dataclasses.replace(step, libraries=("numba",), task_memory_bytes=base_bytes(["numba"]) + 5)
        for step in second.plan.steps
    )
    stages = tuple(
        dataclasses.replace(stage, plan=dataclasses.replace(stage.plan, steps=steps))
        for stage, steps in ((first, (invert,)), (second, sums))
    )
    spec = expanded.spec.model_copy(update={"threads_per_worker": 3})
    expanded = dataclasses.replace(expanded, spec=spec, stages=stages)
    assert expanded.memory_bytes() == {
        "toy_invert": base_bytes(["torch"]) + 7 + 2000,
        "toy_sum.blocks": base_bytes(["torch", "numba"]) + 5,
        "toy_sum.total": base_bytes(["torch", "numba"]) + 5,
    }
    (prices,) = [estimate_stage(stages[1], expanded, load_prices())]
    assert prices.task_memory_bytes == base_bytes(["torch", "numba"]) + 5
