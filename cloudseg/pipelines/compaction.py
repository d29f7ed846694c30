"""The receipts of a step, folded into few objects: a million are read like a handful.

Keys under the root, beside the single receipts::

    pipeline/receipts/<step>/compacted/<n>.jsonl   receipts as lines of JSON, sorted by task id; the last line holds
                                                   their number and their digest

A segment is created once and never changed. It is read back and checked before the single receipts in it go, so
that at any moment each receipt lies in a segment, on its own, or both. Readers count it once, and the segment with
the lowest number has the copy that counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cloudseg.errors import CorruptDataError, SpecError
from cloudseg.tasking.receipts import N_READERS, WINDOW, Receipt, Receipts
from cloudseg.volumes.objects import Objects

# About 50 MB of JSON: a million receipts are twenty objects.
SEGMENT_RECEIPTS = 50_000
# With fewer, folding saves nothing that anybody would feel.
FOLD_FROM = 10_000
_SEGMENT = re.compile(r"/compacted/(\d{6})\.jsonl$")


class Books(Receipts):
    """The books of one step, wherever its receipts lie."""

    def get(self, task_id: str) -> Receipt | None:
        """Return the receipt of ``task_id``, or None if it has not finished."""
        for key in self.segments():
            for line in self._lines(key):
                if _id_of(line) == task_id:
                    return _receipt(line, where=key)
        return super().get(task_id)

    def done(self) -> set[str]:
        """Return the ids of all finished tasks; single receipts are only listed."""
        # The singles first: one that is folded meanwhile is then seen twice, rather than never.
        found = super().done()
        return found | self.folded()

    def all(self) -> Iterator[Receipt]:
        """Yield every receipt once: those in segments, then the single ones, each sorted by task id."""
        singles = sorted(super().done())
        seen: set[str] = set()
        for key in self.segments():
            for line in self._lines(key):
                task_id = _id_of(line)
                if task_id not in seen:
                    seen.add(task_id)
                    yield _receipt(line, where=key)
        yield from self.singles(task_id for task_id in singles if task_id not in seen)

    def n_done(self) -> int:
        """Return how many tasks have finished; while nothing is folded, by listing alone."""
        if not self.segments():
            return sum(1 for _ in self._ids(self._receipts))
        return len(self.done())

    def segments(self) -> list[str]:
        """Return the keys of the segments, in order."""
        return [key for key in self._objects.list(f"{self._receipts}compacted/") if _SEGMENT.search(key)]

    def folded(self) -> set[str]:
        """Return the ids of the tasks whose receipts lie in segments."""
        return {_id_of(line) for key in self.segments() for line in self._lines(key)}

    def single_ids(self) -> list[str]:
        """Return the ids of the receipts that lie on their own, sorted."""
        return sorted(self._ids(self._receipts))

    def singles(self, ids: Iterable[str]) -> Iterator[Receipt]:
        """Yield receipts that lie on their own, in the order of ``ids``; those that are gone are left out."""
        ids = iter(ids)
        with ThreadPoolExecutor(N_READERS) as readers:
            while window := list(islice(ids, WINDOW)):
                for found in readers.map(super().get, window):
                    if found is not None:
                        yield found

    def write_segment(self, receipts: Iterable[Receipt]) -> None:
        """Create a segment, and read it back.

        Raises
        ------
        CorruptDataError
            If what was stored is not what was written.
        """
        lines = [receipt.canonical_json().encode() + b"\n" for receipt in receipts]
        body = b"".join(lines)
        end = {"n_receipts": len(lines), "sha256": hashlib.sha256(body).hexdigest()}
        data = body + json.dumps(end).encode() + b"\n"
        number = max((int(_SEGMENT.search(key)[1]) for key in self.segments()), default=0)  # type: ignore[index]
        while True:
            number += 1
            key = f"{self._receipts}compacted/{number:06d}.jsonl"
            created = self._objects.put_if_absent(key, data)
            stored = self._objects.get(key)
            if stored == data:  # ours, even if the answer to the create was lost
                return
            if created:
                raise CorruptDataError(
                    f"{key} under {self._objects.uri} is not what was written ({len(stored)} bytes for {len(data)}); "
                    f"no receipt was removed: delete {key}, and run again"
                )

    def remove_singles(self, ids: Iterable[str]) -> None:
        """Remove single receipts; they must lie in segments."""
        with ThreadPoolExecutor(N_READERS) as writers:
            for _ in writers.map(lambda i: self._objects.delete(f"{self._receipts}{i}.json"), ids):
                pass

    def _lines(self, key: str) -> list[bytes]:
        data = self._objects.get(key)
        body, _, end = data.removesuffix(b"\n").rpartition(b"\n")
        body += b"\n" if body else b""
        try:
            wanted = json.loads(end)["sha256"]
        except (ValueError, KeyError, TypeError):
            wanted = None
        if wanted != hashlib.sha256(body).hexdigest():
            raise CorruptDataError(
                f"{key} under {self._objects.uri} is damaged: {len(data)} bytes with another digest. Bring it "
                "back from a version of the bucket, or delete it to have the tasks in it run again"
            )
        return body.splitlines()


def fold(
    step: str,
    objects: Objects,
    *,
    remove: bool,
    fold_from: int = FOLD_FROM,
    segment_receipts: int = SEGMENT_RECEIPTS,
) -> int:
    """Fold the single receipts of a step into segments.

    Killed at any moment and called again, it goes on.

    Parameters
    ----------
    step
        Name of the step.
    objects
        The root.
    remove
        Whether to remove the single receipts afterwards. Workers look for these alone before they run a task: as
        long as a queue may deliver a task of the step once more, they must stay.
    fold_from
        With fewer single receipts nothing is done, unless the step has segments already.
    segment_receipts
        How many go into one segment.

    Returns
    -------
    How many receipts were folded.
    """
    books = Books(objects, step)
    singles = books.single_ids()
    if not singles or (len(singles) < fold_from and not books.segments()):
        return 0
    folded = books.folded()
    fresh = books.singles(task_id for task_id in singles if task_id not in folded)
    n_folded = 0
    while part := list(islice(fresh, segment_receipts)):
        books.write_segment(part)
        n_folded += len(part)
    if remove:
        # Read once more, from the bucket: only what is surely there allows its single receipt to go.
        safe = books.folded()
        books.remove_singles(task_id for task_id in singles if task_id in safe)
    return n_folded


def _id_of(line: bytes) -> str:
    return str(json.loads(line)["task_id"])


def _receipt(line: bytes, *, where: str) -> Receipt:
    try:
        return Receipt.load(line, where=where)
    except SpecError as error:
        raise CorruptDataError(f"{error}; {where} was written by another version of cloudseg") from error
