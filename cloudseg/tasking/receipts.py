"""What is known about the tasks of a step: receipts of the finished, errors of the failed, dead letters.

Keys under the pipeline's root::

    pipeline/receipts/<step>/<task id>.json          written once, after the task's outputs
    pipeline/receipts/<step>/compacted/...           many of them folded into one object, in large steps that are done
    pipeline/errors/<step>/<task id>/<attempt>.txt   the traceback of one attempt
    pipeline/dead/<step>/<task id>.json              a task that gave up: reason, traceback, envelope
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from pydantic import AwareDatetime, Field, NonNegativeInt, PositiveInt

from cloudseg.errors import CorruptDataError, NotFoundError, SpecError
from cloudseg.specs import FrozenModel
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.folded_receipts import FoldedReceipts, id_of
from cloudseg.volumes.claims import claim, new_owner
from cloudseg.volumes.objects import Objects

# Reading a receipt is waiting for storage: a few at once, in windows so that memory stays bounded.
N_READERS = 8
WINDOW = 256

Model = TypeVar("Model", bound=FrozenModel)


class Receipt(FrozenModel):
    """Proof that a task's outputs are complete, and what they took.

    Attributes
    ----------
    task_id, kind, step
        Which task.
    attempt
        The attempt that finished it (1 = first).
    counters
        What the task counted: ``voxels``, ``bytes_read``, ``bytes_written`` and its own.
    seconds
        Seconds by step of the work; ``total`` is the whole run.
    peak_memory_bytes
        Peak resident memory of the process while the task ran.
    versions
        Of cloudseg, Python and the libraries that shape results.
    host
        Where it ran.
    owner
        Who wrote it: a name of its own for each try, set by :meth:`Receipts.write`.
    started, finished
        When, in UTC.
    """

    task_id: str
    kind: str
    step: str
    attempt: PositiveInt = 1
    counters: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: NonNegativeInt = 0
    versions: dict[str, str] = Field(default_factory=dict)
    host: str = ""
    owner: str = ""
    started: AwareDatetime
    finished: AwareDatetime

    @property
    def wall_s(self) -> float:
        """Seconds from start to finish."""
        return (self.finished - self.started).total_seconds()


class DeadLetter(FrozenModel):
    """A task that gave up.

    Attributes
    ----------
    task_id, kind, step
        Which task.
    reason
        One sentence: what went wrong, what to do.
    attempts
        How many times it was started.
    traceback
        Of the last attempt; empty if the process left none.
    envelope
        To put it into a queue again.
    """

    task_id: str
    kind: str
    step: str
    reason: str
    attempts: NonNegativeInt
    traceback: str = ""
    envelope: Envelope


class Receipts:
    """The books of one step, wherever its receipts lie: on their own, or folded into segments.

    Parameters
    ----------
    objects
        The pipeline's root folder.
    step
        Name of the step.
    """

    def __init__(self, objects: Objects, step: str) -> None:
        self._objects = objects
        self.step = step
        self._receipts = f"pipeline/receipts/{step}/"
        self._errors = f"pipeline/errors/{step}/"
        self._dead = f"pipeline/dead/{step}/"
        self.folded = FoldedReceipts(objects, self._receipts)

    def write(self, receipt: Receipt) -> bool:
        """Store ``receipt`` unless the task has one; True for the one finisher who stored it.

        A receipt without an owner is given one: a bucket's answer can be lost after the receipt was stored,
        and the finisher knows its own by it.

        Raises
        ------
        SpecError
            If the receipt belongs to another step.
        """
        if receipt.step != self.step:
            raise SpecError(
                f"a receipt of step {receipt.step!r} cannot go into the books of step {self.step!r}"
            )
        owned = receipt if receipt.owner else receipt.model_copy(update={"owner": new_owner()})
        return claim(
            self._objects, f"{self._receipts}{receipt.task_id}.json", owned.canonical_json().encode()
        )

    def get(self, task_id: str) -> Receipt | None:
        """Return the receipt of ``task_id``, or None if it has not finished.

        Raises
        ------
        CorruptDataError
            If an object lies there that is no receipt.
        """
        # The single one first: it goes only after a segment has it, so one that is folded meanwhile is found there.
        receipt = self.single(task_id)
        if receipt is not None:
            return receipt
        folded = self.folded.find(task_id)
        return _parse(folded[0], where=folded[1]) if folded else None

    def done(self) -> set[str]:
        """Return the ids of all finished tasks; single receipts are only listed."""
        # The singles first, for the same reason: one is then seen twice, rather than never.
        found = set(self._ids(self._receipts))
        found.update(self.folded.ids())
        return found

    def n_done(self) -> int:
        """Return how many tasks have finished; while nothing is folded, by listing alone."""
        if not self.folded.list():
            return sum(1 for _ in self._ids(self._receipts))
        return len(self.done())

    def all(self) -> Iterator[Receipt]:
        """Yield every receipt once: those in segments, then the single ones, each sorted by task id."""
        singles = self.single_ids()
        segments = self.folded.list()
        if not segments:
            yield from self.singles(singles)
            return
        seen: set[str] = set()
        for segment in segments:
            for line in self.folded.lines(segment):
                task_id = id_of(line)
                if task_id not in seen:
                    seen.add(task_id)
                    yield _parse(line, where=segment.key)
        yield from self.singles(task_id for task_id in singles if task_id not in seen)

    def single(self, task_id: str) -> Receipt | None:
        """Return the receipt of ``task_id`` if it lies on its own."""
        return self._load(Receipt, f"{self._receipts}{task_id}.json")

    def single_ids(self) -> list[str]:
        """Return the ids of the receipts that lie on their own, sorted."""
        return list(self._ids(self._receipts))

    def singles(self, ids: Iterable[str]) -> Iterator[Receipt]:
        """Yield receipts that lie on their own, in the order of ``ids``; those that are gone are left out."""
        return self._load_all(Receipt, self._receipts, iter(ids))

    def remove_singles(self, ids: Iterable[str]) -> None:
        """Remove single receipts; they must lie in segments."""
        with ThreadPoolExecutor(N_READERS) as writers:
            for _ in writers.map(lambda i: self._objects.delete(f"{self._receipts}{i}.json"), ids):
                pass

    def write_error(self, task_id: str, attempt: int, text: str) -> None:
        """Store why an attempt failed: a traceback, or what was seen of a process that vanished."""
        self._objects.put(f"{self._errors}{task_id}/{attempt}.txt", text.encode("utf-8", "replace"))

    def errors(self, task_id: str) -> dict[int, str]:
        """Return the stored failures of a task by attempt."""
        found = {}
        for key in self._objects.list(f"{self._errors}{task_id}/"):
            attempt = key.rpartition("/")[2].removesuffix(".txt")
            if attempt.isdigit():
                found[int(attempt)] = self._objects.get(key).decode("utf-8", "replace")
        return dict(sorted(found.items()))

    def n_errors(self) -> int:
        """Return how many attempts have failed, by listing alone."""
        return sum(1 for _ in self._objects.list(self._errors))

    def write_dead(self, letter: DeadLetter) -> None:
        """Store a dead letter."""
        self._objects.put(f"{self._dead}{letter.task_id}.json", letter.canonical_json().encode())

    def dead(self) -> Iterator[DeadLetter]:
        """Yield the dead letters, sorted by task id, without those of tasks that have finished since."""
        if not any(True for _ in self._ids(self._dead)):
            return
        done = self.done()
        letters = self._load_all(DeadLetter, self._dead, self._ids(self._dead))
        yield from (letter for letter in letters if letter.task_id not in done)

    def clear_dead(self) -> int:
        """Remove all dead letters of the step, so that its tasks may be queued again; return how many."""
        keys = list(self._objects.list(self._dead))
        for key in keys:
            self._objects.delete(key)
        return len(keys)

    def _ids(self, prefix: str) -> Iterator[str]:
        for key in self._objects.list(prefix):
            if key.endswith(".json"):
                yield key.rpartition("/")[2].removesuffix(".json")

    def _load_all(self, model: type[Model], prefix: str, ids: Iterator[str]) -> Iterator[Model]:
        with ThreadPoolExecutor(N_READERS) as readers:
            while window := list(islice(ids, WINDOW)):
                for found in readers.map(lambda i: self._load(model, f"{prefix}{i}.json"), window):
                    if found is not None:  # removed since it was listed
                        yield found

    def _load(self, model: type[Model], key: str) -> Model | None:
        try:
            data = self._objects.get(key)
        except NotFoundError:
            return None
        try:
            return model.load(data, where=key)
        except SpecError as error:
            raise CorruptDataError(
                f"{error}; delete {key} under {self._objects.uri} to have the task run again"
            ) from error


def _parse(line: bytes, *, where: str) -> Receipt:
    try:
        return Receipt.load(line, where=where)
    except SpecError as error:
        raise CorruptDataError(f"{error}; {where} was written by another version of cloudseg") from error
