"""Messages that no worker may run, or that always fail: each with the reason that its dead letter must give."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from cloudseg.tasking.envelope import Envelope, to_payload
from cloudseg.testing.tasks import FailTask


@dataclass(frozen=True, slots=True)
class Poison:
    """A message, what is wrong with it, and a regular expression for the reason of its dead letter."""

    name: str
    body: str
    reason: str


def poisons(*, root: str, step: str, elsewhere: str, notes: str) -> list[Poison]:
    """Return one message of each kind.

    Parameters
    ----------
    root, step
        Of the run; one message claims to belong to it.
    elsewhere
        A root of their own for the others.
    notes
        Local folder in which failing tasks count their attempts.
    """

    def envelope(task: dict[str, Any], **changes: Any) -> str:
        text = {"root": elsewhere, "step": "poison", "max_attempts": 2, "task": task, "version": 1} | changes
        return _message([["cloudseg_tasks.wire", "execute"], [json.dumps(text)], {}, -1])

    def failing(how: Any) -> str:
        task = FailTask(folder=notes, name=how, how=how)
        return _message(to_payload(Envelope.of(task, root=elsewhere, step="poison", max_attempts=2)))

    return [
        Poison("not JSON", "{ this is not JSON", "must be JSON"),
        Poison("JSON without a payload", "{}", "must have a 'payload'"),
        Poison("calls another function", _message([["os", "system"], ["true"], {}, -1]), "calls 'os.system'"),
        Poison("unknown kind", envelope({"kind": "no_such/1"}), "unknown task kind 'no_such/1'"),
        Poison(
            "unknown kind in the books of the run",
            envelope({"kind": "no_such/2"}, root=root, step=step),
            "unknown task kind 'no_such/2'",
        ),
        Poison(
            "unknown version of the envelope", envelope({"kind": "supervoxels/1"}, version=7), "version.*1.*7"
        ),
        Poison(
            "fields that do not validate",
            envelope({"kind": "supervoxels/1", "core": "nowhere"}),
            "task message of kind supervoxels/1",
        ),
        Poison("always raises", failing("error"), "task error fails on purpose"),
        Poison("kills its process", failing("kill"), "the process that ran it ended|its worker vanished"),
    ]


def _message(payload: list[Any]) -> str:
    return json.dumps({"payload": payload, "queueName": "chaos", "id": str(uuid.uuid4())})
