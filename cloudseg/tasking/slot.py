"""One slot of a worker: lease a task, have the child run it, watch it, and settle the message."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from cloudseg.errors import CloudsegError, StorageError, TaskFailedError, TransientStorageError
from cloudseg.tasking.deletions import Deletions
from cloudseg.tasking.envelope import Envelope, ForeignTask, parse_message
from cloudseg.tasking.options import TaskLimits, WorkerOptions
from cloudseg.tasking.process import START_SECONDS, ChildProcess, explain_exit
from cloudseg.tasking.queue import Lease, Queue
from cloudseg.tasking.receipts import DeadLetter, Receipt, Receipts
from cloudseg.tasking.run_task import default_context

log = logging.getLogger(__name__)

MEMORY_POLL_SECONDS = 0.1
IDLE_SECONDS = (0.05, 1.0)  # the first and the longest wait between looks at a queue with nothing to lease
# How long a queue may make us wait for a message: longer saves requests, shorter lets an idle worker leave sooner.
LONG_POLL_SECONDS = 5.0
# A queue that does not answer for longer than this ends a worker that was to stop when the queue is empty.
PATIENCE_SECONDS = 300.0
MAX_RETRY_SECONDS = 30.0
# A process that is killed while it starts is started so often.
MAX_STARTS = 3
# A slot that gives no sign of life for longer than this is stuck.
STUCK_SECONDS = 180.0


EventName = Literal["started", "done", "skipped", "failed", "dead", "returned", "lost"]


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """Something that happened to a task.

    Attributes
    ----------
    name
        ``started``; ``done``; ``skipped`` (it had its receipt); ``failed`` (it will be tried again); ``dead``
        (it will not); ``returned`` (handed back because the worker was told to stop); ``lost`` (another
        worker has it now).
    task_id, kind, step
        Which task; an igneous task has the queue's id and the step ``igneous``; all empty if the message
        is malformed.
    attempt
        1 = first.
    seconds
        Since it started here.
    message
        What went wrong, in one sentence.
    receipt
        Of a done or skipped task.
    waited_s
        Of a started task: how long ago its message was put into the queue, if that is known.
    slot
        Which of the worker's slots it happened in.
    was_started
        Whether the task's ``started`` came before.
    """

    name: EventName
    task_id: str = ""
    kind: str = ""
    step: str = ""
    attempt: int = 1
    seconds: float = 0.0
    message: str = ""
    receipt: Receipt | None = None
    waited_s: float | None = None
    slot: str = ""
    was_started: bool = True


@dataclass(frozen=True, slots=True)
class _Outcome:
    name: Literal["done", "failed", "returned", "lost"]
    receipt: Receipt | None = None
    ran: bool = True
    hopeless: bool = False
    error: str = ""
    traceback: str = ""


Job = Envelope | ForeignTask


class Slot(threading.Thread):
    """A thread that owns one child process.

    Parameters
    ----------
    queue
        This slot's own queue object.
    options
        See :class:`WorkerOptions`.
    n_threads
        For the child's numerical libraries.
    emit
        Called with each event.
    stopping
        Set when the worker must stop; ``wake`` becomes readable at the same moment.
    wake
        Read end of a pipe that is written once, by whoever sets ``stopping``.
    gpu
        Which GPU the child uses; None: whatever it finds.
    deletions
        Takes the messages of finished tasks; None: they are deleted here.
    network
        Socket of the process that runs the networks; empty: each child runs its own, on the GPU if there is one.
    """

    def __init__(
        self,
        name: str,
        *,
        queue: Queue,
        options: WorkerOptions,
        n_threads: int,
        emit: Callable[[WorkerEvent], None],
        stopping: threading.Event,
        wake: Connection,
        gpu: str | None = None,
        deletions: Deletions | None = None,
        network: str = "",
    ) -> None:
        super().__init__(name=name)
        self.error: BaseException | None = None
        self._queue = queue
        self._options = options
        self._n_threads = n_threads
        self._emit = emit
        self._stopping = stopping
        self._wake = wake
        # With a shared network the children need no GPU, and should not spend its memory.
        self._gpu = None if network else gpu
        self._network = network
        self._delete_message = queue.delete if deletions is None else deletions.add
        self._child: ChildProcess | None = None
        self._alive_until = time.monotonic() + START_SECONDS + STUCK_SECONDS
        self._obstacle = "its process is starting"
        self._ctx = default_context({})

    def run(self) -> None:
        """Work until told to stop, or until the queue is empty if the options say so."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits for this one
            self.error = error
        finally:
            self._kill_child()

    def trouble(self) -> str:
        """Why the worker should be restarted, or nothing."""
        if self.error is not None:
            return f"{self.name} ended: {self.error}"
        silent_s = time.monotonic() - self._alive_until
        return f"{self.name} is stuck since {silent_s:.0f} s" if self.is_alive() and silent_s > 0 else ""

    def obstacle(self) -> str:
        """Why it can take no task now, or nothing."""
        return f"{self.name}: {self._obstacle}" if self._obstacle else ""

    def _work(self) -> None:
        idle_s = IDLE_SECONDS[0]
        while not self._stopping.is_set():
            # Before leasing: a child that cannot start must cost no task an attempt.
            child = self._ready_child()
            if child is None:
                return
            lease = self._lease_patiently()
            if self._stopping.is_set():
                if lease is not None:  # it came as we were told to stop
                    self._hand_back(lease)
                return
            if lease is not None:
                self._handle(lease, child)
                idle_s = IDLE_SECONDS[0]
            elif self._options.until_empty and self._is_empty():
                return
            else:
                self._stopping.wait(idle_s * random.uniform(0.5, 1.0))  # so that workers do not march
                idle_s = min(2 * idle_s, IDLE_SECONDS[1])

    def _lease_patiently(self) -> Lease | None:
        """Lease a message; wait while the queue does not answer."""
        wait_s = 0.0 if self._options.until_empty else LONG_POLL_SECONDS
        since, retry_s = time.monotonic(), 1.0
        while True:
            self._sign_of_life()
            try:
                lease = self._queue.lease(self._options.lease_seconds, wait_s=wait_s)
            except TransientStorageError as error:
                self._obstacle = str(error)
                if self._options.until_empty and time.monotonic() - since > PATIENCE_SECONDS:
                    raise
                log.warning("no task leased, will try again: %s", error)
                if self._stopping.wait(retry_s * random.uniform(0.5, 1.0)):
                    return None
                retry_s = min(2 * retry_s, MAX_RETRY_SECONDS)
            else:
                self._obstacle = ""
                return lease

    def _sign_of_life(self) -> None:
        self._alive_until = time.monotonic() + STUCK_SECONDS

    def _ready_child(self) -> ChildProcess | None:
        n_killed = 0
        while self._child is None:
            self._obstacle = "its process is starting"
            self._alive_until = time.monotonic() + START_SECONDS + STUCK_SECONDS
            child = ChildProcess(n_threads=self._n_threads, gpu=self._gpu, extra=[self._network])
            self._child = child
            try:
                if not child.await_ready(self._wake):
                    return None
            except TaskFailedError as error:
                # One that leaves by itself will do so again; one that was killed fell to chance, or to memory.
                n_killed += 1
                if not child.was_killed or n_killed == MAX_STARTS:
                    raise
                log.warning("%s; starting it again", error)
                self._child = None
        return self._child

    def _kill_child(self) -> int:
        child, self._child = self._child, None
        return child.kill() if child is not None else 0

    def _handle(self, lease: Lease, child: ChildProcess) -> None:
        try:
            job = parse_message(lease.message)
        except CloudsegError as error:
            reason = str(error)
            buried = self._settled("buried", lease, lambda: self._queue.bury(lease, reason))
            name: EventName = "dead" if buried else "failed"
            self._emit(
                WorkerEvent(name, attempt=lease.attempt, message=reason, slot=self.name, was_started=False)
            )
            return
        if lease.attempt > self._max_attempts(job):
            self._give_up(
                lease,
                job,
                f"it was started {lease.attempt - 1} times and its worker vanished each time",
                "",
                0.0,
                was_started=False,
            )
            return
        started = time.monotonic()
        settled = False
        try:
            waited_s = None if lease.sent_s is None else max(0.0, time.time() - lease.sent_s)
            self._emit(self._event("started", lease, job, waited_s=waited_s))
            outcome = self._run(lease, job, child)
            self._settle(lease, job, outcome, time.monotonic() - started)
            settled = True
        finally:
            if not settled:  # we are failing ourselves: the message must not wait for its lease to end
                self._kill_child()
                self._hand_back(lease)

    def _run(self, lease: Lease, job: Job, child: ChildProcess) -> _Outcome:
        """Have the child run the job; meanwhile keep the lease and the limits."""
        options = self._options
        limits = options.limits_of(job.kind if isinstance(job, Envelope) else job.name)
        try:
            if isinstance(job, ForeignTask):
                child.ask({"foreign": job.payload})
            else:
                child.ask({"envelope": job.canonical_json(), "attempt": lease.attempt})
        except OSError:  # it died while idle; look() will say so
            pass
        now = time.monotonic()
        renew_every_s = options.lease_seconds / 3
        deadline = now + limits.max_seconds if limits.max_seconds else float("inf")
        next_renewal, lease_ends = now + renew_every_s, now + options.lease_seconds
        next_look = now + MEMORY_POLL_SECONDS if limits.max_memory_bytes else float("inf")
        while True:
            self._sign_of_life()
            seen = child.look(min(next_renewal, deadline, next_look) - now, self._wake)
            if seen == "answer":
                return _read_answer(child.answer())
            if seen == "died":
                how = explain_exit(self._kill_child())
                return _Outcome("failed", error=f"the process that ran it ended: {how}")
            if seen == "woken":
                self._kill_child()
                return _Outcome("returned", error="the worker was told to stop")
            now = time.monotonic()
            if now >= deadline:
                self._kill_child()
                return _Outcome("failed", error=_explain_timeout(limits))
            if now >= next_look and limits.max_memory_bytes:
                used = child.memory_bytes()
                if used > limits.max_memory_bytes:
                    self._kill_child()
                    return _Outcome("failed", error=_explain_memory(limits, used))
                next_look = now + MEMORY_POLL_SECONDS
            if now >= next_renewal:
                try:
                    if not self._queue.renew(lease, options.lease_seconds):
                        self._kill_child()
                        return _Outcome("lost", error="another worker has the message now")
                    lease_ends = now + options.lease_seconds
                except StorageError as error:
                    log.warning("lease of %s not renewed, will try again: %s", lease.id, error)
                    if now >= lease_ends:
                        self._kill_child()
                        return _Outcome(
                            "lost", error=f"the lease ended because the queue did not answer: {error}"
                        )
                next_renewal = now + min(renew_every_s, max(lease_ends - now, 1.0) / 3)

    def _settle(self, lease: Lease, job: Job, outcome: _Outcome, seconds: float) -> None:
        match outcome.name:
            case "done":
                # Not deleted, it is delivered again, found done, and deleted then.
                self._settled("deleted", lease, lambda: self._delete_message(lease))
                self._emit(
                    self._event(
                        "done" if outcome.ran else "skipped",
                        lease,
                        job,
                        seconds=seconds,
                        receipt=outcome.receipt,
                    )
                )
            case "returned":
                self._hand_back(lease)
                self._emit(self._event("returned", lease, job, seconds=seconds, message=outcome.error))
            case "lost":
                self._emit(self._event("lost", lease, job, seconds=seconds, message=outcome.error))
            case "failed":
                self._record_error(lease, job, outcome)
                if outcome.hopeless or lease.attempt >= self._max_attempts(job):
                    self._give_up(lease, job, outcome.error, outcome.traceback, seconds)
                    return
                delay_s = min(
                    self._options.backoff_s * 2.0 ** (lease.attempt - 1), self._options.max_backoff_s
                )
                self._settled("handed back", lease, lambda: self._queue.release(lease, delay_s))
                self._emit(self._event("failed", lease, job, seconds=seconds, message=outcome.error))

    def _is_empty(self) -> bool:
        """Whether the queue holds nothing; one that does not answer may, and leasing knows when to lose patience."""
        try:
            return self._queue.is_empty()
        except TransientStorageError as error:
            log.warning("cannot tell whether the queue is empty, will look again: %s", error)
            return False

    def _hand_back(self, lease: Lease) -> None:
        self._settled("handed back", lease, lambda: self._queue.release(lease, counted=False))

    def _settled(self, what: str, lease: Lease, act: Callable[[], object]) -> bool:
        """Tell the queue how a task ended; if it does not answer, the lease ends by itself."""
        try:
            act()
        except TransientStorageError as error:
            log.warning("message %s not %s, it will come back when its lease ends: %s", lease.id, what, error)
            return False
        return True

    def _give_up(
        self, lease: Lease, job: Job, reason: str, traceback: str, seconds: float, *, was_started: bool = True
    ) -> None:
        attempts = min(lease.attempt, self._max_attempts(job))
        if isinstance(job, Envelope):
            letter = DeadLetter(
                task_id=job.task_id,
                kind=job.kind,
                step=job.step,
                reason=reason,
                attempts=attempts,
                traceback=traceback,
                envelope=job,
            )
            self._write("dead letter", job, lambda receipts: receipts.write_dead(letter))
        # In the queue as well: it must not be dropped where the bucket cannot be reached.
        text = f"{reason}\n\n{traceback}".strip()
        # Not buried, it comes back, and whoever gets it then buries it: until then it counts as failed only.
        buried = self._settled("buried", lease, lambda: self._queue.bury(lease, text))
        name: EventName = "dead" if buried else "failed"
        self._emit(self._event(name, lease, job, seconds=seconds, message=reason, was_started=was_started))

    def _record_error(self, lease: Lease, job: Job, outcome: _Outcome) -> None:
        if isinstance(job, Envelope):
            text = outcome.traceback or outcome.error
            self._write(
                "traceback", job, lambda receipts: receipts.write_error(job.task_id, lease.attempt, text)
            )

    def _write(self, what: str, job: Envelope, write: Callable[[Receipts], None]) -> None:
        """Write to the task's books; a bucket that fails must not take the worker down with the task."""
        try:
            objects = self._ctx.warm(("objects", job.root), lambda: self._ctx.open_objects(job.root))
            write(Receipts(objects, job.step))
        except (CloudsegError, OSError) as error:
            log.error("%s of task %s not stored under %s: %s", what, job.task_id, job.root, error)

    def _max_attempts(self, job: Job) -> int:
        return job.max_attempts if isinstance(job, Envelope) else self._options.foreign_attempts

    def _event(self, name: EventName, lease: Lease, job: Job, **more: Any) -> WorkerEvent:
        if isinstance(job, Envelope):
            return WorkerEvent(name, job.task_id, job.kind, job.step, lease.attempt, slot=self.name, **more)
        return WorkerEvent(name, lease.id, job.name, "igneous", lease.attempt, slot=self.name, **more)


def _explain_timeout(limits: TaskLimits) -> str:
    return (
        f"timeout: it ran longer than max_task_seconds = {limits.max_seconds:g} and was killed; "
        "raise the limit or make the blocks smaller"
    )


def _explain_memory(limits: TaskLimits, used: int) -> str:
    limit = (limits.max_memory_bytes or 0) / 2**20
    return (
        f"out of memory: it used {used / 2**20:.0f} MiB, more than max_memory_bytes = {limit:.0f} MiB, "
        "and was killed; raise the limit, run fewer processes, or make the blocks smaller"
    )


def _read_answer(answer: dict[str, Any]) -> _Outcome:
    if not answer["ok"]:
        return _Outcome(
            "failed", hopeless=answer["hopeless"], error=answer["error"], traceback=answer["traceback"]
        )
    text = answer["receipt"]
    return _Outcome("done", receipt=Receipt.load(text, where="receipt") if text else None, ran=answer["ran"])
