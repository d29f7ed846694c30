"""The queue as workers and pipelines see it; the only door to task-queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cloudseg.errors import MissingExtraError, SpecError
from cloudseg.tasking.envelope import Envelope

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Lease:
    """A message in our hands until the lease ends.

    Attributes
    ----------
    id
        The queue's own id of the message.
    message
        The stored bytes, untouched.
    attempt
        How many times the message has been leased and not handed back, this time included (1 = first).
    name
        What the back-end needs to find the message again; a renewal may change it.
    sent_s
        When the message was put into the queue (Unix time), or None.
    """

    id: str
    message: bytes
    attempt: int
    name: str
    sent_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """How many messages there are.

    Attributes
    ----------
    ready
        Waiting for anybody.
    leased
        In someone's hands, or delayed.
    dead
        Given up.
    approximate
        Whether the numbers are the server's guess (SQS), which may lag behind by a minute.
    """

    ready: int
    leased: int
    dead: int
    approximate: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that was looked at and stays where it is.

    Attributes
    ----------
    id
        The queue's own id of the message.
    message
        The stored bytes, untouched.
    n_attempts
        How many times it has been leased and not handed back.
    leased
        Whether someone has it, or it is delayed.
    sent_s
        When it was put into the queue (Unix time), or None.
    """

    id: str
    message: bytes
    n_attempts: int
    leased: bool = False
    sent_s: float | None = None


@dataclass(frozen=True, slots=True)
class DeadMessage:
    """A message that will not be tried again, and why."""

    id: str
    message: bytes
    reason: str


class Queue(Protocol):
    """At-least-once delivery of messages, with leases that end."""

    @property
    def uri(self) -> str:
        """Where it lives."""
        ...

    @property
    def deletes_at_once(self) -> int:
        """How many messages one request deletes; with 1 there is nothing to gain by gathering them."""
        ...

    def insert(self, envelopes: Iterable[Envelope]) -> int:
        """Add one message for each envelope, lazily; return how many."""
        ...

    def lease(self, seconds: int, *, wait_s: float = 0) -> Lease | None:
        """Take a message that nobody holds and count the attempt, or return None.

        Where the queue can, it waits up to ``wait_s`` for one to come.
        """
        ...

    def renew(self, lease: Lease, seconds: int) -> bool:
        """Hold the message for ``seconds`` from now; False if it is no longer ours."""
        ...

    def delete(self, lease: Lease) -> None:
        """Remove a message whose work is done."""
        ...

    def delete_all(self, leases: Sequence[Lease]) -> None:
        """Remove messages whose work is done, in as few requests as the queue allows."""
        ...

    def release(self, lease: Lease, delay_s: float = 0, *, counted: bool = True) -> bool:
        """Hand the message back, to be leased after ``delay_s``; ``counted=False`` uncounts the attempt."""
        ...

    def bury(self, lease: Lease, reason: str) -> bool:
        """Move the message to the dead letters."""
        ...

    def peek(self, n: int) -> list[Waiting]:
        """Look at up to ``n`` messages; their attempts stay as they are."""
        ...

    def counts(self) -> QueueCounts:
        """Count the messages."""
        ...

    def is_empty(self) -> bool:
        """Whether no message is waiting, delayed or leased (the dead do not count)."""
        ...

    def dead(self) -> Iterator[DeadMessage]:
        """Yield the dead letters."""
        ...

    def redrive(self, wanted: Callable[[DeadMessage], bool] | None = None) -> int:
        """Make the (wanted) dead letters leasable again with fresh attempts; return how many."""
        ...

    def purge(self) -> None:
        """Remove every message that is not dead, leased ones too."""
        ...


def open_queue(uri: str, *, create: bool | None = None) -> Queue:
    """Open the queue at ``uri``.

    Parameters
    ----------
    uri
        ``fq://folder``: a folder on a file system that all workers share. ``sqs://NAME``, ``sqs://REGION/NAME`` or
        ``sqs://https://sqs.REGION.amazonaws.com/ACCOUNT/NAME``: a queue of Amazon SQS, or of a server that speaks
        its protocol (``AWS_ENDPOINT_URL``).
    create
        Whether to make a queue that does not exist. None: a folder is made; an SQS queue is not, for it needs
        rights, and a slip of the pen would leave workers waiting at a queue of its own.

    Raises
    ------
    SpecError
        If ``uri`` names no kind of queue that there is.
    NotFoundError
        If there is no queue, and none is to be made.
    StorageError
        If the queue cannot be reached, or refuses.
    """
    if uri.startswith("fq://") and len(uri) > len("fq://"):
        from cloudseg.tasking.file_queue import FileQueue

        return FileQueue(uri, create=create is not False)
    if uri.startswith(("sqs://", "https://sqs.")):
        from cloudseg.tasking.sqs_queue import SqsQueue

        return SqsQueue(uri, create=create is True)
    raise SpecError(
        f"{uri!r} is not the address of a queue: expected fq://folder, e.g. fq:///data/queue, or sqs://NAME"
    )


def queueable(function: F) -> F:
    """Register ``function`` with task-queue, so that stock task-queue workers can run it by its address."""
    try:
        import taskqueue
    except ImportError as error:
        raise MissingExtraError.of("task-queue", extra="tasks") from error
    registered: F = taskqueue.queueable(function)
    return registered
