"""Fold receipts of a finished step into few objects; :mod:`cloudseg.tasking.folded_receipts` says where they lie."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice

from cloudseg.tasking.folded_receipts import id_of
from cloudseg.tasking.receipts import Receipts
from cloudseg.volumes.objects import Objects

# About 5 MB of JSON: a million receipts are two hundred objects, and a late duplicate of one task reads one of them.
SEGMENT_RECEIPTS = 5_000
# With fewer, folding saves nothing that anybody would feel.
FOLD_FROM = 10_000


def fold(
    step: str, objects: Objects, *, fold_from: int = FOLD_FROM, segment_receipts: int = SEGMENT_RECEIPTS
) -> int:
    """Fold the single receipts of a step into segments, and remove them.

    Killed at any moment and called again, it goes on. Workers may be at work meanwhile: they look into segments too.

    Parameters
    ----------
    step
        Name of the step.
    objects
        The root.
    fold_from
        With fewer receipts, and none folded so far, nothing is done.
    segment_receipts
        How many receipts one segment holds at most.

    Returns
    -------
    How many receipts were folded.
    """
    books = Receipts(objects, step)
    singles = books.single_ids()
    if not singles or (len(singles) < fold_from and not books.folded.list()):
        return 0
    folded = set(books.folded.ids())
    fresh = _lines(books, (task_id for task_id in singles if task_id not in folded))
    n_folded = 0
    while part := list(islice(fresh, segment_receipts)):
        books.folded.write(part)
        n_folded += len(part)
    books.folded.mark()
    del folded
    # Read once more, from the bucket: only what is surely there allows its single receipt to go.
    for segment in books.folded.list():
        ids = map(id_of, books.folded.lines(segment))
        books.remove_singles([task_id for task_id in ids if _holds(singles, task_id)])
    return n_folded


def _holds(ids: list[str], task_id: str) -> bool:
    """Whether a sorted list has an id; a set would take as much memory again."""
    at = bisect_left(ids, task_id)
    return at < len(ids) and ids[at] == task_id


def _lines(books: Receipts, ids: Iterable[str]) -> Iterator[bytes]:
    return (receipt.canonical_json().encode() for receipt in books.singles(ids))
