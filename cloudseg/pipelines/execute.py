"""Carry a pipeline out: claim the root, then step by step enqueue what is missing and wait for its receipts.

No state lives here: killed at any moment and started again, by this machine or another, a run goes on from the
receipts. Several runs on one root are safe too; they share the work as far as one sees the other's receipts in time.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol

from cloudseg.errors import NotFoundError, SpecError, TaskFailedError, TransientStorageError
from cloudseg.pipelines import advance
from cloudseg.pipelines.compaction import fold
from cloudseg.pipelines.overlap import Overlap
from cloudseg.pipelines.plan import PipelinePlan
from cloudseg.pipelines.provenance import write_provenance
from cloudseg.pipelines.report import Summary, voxels_per_task, write_summary
from cloudseg.pipelines.space import check_space
from cloudseg.pipelines.spec import PipelineSpec
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import Queue, open_queue
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.steps import Step
from cloudseg.tasking.task import Task
from cloudseg.tasking.worker import WorkerEvent, WorkerOptions, work
from cloudseg.volumes import create_volume, open_objects, open_volume
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.objects import Objects

log = logging.getLogger(__name__)

# A look at the bucket costs one listing: short waits on a local disk, longer ones where a request costs money,
# and never more than a twentieth of the time spent on looking.
LOCAL_POLL_SECONDS = 0.1
REMOTE_POLL_SECONDS = 2.0
MAX_POLL_SECONDS = 15.0
MAX_REFILLS = 3
# A bucket or a queue that is busy or down is asked again, with growing pauses, for so long.
PATIENCE_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 2.0


class Progress(Protocol):
    """Where a run tells how far it is."""

    def counting(self, n_tasks: int) -> Callable[[int], None]:
        """Begin to count ``n_tasks`` tasks; call the answer with 1 for each."""
        ...

    def begin(self, step: str, *, n_tasks: int, n_done: int) -> None:
        """Begin to wait for a step."""
        ...

    def update(self, step: str, *, n_done: int, n_dead: int, voxels_per_task: float) -> None:
        """Tell how far a step is."""
        ...

    def end(self, step: str) -> None:
        """End a step."""
        ...

    def say(self, text: str) -> None:
        """Tell something in one line."""
        ...


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended.

    Attributes
    ----------
    summaries
        Of each step that is complete, by name, in order.
    cancelled
        Whether somebody asked to stop.
    stopped_by
        Number of the signal that stopped the run, or None.
    """

    summaries: dict[str, Summary]
    cancelled: bool = False
    stopped_by: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether everything is done."""
        return not self.cancelled and self.stopped_by is None


class _Stopped(Exception):  # noqa: N818 - not an error: it unwinds a run that was told to stop
    """The run was told to stop."""


def execute(expanded: PipelinePlan, *, progress: Progress) -> RunReport:
    """Run a planned pipeline to its end.

    Parameters
    ----------
    expanded
        The plan.
    progress
        Is told how far the run is.

    Returns
    -------
    What was done; :attr:`RunReport.is_complete` says whether a cancellation or a signal came first.

    Raises
    ------
    ConflictError
        If the root holds another run, or a layer with other properties. Nothing is touched then.
    SpecError
        If the disk is too small, or the root cannot be shared with workers. Nothing is touched then.
    TaskFailedError
        If tasks gave up; the step's other tasks are finished first.
    """
    spec = expanded.spec
    _check_reachable(spec)
    if spec.executor.startswith(("sqs://", "https://")):
        open_queue(spec.executor)  # it must be there; a folder is made when it is needed
    objects = open_objects(spec.root)
    cancelled_before = advance.cancel_id(objects)
    advance.check_same_spec(spec, objects)
    _check_layers(expanded)
    check_space(spec.root, needed_bytes=_bytes_to_write(expanded, objects))
    plan_record = advance.claim(expanded, objects, on_task=progress.counting(expanded.n_tasks))
    for stage in expanded.stages:
        for layer in stage.plan.layers:
            create_volume(layer.uri, layer.info)
    write_provenance(expanded, objects)
    digests = {step.name: step.tasks_digest for _, step in plan_record.steps()}
    summaries: dict[str, Summary] = {}
    with (
        _signals() as signals,
        _queue_for(spec) as (queue, is_private),
        _crew(spec, queue, progress) as crew,
    ):
        run = _Run(
            spec=spec,
            objects=objects,
            queue=queue,
            is_private=is_private,
            crew=crew,
            progress=progress,
            signals=signals,
            cancel_id=cancelled_before,
            ahead=expanded.ahead(),
        )
        try:
            for step in expanded.steps():
                summaries[step.name] = run.complete(step, digest=digests.get(step.name, ""))
        except _Stopped:
            return RunReport(
                summaries=summaries,
                cancelled=not signals.numbers,
                stopped_by=signals.numbers[0] if signals.numbers else None,
            )
    return RunReport(summaries=summaries)


@dataclass
class _Run:
    """One process's part in a run."""

    spec: PipelineSpec
    objects: Objects
    queue: Queue
    is_private: bool
    crew: _Crew
    progress: Progress
    signals: _Signals
    cancel_id: str | None
    voxels_per_task: float | None = None
    filled: set[str] = field(default_factory=set)
    ahead: dict[str, Step] = field(default_factory=dict)
    overlaps: dict[str, Overlap] = field(default_factory=dict)

    def complete(self, step: Step, *, digest: str) -> Summary:
        """Return once every task of ``step`` has its receipt; sit out a bucket or a queue that does not answer.

        Raises
        ------
        TransientStorageError
            If it still does not after minutes.
        """
        failing_since, pause_s = math.inf, FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            try:
                return self._complete(step, digest=digest)
            except TransientStorageError as error:
                now = time.monotonic()
                if now - started > PATIENCE_SECONDS:  # it had answered for long
                    failing_since, pause_s = math.inf, FIRST_PAUSE_SECONDS
                failing_since = min(failing_since, now)
                if now - failing_since > PATIENCE_SECONDS:
                    raise
                log.warning("step %s: will look again in %.0f s: %s", step.name, pause_s, error)
                self.signals.seen.wait(pause_s)
                if self.signals.numbers:
                    raise _Stopped from error
                pause_s = min(2 * pause_s, MAX_POLL_SECONDS)

    def _complete(self, step: Step, *, digest: str) -> Summary:
        state = advance.survey(step, self.objects, digest=digest)
        self.progress.begin(step.name, n_tasks=state.n_tasks, n_done=state.n_done)
        self.voxels_per_task = None
        try:
            if state.n_missing:
                if step.prepare is not None:
                    step.prepare()
                state = self._fill_and_wait(step)
                self._tell(step, n_done=state.n_done, n_dead=len(state.dead))
        finally:
            self.progress.end(step.name)
        if state.dead:
            raise TaskFailedError(self._explain_dead(step.name, state))
        if step.name in self.overlaps:
            self.overlaps.pop(step.name).look()  # the last of them may start now
            self._note_filled(self.ahead[step.name])
        summary = write_summary(step.name, self.objects, n_tasks=state.n_tasks)
        fold(step.name, self.objects)
        return summary

    def _fill_and_wait(self, step: Step) -> advance.StepState:
        self.crew.start()
        # A private queue is known to this process alone: the note in the bucket may be of another one.
        has_messages = step.name in self.filled or (
            not self.is_private and advance.is_enqueued(step.name, self.objects, note=self._note)
        )
        if not has_messages or self.queue.is_empty():
            self._enqueue(step)
        n_refills, n_beside = 0, 0
        while True:
            n_settled = self._wait(step, n_beside=n_beside)
            state = advance.survey(step, self.objects)
            if not state.n_missing:
                return state
            if n_settled is not None:
                # Counting took in dead letters of other tasks, or of tasks that have a receipt as well.
                n_beside = max(n_beside, n_settled - state.n_done - len(state.dead))
                continue
            if n_refills == MAX_REFILLS:
                break
            n_refills += 1
            # An empty queue and a task without an outcome: its message was purged, or its dead letter not stored.
            log.warning("step %s: %d tasks left the queue without an outcome", step.name, state.n_missing)
            self._enqueue(step)
        raise TaskFailedError(
            f"{state.n_missing} tasks of step {step.name!r} left the queue {self.queue.uri} {MAX_REFILLS + 1} times "
            f"without a receipt or a dead letter under {self.spec.root}; check that workers can write there"
        )

    def _start_ahead(self, step: Step) -> None:
        """Send the tasks of the step behind ``step`` that may start by now."""
        following = self.ahead.get(step.name)
        if following is not None and step.name not in self.overlaps:
            send = partial(self._send, following)
            self.overlaps[step.name] = Overlap(step, following, objects=self.objects, send=send)
        if following is not None:
            self.overlaps[step.name].look()

    @property
    def _note(self) -> advance.Enqueued:
        return advance.Enqueued(queue=self.queue.uri, cancel_id=self.cancel_id)

    def _enqueue(self, step: Step) -> None:
        self._send(step, advance.missing(step, self.objects))
        self._note_filled(step)

    def _note_filled(self, step: Step) -> None:
        self.filled.add(step.name)
        if not self.is_private:
            advance.note_enqueued(step.name, self.objects, note=self._note)

    def _send(self, step: Step, tasks: Iterable[Task]) -> None:
        def envelopes() -> Iterator[Envelope]:
            for n, task in enumerate(tasks):
                if n % 1000 == 0:
                    self._check_stop()
                yield Envelope.of(
                    task, root=self.spec.root, step=step.name, max_attempts=self.spec.max_attempts
                )

        self.queue.insert(envelopes())

    def _wait(self, step: Step, *, n_beside: int) -> int | None:
        """Wait until there are as many outcomes as tasks, and ``n_beside`` that are none of theirs.

        Returns
        -------
        How many there are; None if the queue ran empty before.
        """
        shortest = LOCAL_POLL_SECONDS if self.spec.root.startswith("file://") else REMOTE_POLL_SECONDS
        while True:
            started = time.monotonic()
            n_done, n_dead = advance.count_settled(step.name, self.objects)
            self._tell(step, n_done=n_done, n_dead=n_dead)
            if n_done + n_dead >= step.n_tasks + n_beside:
                return n_done + n_dead
            self.crew.check()
            self._check_stop()
            self._start_ahead(step)
            # The caller counts again after this look: a message goes only after its receipt, so what has none
            # then was not in the queue.
            if self.queue.is_empty():
                return None
            cost = time.monotonic() - started
            self.signals.seen.wait(min(max(shortest, 20 * cost), MAX_POLL_SECONDS))

    def _tell(self, step: Step, *, n_done: int, n_dead: int) -> None:
        if n_done and self.voxels_per_task is None:
            self.voxels_per_task = voxels_per_task(step.name, self.objects)
        self.progress.update(
            step.name,
            n_done=min(n_done, step.n_tasks),
            n_dead=n_dead,
            voxels_per_task=self.voxels_per_task or 0.0,
        )

    def _check_stop(self) -> None:
        if self.signals.numbers or advance.cancel_id(self.objects) != self.cancel_id:
            raise _Stopped

    def _explain_dead(self, step: str, state: advance.StepState) -> str:
        ids = sorted(state.dead)
        named = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        letter = next((x for x in Receipts(self.objects, step).dead() if x.task_id == ids[0]), None)
        reason = f" The first one says: {letter.reason}." if letter else ""
        return (
            f"{len(ids)} of {state.n_tasks} tasks of step {step!r} gave up: {named}.{reason} Their tracebacks lie in "
            f"{self.spec.root}/pipeline/dead/{step}/. Mend the cause, then: cloudseg retry {self.spec.root}, "
            "and run again"
        )


class _Signals:
    """SIGTERM and Ctrl-C, noted instead of obeyed on the spot."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.seen = threading.Event()

    def note(self, number: int, _frame: FrameType | None) -> None:
        self.numbers.append(number)
        self.seen.set()


@contextmanager
def _signals() -> Iterator[_Signals]:
    noted = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread may listen; the caller's handlers stay
        return
    before = {number: signal.signal(number, noted.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Crew:
    """The workers that this process runs itself, if any, warm from the first task to the last."""

    def __init__(self, spec: PipelineSpec, queue: Queue, progress: Progress) -> None:
        self._n_workers = spec.n_workers
        self._n_threads = spec.threads_per_worker
        self._queue_uri = queue.uri
        self._progress = progress
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start the workers, unless they are running or there shall be none."""
        if self._n_workers and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="workers")
            self._thread.start()

    def check(self) -> None:
        """Raise what stopped the workers."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Stop the workers; what they have in hand goes back to the queue."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        options = WorkerOptions(n_processes=self._n_workers, threads_per_process=self._n_threads)
        try:
            work(self._queue_uri, options, on_event=self._tell, stop=self._stop)
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            self._error = error

    def _tell(self, event: WorkerEvent) -> None:
        if event.name in ("failed", "dead"):
            what = "failed and will be tried again" if event.name == "failed" else "gave up"
            self._progress.say(
                f"{event.step}: task {event.task_id} {what} (attempt {event.attempt}): {event.message}"
            )


@contextmanager
def _crew(spec: PipelineSpec, queue: Queue, progress: Progress) -> Iterator[_Crew]:
    crew = _Crew(spec, queue, progress)
    try:
        yield crew
    finally:
        crew.stop()


@contextmanager
def _queue_for(spec: PipelineSpec) -> Iterator[tuple[Queue, bool]]:
    """Open the executor's queue: a shared one, or a private one that goes with this run."""
    if spec.executor != "local":
        yield open_queue(spec.executor), False
        return
    address = Address.parse(spec.root)
    parent = None
    if address.scheme == "file":
        parent = Path(address.path, "pipeline", "queues")
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
    # A fresh queue: what a killed run had leased need not be waited for, the receipts say what is left to do.
    folder = Path(tempfile.mkdtemp(prefix=f"{socket.gethostname()}.{os.getpid()}.", dir=parent))
    try:
        yield open_queue(f"fq://{folder}"), True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if parent is not None:
            with suppress(OSError):  # another run's queue lies there
                parent.rmdir()


def _sweep(parent: Path) -> None:
    """Remove the queues of runs of this machine that were killed."""
    for folder in parent.iterdir():
        host, _, rest = folder.name.rpartition(".")[0].rpartition(".")
        if host != socket.gethostname() or not rest.isdigit():
            continue
        try:
            os.kill(int(rest), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:  # alive, and somebody else's
            continue


def _check_reachable(spec: PipelineSpec) -> None:
    """Refuse what workers could not serve."""
    for uri in (spec.root, spec.image):
        if Address.parse(uri).scheme == "memory":
            raise SpecError(
                f"{uri} lives in this process only, and workers are other processes; use file:// instead"
            )
    if spec.executor == "local" and spec.n_workers == 0:
        raise SpecError(
            "workers = 0 leaves nobody to do the work; name a queue that other workers serve as executor"
        )


def _check_layers(expanded: PipelinePlan) -> None:
    """Refuse layers that exist with other properties, before anything is written."""
    for layer in (layer for stage in expanded.stages for layer in stage.plan.layers):
        try:
            open_volume(layer.uri)
        except NotFoundError:
            continue
        create_volume(layer.uri, layer.info)


def _bytes_to_write(expanded: PipelinePlan, objects: Objects) -> int:
    """Estimate what is still to be written, from the receipts there are."""
    total = 0.0
    for stage in expanded.stages:
        n_tasks = sum(step.n_tasks for step in stage.plan.steps)
        n_done = sum(advance.count_settled(step.name, objects)[0] for step in stage.plan.steps)
        total += stage.plan.outputs_bytes * (1 - min(n_done, n_tasks) / n_tasks if n_tasks else 0)
    return int(total)
