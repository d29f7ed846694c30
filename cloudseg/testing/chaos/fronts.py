"""Fronts before storage and queue that inject the faults of a chaos run, and keep a record of what really happened."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from cloudseg.testing.chaos.plan import KINDS, Kind, Place
from cloudseg.testing.front import Fault, Front

RECEIPT = re.compile(r"^(GET|PUT) /vol/\S+/pipeline/receipts/([^/]+)/([0-9a-f]{32})\.json$")
SLOW_S = 3.0
_DECLARED_MISSING = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"


_GCS_OBJECT = re.compile(r"^(\w+) (?:/download)?/storage/v1/b/([^/]+)/o/([^?]+)(?:\?.*)?$")
_GCS_UPLOAD = re.compile(r"^POST /upload/storage/v1/b/([^/]+)/o\?(.*)$")


def plain(line: str) -> str:
    """Return a request to GCS as one to S3 would read; others as they are.

    Examples
    --------
    >>> plain("GET /download/storage/v1/b/vol/o/a/info?alt=media")
    'GET /vol/a/info'
    >>> plain("POST /upload/storage/v1/b/vol/o?uploadType=media&name=a/info&ifGenerationMatch=0")
    'PUT /vol/a/info'
    """
    if found := _GCS_OBJECT.match(line):
        return f"{found[1]} /{found[2]}/{found[3]}"
    if found := _GCS_UPLOAD.match(line):
        return f"PUT /{found[1]}/{dict(parse_qsl(found[2])).get('name', '')}"
    return line


@dataclass(frozen=True, slots=True)
class Happening:
    """A fault that was really delivered: of which kind, to which request, and when (monotonic clock)."""

    kind: str
    line: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A request about a receipt: GET or PUT, of which task, when it reached the storage, and what that said when."""

    method: str
    step: str
    task_id: str
    sent_s: float
    answered_s: float
    status: int


@dataclass
class _Intended(Fault):
    """A fault on its way to one request."""

    kind: Kind | None = None


class Dice:
    """Says for each request which fault it shall suffer, if any; thread-safe.

    Each fault falls due at a progress of the run that the seed decides, and then waits for a request that it fits,
    and lets a few of them pass.

    Parameters
    ----------
    seed, place
        Which faults, of which front.
    n_tasks
        Tasks of the run, over which the faults are spread.
    is_long
        Whether to take the numbers of a long run.
    """

    def __init__(self, seed: int, place: Place, *, n_tasks: int, is_long: bool) -> None:
        self._lock = threading.Lock()
        self.random = random.Random(f"{seed} {place}")
        self._kinds = {kind.name: kind for kind in KINDS if kind.place == place}
        # Per kind: at which progress, after how many requests like it; the earliest last.
        self._due = {
            name: [
                [at, self.random.randint(0, kind.n_passed)]
                for at in reversed(kind.moments(self.random, n_tasks, is_long=is_long))
            ]
            for name, kind in self._kinds.items()
        }

    def roll(self, line: str, progress: int) -> Kind | None:
        """Look at a request when ``progress`` tasks are done; return the fault that it shall suffer, or None."""
        with self._lock:
            for name, due in self._due.items():
                if due and due[-1][0] <= progress and re.search(self._kinds[name].match, line):
                    if due[-1][1] == 0:
                        due.pop()
                        return self._kinds[name]
                    due[-1][1] -= 1
        return None

    def give_back(self, kind: Kind) -> None:
        """Say that a fault could not be delivered: the next request like it shall have it."""
        with self._lock:
            self._due[kind.name].append([0, 0])

    def n_left(self) -> Counter[str]:
        """Return how many faults of each kind are still to come."""
        with self._lock:
            return Counter({name: len(due) for name, due in self._due.items() if due})


@dataclass
class _ChaosFront(Front):
    """What both fronts share: dice, the record, and how far the run is."""

    dice: Dice = field(default_factory=lambda: Dice(0, "storage", n_tasks=0, is_long=False))
    happened: list[Happening] = field(default_factory=list)
    is_calm: bool = True
    progress: Callable[[], int] = lambda: 0
    seen: list[tuple[str, float]] = field(default_factory=list)
    here: threading.local = field(default_factory=threading.local)

    def fault_for(self, line: str) -> Fault | None:
        """Note a request and return what shall go wrong with it."""
        line = plain(line)
        with self.lock:
            self.seen.append((line, time.monotonic()))
        kind = None if self.is_calm else self.dice.roll(line, self.progress())
        return None if kind is None else self.intend(kind, line)

    def intend(self, kind: Kind, line: str) -> Fault:
        """Turn a kind of fault into what the front shall do."""
        raise NotImplementedError

    def rewritten(self, line: str, body: bytes) -> bytes:  # noqa: ARG002 - the contract of Front
        """Note when the request leaves for the server."""
        self.here.sent_s = time.monotonic()
        return body

    def note(self, kind: Kind, line: str) -> None:
        """Put a fault into the record: it was delivered."""
        with self.lock:
            self.happened.append(Happening(kind.name, line, time.monotonic()))

    def withdraw(self, fault: _Intended) -> None:
        """Let a request go unharmed: what shall go wrong with it cannot."""
        assert fault.kind is not None
        self.dice.give_back(fault.kind)
        fault.cut, fault.delay_s, fault.kind = None, 0, None


@dataclass
class StorageFront(_ChaosFront):
    """Before the buckets. ``asked`` has every request about a receipt, ``n_receipts`` how many were stored."""

    asked: list[Asked] = field(default_factory=list)
    n_receipts: int = 0

    def intend(self, kind: Kind, line: str) -> Fault:
        """Turn a kind of fault into what the front shall do."""
        fault = _Intended(line, kind=kind)
        match kind.name:
            case "storage answers 429" | "storage answers 500" | "storage answers 503":
                fault.status = int(kind.name[-3:])
                self.note(kind, line)
            case "storage cuts the connection before the request":
                fault.cut = "before"
                self.note(kind, line)
            case "storage cuts the connection within the answer":
                fault.cut = "mid"
            case "slow read, longer than the lease":
                fault.delay_s = SLOW_S
            case "answer lost after a write" | "answer lost after a receipt":
                fault.cut = "after"
        return fault

    def answered(self, line: str, fault: Fault, status: int, data: bytes) -> tuple[int, bytes]:
        """Note what the storage answered about receipts; damage the body of an answer, if that is the fault."""
        line = plain(line)
        if match := RECEIPT.match(line):
            with self.lock:
                now_s = time.monotonic()
                self.asked.append(Asked(match[1], match[2], match[3], self.here.sent_s, now_s, status))
                self.n_receipts += match[1] == "PUT" and status == 200
        if not isinstance(fault, _Intended) or fault.kind is None:
            return status, data
        kind = fault.kind
        if status not in (200, 206) or (len(data) < 2 and fault.cut != "after"):
            self.withdraw(fault)
            return status, data
        self.note(kind, line)
        match kind.name:
            case "chunk arrives corrupted":
                changed = bytearray(data)
                for place in self.dice.random.sample(range(len(changed)), min(16, len(changed))):
                    changed[place] ^= self.dice.random.randrange(1, 256)
                return status, bytes(changed)
            case "chunk arrives truncated":
                return status, data[: self.dice.random.randrange(len(data))]
            case "chunk is said to be missing":
                return 404, _DECLARED_MISSING
        return status, data


@dataclass
class QueueFront(_ChaosFront):
    """Before SQS.

    ``client`` reaches the server behind it, and ``queue_url`` is the queue of the run; ``sent`` and ``delivered``
    have message ids in the order in which they came and were first given out.
    """

    client: Any = None
    queue_url: str = ""
    sent: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)

    def intend(self, kind: Kind, line: str) -> Fault:
        """Turn a kind of fault into what the front shall do."""
        fault = _Intended(line, kind=kind)
        match kind.name:
            case "queue answers 429, 500 or 503":
                fault.status = self.dice.random.choice((429, 500, 503))
                self.note(kind, line)
            case "queue cuts the connection before the request":
                fault.cut = "before"
                self.note(kind, line)
            case "queue's answer lost":
                fault.cut = "after"
        self.here.kind = kind
        return fault

    def rewritten(self, line: str, body: bytes) -> bytes:
        """Reorder a batch, if that is the fault: the last first, and some held back."""
        kind, self.here.kind = getattr(self.here, "kind", None), None
        self.here.body = body
        if kind is None or kind.name != "messages reordered and held back":
            return body
        call = json.loads(body)
        call["Entries"].reverse()
        for entry in call["Entries"][::2]:
            entry["DelaySeconds"] = self.dice.random.randint(1, 3)
        self.note(kind, line)
        return json.dumps(call).encode()

    def answered(self, line: str, fault: Fault, status: int, data: bytes) -> tuple[int, bytes]:
        """Note what was sent and delivered; deliver it twice, if that is the fault."""
        kind = fault.kind if isinstance(fault, _Intended) else None
        messages: list[dict[str, Any]] = []
        if status == 200 and line.endswith(" ReceiveMessage"):
            messages = json.loads(data).get("Messages") or []
            with self.lock:
                self.delivered += [m["MessageId"] for m in messages]
        if status == 200 and line.endswith(" SendMessageBatch"):
            entries = json.loads(self.here.body)["Entries"]
            ids = {found["Id"]: found["MessageId"] for found in json.loads(data).get("Successful", ())}
            with self.lock:
                self.sent += [ids[entry["Id"]] for entry in entries if entry["Id"] in ids]
        if kind is None or not isinstance(fault, _Intended):
            return status, data
        match kind.name:
            case "queue's answer lost":
                if status == 200:
                    self.note(kind, line)
                else:
                    self.withdraw(fault)
            case "message delivered to two workers at once":
                own = [m for m in messages if json.loads(self.here.body).get("QueueUrl") == self.queue_url]
                if own:  # shown again at once: the next worker gets it while the first one runs it
                    self.client.change_message_visibility(
                        QueueUrl=self.queue_url, ReceiptHandle=own[0]["ReceiptHandle"], VisibilityTimeout=0
                    )
                    self.note(kind, line)
                else:
                    self.withdraw(fault)
            case "message delivered again later":
                body = self.dice.random.choice(json.loads(self.here.body)["Entries"])["MessageBody"]
                self.client.send_message(
                    QueueUrl=self.queue_url, MessageBody=body, DelaySeconds=self.dice.random.randint(0, 8)
                )
                self.note(kind, line)
        return status, data


def asked_again(happened: list[Happening], seen: list[tuple[str, float]]) -> Counter[str]:
    """Return for each kind of fault how many of the requests that suffered came again afterwards, word for word."""
    last = dict(seen)
    return Counter(fault.kind for fault in happened if last.get(fault.line, 0.0) > fault.at_s)
