"""Size: what is planned, listed and enqueued is counted, streamed and folded, never held."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudseg.errors import CorruptDataError
from cloudseg.geometry import Box
from cloudseg.pipelines import advance
from cloudseg.pipelines.compaction import fold
from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.report import summarise
from cloudseg.pipelines.spec import load_spec, read_spec
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import open_queue
from cloudseg.tasking.receipts import Receipt, Receipts
from cloudseg.tasking.run_task import default_context, run_or_skip
from cloudseg.tasking.steps import Step
from cloudseg.tasking.task import Task
from cloudseg.tasking.worker import WorkerOptions, work
from cloudseg.volumes import VolumeInfo, create_volume
from cloudseg.volumes.memory import MemoryObjects, clear_memory

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


class Killed(BaseException):
    """The process ends here."""


class FailingObjects(MemoryObjects):
    """Objects that end the process before the n-th change, or after it."""

    def __init__(self, uri: str, *, kill_at: int, after: bool = False) -> None:
        super().__init__(uri)
        self.n_left = kill_at
        self.after = after
        self.n_reads = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes:
        with self._lock:
            self.n_reads += 1
        return super().get(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._change(lambda: super(FailingObjects, self).put_if_absent(key, data))

    def delete(self, key: str) -> None:
        self._change(lambda: super(FailingObjects, self).delete(key))

    def _change(self, do: Callable[[], bool | None]) -> bool:
        with self._lock:
            self.n_left -= 1
            if self.n_left == 0 and not self.after:
                raise Killed
            if self.n_left < 0:
                raise Killed
            done = do()
            if self.n_left == 0:
                raise Killed
            return bool(done)


class CountingObjects(MemoryObjects):
    """Objects that know what they were asked."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._asked: Counter[str] = Counter()

    def n_requests(self) -> dict[str, int]:
        """Return the requests since the last look."""
        asked, self._asked = self._asked, Counter()
        return dict(asked)

    def get(self, key: str) -> bytes:
        self._asked["get"] += 1
        return super().get(key)

    def exists(self, key: str) -> bool:
        self._asked["exists"] += 1
        return super().exists(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        self._asked["list"] += 1
        return super().list(prefix)


def receipt(number: int) -> Receipt:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Receipt(
        task_id=f"{number * 7919 % 10007:032x}",
        kind="toy/1",
        step="s",
        counters={"voxels": number},
        started=now,
        finished=now + timedelta(seconds=number),
    )


def with_receipts(uri: str, numbers: range) -> Receipts:
    clear_memory(uri)
    books = Receipts(MemoryObjects(uri), "s")
    for number in numbers:
        assert books.write(receipt(number))
    return books


@pytest.mark.parametrize("after", [False, True])
def test_receipts_are_folded_exactly_once_wherever_the_process_is_killed(after: bool) -> None:
    uri = "memory://folding"
    quiet = list(with_receipts(uri, range(23)).all())
    kill_at, n_killed = 0, 0
    while True:
        kill_at += 1
        books = with_receipts(uri, range(23))
        quiet = list(books.all())
        failing = FailingObjects(uri, kill_at=kill_at, after=after)
        try:
            fold("s", failing, fold_from=10, segment_receipts=5)
        except Killed:
            n_killed += 1
        else:
            break
        assert sorted(books.all(), key=lambda r: r.task_id) == quiet
        assert books.done() == {r.task_id for r in quiet}
        assert advance.count_settled("s", MemoryObjects(uri)) == (23, 0)
        assert summarise(books.all()) == summarise(quiet)
        fold("s", MemoryObjects(uri), fold_from=10, segment_receipts=5)
        assert books.single_ids() == []
        assert sorted(books.all(), key=lambda r: r.task_id) == quiet
    assert n_killed == 5 + 1 + 23  # five segments, their mark, then the receipts in them
    assert list(books.all()) == quiet
    assert [books.get(r.task_id) for r in quiet[::7]] == quiet[::7]
    assert books.get("0" * 31 + "z") is None


def test_a_receipt_that_comes_once_more_does_not_count_and_a_late_one_does() -> None:
    uri = "memory://late"
    books = with_receipts(uri, range(12))
    quiet = list(books.all())
    fold("s", MemoryObjects(uri), fold_from=10)
    again = quiet[3].model_copy(update={"counters": {"voxels": 10**6}, "owner": "a straggler"})
    assert Receipts(MemoryObjects(uri), "s").write(again)
    assert books.write(receipt(500))
    assert books.n_done() == 13
    assert sum(r.counters["voxels"] for r in books.all()) == sum(range(12)) + 500
    assert fold("s", MemoryObjects(uri), fold_from=10) == 1
    assert books.single_ids() == []
    assert books.get(again.task_id) == quiet[3]
    assert books.n_done() == 13


def test_folded_receipts_are_read_in_a_few_requests_and_a_damaged_segment_is_no_proof() -> None:
    uri = "memory://few"
    books = with_receipts(uri, range(600))
    assert fold("s", MemoryObjects(uri), fold_from=10, segment_receipts=200) == 600
    assert books.single_ids() == []
    counting = FailingObjects(uri, kill_at=10**6)
    assert summarise(Receipts(counting, "s").all()).n_tasks == 600
    assert counting.n_reads == 3
    for number in range(600, 620):
        books.write(receipt(number))
    objects = MemoryObjects(uri)
    key = books.folded.list()[1].key
    objects.put(key, objects.get(key).replace(b'"voxels":1', b'"voxels":2', 1))
    with pytest.raises(CorruptDataError, match=r"000002-\w+-\w+.jsonl .* is damaged"):
        fold("s", objects, fold_from=10)
    assert len(books.single_ids()) == 20


def test_one_folded_receipt_is_found_by_reading_one_segment_and_one_that_is_not_there_by_none() -> None:
    uri = "memory://one"
    books = with_receipts(uri, range(600))
    quiet = list(books.all())
    counting = Receipts(CountingObjects(uri), "s")
    assert counting.get("0" * 31 + "f") is None
    assert counting._objects.n_requests() == {"get": 1, "exists": 1}  # no listing while nothing is folded
    fold("s", MemoryObjects(uri), fold_from=10, segment_receipts=50)
    assert len(books.folded.list()) == 12
    assert counting.get(quiet[333].task_id) == quiet[333]
    assert counting._objects.n_requests() == {"get": 2, "exists": 1, "list": 1}
    assert counting.get("f" * 32) is None
    assert counting._objects.n_requests() == {"get": 1, "exists": 1, "list": 1}


def test_a_task_whose_receipt_was_folded_does_not_run_again_however_late_it_comes(
    toy: Callable, command: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(fold.__kwdefaults__, "fold_from", 18)
    monkeypatch.setitem(fold.__kwdefaults__, "segment_receipts", 10)
    it = toy()
    assert command("run", it.file)[0] == 0
    assert it.receipts("toy_invert") == set()
    ran, before = it.runs(), it.outputs()
    (step, *_) = plan(read_spec(it.file)).steps()
    late = [Envelope.of(task, root=f"file://{it.root}", step=step.name) for task in step.tasks()]
    receipt, has_run = run_or_skip(late[5], default_context())
    assert (receipt.task_id, has_run) == (late[5].task_id, False)
    queue = open_queue(f"fq://{tmp_path}/late")
    queue.insert(late)
    report = work(queue.uri, WorkerOptions(n_processes=1, until_empty=True))
    assert (report.n_done, report.n_skipped) == (36, 36)
    assert (it.runs(), it.outputs()) == (ran, before)
    assert it.receipts("toy_invert") == set()


def test_a_run_that_folds_is_followed_verified_and_taken_up_like_any_other(
    toy: Callable, command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fold.__kwdefaults__, "fold_from", 18)
    it = toy()
    assert command("run", it.file)[0] == 0
    assert it.receipts("toy_invert") == set()
    assert len(it.receipts("toy_sum.blocks")) == 0
    assert len(it.receipts("toy_sum.total")) == 1
    ran = it.runs()
    assert len(ran) == 61
    code, out, _ = command("status", it.root)
    assert code == 0
    assert "36/36" in out
    assert "all 61 tasks have receipts" in command("verify", it.root)[1]
    assert command("run", it.file)[0] == 0
    assert it.runs() == ran


class Small(Task):
    """The least that can be queued."""

    kind: str = "small/1"
    number: int


def test_a_step_is_enqueued_as_a_stream(tmp_path: Path) -> None:
    def enqueue(n_tasks: int) -> int:
        step = Step("s", n_tasks, lambda: (Small(number=n) for n in range(n_tasks)))
        objects = MemoryObjects("memory://stream")
        queue = open_queue(f"fq://{tmp_path}/{n_tasks}")
        tracemalloc.start()
        sent = queue.insert(
            Envelope.of(task, root="memory://stream", step="s") for task in advance.missing(step, objects)
        )
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sent == queue.counts().ready == n_tasks
        return peak_bytes

    enqueue(10)  # what is imported and compiled once
    small, large = enqueue(500), enqueue(4000)
    assert large < small + 200_000  # 57 bytes for each further task; an envelope takes over a thousand
