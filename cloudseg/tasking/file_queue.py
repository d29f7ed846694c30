"""A queue in a folder, without locks: every change of hands is one atomic rename.

The layout is that of task-queue's ``fq://`` queues, so stock workers can share the folder::

    queue/<unix time>--<id>.json   a message; it may be leased once the time has passed (0: at once)
    movement/<id>                  written by stock workers only; removed with the message
    completions, insertions        counters for stock tools: one byte a completion; a number
    attempts/<id>                  one byte a lease, written before the message is given out
    dead/<id>.json, dead/<id>.txt  a dead letter and its reason
    tmp/                           messages being written

A lease renames a message to the time when the lease ends. Whoever renames first has it: the others find
no file of the old name and go on. Holding on to a lease is a rename too, and so is losing it: the name
that the holder remembers is gone. Times only grow while a message changes hands, so an old name does not come
back. Hosts that share a queue need clocks that agree to well within a lease.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cloudseg.errors import CloudsegError, NotFoundError, SpecError, StorageError
from cloudseg.tasking.envelope import Envelope, to_payload
from cloudseg.tasking.queue import DeadMessage, Lease, QueueCounts, Waiting

# One directory scan serves this many leases. Larger: fewer scans, but rivals chase the same names.
N_CANDIDATES = 256
FOLDERS = ("queue", "movement", "attempts", "dead", "tmp")


class FileQueue:
    """The queue in the folder of ``fq://folder``. One object per thread: it remembers a scan.

    Raises
    ------
    SpecError
        If the folder is a file, or cannot be made.
    NotFoundError
        If there is no such queue, and ``create`` is off.
    """

    def __init__(self, uri: str, *, create: bool = True) -> None:
        self._uri = uri
        folder = Path(uri.removeprefix("fq://")).expanduser().absolute()
        self._folder = str(folder)
        if not create and not (folder / "queue").is_dir():
            raise NotFoundError(
                f"there is no queue at {uri}: expected a folder with a folder 'queue' in it; "
                "check the address, or put tasks into it first"
            )
        try:
            for name in FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(
                f"cannot make the queue {uri}: {error.strerror} ({error.filename}); "
                "give a folder that can be written to"
            ) from error
        self._queue, self._movement, self._attempts, self._dead, self._tmp = (
            os.path.join(self._folder, name) for name in FOLDERS
        )
        self._candidates: deque[str] = deque()

    @property
    def uri(self) -> str:
        """Where it lives."""
        return self._uri

    @property
    def deletes_at_once(self) -> int:
        """How many messages one request deletes: each is removed by itself."""
        return 1

    def insert(self, envelopes: Iterable[Envelope]) -> int:
        """Add one message for each envelope, lazily; return how many."""
        n_inserted = 0
        with self._errors("insert into"):
            try:
                for envelope in envelopes:
                    message_id = str(uuid.uuid4())
                    message = {"payload": to_payload(envelope), "queueName": self._folder, "id": message_id}
                    self._put(f"{self._queue}/0--{message_id}.json", json.dumps(message).encode())
                    n_inserted += 1
            finally:
                self._add_insertions(n_inserted)
        return n_inserted

    def lease(self, seconds: int, *, wait_s: float = 0) -> Lease | None:  # noqa: ARG002 - a folder cannot wait
        """Take a message that nobody holds and count the attempt, or return None."""
        if seconds < 1:
            raise SpecError(f"a lease lasts at least 1 second, got {seconds}")
        with self._errors("lease from"):
            while self._candidates or self._scan():
                name = self._candidates.popleft()
                lease = self._take(name, seconds)
                if lease is not None:
                    return lease
        return None

    def renew(self, lease: Lease, seconds: int) -> bool:
        """Hold the message for ``seconds`` from now; False if it is no longer ours."""
        with self._errors("renew a lease of"):
            if self._move(lease, time.time() + seconds):
                return True
            if (
                self._find(lease.id) is None
            ):  # deleted by another finisher: our attempt is the last trace of it
                _unlink(f"{self._attempts}/{lease.id}")
        return False

    def delete(self, lease: Lease) -> None:
        """Remove a message whose work is done, under whichever name it lies by now."""
        with self._errors("delete from"):
            # The message goes last: killed in between, it is delivered again, found done, and deleted.
            _unlink(f"{self._movement}/{lease.id}")
            _unlink(f"{self._attempts}/{lease.id}")
            name: str | None = lease.name
            while name is not None:
                if _unlink(f"{self._queue}/{name}"):
                    self._tally()
                    return
                name = self._find(lease.id)

    def delete_all(self, leases: Sequence[Lease]) -> None:
        """Remove messages whose work is done."""
        for lease in leases:
            self.delete(lease)

    def release(self, lease: Lease, delay_s: float = 0, *, counted: bool = True) -> bool:
        """Hand the message back, to be leased again after ``delay_s``.

        ``counted=False`` takes the attempt back: the task is not to blame (its worker was told to stop).
        Returns False if the message was no longer ours.
        """
        with self._errors("hand back to"):
            if not counted:
                with suppress(FileNotFoundError):
                    os.truncate(f"{self._attempts}/{lease.id}", lease.attempt - 1)
            return self._move(lease, time.time() + delay_s if delay_s > 0 else 0)

    def bury(self, lease: Lease, reason: str) -> bool:
        """Move the message to the dead letters; False if it was no longer ours."""
        with self._errors("bury a message of"):
            self._put(f"{self._dead}/{lease.id}.txt", reason.encode())
            try:
                os.rename(f"{self._queue}/{lease.name}", f"{self._dead}/{lease.id}.json")
            except FileNotFoundError:
                _unlink(f"{self._dead}/{lease.id}.txt")
                return False
            _unlink(f"{self._movement}/{lease.id}")
            _unlink(f"{self._attempts}/{lease.id}")
        return True

    def peek(self, n: int) -> list[Waiting]:
        """Look at up to ``n`` messages, leased ones too; nothing is touched."""
        now = int(time.time())
        found: list[Waiting] = []
        with self._errors("look into"):
            for name in self._names():
                if len(found) == n:
                    break
                message_id = _id_of(name)
                try:
                    with open(f"{self._queue}/{name}", "rb") as file:
                        message, sent_s = file.read(), os.fstat(file.fileno()).st_mtime
                except FileNotFoundError:  # changed hands just now
                    continue
                try:
                    n_attempts = os.path.getsize(f"{self._attempts}/{message_id}")
                except FileNotFoundError:
                    n_attempts = 0
                found.append(Waiting(message_id, message, n_attempts, _free_from(name) > now, sent_s))
        return found

    def counts(self) -> QueueCounts:
        """Count the messages; those of other programs too."""
        now = int(time.time())
        with self._errors("count"):
            times = [_free_from(name) for name in self._names()]
            n_dead = sum(entry.name.endswith(".json") for entry in os.scandir(self._dead))
        n_ready = sum(free_from <= now for free_from in times)
        return QueueCounts(ready=n_ready, leased=len(times) - n_ready, dead=n_dead)

    def is_empty(self) -> bool:
        """Whether no message is waiting, delayed or leased (the dead do not count)."""
        # A name that changes during a scan may be missed by it, hence a second look.
        return not any(True for _ in self._names()) and not any(True for _ in self._names())

    def dead(self) -> Iterator[DeadMessage]:
        """Yield the dead letters, sorted by id."""
        for name in sorted(os.listdir(self._dead)):
            if not name.endswith(".json"):
                continue
            message_id = name.removesuffix(".json")
            try:
                message = Path(self._dead, name).read_bytes()
            except FileNotFoundError:  # made leasable again by another process
                continue
            try:
                reason = Path(self._dead, f"{message_id}.txt").read_text()
            except FileNotFoundError:
                reason = "no reason was recorded"
            yield DeadMessage(message_id, message, reason)

    def redrive(self, wanted: Callable[[DeadMessage], bool] | None = None) -> int:
        """Make the (wanted) dead letters leasable again with fresh attempts; return how many."""
        n_moved = 0
        with self._errors("redrive"):
            for letter in self.dead():
                if wanted is not None and not wanted(letter):
                    continue
                _unlink(f"{self._attempts}/{letter.id}")
                with suppress(FileNotFoundError):
                    os.rename(f"{self._dead}/{letter.id}.json", f"{self._queue}/0--{letter.id}.json")
                    n_moved += 1
                _unlink(f"{self._dead}/{letter.id}.txt")
        return n_moved

    def purge(self) -> None:
        """Remove every message that is not dead, leased ones too; a worker that holds one stops it."""
        with self._errors("purge"):
            for folder in (self._queue, self._movement, self._attempts, self._tmp):
                for entry in os.scandir(folder):
                    _unlink(entry.path)
            for counter in ("completions", "insertions"):
                _unlink(f"{self._folder}/{counter}")
        self._candidates.clear()

    def _names(self) -> Iterator[str]:
        with os.scandir(self._queue) as entries:
            for entry in entries:
                yield entry.name

    def _scan(self) -> bool:
        """Remember up to ``N_CANDIDATES`` leasable names, in random order so that rivals spread out."""
        now = int(time.time())
        found = []
        for name in self._names():
            if _free_from(name) <= now:
                found.append(name)
                if len(found) == N_CANDIDATES:
                    break
        random.shuffle(found)
        self._candidates.extend(found)
        return bool(found)

    def _take(self, name: str, seconds: int) -> Lease | None:
        message_id = _id_of(name)
        lease = Lease(id=message_id, message=b"", attempt=0, name=name)
        try:
            if not self._move(lease, time.time() + seconds):
                return None
            with open(f"{self._queue}/{lease.name}", "rb") as file:
                lease.message = file.read()
                lease.sent_s = os.fstat(file.fileno()).st_mtime  # a rename leaves it alone
        except FileNotFoundError:  # deleted just now by a finisher whose lease had run out
            return None
        # Counted before the message is given out: a task that kills its worker is counted as well.
        with open(f"{self._attempts}/{message_id}", "ab", buffering=0) as file:
            file.write(b"\0")
            lease.attempt = file.tell()
        return lease

    def _move(self, lease: Lease, free_from_s: float) -> bool:
        # Rounded up: a lease is never shorter than asked for. Stock workers read whole seconds.
        name = f"{math.ceil(free_from_s)}--{lease.id}.json"
        try:
            os.rename(f"{self._queue}/{lease.name}", f"{self._queue}/{name}")
        except FileNotFoundError:
            return False
        lease.name = name
        return True

    def _find(self, message_id: str) -> str | None:
        ending = f"--{message_id}.json"
        return next((name for name in self._names() if name.endswith(ending)), None)

    def _put(self, path: str, data: bytes) -> None:
        temporary = f"{self._tmp}/{uuid.uuid4()}"
        with open(temporary, "wb", buffering=0) as file:
            file.write(data)
        os.rename(temporary, path)

    def _tally(self) -> None:
        with open(f"{self._folder}/completions", "ab", buffering=0) as file:
            file.write(b"\0")

    def _add_insertions(self, n_inserted: int) -> None:
        """Add to the counter that stock tools show; nothing of ours depends on it."""
        if not n_inserted:
            return
        path = f"{self._folder}/insertions"
        with open(path, "ab+") as file:
            with suppress(ImportError):  # no such lock on this system: the counter may then lag
                import fcntl

                fcntl.lockf(file, fcntl.LOCK_EX)
            file.seek(0)
            before = file.read().strip()
            file.truncate(0)
            file.write(str((int(before) if before.isdigit() else 0) + n_inserted).encode())

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, CloudsegError):  # from the caller's own iterator
                raise
            advice = (
                "free some space"
                if error.errno == errno.ENOSPC
                else "check that the folder exists and its rights"
            )
            raise StorageError(
                f"cannot {action} the queue {self._uri}: {error.strerror or error}; {advice}"
            ) from error


def _free_from(name: str) -> int:
    """Return the time in a message's name; a name that nobody could have written counts as leasable."""
    head = name.partition("--")[0]
    return int(head) if head.isdigit() else 0


def _id_of(name: str) -> str:
    return name.partition("--")[2].removesuffix(".json") or name


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
