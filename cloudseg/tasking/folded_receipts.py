"""Receipts of one step, folded into few objects: a million are read like a few hundred.

Keys under ``pipeline/receipts/<step>/``, beside the single receipts::

    compacted/<n>-<first id>-<last id>.jsonl   receipts as lines of JSON, sorted by task id; the last line holds
                                               their number and their digest
    compacted/begun                            there are segments: one small request tells a worker whether to look

A segment is created once and never changed. Its name says between which ids it lies, so that one receipt is found
by a listing and one read. It is read back and checked before the single receipts in it go, so that at any moment each
receipt lies in a segment, on its own, or both. Readers count it once, and the first segment in order of names has the
copy that counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cloudseg.errors import CorruptDataError
from cloudseg.volumes.objects import Objects

_NAME = re.compile(r"/compacted/(\d{6})(?:-([0-9a-f]+)-([0-9a-f]+))?\.jsonl$")
_TASK_ID = re.compile(rb'"task_id":"([0-9a-f]+)"')
_MARK = "begun"


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: its key, its number, and the first and last id in it (empty in those without a range)."""

    key: str
    number: int
    first: str
    last: str

    def may_hold(self, task_id: str) -> bool:
        """Whether the receipt of ``task_id`` can lie in it."""
        return not self.first or self.first <= task_id <= self.last


class FoldedReceipts:
    """The segments of one step.

    Parameters
    ----------
    objects
        The pipeline's root folder.
    receipts
        Prefix of the step's receipts, with a slash at its end.
    """

    def __init__(self, objects: Objects, receipts: str) -> None:
        self._objects = objects
        self._prefix = f"{receipts}compacted/"

    def list(self) -> list[Segment]:
        """Return the segments, in order."""
        found = ((key, _NAME.search(key)) for key in self._objects.list(self._prefix))
        return [Segment(key, int(m[1]), m[2] or "", m[3] or "") for key, m in found if m is not None]

    def find(self, task_id: str) -> tuple[bytes, str] | None:
        """Return the line of ``task_id`` and its key, or None; one request where nothing was ever folded."""
        if not self._objects.exists(f"{self._prefix}{_MARK}"):
            return None
        for segment in self.list():
            if segment.may_hold(task_id):
                for line in self.lines(segment):
                    if id_of(line) == task_id:
                        return line, segment.key
        return None

    def lines(self, segment: Segment) -> Sequence[bytes]:
        """Return the receipts of a segment, each as a line of JSON.

        Raises
        ------
        CorruptDataError
            If they are not those that were written.
        """
        data = self._objects.get(segment.key)
        body, _, end = data.removesuffix(b"\n").rpartition(b"\n")
        body += b"\n" if body else b""
        try:
            wanted = json.loads(end)["sha256"]
        except (ValueError, KeyError, TypeError):
            wanted = None
        if wanted != hashlib.sha256(body).hexdigest():
            raise CorruptDataError(
                f"{segment.key} under {self._objects.uri} is damaged: {len(data)} bytes with another digest. Bring "
                "it back from a version of the bucket, or delete it to have the tasks in it run again"
            )
        return body.splitlines()

    def ids(self) -> Iterator[str]:
        """Yield the ids of the receipts in all segments; one that lies in two comes twice."""
        for segment in self.list():
            yield from map(id_of, self.lines(segment))

    def write(self, lines: Sequence[bytes]) -> None:
        """Create a segment of lines that are sorted by task id, and read it back.

        Raises
        ------
        CorruptDataError
            If what was stored is not what was written.
        """
        body = b"".join(line + b"\n" for line in lines)
        end = {"n_receipts": len(lines), "sha256": hashlib.sha256(body).hexdigest()}
        data = body + json.dumps(end).encode() + b"\n"
        number = max((segment.number for segment in self.list()), default=0)
        while True:
            number += 1
            key = f"{self._prefix}{number:06d}-{id_of(lines[0])}-{id_of(lines[-1])}.jsonl"
            created = self._objects.put_if_absent(key, data)
            stored = self._objects.get(key)
            if stored == data:  # ours, even if the answer to the create was lost
                return
            if created:
                raise CorruptDataError(
                    f"{key} under {self._objects.uri} is not what was written ({len(stored)} bytes for {len(data)}); "
                    f"no receipt was removed: delete {key}, and run again"
                )

    def mark(self) -> None:
        """Say that there are segments; before the first single receipt goes."""
        self._objects.put_if_absent(f"{self._prefix}{_MARK}", b"")


def id_of(line: bytes) -> str:
    """Return the task id in a line; a quick look, for lines are many."""
    found = _TASK_ID.findall(line)
    return found[0].decode() if len(found) == 1 else str(json.loads(line)["task_id"])
