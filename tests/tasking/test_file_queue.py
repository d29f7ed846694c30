from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudseg.errors import NotFoundError, SpecError, StorageError
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.file_queue import FOLDERS, FileQueue
from cloudseg.tasking.queue import QueueCounts, open_queue
from cloudseg.testing.tasks import NoteTask


def _envelopes(n: int) -> Iterator[Envelope]:
    return (
        Envelope.of(NoteTask(folder="f", name=str(i)), root="memory://r", step="s", max_attempts=9)
        for i in range(n)
    )


def _files(queue: FileQueue, folder: str) -> list[str]:
    return sorted(os.listdir(Path(queue.uri.removeprefix("fq://"), folder)))


def _left(queue: FileQueue) -> dict[str, int]:
    return {name: len(_files(queue, name)) for name in FOLDERS}


def test_a_message_is_leased_by_one_and_comes_back_only_when_its_lease_ends(queue: FileQueue):
    assert queue.insert(_envelopes(1)) == 1
    rival = FileQueue(queue.uri)
    lease = queue.lease(1)
    assert lease is not None
    assert parse_message(lease.message) == next(_envelopes(1))
    assert lease.attempt == 1
    assert rival.lease(1) is None
    assert queue.counts() == QueueCounts(ready=0, leased=1, dead=0)
    time.sleep(2.1)  # a lease is rounded up to whole seconds
    taken = rival.lease(60)
    assert taken is not None
    assert (taken.id, taken.attempt) == (lease.id, 2)
    assert queue.renew(lease, 60) is False
    assert rival.renew(taken, 60) is True


def test_a_renewed_lease_outlives_its_first_end(queue: FileQueue):
    queue.insert(_envelopes(1))
    lease = queue.lease(1)
    assert lease is not None
    for _ in range(4):
        time.sleep(0.7)
        assert queue.renew(lease, 1)
        assert FileQueue(queue.uri).lease(1) is None
    queue.delete(lease)
    assert queue.is_empty()


def test_nothing_is_left_of_a_deleted_message(queue: FileQueue):
    queue.insert(_envelopes(3))
    while (lease := queue.lease(60)) is not None:
        queue.delete(lease)
    assert _left(queue) == dict.fromkeys(FOLDERS, 0)
    assert queue.is_empty()


def test_a_finisher_who_lost_its_lease_still_removes_the_message_under_its_new_name(queue: FileQueue):
    queue.insert(_envelopes(1))
    lease = queue.lease(1)
    assert lease is not None
    time.sleep(2.1)
    rival = FileQueue(queue.uri)
    taken = rival.lease(60)
    assert taken is not None
    queue.delete(lease)
    assert queue.is_empty()
    assert rival.renew(taken, 60) is False
    assert rival.bury(taken, "too late") is False
    rival.delete(taken)  # nothing happens
    assert _left(queue) == dict.fromkeys(FOLDERS, 0)


def test_a_message_handed_back_is_leasable_at_once_and_keeps_or_forgets_its_attempt(queue: FileQueue):
    queue.insert(_envelopes(1))
    for counted, attempt in [(False, 1), (True, 1), (True, 2), (False, 3), (True, 3)]:
        lease = queue.lease(600)
        assert lease is not None
        assert lease.attempt == attempt
        assert queue.release(lease, counted=counted)
    assert queue.counts().ready == 1


def test_a_delayed_message_waits(queue: FileQueue):
    queue.insert(_envelopes(1))
    lease = queue.lease(600)
    assert lease is not None
    queue.release(lease, 1)
    assert queue.lease(60) is None
    assert not queue.is_empty()
    time.sleep(2.1)
    assert queue.lease(60) is not None


def test_a_buried_message_keeps_its_reason_and_can_be_redriven(queue: FileQueue):
    queue.insert(_envelopes(2))
    for reason in ("first", "second"):
        lease = queue.lease(60)
        assert lease is not None
        assert queue.bury(lease, reason)
    assert queue.is_empty()
    assert queue.counts() == QueueCounts(ready=0, leased=0, dead=2)
    assert sorted(letter.reason for letter in queue.dead()) == ["first", "second"]
    assert queue.redrive(lambda letter: letter.reason == "second") == 1
    lease = queue.lease(60)
    assert lease is not None
    assert lease.attempt == 1
    assert [letter.reason for letter in queue.dead()] == ["first"]
    assert queue.redrive() == 1
    assert _files(queue, "dead") == []
    assert queue.redrive() == 0


def test_purge_takes_messages_from_their_holders_and_leaves_the_dead(queue: FileQueue):
    queue.insert(_envelopes(3))
    lease, dead = queue.lease(60), queue.lease(60)
    assert lease is not None
    assert dead is not None
    queue.bury(dead, "broke")
    queue.purge()
    assert queue.counts() == QueueCounts(ready=0, leased=0, dead=1)
    assert queue.renew(lease, 60) is False


def test_messages_are_inserted_as_the_iterator_yields_them(queue: FileQueue):
    def failing() -> Iterator[Envelope]:
        yield from _envelopes(5)
        raise NotFoundError("nothing lies at memory://mask")

    with pytest.raises(NotFoundError, match="nothing lies at memory://mask"):
        queue.insert(failing())
    assert queue.counts().ready == 5
    assert _files(queue, "tmp") == []


def test_a_file_with_a_senseless_name_is_leased_so_that_a_worker_can_bury_it(queue: FileQueue):
    Path(queue.uri.removeprefix("fq://"), "queue", "note.txt").write_text("hello")
    lease = queue.lease(60)
    assert lease is not None
    assert lease.message == b"hello"
    assert queue.bury(lease, "no message")
    assert queue.is_empty()


@pytest.mark.parametrize("uri", ["name", "fq://", "/folder", ""])
def test_an_address_that_is_no_queue_is_refused(uri: str):
    with pytest.raises(SpecError, match="is not the address of a queue: expected fq://folder"):
        open_queue(uri)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"cannot make the queue fq://.*: Not a directory"):
        open_queue(f"fq://{tmp_path}/file")


def test_a_lease_of_no_seconds_is_refused(queue: FileQueue):
    with pytest.raises(SpecError, match="at least 1 second, got 0"):
        queue.lease(0)


def test_a_queue_whose_folder_has_gone_says_so(queue: FileQueue, tmp_path: Path):
    (tmp_path / "queue" / "queue").rmdir()
    with pytest.raises(StorageError, match=r"cannot count the queue fq://.*No such file"):
        queue.counts()


STOCK_LEAVES_SCANS_OPEN = pytest.mark.filterwarnings(
    "ignore:.*ScandirIterator.*:pytest.PytestUnraisableExceptionWarning",  # task-queue's own is_empty and lease
    "ignore:unclosed scandir iterator:ResourceWarning",
)

# --- the same folder used by stock task-queue ---------------------------------------------------------------------


@STOCK_LEAVES_SCANS_OPEN
def test_stock_task_queue_lists_leases_runs_and_deletes_our_messages(
    queue: FileQueue, folder: Path, wrap: Callable[..., Envelope]
):
    from taskqueue import TaskQueue

    import cloudseg_tasks.wire  # noqa: F401 - registers the function

    queue.insert([wrap(NoteTask(folder=str(folder), name=str(i))) for i in range(3)])
    stock = TaskQueue(queue.uri, n_threads=0, progress=False)
    assert (stock.enqueued, stock.inserted, stock.leased) == (3, 3, 0)
    assert len(stock.list()) == 3
    task = stock.lease(seconds=60)
    assert queue.counts() == QueueCounts(ready=2, leased=1, dead=0)
    stock.renew(task, 60)
    task.execute()
    stock.delete(task, tally=True)
    stock.poll(lease_seconds=60, stop_fn=stock.is_empty, tally=True)
    assert sorted(note.read_bytes() for note in folder.iterdir()) == [b"<>"] * 3
    assert stock.completed == 3
    assert _left(queue) == dict.fromkeys(FOLDERS, 0)


@STOCK_LEAVES_SCANS_OPEN
def test_messages_that_stock_task_queue_inserted_or_held_are_ours_to_lease_and_leave_nothing(
    queue: FileQueue,
):
    from taskqueue import TaskQueue
    from taskqueue.registered_task import MockTask

    stock = TaskQueue(queue.uri, n_threads=0, progress=False)
    stock.insert([MockTask(number=1), MockTask(number=2)])
    held = stock.lease(seconds=60)
    stock.cancel(held)
    found = []
    while (lease := queue.lease(60)) is not None:
        found.append(json.loads(lease.message)["payload"]["number"])
        assert queue.renew(lease, 60)
        queue.delete(lease)
    assert sorted(found) == [1, 2]
    assert stock.is_empty()
    assert stock.completed == 2
    assert _left(queue) == dict.fromkeys(FOLDERS, 0)


@STOCK_LEAVES_SCANS_OPEN
def test_a_stock_worker_that_finishes_after_we_took_over_does_not_remove_our_message(queue: FileQueue):
    from taskqueue import TaskQueue

    queue.insert(_envelopes(1))
    stock = TaskQueue(queue.uri, n_threads=0, progress=False)
    import cloudseg_tasks.wire  # noqa: F401

    task = stock.lease(seconds=1)
    time.sleep(1.1)
    lease = queue.lease(60)
    assert lease is not None
    stock.delete(task)
    assert not queue.is_empty()
    assert queue.renew(lease, 60)
    queue.delete(lease)
    assert _left(queue) == dict.fromkeys(FOLDERS, 0)


# --- many processes -------------------------------------------------------------------------------------------------

DRAIN = """
import sys, time
from pathlib import Path
from cloudseg.tasking.envelope import parse_message
from cloudseg.tasking.file_queue import FileQueue

queue, effects = FileQueue(sys.argv[1]), Path(sys.argv[2])
while not queue.is_empty():
    lease = queue.lease(2)
    if lease is None:
        time.sleep(0.05)
        continue
    effect = effects / parse_message(lease.message).task["name"]
    if not effect.exists():
        effect.write_bytes(b"done")
    queue.delete(lease)
"""


@pytest.mark.faults
def test_four_processes_drain_two_thousand_tasks_whoever_is_killed_and_nothing_is_lost(
    queue: FileQueue, tmp_path: Path
):
    n_tasks, n_kills = 2000, 12
    dice = random.Random(7)
    effects = tmp_path / "effects"
    effects.mkdir()
    assert queue.insert(_envelopes(n_tasks)) == n_tasks

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", DRAIN, queue.uri, str(effects)])

    processes = [start() for _ in range(4)]
    killed_at_work = 0
    deadline = time.monotonic() + 90
    try:
        while (n_effects := len(os.listdir(effects))) == 0:  # imports take seconds on a busy machine
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while killed_at_work < n_kills and n_effects < n_tasks:
            time.sleep(dice.uniform(0.02, 0.15))
            victim = dice.randrange(4)
            if processes[victim].poll() is None:
                processes[victim].send_signal(signal.SIGKILL)
                processes[victim].wait()
                killed_at_work += 1
            processes[victim] = start()
            n_effects = len(os.listdir(effects))
        for process in processes:
            assert process.wait(timeout=max(1.0, deadline - time.monotonic())) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert killed_at_work >= 3
    assert sorted(os.listdir(effects), key=int) == [str(i) for i in range(n_tasks)]
    assert queue.counts() == QueueCounts(ready=0, leased=0, dead=0)
    assert _left(queue) == dict.fromkeys(FOLDERS, 0)
