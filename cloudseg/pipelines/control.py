"""Hands on a run from outside: cancel it, or give its dead letters another chance."""

from __future__ import annotations

from collections.abc import Callable

from cloudseg.errors import CloudsegError, NotFoundError
from cloudseg.pipelines import advance
from cloudseg.pipelines.plan import PlanRecord
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.queue import DeadMessage, Lease, Queue, open_queue
from cloudseg.tasking.receipts import Receipts
from cloudseg.volumes.objects import Objects

# Long enough to look through a full queue while other pipelines' messages wait in our hands.
LEASE_SECONDS = 60
N_HELD = 1000


def cancel(objects: Objects, *, open_queue: Callable[[str], Queue] = open_queue) -> int:
    """Ask every run on this root to stop, and take its waiting tasks out of shared queues.

    Tasks that a worker has in hand, or that wait for their next attempt, may still finish; that does no harm.
    Messages of other pipelines in the same queue stay.

    Parameters
    ----------
    objects
        The root.
    open_queue
        How addresses become queues.

    Returns
    -------
    How many messages were taken out.

    Raises
    ------
    NotFoundError
        If no pipeline was run there.
    """
    record = _record_of(objects)
    advance.ask_to_cancel(objects)
    return sum(_take_out(open_queue(uri), record.root) for uri in advance.shared_queues(objects))


def retry(objects: Objects, *, open_queue: Callable[[str], Queue] = open_queue) -> int:
    """Clear the dead letters of a run, so that its tasks are tried again with fresh attempts.

    Those that died in a shared queue become leasable there at once; the others are enqueued by the next run.

    Parameters
    ----------
    objects
        The root.
    open_queue
        How addresses become queues.

    Returns
    -------
    How many dead letters were cleared.

    Raises
    ------
    NotFoundError
        If no pipeline was run there.
    """
    record = _record_of(objects)
    # The letters go first: a task that a worker takes up at once may die again and must keep its new letter.
    n_cleared = sum(Receipts(objects, step.name).clear_dead() for _, step in record.steps())
    for uri in advance.shared_queues(objects):
        open_queue(uri).redrive(lambda letter: _belongs(letter, record.root))
    return n_cleared


def _record_of(objects: Objects) -> PlanRecord:
    record = advance.load_record(objects)
    if record is None:
        raise NotFoundError(f"{objects.uri} has no {advance.PLAN_KEY}: no pipeline was run there")
    return record


def _take_out(queue: Queue, root: str) -> int:
    """Remove the waiting messages of ``root`` from ``queue``; return how many."""
    n_removed = 0
    held: list[Lease] = []
    try:
        while len(held) < N_HELD and (lease := queue.lease(LEASE_SECONDS)) is not None:
            if _belongs(lease, root):
                queue.delete(lease)
                n_removed += 1
            else:
                held.append(lease)
    finally:
        for lease in held:
            queue.release(lease, counted=False)
    return n_removed


def _belongs(message: Lease | DeadMessage, root: str) -> bool:
    try:
        job = parse_message(message.message)
    except CloudsegError:
        return False
    return isinstance(job, Envelope) and job.root == root
