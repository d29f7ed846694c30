"""What a chaos run leaves behind: the records of its fronts and processes, and what lies in bucket, queue and disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cloudseg.errors import CloudsegError
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.queue import Queue
from cloudseg.tasking.receipts import Receipt
from cloudseg.testing.chaos import proofs
from cloudseg.testing.chaos.fronts import QueueFront, StorageFront
from cloudseg.testing.chaos.poison import Poison
from cloudseg.testing.runs import file_digests, object_digests
from cloudseg.volumes import open_objects

Store = Literal["s3", "gcs"]


@dataclass
class Records:
    """All that a chaos run leaves behind for the proofs and the table.

    Attributes
    ----------
    seed, store
        What was asked for.
    storage, queue
        The fronts, with their own records.
    poisons
        The messages that must be dead in the end.
    planned
        Step of each task id.
    done, details
        How often each kind of fault was done to processes and messages, and in which variants.
    stored
        Step and task id of each receipt in the bucket.
    n_skewed
        How many of these tell a time that is hours away.
    begun
        Every task that began to run.
    quiet, outputs
        Digests of what the quiet run and this one made.
    dead
        Body and reason of each dead letter.
    ready, leased
        What is left in the queue.
    stray
        Objects, files and processes that belong to nothing.
    own_ends
        Workers and runs that ended unasked.
    worker_events
        All that the workers' logs tell of.
    seconds
        How long all took.
    """

    seed: int
    store: Store
    storage: StorageFront
    queue: QueueFront
    poisons: list[Poison]
    planned: dict[str, str] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    details: dict[str, Counter[str]] = field(default_factory=dict)
    stored: list[tuple[str, str]] = field(default_factory=list)
    n_skewed: int = 0
    begun: list[proofs.Begun] = field(default_factory=list)
    quiet: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    dead: list[tuple[str, str]] = field(default_factory=list)
    ready: int = 0
    leased: int = 0
    stray: list[str] = field(default_factory=list)
    own_ends: list[str] = field(default_factory=list)
    worker_events: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def verdicts(self) -> list[proofs.Verdict]:
        """Judge every promise."""
        return [
            proofs.same_bytes(self.quiet, self.outputs),
            proofs.one_receipt_each(self.planned, self.stored, self.storage.asked),
            proofs.none_after_its_receipt(self.storage.asked, self.begun),
            proofs.poison_is_buried(self.poisons, self.dead),
            *proofs.nothing_is_left(ready=self.ready, leased=self.leased, stray=self.stray),
            proofs.none_ended_unasked(self.own_ends),
        ]


def n_full(found: list[dict[str, Any]]) -> int:
    """Count the tasks that met a full disk."""
    return sum(e["event"] in ("failed", "dead") and "no space left" in e.get("message", "") for e in found)


def collect(records: Records, folder: Path, *, copies: Mapping[str, Path], queue: Queue, base: str) -> None:
    """Read what the run has left in the bucket, on the disk and in the queue, past all fronts."""
    there = open_objects(base)
    keys = list(there.list())
    records.outputs, records.quiet = (
        object_digests(f"{base}/out"),
        object_digests(f"file://{folder}/quiet/out"),
    )
    for where, digests in (("quiet", records.quiet), ("chaos", records.outputs)):
        found = file_digests(copies[where], leave_out=())
        digests.update({f"copy/{name}": digest for name, digest in found.items()})
    for key in keys:
        if key.startswith("out/pipeline/receipts/") and key.endswith(".json"):
            _, _, _, step, name = key.split("/")
            records.stored.append((step, name.removesuffix(".json")))
            receipt = there.get(key)
            records.n_skewed += _is_skewed(receipt)
    records.stray += list(_stray_keys(keys, folder, records))
    records.dead = [(letter.message.decode(), letter.reason) for letter in queue.dead()]
    counts = queue.counts()
    records.ready, records.leased = counts.ready, counts.leased


def _is_skewed(receipt: bytes) -> bool:
    finished = Receipt.load(receipt, where="receipt").finished
    return abs(finished.timestamp() - time.time()) > 3600


def _stray_keys(keys: list[str], folder: Path, records: Records) -> Iterator[str]:
    """Name the objects that belong to nothing."""
    books = {path.name for path in (folder / "quiet" / "out" / "pipeline").iterdir()}
    poisoned = [poison.body for poison in records.poisons]
    for key in keys:
        top, _, rest = key.partition("/")
        if top in ("image", "truth", "model", "poison"):
            continue
        if top != "out":
            yield key
        elif rest.startswith("pipeline/"):
            part = rest.split("/")[1]
            task_id = Path(rest).stem if part != "errors" else rest.split("/")[3]
            if part in ("errors", "dead", "receipts"):
                if task_id not in records.planned and not _is_poison(task_id, poisoned):
                    yield key
                if part == "dead" and task_id in records.planned:
                    yield key
            elif part not in books and part != "enqueued":
                yield key


def _is_poison(task_id: str, bodies: list[str]) -> bool:
    for body in bodies:
        try:
            job = parse_message(body)
        except CloudsegError:
            continue
        if isinstance(job, Envelope) and job.task_id == task_id:
            return True
    return False
