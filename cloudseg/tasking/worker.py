"""A worker: slots that run the tasks of a queue, signals that stop them, a report that tells the truth."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from types import FrameType

from cloudseg.errors import CloudsegError
from cloudseg.tasking.deletions import Deletions
from cloudseg.tasking.metrics import Health
from cloudseg.tasking.network import NetworkProcess
from cloudseg.tasking.options import TaskLimits, WorkerOptions
from cloudseg.tasking.process import share_gpus
from cloudseg.tasking.queue import open_queue
from cloudseg.tasking.slot import Slot, WorkerEvent

__all__ = ["TaskLimits", "WorkerEvent", "WorkerOptions", "WorkerReport", "work"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker has done.

    Attributes
    ----------
    n_done
        Tasks finished here, those included that were found finished (``n_skipped``).
    n_failed
        Attempts that failed and were put back for another try.
    n_dead
        Messages that went to the dead letters.
    n_skipped
        Tasks that had their receipt already.
    n_returned
        Tasks handed back unfinished because the worker was told to stop.
    n_lost
        Tasks stopped because another worker had taken over their message.
    stopped_by
        Number of the signal that stopped the worker, or None.
    """

    n_done: int = 0
    n_failed: int = 0
    n_dead: int = 0
    n_skipped: int = 0
    n_returned: int = 0
    n_lost: int = 0
    stopped_by: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + signal if a signal cut tasks short, else 1 if anything went dead, else 0."""
        if self.stopped_by is not None and self.n_returned:
            return 128 + self.stopped_by
        return 1 if self.n_dead else 0


def work(
    queue_uri: str,
    options: WorkerOptions | None = None,
    *,
    on_event: Callable[[WorkerEvent], None] | None = None,
    stop: threading.Event | None = None,
    health: Health | None = None,
) -> WorkerReport:
    """Run the tasks of a queue.

    Called in the main thread, SIGTERM and SIGINT stop the work: running tasks are killed and handed back at
    once, and the report says which signal came. It is for the caller to leave with ``report.exit_code``.

    Parameters
    ----------
    queue_uri
        See :func:`cloudseg.tasking.queue.open_queue`.
    options
        See :class:`WorkerOptions`.
    on_event
        Called, one event at a time, from the threads of the slots. An error in it stops the worker.
    stop
        Set it, from another thread, to stop the work as a signal would.
    health
        Is told whom to ask whether the worker lives.

    Raises
    ------
    SpecError
        If ``queue_uri`` is not the address of a queue.
    NotFoundError
        If there is no such queue: a folder only if the options say to stop when it is empty, else it is made.
    StorageError
        If the queue cannot be used. Tasks in hand are handed back first, if at all possible.
    TaskFailedError
        If the process that runs tasks, or their networks, cannot be started.
    """
    options = options or WorkerOptions()
    n_threads = options.threads_per_process or max(1, _n_cores() // options.n_processes)
    counts: Counter[str] = Counter()
    one_at_a_time = threading.Lock()

    def emit(event: WorkerEvent) -> None:
        with one_at_a_time:
            counts[event.name] += 1
            if on_event is not None:
                on_event(event)

    stopping = threading.Event()
    wake_read, wake_write = Pipe(duplex=False)
    signals: list[int] = []
    errors: list[BaseException] = []

    def halt() -> None:
        # May run twice at once (signal handler); more than one byte does no harm.
        if not stopping.is_set():
            stopping.set()
            wake_write.send_bytes(b"stop")

    gpus = share_gpus(options.n_processes) if options.gpu else [None] * options.n_processes
    # To drain a queue that is not there is a slip of the pen; to wait for one to fill is not.
    open_own = partial(open_queue, queue_uri, create=False if options.until_empty else None)
    queues = [open_own() for _ in range(options.n_processes)]
    deletions = Deletions(open_own()) if queues[0].deletes_at_once > 1 else None
    # One for each GPU in use; the slots take turns at them.
    gpus_in_use = dict.fromkeys(gpus) if options.shares_network else {}
    networks = {gpu: NetworkProcess(n_threads=_n_cores(), gpu=gpu) for gpu in gpus_in_use}
    slots = [
        Slot(
            f"slot-{i}",
            queue=queues[i],
            options=options,
            n_threads=n_threads,
            emit=emit,
            stopping=stopping,
            wake=wake_read,
            gpu=gpus[i],
            deletions=deletions,
            network=networks[gpus[i]].path if networks else "",
        )
        for i in range(options.n_processes)
    ]
    if health is not None:
        health.watch(slots, stopping=stopping)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        halt()

    with _handlers(on_signal), ExitStack() as stack:
        if deletions is not None:
            deletions.start()
            stack.callback(deletions.close)
        for network in networks.values():
            stack.callback(network.close)
        # All must work, or none of the tasks that need them would.
        if all(network.start(wake_read) for network in networks.values()):
            for slot in slots:
                slot.start()
        while any(slot.is_alive() for slot in slots):
            try:
                for network in networks.values():
                    network.keep()
            except CloudsegError as error:
                errors.append(error)
                halt()
            if stop is not None and stop.is_set():
                halt()
            if any(slot.error is not None for slot in slots):
                halt()
            next(slot for slot in slots if slot.is_alive() or slot is slots[-1]).join(0.1)
    wake_read.close()
    wake_write.close()
    errors += [slot.error for slot in slots if slot.error is not None]
    if errors:
        raise errors[0]
    return WorkerReport(
        n_done=counts["done"] + counts["skipped"],
        n_failed=counts["failed"],
        n_dead=counts["dead"],
        n_skipped=counts["skipped"],
        n_returned=counts["returned"],
        n_lost=counts["lost"],
        stopped_by=signals[0] if signals else None,
    )


def _n_cores() -> int:
    """Return the cores this process may use, which a container or a scheduler may have limited."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


@contextmanager
def _handlers(on_signal: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may; the caller's own handlers stay in force
        return
    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
