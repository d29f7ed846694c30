from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloudseg.errors import StorageError
from cloudseg.tasking import metrics as metrics_module
from cloudseg.tasking.file_queue import FileQueue
from cloudseg.tasking.metrics import Health, WorkerMetrics
from cloudseg.tasking.queue import Queue
from cloudseg.tasking.receipts import Receipt
from cloudseg.tasking.slot import WorkerEvent
from cloudseg.testing.tasks import NoteTask


def numbers(metrics: WorkerMetrics) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def receipt(**more: object) -> Receipt:
    now = datetime.now(UTC)
    return Receipt(task_id="t", kind="mesh/1", step="s", started=now, finished=now, **more)


def test_bytes_steps_and_memory_come_from_receipts_and_count_once(queue: FileQueue):
    metrics = WorkerMetrics(lambda: queue)
    small = receipt(
        counters={"bytes_read": 7, "bytes_written": 3, "voxels": 9},
        seconds={"read": 1.0, "total": 4.0},
        peak_memory_bytes=50,
    )
    large = small.model_copy(update={"peak_memory_bytes": 90})
    for found in (small, large, small):
        metrics.note(WorkerEvent("started", kind="mesh/1", waited_s=5))
        metrics.note(WorkerEvent("done", kind="mesh/1", seconds=2, receipt=found))
    metrics.note(WorkerEvent("started", kind="mesh/1", waited_s=9))
    metrics.note(WorkerEvent("skipped", kind="mesh/1", receipt=small))  # its books were counted where it ran
    metrics.note(WorkerEvent("dead", was_started=False))
    metrics.note(WorkerEvent("started", kind="DownsampleTask"))
    found = numbers(metrics)
    assert found["cloudseg_bytes_total", "mesh/1", "read"] == 21
    assert found["cloudseg_bytes_total", "mesh/1", "written"] == 9
    assert found["cloudseg_task_step_seconds_total", "mesh/1", "read"] == 3
    assert ("cloudseg_task_step_seconds_total", "mesh/1", "total") not in found
    assert found["cloudseg_task_peak_memory_bytes", "mesh/1"] == 90
    assert found["cloudseg_tasks_total", "done", "mesh/1"] == 3
    assert found["cloudseg_tasks_total", "mesh/1", "skipped"] == 1
    assert found["cloudseg_tasks_total", "dead", "unreadable"] == 1
    assert found["cloudseg_tasks_running",] == 1
    assert found["cloudseg_queue_oldest_seconds",] == 9


def test_the_queue_is_looked_at_now_and_then_and_its_silence_is_no_number(
    queue: FileQueue, wrap: Callable, monkeypatch: pytest.MonkeyPatch
):
    broken = False
    n_looks = 0

    def open_queue() -> Queue:
        nonlocal n_looks
        n_looks += 1
        if broken:
            raise StorageError("it does not answer")
        return queue

    queue.insert([wrap(NoteTask(folder="f", name=str(i))) for i in range(3)])
    queue.lease(60)
    metrics = WorkerMetrics(open_queue)
    first = numbers(metrics)
    states = ("ready", "leased", "dead")
    assert [first["cloudseg_queue_messages", state] for state in states] == [2, 1, 0]
    queue.purge()
    assert numbers(metrics)["cloudseg_queue_messages", "ready"] == 2  # asked a moment ago
    assert n_looks == 1
    monkeypatch.setattr(metrics_module, "QUEUE_LOOK_S", 0.0)
    broken = True
    assert math.isnan(numbers(WorkerMetrics(open_queue))["cloudseg_queue_messages", "ready"])


class Part:
    def __init__(self, trouble: str = "", obstacle: str = "") -> None:
        self._trouble, self._obstacle = trouble, obstacle

    def trouble(self) -> str:
        return self._trouble

    def obstacle(self) -> str:
        return self._obstacle


def test_a_worker_is_ready_while_one_slot_is_and_lives_while_none_is_stuck():
    health, stopping = Health(), threading.Event()
    assert health.live() == []
    assert health.ready() == ["it is starting"]
    health.watch([Part(obstacle="slot-0: no queue"), Part()], stopping=stopping)
    assert health.ready() == []
    health.watch([Part(obstacle="slot-0: no queue"), Part("slot-1 is stuck", "busy")], stopping=stopping)
    assert health.ready() == ["slot-0: no queue", "busy"]
    assert health.live() == ["slot-1 is stuck"]
    stopping.set()
    assert health.ready() == ["it is stopping"]
