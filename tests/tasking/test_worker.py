from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudseg.errors import NotFoundError, SpecError, TaskFailedError
from cloudseg.tasking import deletions
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.file_queue import FileQueue
from cloudseg.tasking.metrics import Health
from cloudseg.tasking.process import explain_exit, share_gpus
from cloudseg.tasking.queue import Queue, QueueCounts, open_queue
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.worker import TaskLimits, WorkerEvent, WorkerOptions, WorkerReport, work
from cloudseg.testing.emulators import environment
from cloudseg.testing.front import BatchFront, Fault, front
from cloudseg.testing.tasks import FailTask, HogTask, NoteTask, ThreadsTask

Wrap = Callable[..., Envelope]


DRAIN = WorkerOptions(until_empty=True, backoff_s=0, threads_per_process=1)
EMPTY = QueueCounts(ready=0, leased=0, dead=0)


def _put(queue: FileQueue, name: str, message: object) -> None:
    text = message if isinstance(message, str) else json.dumps(message)
    Path(queue.uri.removeprefix("fq://"), "queue", f"0--{name}.json").write_text(text)


def test_one_failing_task_of_a_hundred_is_dead_with_its_traceback_and_the_others_are_done(
    any_queue: Queue, folder: Path, wrap: Wrap, receipts: Receipts
):
    queue = any_queue
    tasks = [NoteTask(folder=str(folder), name=str(i)) for i in range(99)]
    bad = wrap(FailTask(folder=str(folder), name="bad"))
    queue.insert([*map(wrap, tasks[:50]), bad, *map(wrap, tasks[50:])])
    events: list[WorkerEvent] = []
    report = work(queue.uri, DRAIN.model_copy(update={"n_processes": 2}), on_event=events.append)
    assert report == WorkerReport(n_done=99, n_failed=2, n_dead=1)
    assert report.exit_code == 1
    assert receipts.done() == {task.id for task in tasks}
    assert [(folder / str(i)).read_bytes() for i in range(99)] == [b"<>"] * 99
    (letter,) = receipts.dead()
    assert (letter.task_id, letter.attempts, letter.envelope) == (bad.task_id, 3, bad)
    assert letter.reason == "RuntimeError: task bad fails on purpose"
    assert 'raise RuntimeError(f"task {self.name} fails on purpose")' in letter.traceback
    (message,) = queue.dead()  # the same in the queue, for whoever has no access to the bucket
    assert parse_message(message.message) == bad
    assert message.reason == f"{letter.reason}\n\n{letter.traceback}".strip()
    assert [text.splitlines()[0] for text in receipts.errors(bad.task_id).values()] == [
        "Traceback (most recent call last):"
    ] * 3
    counts = queue.counts()
    assert (counts.ready, counts.leased, counts.dead) == (0, 0, 1)
    assert [e.name for e in events if e.task_id == bad.task_id] == [
        *("started", "failed"),
        *("started", "failed"),
        *("started", "dead"),
    ]
    done = [e for e in events if e.name == "done"]
    assert {e.task_id for e in done} == {e.receipt.task_id for e in done if e.receipt} == receipts.done()
    assert {e.slot for e in done} == {"slot-0", "slot-1"}
    assert all(e.waited_s is not None and 0 <= e.waited_s < 600 for e in events if e.name == "started")


def test_a_task_five_times_longer_than_its_lease_runs_once_even_if_it_never_lets_go_of_the_interpreter(
    any_queue: Queue, folder: Path, wrap: Wrap
):
    any_queue.insert([wrap(NoteTask(folder=str(folder), name="long", seconds=10, hold_gil=True))])
    options = DRAIN.model_copy(update={"lease_seconds": 2, "n_processes": 2})
    assert work(any_queue.uri, options) == WorkerReport(n_done=1)
    assert (folder / "long").read_bytes() == b"<>"


def test_poisoned_messages_go_to_the_dead_letters_with_the_reason_and_are_never_run(
    queue: FileQueue, folder: Path, wrap: Wrap, root: str, receipts: Receipts
):
    marker = folder / "executed"
    _put(queue, "a", "")
    _put(queue, "b", '{"payload": [["cloudseg_tasks.wire", "execute"], ["{"')
    _put(queue, "c", {"payload": [["os", "system"], [f"touch {marker}"], {}, -1]})
    _put(queue, "d", {"payload": {"class": "PrintTask", "txt": "hello"}})
    _put(queue, "e", {"payload": {"class": "os.system", "command": f"touch {marker}"}})
    _put(queue, "f", {"payload": [["igneous.os", "system"], [f"touch {marker}"], {}, -1]})
    unknown = Envelope(root=root, step="stage.step", task={"kind": "nonsense/9"})
    invalid = Envelope(root=root, step="stage.step", task={"kind": "test_note/1", "folder": str(folder)})
    hopeless = wrap(FailTask(folder=str(folder), name="spec", how="spec"))
    queue.insert([unknown, invalid, hopeless, wrap(NoteTask(folder=str(folder), name="good"))])
    assert work(queue.uri, DRAIN) == WorkerReport(n_done=1, n_dead=9)
    assert not marker.exists()
    assert (folder / "spec").read_bytes() == b"x"  # a wrong request is not tried again
    reasons = {letter.id: letter.reason for letter in queue.dead()}
    assert len(reasons) == 9
    assert "must be JSON, got nothing" in reasons["a"]
    assert "must be JSON" in reasons["b"]
    assert "calls 'os.system', but workers only run" in reasons["c"]
    assert "unknown igneous task 'PrintTask'; this worker runs:" in reasons["d"]
    assert "unknown igneous task 'os.system'; this worker runs:" in reasons["e"]
    assert "unknown igneous task 'igneous.os.system'; this worker runs:" in reasons["f"]
    letters = {letter.task_id: letter.reason for letter in receipts.dead()}
    assert "unknown task kind 'nonsense/9'; this worker has:" in letters[unknown.task_id]
    assert "missing key 'name'" in letters[invalid.task_id]
    assert "asks for the impossible" in letters[hopeless.task_id]


def test_a_duplicate_delivery_is_not_run_again(queue: FileQueue, folder: Path, wrap: Wrap):
    envelope = wrap(NoteTask(folder=str(folder), name="n"))
    queue.insert([envelope, envelope, envelope])
    assert work(queue.uri, DRAIN) == WorkerReport(n_done=3, n_skipped=2)
    assert (folder / "n").read_bytes() == b"<>"
    assert queue.counts() == EMPTY


def test_a_process_that_eats_too_much_memory_is_killed_and_named_and_the_worker_goes_on(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    hog = wrap(HogTask(bytes=2**32), max_attempts=1)
    queue.insert([hog])
    limit = 400 * 2**20
    assert work(queue.uri, DRAIN.model_copy(update={"max_memory_bytes": limit})) == WorkerReport(n_dead=1)
    (letter,) = receipts.dead()
    assert letter.task_id == hog.task_id
    assert "out of memory: it used" in letter.reason
    assert "more than max_memory_bytes = 400 MiB" in letter.reason
    assert list(receipts.errors(hog.task_id)) == [1]


def test_a_kind_can_have_limits_of_its_own(queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts):
    hog = wrap(HogTask(bytes=2**32), max_attempts=1)
    slow = wrap(NoteTask(folder=str(folder), name="slow", seconds=60), max_attempts=1)
    quick = wrap(FailTask(folder=str(folder), name="quick", n_times=0))
    queue.insert([hog, slow, quick])
    limits = {
        "test_hog": TaskLimits(max_memory_bytes=400 * 2**20),
        "test_note/1": TaskLimits(max_seconds=0.5),
        "test_note/2": TaskLimits(max_seconds=600),
    }
    assert work(queue.uri, DRAIN.model_copy(update={"limits": limits})) == WorkerReport(n_done=1, n_dead=2)
    reasons = {letter.task_id: letter.reason for letter in receipts.dead()}
    assert "more than max_memory_bytes = 400 MiB" in reasons[hog.task_id]
    assert "longer than max_task_seconds = 0.5" in reasons[slow.task_id]


def test_a_task_that_runs_too_long_is_killed_and_the_next_one_gets_a_new_process(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    slow = wrap(NoteTask(folder=str(folder), name="slow", seconds=60), max_attempts=1)
    queue.insert([slow])
    options = DRAIN.model_copy(update={"max_task_seconds": 0.5})

    def then_insert(event: WorkerEvent) -> None:
        if event.name == "dead":
            queue.insert([wrap(NoteTask(folder=str(folder), name="next"))])

    assert work(queue.uri, options, on_event=then_insert) == WorkerReport(n_done=1, n_dead=1)
    (letter,) = receipts.dead()
    assert "timeout: it ran longer than max_task_seconds = 0.5 and was killed" in letter.reason
    assert (folder / "slow").read_bytes() == b"<"
    assert (folder / "next").read_bytes() == b"<>"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("kill", "the process that ran it ended: it was killed (SIGKILL) from outside"),
        ("exit", "SystemExit: 3"),
    ],
)
def test_a_task_whose_process_dies_is_tried_again(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts, how: str, reason: str
):
    envelope = wrap(FailTask(folder=str(folder), name="n", n_times=1, how=how))
    queue.insert([envelope])
    events: list[WorkerEvent] = []
    assert work(queue.uri, DRAIN, on_event=events.append) == WorkerReport(n_done=1, n_failed=1)
    receipt = receipts.get(envelope.task_id)
    assert receipt is not None
    assert receipt.attempt == 2
    assert reason in next(e.message for e in events if e.name == "failed")
    assert reason in receipts.errors(envelope.task_id)[1]


def test_a_failed_task_waits_longer_after_each_attempt(queue: FileQueue, folder: Path, wrap: Wrap):
    queue.insert([wrap(FailTask(folder=str(folder), name="n", n_times=2))])
    starts = []

    def note(event: WorkerEvent) -> None:
        if event.name == "started":
            starts.append(time.monotonic())

    assert work(queue.uri, DRAIN.model_copy(update={"backoff_s": 1.0}), on_event=note).n_done == 1
    first, second = starts[1] - starts[0], starts[2] - starts[1]
    assert first >= 1
    assert second >= 2


def test_a_task_that_takes_its_whole_worker_down_each_time_is_dead_after_its_attempts(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    queue.insert([wrap(NoteTask(folder=str(folder), name="n"), max_attempts=2)])
    for _ in range(2):  # as if the machine had gone away with the lease
        lease = queue.lease(60)
        assert lease is not None
        queue.release(lease)
    assert work(queue.uri, DRAIN) == WorkerReport(n_dead=1)
    assert not (folder / "n").exists()
    (letter,) = receipts.dead()
    assert letter.reason == "it was started 2 times and its worker vanished each time"
    assert queue.redrive() == 1
    assert work(queue.uri, DRAIN) == WorkerReport(n_done=1)
    assert list(receipts.dead()) == []


def test_a_worker_whose_message_is_taken_stops_the_task_and_leaves_the_message_alone(
    queue: FileQueue, folder: Path, wrap: Wrap, receipts: Receipts
):
    queue.insert([wrap(NoteTask(folder=str(folder), name="n", seconds=60))])

    def take(event: WorkerEvent) -> None:
        if event.name == "started":
            threading.Timer(0.5, FileQueue(queue.uri).purge).start()

    started = time.monotonic()
    assert work(queue.uri, DRAIN.model_copy(update={"lease_seconds": 1}), on_event=take) == WorkerReport(
        n_lost=1
    )
    assert time.monotonic() - started < 30
    assert (folder / "n").read_bytes() == b"<"
    assert receipts.done() == set()
    assert queue.counts() == EMPTY


def test_an_error_of_the_caller_stops_the_worker_and_hands_the_task_back(
    queue: FileQueue, folder: Path, wrap: Wrap
):
    queue.insert([wrap(NoteTask(folder=str(folder), name="n"))])

    def fail(event: WorkerEvent) -> None:
        raise ZeroDivisionError(f"while told that a task {event.name}")

    with pytest.raises(ZeroDivisionError, match="while told that a task started"):
        work(queue.uri, DRAIN, on_event=fail)
    assert queue.counts() == QueueCounts(ready=1, leased=0, dead=0)


def test_a_worker_in_a_thread_stops_when_told_and_hands_its_task_back(
    queue: FileQueue, folder: Path, wrap: Wrap
):
    queue.insert([wrap(NoteTask(folder=str(folder), name="n", seconds=60))])
    stop, reports = threading.Event(), []
    started = threading.Event()

    def note(event: WorkerEvent) -> None:
        if event.name == "started":
            started.set()

    thread = threading.Thread(target=lambda: reports.append(work(queue.uri, on_event=note, stop=stop)))
    thread.start()
    assert started.wait(60)
    stop.set()
    thread.join(20)
    assert reports == [WorkerReport(n_returned=1)]
    assert queue.counts() == QueueCounts(ready=1, leased=0, dead=0)


def test_a_child_uses_no_more_threads_than_it_may(queue: FileQueue, wrap: Wrap, receipts: Receipts):
    envelope = wrap(ThreadsTask())
    queue.insert([envelope])
    work(queue.uri, DRAIN)
    receipt = receipts.get(envelope.task_id)
    assert receipt is not None
    assert receipt.counters == {"omp": 1, "numba": 1}


def test_a_child_that_cannot_start_costs_no_task_an_attempt(
    queue: FileQueue, folder: Path, wrap: Wrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = tmp_path / "broken" / "cloudseg"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    queue.insert([wrap(NoteTask(folder=str(folder), name="n"))])
    with pytest.raises(TaskFailedError, match="did not start: it left with exit code 1"):
        work(queue.uri, DRAIN)
    lease = queue.lease(60)
    assert lease is not None
    assert lease.attempt == 1


def test_a_worker_does_not_take_a_queue_that_is_not_there_for_an_empty_one(tmp_path: Path):
    with pytest.raises(NotFoundError, match="there is no queue at fq://.*/tpyo: expected a folder"):
        work(f"fq://{tmp_path}/tpyo", DRAIN)
    assert not (tmp_path / "tpyo").exists()


def test_a_queue_that_fails_for_a_while_costs_no_worker_its_life_and_no_task_a_second_run(
    aws: str, sqs_uri: str, folder: Path, wrap: Wrap, receipts: Receipts, caplog: pytest.LogCaptureFixture
):
    tasks = [NoteTask(folder=str(folder), name=str(i)) for i in range(4)]
    open_queue(sqs_uri).insert(map(wrap, tasks))
    health = Health()
    seen: list[list[str]] = []
    busy = Fault("^POST", status=503)
    with front(aws) as before, environment(AWS_ENDPOINT_URL=before.url):

        def note(event: WorkerEvent) -> None:
            if event.name == "started" and len(receipts.done()) == 1:
                before.faults = [busy]  # now neither delete nor lease gets through
                threading.Thread(target=recover).start()

        def recover() -> None:
            deadline = time.monotonic() + 60
            while not health.ready() and time.monotonic() < deadline:
                time.sleep(0.05)
            seen.append(health.ready())
            before.faults = []

        options = DRAIN.model_copy(update={"lease_seconds": 4})
        report = work(sqs_uri, options, on_event=note, health=health)
    assert report.n_done - report.n_skipped == 4
    assert report.n_dead == 0
    assert sorted(note.read_bytes() for note in folder.iterdir()) == [b"<>"] * 4
    assert "SQS is busy" in seen[0][0]
    assert any("no task leased, will try again" in record.message for record in caplog.records)
    assert health.live() == []
    assert open_queue(sqs_uri).is_empty()


def test_messages_of_finished_tasks_are_deleted_together(aws: str, sqs_uri: str, folder: Path, wrap: Wrap):
    open_queue(sqs_uri).insert(wrap(NoteTask(folder=str(folder), name=str(i))) for i in range(40))
    with front(aws, BatchFront(lambda _: None)) as before, environment(AWS_ENDPOINT_URL=before.url):
        assert work(sqs_uri, DRAIN.model_copy(update={"n_processes": 2})) == WorkerReport(n_done=40)
    sizes = before.sizes["DeleteMessageBatch"]
    assert sum(sizes) == 40
    assert len(sizes) <= 20
    assert not any(line.endswith(" DeleteMessage") for line in before.requests)
    assert open_queue(sqs_uri).is_empty()


def test_a_message_that_waits_for_its_deletion_is_deleted_before_a_stopped_worker_leaves(
    aws: str, sqs_uri: str, folder: Path, wrap: Wrap, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deletions, "GATHER_S", 600)
    tasks = [NoteTask(folder=str(folder), name=name, seconds=s) for name, s in (("quick", 0), ("slow", 60))]
    open_queue(sqs_uri).insert(map(wrap, tasks))
    stop = threading.Event()

    def note(event: WorkerEvent) -> None:
        if event.name == "done":
            stop.set()

    options = WorkerOptions(n_processes=2, threads_per_process=1, lease_seconds=600)
    assert work(sqs_uri, options, on_event=note, stop=stop) == WorkerReport(n_done=1, n_returned=1)
    queue = open_queue(sqs_uri)
    assert queue.counts() == QueueCounts(1, 0, 0, approximate=True)
    lease = queue.lease(60)
    assert lease is not None
    assert parse_message(lease.message).task["name"] == "slow"


def test_a_message_whose_deletion_fails_comes_back_and_is_found_done(
    aws: str, sqs_uri: str, folder: Path, wrap: Wrap, caplog: pytest.LogCaptureFixture
):
    open_queue(sqs_uri).insert([wrap(NoteTask(folder=str(folder), name="n"))])
    with front(aws) as before, environment(AWS_ENDPOINT_URL=before.url):
        before.faults = [Fault("DeleteMessageBatch", status=503, times=2)]  # the call, and boto3's second try
        report = work(sqs_uri, DRAIN.model_copy(update={"lease_seconds": 2}))
    assert report == WorkerReport(n_done=2, n_skipped=1)
    assert (folder / "n").read_bytes() == b"<>"
    assert any("not all messages of 1 finished tasks deleted" in record.message for record in caplog.records)
    assert open_queue(sqs_uri).is_empty()


def test_a_worker_makes_no_sqs_queue(aws: str):
    for options in (DRAIN, WorkerOptions()):
        with pytest.raises(NotFoundError, match="there is no queue at sqs://tpyo"):
            work("sqs://tpyo", options)


def test_a_worker_refuses_an_address_that_is_no_queue():
    with pytest.raises(SpecError, match="is not the address of a queue"):
        work("nonsense")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (-9, "killed (SIGKILL) from outside, most often"),
        (-11, "ended by SIGSEGV"),
        (-250, "250"),
    ],
)
def test_the_end_of_a_process_is_explained_in_words(code: int, words: str):
    assert words in explain_exit(code)


@pytest.mark.parametrize(
    ("listed", "n", "shared"),
    [("0,1", 3, ["0", "1", "0"]), ("GPU-8a, GPU-9b", 2, ["GPU-8a", "GPU-9b"]), ("3", 2, ["3", "3"])],
)
def test_processes_take_the_gpus_in_turns(listed: str, n: int, shared: list[str]):
    with environment(CUDA_VISIBLE_DEVICES=listed):
        assert share_gpus(n) == shared
