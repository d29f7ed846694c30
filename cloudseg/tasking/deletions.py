"""Deleting the messages of finished tasks, several in one request."""

from __future__ import annotations

import logging
import threading
import time

from cloudseg.errors import CloudsegError, TransientStorageError
from cloudseg.tasking.queue import Lease, Queue

log = logging.getLogger(__name__)

# How long a message may wait for others. Far less than what is left of the shortest lease of a finished task.
GATHER_S = 0.2


class Deletions(threading.Thread):
    """A thread that gathers messages for a moment and deletes them together.

    Their tasks have their receipts by then: a message that is not deleted, because its worker is killed first or
    the queue does not answer, is delivered again, found done, and deleted then.

    Parameters
    ----------
    queue
        Its own queue object.
    """

    def __init__(self, queue: Queue) -> None:
        super().__init__(name="deletions", daemon=True)
        self._queue = queue
        self._waiting: list[Lease] = []
        self._change = threading.Condition()
        self._closing = False
        self._error: CloudsegError | None = None

    def add(self, lease: Lease) -> None:
        """Have a message deleted soon.

        Raises
        ------
        StorageError
            If the queue has refused a deletion for good.
        """
        with self._change:
            if self._error is not None:
                raise self._error
            self._waiting.append(lease)
            self._change.notify()

    def close(self) -> None:
        """Delete what is left, at once, and end.

        Raises
        ------
        StorageError
            If the queue has refused a deletion for good.
        """
        with self._change:
            self._closing = True
            self._change.notify()
        self.join()
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """Work until closed."""
        while leases := self._gather():
            try:
                self._queue.delete_all(leases)
            except TransientStorageError as error:
                log.warning(
                    "not all messages of %d finished tasks deleted, the others will come back and be found done: %s",
                    len(leases),
                    error,
                )
            except CloudsegError as error:
                with self._change:
                    self._error = error

    def _gather(self) -> list[Lease]:
        """Wait for a message, then a moment for others; return none when closed."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closing)
            until = time.monotonic() + GATHER_S
            while not self._closing and len(self._waiting) < self._queue.deletes_at_once:
                if not self._change.wait(until - time.monotonic()):
                    break
            some = self._waiting[: self._queue.deletes_at_once]
            del self._waiting[: len(some)]
            return some
