"""Which faults a chaos run injects, how many, and when: all from one seed.

The seed fixes how far the run is (so many receipts) when a process is killed, or when the next request of a kind
suffers. Which request that is depends on how processes happen to run: a seed repeats the faults, not the microseconds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

ANY = r"^[A-Z]+ /vol/"
CHUNK = r"^GET /vol/\S+/\d+_\d+_\d+/\d+-\d+_\d+-\d+_\d+-\d+$"
WRITE = r"^PUT /vol/"
RECEIPT = r"^PUT /vol/\S+/pipeline/receipts/"
SEND = "^POST .* SendMessageBatch$"
RECEIVE = "^POST .* ReceiveMessage$"
OPERATION = (
    "^POST .* (ReceiveMessage|DeleteMessage|ChangeMessageVisibility|SendMessageBatch|GetQueueAttributes)"
)

# No fault falls due when the run is further than this: too little would be left that could suffer from it.
LAST = 0.75

Place = Literal["storage", "queue", "message", "process", "disk"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Attributes
    ----------
    name
        What goes wrong.
    place
        Where: a front before a server, the queue's messages, the processes, or the disk.
    n_short, n_long
        How many in a short and in a long run.
    match
        Which requests may suffer.
    n_passed
        How many such requests at most are let pass once the fault is due, so that not always the first one suffers.
    absorbed_by
        What makes it harmless.
    """

    name: str
    place: Place
    n_short: int
    n_long: int
    absorbed_by: str
    match: str = ""
    n_passed: int = 0

    def moments(self, dice: random.Random, n_tasks: int, *, is_long: bool) -> list[int]:
        """Return at how many finished tasks each fault is due: spread over the run, each in a stretch of its own."""
        n = self.n_long if is_long else self.n_short
        return [int(n_tasks * LAST * (number + dice.random()) / n) for number in range(n)]


_AGAIN = "the client asks again"
_CHECKED = "compared with the storage's digest, and read again"
_TRIED = "the task fails, is handed back and tried again"
_EXPIRES = "its lease ends, another worker takes the task"
_RECEIPT = "the receipt is found and nothing runs, or the lease is lost and the task stopped"

KINDS: tuple[Kind, ...] = (
    Kind("storage answers 429", "storage", 1, 8, _AGAIN, ANY, 20),
    Kind("storage answers 500", "storage", 1, 8, _AGAIN, ANY, 20),
    Kind("storage answers 503", "storage", 1, 8, _AGAIN, ANY, 20),
    Kind("storage cuts the connection before the request", "storage", 1, 6, _AGAIN, ANY, 20),
    Kind("storage cuts the connection within the answer", "storage", 1, 6, _AGAIN, CHUNK, 20),
    Kind("slow read, longer than the lease", "storage", 1, 6, "the lease is renewed meanwhile", CHUNK, 20),
    Kind("chunk arrives corrupted", "storage", 2, 8, _CHECKED, CHUNK, 20),
    Kind("chunk arrives truncated", "storage", 2, 8, _CHECKED, CHUNK, 20),
    Kind("chunk is said to be missing", "storage", 1, 5, "looked for once more", CHUNK, 20),
    Kind("answer lost after a write", "storage", 1, 6, "written again, the same bytes", WRITE, 20),
    Kind(
        "answer lost after a receipt", "storage", 1, 5, "the claim is read back: it is its own", RECEIPT, 25
    ),
    Kind("queue answers 429, 500 or 503", "queue", 2, 10, _AGAIN, OPERATION, 20),
    Kind("queue cuts the connection before the request", "queue", 1, 5, _AGAIN, OPERATION, 20),
    Kind("queue's answer lost", "queue", 1, 6, "asked again; a message nobody got comes back", OPERATION, 20),
    Kind("message delivered to two workers at once", "queue", 2, 10, _RECEIPT, RECEIVE, 5),
    Kind("message delivered again later", "queue", 2, 10, _RECEIPT, SEND),
    Kind("messages reordered and held back", "queue", 2, 8, "tasks of a step have no order", SEND),
    Kind("poisoned message", "message", 9, 9, "buried with its reason, never executed"),
    Kind("worker killed (SIGKILL)", "process", 1, 6, _EXPIRES),
    Kind("worker told to stop (SIGTERM)", "process", 1, 6, "hands its task back at once, uncounted"),
    Kind("worker's child killed (SIGKILL)", "process", 1, 5, _TRIED),
    Kind("worker frozen for longer than its lease", "process", 1, 4, _EXPIRES),
    Kind("run killed (SIGKILL)", "process", 1, 4, "started again, it goes on from the receipts"),
    Kind("run told to stop (SIGTERM)", "process", 1, 3, "started again, it goes on from the receipts"),
    Kind("write to a full disk", "disk", 1, 2, _TRIED),
)
"""Every kind, in the order of the table; wrong clocks and short leases last for the whole run (``STANDING``)."""

CLOCK, SHORT_LEASE = "clock wrong by hours", "task longer than its lease"
STANDING: dict[str, str] = {
    CLOCK: "nothing is decided by a worker's clock",
    SHORT_LEASE: "the lease is renewed while the task runs",
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something to do once the run has ``at`` receipts; ``random`` settles its details."""

    at: int
    kind: str
    number: int = 0
    random: random.Random = field(default_factory=random.Random, compare=False)


def events(seed: int, *, n_tasks: int, n_before_disk: int, is_long: bool, with_disk: bool) -> list[Event]:
    """Return what to do to processes, messages and the disk, in order.

    Parameters
    ----------
    seed
        Decides the moments.
    n_tasks
        Tasks of the whole run.
    n_before_disk
        Tasks before the first that writes to the disk.
    is_long
        Whether there is time for many.
    with_disk
        Whether there is a disk that can be filled.
    """
    made = []
    for kind in KINDS:
        if kind.place in ("storage", "queue") or (kind.place == "disk" and not with_disk):
            continue
        dice = random.Random(f"{seed} {kind.name}")
        for number, at in enumerate(kind.moments(dice, n_tasks, is_long=is_long)):
            due = n_before_disk + 5 * number if kind.place == "disk" else at
            made.append(Event(due, kind.name, number, random.Random(f"{seed} {kind.name} {number}")))
    return sorted(made, key=lambda event: event.at)
