"""Workers as users start them: real processes, real signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from cloudseg.cli.worker import parse_size
from cloudseg.errors import SpecError
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.file_queue import FOLDERS, FileQueue
from cloudseg.tasking.queue import Queue, QueueCounts
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.sqs_queue import SqsQueue
from cloudseg.tasking.worker import WorkerEvent, WorkerOptions, work
from cloudseg.testing.emulators import Fault, environment, front
from cloudseg.testing.tasks import FailTask, NoteTask

pytestmark = pytest.mark.faults

Wrap = Callable[..., Envelope]
COMMAND = [sys.executable, "-c", "from cloudseg.cli.main import main; main()", "worker"]


def _start(queue: Queue, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, queue.uri, "--threads=1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def _worker(queue: Queue, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = _start(queue, *options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_hands_the_task_back_in_less_than_a_second(
    any_queue: Queue, folder: Path, wrap: Wrap, number: signal.Signals, code: int
):
    queue = any_queue
    queue.insert([wrap(NoteTask(folder=str(folder), name="n", seconds=60, hold_gil=True))])
    with _worker(queue, "--lease-seconds=600") as worker:
        _wait_for((folder / "n").exists)
        (child,) = _children(worker)
        worker.send_signal(number)
        signalled = time.monotonic()
        lease = None
        while lease is None and time.monotonic() < signalled + 30:
            lease = queue.lease(60)
        waited_s = time.monotonic() - signalled
        assert lease is not None
        assert waited_s < 1
        assert lease.attempt == 1  # being told to stop is not the task's fault
        assert worker.wait(timeout=30) == code
        assert _is_gone(child)
    assert (folder / "n").read_bytes() == b"<"


def test_an_idle_worker_leaves_with_code_0_when_told_to(any_queue: Queue, folder: Path, wrap: Wrap):
    queue = any_queue
    queue.insert([wrap(NoteTask(folder=str(folder), name="n"))])
    with _worker(queue, "--forever") as worker:
        _wait_for(lambda: queue.is_empty() and (folder / "n").exists())
        worker.send_signal(signal.SIGTERM)
        out, _ = worker.communicate(timeout=30)
        assert worker.returncode == 0, out
        assert "1 done" in out


def test_a_worker_whose_task_goes_dead_leaves_with_code_1_and_says_why(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    tasks = [NoteTask(folder=str(folder), name=str(i)) for i in range(3)]
    queue.insert([wrap(FailTask(folder=str(folder), name="bad"), max_attempts=1), *map(wrap, tasks)])
    with _worker(queue, "--until-empty", "--processes=2") as worker:
        out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 1, out
    assert "RuntimeError: task bad fails on purpose" in out
    assert "3 done (0 of them before), 0 attempts failed, 1 dead, 0 handed back" in out
    assert receipts.done() == {task.id for task in tasks}


def test_a_killed_worker_takes_its_child_along_and_another_worker_finishes_the_task(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    envelope = wrap(NoteTask(folder=str(folder), name="n", seconds=2, hold_gil=True))
    queue.insert([envelope])
    with _worker(queue, "--lease-seconds=2") as first:
        _wait_for((folder / "n").exists)
        (child,) = _children(first)
        first.kill()
        _wait_for(lambda: _is_gone(child), seconds=1.5)  # while the task holds the interpreter lock
    with _worker(queue, "--until-empty", "--lease-seconds=2") as second:
        assert second.wait(timeout=60) == 0
    assert (folder / "n").read_bytes() == b"<<>"
    receipt = receipts.get(envelope.task_id)
    assert receipt is not None
    assert receipt.attempt == 2


def test_a_killed_child_costs_one_attempt_and_not_the_worker(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    tasks = [wrap(NoteTask(folder=str(folder), name=str(i), seconds=0.7)) for i in range(2)]
    queue.insert(tasks)
    with _worker(queue, "--until-empty") as worker:
        _wait_for(lambda: list(folder.iterdir()))
        (child,) = _children(worker)
        child.kill()
        out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, out
    assert "killed (SIGKILL) from outside" in out
    assert sorted(note.read_bytes() for note in folder.iterdir()) == [b"<<>", b"<>"]
    assert sorted(receipt.attempt for receipt in receipts.all()) == [1, 2]


def test_a_child_that_is_killed_while_it_starts_is_started_again(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    task = NoteTask(folder=str(folder), name="n")
    queue.insert([wrap(task)])
    with _worker(queue, "--until-empty") as worker:
        _wait_for(lambda: _children(worker))
        (child,) = _children(worker)
        child.kill()
        out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, out
    assert "did not start: it was killed (SIGKILL) from outside" in out
    assert "; starting it again" in out
    assert receipts.done() == {task.id}


def test_a_child_that_is_killed_each_time_it_starts_ends_the_worker(queue: FileQueue):
    with _worker(queue, "--until-empty") as worker:
        killed: set[int] = set()
        while worker.poll() is None:
            for child in _children(worker):
                if child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()
            time.sleep(0.01)
        out, _ = worker.communicate(timeout=60)
    assert len(killed) == 3
    assert worker.returncode == 1, out


def test_whoever_is_killed_every_task_ends_with_one_receipt_and_the_queue_empty(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    n_tasks, n_kills = 60, 6
    dice = random.Random(11)
    tasks = [NoteTask(folder=str(folder), name=str(i), seconds=0.1) for i in range(n_tasks)]
    queue.insert(wrap(task, max_attempts=50) for task in tasks)
    options = ("--until-empty", "--lease-seconds=1")
    workers = [_start(queue, *options) for _ in range(2)]
    n_killed = 0
    try:
        while n_killed < n_kills:
            before = len(receipts.done())
            # kill only at work, so that each kill meets a task
            _wait_for(lambda before=before: len(receipts.done()) > before or queue.is_empty())
            if queue.is_empty():
                break
            victim = dice.randrange(2)
            if workers[victim].poll() is None:
                children = _children(workers[victim])
                if children and dice.random() < 0.5:
                    children[0].kill()
                else:
                    workers[victim].kill()
                    workers[victim].communicate()
                    workers[victim] = _start(queue, *options)
                n_killed += 1
        for worker in workers:
            out, _ = worker.communicate(timeout=60)
            assert worker.returncode == 0, out
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert n_killed >= 3
    assert receipts.done() == {task.id for task in tasks}
    assert all((folder / str(i)).read_bytes().endswith(b">") for i in range(n_tasks))
    assert queue.counts() == QueueCounts(ready=0, leased=0, dead=0)
    base = Path(queue.uri.removeprefix("fq://"))
    assert {name: os.listdir(base / name) for name in FOLDERS} == {name: [] for name in FOLDERS}


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 2**32), ("512M", 2**29), ("1.5g", 3 * 2**29), ("1000", 1000), ("2 kb", 2048)]
)
def test_sizes_of_memory_are_read(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1G", "0", "4 apples"])
def test_what_is_no_size_of_memory_is_refused(text: str):
    with pytest.raises(SpecError, match="is not a size of memory: expected"):
        parse_size(text)


def test_a_wrong_address_gives_one_sentence_and_code_2(tmp_path: Path):
    done = subprocess.run([*COMMAND, "nowhere"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().startswith(
        "error: 'nowhere' is not the address of a queue: expected fq://folder"
    )
    assert "Traceback" not in done.stderr


def test_a_queue_that_does_not_answer_as_a_message_is_buried_costs_the_worker_nothing(aws: str, sqs_uri: str):
    queue = SqsQueue(sqs_uri)
    queue._client.send_message(QueueUrl=queue._url, MessageBody="{ not JSON")
    events: list[WorkerEvent] = []
    with front(aws) as before, environment(AWS_ENDPOINT_URL=before.url):

        def note(event: WorkerEvent) -> None:
            events.append(event)
            before.faults.append(Fault("GetQueueAttributes", status=503, times=5 if len(events) == 1 else 0))

        before.faults[:] = [Fault("ChangeMessageVisibility", status=503, times=2)]
        options = WorkerOptions(until_empty=True, lease_seconds=1, threads_per_process=1)
        report = work(sqs_uri, options, on_event=note)
    assert [fault.times for fault in before.faults] == [0, 0, 0], "the queue has always answered"
    assert [event.name for event in events] == ["failed", "dead"]
    assert report.exit_code == 1
    (letter,) = queue.dead()
    assert "must be JSON" in letter.reason
