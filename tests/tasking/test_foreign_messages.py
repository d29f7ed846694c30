from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import Queue
from cloudseg.tasking.worker import WorkerOptions, WorkerReport, work
from cloudseg.testing.tasks import NoteTask


@pytest.mark.filterwarnings("ignore")  # igneous and what it imports warn of their own futures
def test_tasks_that_a_stock_igneous_client_queued_are_run_by_our_worker_among_ours(
    any_queue: Queue, tmp_path: Path, folder: Path, wrap: Callable[..., Envelope]
):
    queue = any_queue
    from cloudvolume import CloudVolume
    from igneous.task_creation import create_downsampling_tasks
    from taskqueue import TaskQueue

    layer = f"file://{tmp_path}/layer"
    labels = (
        np.random.default_rng(5)
        .integers(0, 9, (8, 8, 8), dtype=np.uint64)
        .repeat(8, 0)
        .repeat(8, 1)
        .repeat(8, 2)
    )
    CloudVolume.from_numpy(
        labels,
        vol_path=layer,
        resolution=(8, 8, 8),
        chunk_size=(32, 32, 32),
        layer_type="segmentation",
        compress=None,
    )
    tasks = create_downsampling_tasks(
        layer, mip=0, num_mips=1, factor=(2, 2, 2), fill_missing=False, compress=None
    )
    TaskQueue(queue.uri, n_threads=0, progress=False).insert(tasks)
    n_tasks = queue.counts().ready
    assert n_tasks >= 1
    queue.insert(wrap(NoteTask(folder=str(folder), name=str(i))) for i in range(3))
    options = WorkerOptions(until_empty=True, threads_per_process=1, backoff_s=0)
    assert work(queue.uri, options) == WorkerReport(n_done=n_tasks + 3)
    assert sorted(note.read_bytes() for note in folder.iterdir()) == [b"<>"] * 3
    counts = queue.counts()
    assert (counts.ready, counts.leased, counts.dead) == (0, 0, 0)
    coarse = CloudVolume(layer, mip=1, progress=False)[:][..., 0]
    np.testing.assert_array_equal(coarse, labels[::2, ::2, ::2])
