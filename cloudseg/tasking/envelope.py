"""What travels in a queue: one task, where its outputs go, and how often it may be tried."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator

from cloudseg.errors import UnknownTaskError
from cloudseg.specs import FrozenModel, canonical_json
from cloudseg.tasking.task import Task

WIRE_FUNCTION: tuple[str, str] = ("cloudseg_tasks.wire", "execute")
"""Address of the one queueable function. It is on the wire of every queue in use: it never moves."""


class Envelope(FrozenModel):
    """A task on its way to a worker.

    Attributes
    ----------
    root
        Address of the pipeline's output folder; receipts, errors and dead letters lie under it.
    step
        Name of the step the task belongs to; it becomes part of object keys, so it is one plain word.
    max_attempts
        How many times the task may be started before it goes to the dead letters.
    task
        The task's own JSON, with its ``kind``.
    version
        Of this envelope; a worker refuses one it does not know.
    """

    root: Annotated[str, Field(min_length=1)]
    step: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    max_attempts: PositiveInt = 3
    task: dict[str, Any]
    version: Literal[1] = 1

    @field_validator("task")
    @classmethod
    def _task_names_its_kind(cls, task: dict[str, Any]) -> dict[str, Any]:
        kind = task.get("kind")
        if not isinstance(kind, str) or not kind:
            raise ValueError("a task needs a 'kind' such as 'relabel/1'")
        return task

    @classmethod
    def of(cls, task: Task, *, root: str, step: str, max_attempts: int = 3) -> Self:
        """Wrap ``task``; :attr:`task_id` is then ``task.id``."""
        return cls(root=root, step=step, max_attempts=max_attempts, task=task.model_dump(mode="json"))

    @property
    def kind(self) -> str:
        """The task's kind, e.g. ``relabel/1``."""
        return str(self.task["kind"])

    def canonical_task_json(self) -> str:
        """Return the one JSON text of the task."""
        return canonical_json(self.task)

    @property
    def task_id(self) -> str:
        """Digest of the task's canonical JSON, the same as :attr:`cloudseg.tasking.task.Task.id`."""
        return hashlib.sha256(self.canonical_task_json().encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ForeignTask:
    """An igneous message found in one of our queues: its payload, to be judged by the igneous adapter.

    The payload is task-queue's: a mapping with a ``class``, or ``[[module, name], arguments, keywords, id]``.
    """

    payload: dict[str, Any] | list[Any]

    @property
    def name(self) -> str:
        """The igneous class or function that the message names."""
        return str(self.payload["class"] if isinstance(self.payload, dict) else self.payload[0][-1])


def to_payload(envelope: Envelope) -> list[Any]:
    """Return the task-queue payload of ``envelope``: function address, arguments, keywords, no id."""
    return [list(WIRE_FUNCTION), [envelope.canonical_json()], {}, -1]


def parse_message(message: bytes | str) -> Envelope | ForeignTask:
    """Read a queue message, without running or importing anything that it names.

    Parameters
    ----------
    message
        A task-queue message: a JSON object with a ``payload``.

    Raises
    ------
    UnknownTaskError
        If the message is malformed, or calls another function than ours.
    SpecError
        If it is ours but the envelope does not validate.
    """
    try:
        body = json.loads(message)
    except ValueError as error:
        raise UnknownTaskError(f"a queue message must be JSON, got {_excerpt(message)}") from error
    payload = body.get("payload") if isinstance(body, dict) else None
    if isinstance(payload, dict) and isinstance(payload.get("class"), str):
        return ForeignTask(payload)
    if not isinstance(payload, list) or len(payload) != 4 or not isinstance(payload[0], list):
        raise UnknownTaskError(
            f"a queue message must have a 'payload' of [address, arguments, keywords, id] or an igneous task "
            f"with a 'class', got {_excerpt(message)}"
        )
    address, args, kwargs, _ = payload
    if len(address) == 2 and str(address[0]).partition(".")[0] == "igneous":
        return ForeignTask(payload)
    if tuple(map(str, address)) != WIRE_FUNCTION:
        raise UnknownTaskError(
            f"a queue message calls {'.'.join(map(str, address))!r}, but workers only run "
            f"{'.'.join(WIRE_FUNCTION)!r}; it was put there by another program"
        )
    if kwargs or not isinstance(args, list) or len(args) != 1 or not isinstance(args[0], str):
        raise UnknownTaskError(f"a queue message must carry one JSON text, got {_excerpt(message)}")
    return Envelope.load(args[0], where="envelope of a queue message")


def _excerpt(message: bytes | str) -> str:
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    return repr(text if len(text) <= 120 else text[:117] + "...") if text else "nothing (an empty message)"
