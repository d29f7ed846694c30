"""A step that starts block by block: what it may start, that it does, and that nothing else changes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudseg.errors import SpecError
from cloudseg.geometry import Box, tile
from cloudseg.pipelines.overlap import Frontier, Overlap
from cloudseg.pipelines.plan import PipelinePlan, plan
from cloudseg.pipelines.spec import differing_keys, load_spec, read_spec
from cloudseg.tasking import file_queue
from cloudseg.tasking.near import Grid, Near
from cloudseg.tasking.receipts import Receipt, Receipts
from cloudseg.tasking.steps import Step
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes import VolumeInfo, clear_memory, create_volume, open_objects, open_volume
from cloudseg.volumes.memory import MemoryObjects

SHAPE = (40, 33, 24)
ROOT = "memory://barrier"


@given(
    st.integers(1, 12),
    st.lists(st.sets(st.integers(0, 11), max_size=5), max_size=15),
    st.randoms(use_true_random=False),
)
def test_a_task_may_start_exactly_when_all_that_it_needs_is_done(
    n_before: int, wanted: list[set[int]], rng: random.Random
) -> None:
    needs = [{n % n_before for n in needed} for needed in wanted]
    frontier = Frontier(n_before, len(needs), lambda number: sorted(needs[number]))
    order = list(range(n_before))
    rng.shuffle(order)
    done: set[int] = set()
    started = list(frontier.finish([]))
    assert started == [n for n, needed in enumerate(needs) if not needed]
    while order:
        several = [order.pop() for _ in range(min(len(order), rng.randint(1, 3)))]
        done.update(several)
        seen_before = rng.sample(sorted(done), len(done) // 2)  # a listing names the old ones too
        started += frontier.finish([*several, *seen_before])
        assert sorted(started) == [n for n, needed in enumerate(needs) if needed <= done]
    assert sorted(started) == list(range(len(needs)))


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.randoms(use_true_random=False),
)
def test_a_grid_numbers_blocks_as_they_are_tiled(shape: tuple, block: tuple, rng: random.Random) -> None:
    bounds = Box.of_shape(shape, at=(-3, 0, 5))
    grid, boxes = Grid(bounds, block), list(tile(bounds, block))
    assert [grid.box(n) for n in range(len(boxes))] == boxes
    a, b = (
        tuple(rng.randrange(f, t) for f, t in zip(bounds.start, bounds.stop, strict=True)) for _ in range(2)
    )
    box = Box(tuple(map(min, a, b)), tuple(max(p, q) + 1 for p, q in zip(a, b, strict=True)))
    assert list(grid.numbers(box)) == [n for n, x in enumerate(boxes) if not x.intersect(box).is_empty]


def segmentation(hierarchy: str) -> PipelinePlan:
    """Plan the segmentation of random affinities."""
    info = VolumeInfo(
        bounds=Box.of_shape(SHAPE, at=(4, 0, -7)), voxel_size_nm=(8, 8, 8), chunk_shape=(8, 8, 8)
    )
    create_volume(f"{ROOT}/image", info).write(info.bounds, np.zeros(SHAPE, np.uint8, order="F"))
    affinities = np.random.default_rng(7).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    three = info.model_copy(update={"n_channels": 3})
    create_volume(f"{ROOT}/affinities", three).write(info.bounds, np.asfortranarray(affinities))
    common = {"block_shape": [11, 12, 9], "chunk_shape": [1, 1, 1], "barrier": "neighbours"}
    data = {
        "image": f"{ROOT}/image",
        "root": ROOT,
        "inputs": {"affinities": f"{ROOT}/affinities"},
        "stage": [
            {"kind": "supervoxels", "t_low": 3, "t_high": 254, **common},
            {"kind": "agglomerate", "threshold": 0.5, "hierarchy": hierarchy, **common},
        ],
    }
    return plan(load_spec(data, where="here"))


def run_all(expanded: PipelinePlan, *, ahead: dict[str, Step], rng: random.Random) -> int:
    """Run every task in random order, some of a step ahead as soon as they may; return how many ran early."""
    ctx = Context(open_volume=open_volume, open_objects=open_objects)
    for stage in expanded.stages:
        for layer in stage.plan.layers:
            create_volume(layer.uri, layer.info)
    n_early, ran = 0, []
    started: set[int] = set()  # tasks of the step at hand that have run while the one before was under way
    for step in expanded.steps():
        listed = list(step.tasks())
        assert len(listed) == step.n_tasks
        following = ahead.get(step.name)
        frontier = Frontier(step.n_tasks, following.n_tasks, following.near.needs) if following else None
        ready = list(frontier.finish(started)) if frontier else []
        waiting = [n for n in range(step.n_tasks) if n not in started]
        rng.shuffle(waiting)
        started = set()
        while waiting:
            if ready and rng.random() < 0.7:
                number = ready.pop(rng.randrange(len(ready)))
                started.add(number)
                task = following.near.task(number)
                n_early += 1
            else:
                number = waiting.pop()
                task = listed[number]
                if frontier:
                    task.run(ctx)
                    ran.append(task.id)
                    ready += frontier.finish([number])
                    continue
            task.run(ctx)
            ran.append(task.id)
        if following:
            assert [following.near.task(n) for n in range(following.n_tasks)] == list(following.tasks())
    assert len(ran) == len(set(ran)) == expanded.n_tasks
    return n_early


@pytest.mark.parametrize(("hierarchy", "seed"), [("octree", 1), ("octree", 2), ("global", 3)])
def test_segmentation_started_block_by_block_in_any_order_is_the_same(hierarchy: str, seed: int) -> None:
    """Each task runs as soon as it may, at random; what it reads too early is not there, and would be an error."""
    results = []
    for overlapping in (False, True):
        clear_memory()
        expanded = segmentation(hierarchy)
        ahead = expanded.ahead()
        names = [step.name for step in expanded.steps()]
        expected = {"supervoxels.label", "supervoxels.rename"}
        if hierarchy == "octree":
            expected.update(name for name in names[:-1] if name.startswith("agglomerate."))
            assert "agglomerate.level2" in expected
        assert set(ahead) == expected
        n_early = run_all(expanded, ahead=ahead if overlapping else {}, rng=random.Random(seed))
        assert (n_early > 20) if overlapping else (n_early == 0)
        results.append(open_volume(f"{ROOT}/segmentation").read(expanded.image.info.bounds))
    clear_memory()
    assert len(np.unique(results[0])) > 10
    np.testing.assert_array_equal(results[0], results[1])


class Numbered(Task):
    """The least that can wait."""

    kind: str = "numbered/1"
    number: int


class AskedObjects(MemoryObjects):
    """Objects that count what they are asked."""

    n_asked = 0

    def list(self, prefix: str = "") -> Iterator[str]:
        self.n_asked += 1
        return super().list(prefix)

    def get(self, key: str) -> bytes:
        self.n_asked += 1
        return super().get(key)


@pytest.mark.parametrize("n_tasks", [10, 400])
def test_a_look_asks_the_bucket_as_often_for_many_blocks_as_for_few(n_tasks: int) -> None:
    clear_memory("memory://looks")
    objects, sent = AskedObjects("memory://looks"), []
    before = Step("a", n_tasks, lambda: (Numbered(number=n) for n in range(n_tasks)))
    rule = Near(
        "a", lambda n: range(max(0, n - 1), min(n + 2, n_tasks)), lambda n: Numbered(number=n_tasks + n)
    )
    step = Step("b", n_tasks, lambda: map(rule.task, range(n_tasks)), near=rule)
    overlap = Overlap(before, step, objects=objects, send=sent.extend)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for number, task in enumerate(before.tasks()):
        receipt = Receipt(task_id=task.id, kind=task.kind, step="a", started=now, finished=now)
        Receipts(MemoryObjects("memory://looks"), "a").write(receipt)
        if number in (3, n_tasks - 1):
            objects.n_asked = 0
            overlap.look()
            assert objects.n_asked == 2  # the receipts, and whether any are folded
            assert sorted(task.number - n_tasks for task in sent) == list(
                range(3 if number == 3 else n_tasks)
            )


def test_a_run_starts_blocks_early_and_makes_the_same_bytes(
    toy: Callable, command: Callable, quiet_outputs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker remembers the messages that it has seen and takes those first: with few tasks it would see no others.
    monkeypatch.setattr(file_queue, "N_CANDIDATES", 1)
    it = toy(sleep_s=0.1)
    assert command("run", it.file, "--set", 'toy_sum.barrier="neighbours"', "--workers", "2")[0] == 0
    assert it.outputs() == quiet_outputs
    assert Counter(it.runs()) == Counter(it.receipts())
    kinds = [line.split()[0] for line in it.log.read_text().splitlines()]
    last_invert = max(n for n, kind in enumerate(kinds) if kind == "toy_invert/1")
    n_early = kinds[:last_invert].count("toy_sum/1")
    assert n_early > 0, "no block started before the step before was complete"
    assert command("run", it.file)[0] == 0  # how a run waits may change between two runs
    assert len(it.runs()) == 61
    assert command("status", it.root)[0] == 0


def test_a_run_that_starts_blocks_early_may_be_killed_and_goes_on(
    toy: Callable, process: Callable, quiet_outputs: dict[str, bytes]
) -> None:
    it = toy(sleep_s=0.05)
    arguments = ("run", it.file, "--set", 'toy_sum.barrier="neighbours"')
    child = process(*arguments)
    while not it.receipts("toy_sum.blocks"):
        assert child.poll() is None
    child.kill()
    child.communicate()
    settled = {task_id: Counter(it.runs())[task_id] for task_id in it.receipts()}
    child = process(*arguments)
    out, _ = child.communicate(timeout=90)
    assert child.returncode == 0
    assert "toy_sum.blocks: 24 tasks, " in out
    assert it.outputs() == quiet_outputs
    runs = Counter(it.runs())
    assert {task_id: runs[task_id] for task_id in settled} == settled


def test_a_stage_that_reads_everything_refuses_to_start_block_by_block(
    toy: Callable, command: Callable
) -> None:
    it = toy()
    code, _, err = command("plan", it.file, "--set", 'toy_invert.barrier="neighbours"')
    assert code == 2
    assert "stage 'toy_invert' cannot start block by block: each of its steps reads all" in err
    code, _, err = command("plan", it.file, "--set", 'toy_sum.barrier="some"')
    assert code == 2
    assert "barrier" in err
    skipping = toy(skip="[3]")
    code, _, err = command("plan", skipping.file, "--set", 'toy_sum.barrier="neighbours"')
    assert code == 2
    assert 'take barrier = "neighbours" out' in err


def test_how_to_wait_is_no_part_of_what_is_made(toy: Callable) -> None:
    file: Path = toy().file
    early = read_spec(file, overrides=['toy_sum.barrier="neighbours"'])
    assert differing_keys(read_spec(file), early) == []
    with pytest.raises(SpecError, match="barrier"):
        read_spec(file, overrides=["toy_sum.barrier=1"])
