"""The books of a run as they lie in a root: some tasks done, one that gave up, a step that has not begun."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cloudseg.geometry import Box
from cloudseg.pipelines.advance import PLAN_KEY
from cloudseg.pipelines.plan import LayerRecord, PlanRecord, StageRecord, StepRecord
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.receipts import DeadLetter, Receipt, Receipts
from cloudseg.volumes import VolumeInfo
from cloudseg.volumes.objects import Objects

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TASKS = {"first": (4, 4), "second": (3, 1), "third": (1, 0)}
"""How many tasks each step has, and how many are done: ten seconds and five million voxels each."""

TRACEBACK = (
    'Traceback (most recent call last):\n  File "toy.py", line 1, in run\nRuntimeError: <b>poisoned</b>'
)


def write_books(objects: Objects) -> None:
    """Write a plan, receipts, an error and a dead letter of the step ``second``."""
    info = VolumeInfo(bounds=Box.of_shape((8, 8, 8)), voxel_size_nm=(8, 8, 8), chunk_shape=(8, 8, 8))
    stages = tuple(
        StageRecord(
            label=name,
            kind="toy",
            outputs_bytes=0,
            layers=(),
            steps=(StepRecord(name=name, n_tasks=n_tasks, tasks_digest="0"),),
        )
        for name, (n_tasks, _) in TASKS.items()
    )
    image = LayerRecord(name="image", uri="memory://image", info=info)
    record = PlanRecord(root=objects.uri, image=image, stages=stages, versions={})
    objects.put(PLAN_KEY, record.canonical_json().encode())
    for step, (_, n_done) in TASKS.items():
        for i in range(n_done):
            began = BEGAN + timedelta(seconds=10 * i)
            receipt = Receipt(
                task_id=str(i) * 16,
                kind="toy/1",
                step=step,
                counters={"voxels": 5_000_000},
                peak_memory_bytes=1 << 30,
                started=began,
                finished=began + timedelta(seconds=10),
            )
            Receipts(objects, step).write(receipt)
    books = Receipts(objects, "second")
    books.write_error("f" * 16, 1, "Traceback: once")
    books.write_dead(
        DeadLetter(
            task_id="f" * 16,
            kind="toy/1",
            step="second",
            reason="block 7 is poisoned",
            attempts=3,
            traceback=TRACEBACK,
            envelope=Envelope(root=objects.uri, step="second", task={"kind": "toy/1"}),
        )
    )
