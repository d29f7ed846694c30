"""Trying out a queue: what works, what does not, and what to do about it."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cloudseg.errors import CloudsegError, NotFoundError
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import Lease, Queue, open_queue
from cloudseg.volumes.doctor import Finding

_RIGHTS = {
    "send": "SendMessage",
    "lease": "ReceiveMessage",
    "renew": "ChangeMessageVisibility",
    "delete": "DeleteMessage",
}
_LEASE_S = 30
_N_LOOKS = 5


def examine_queue(uri: str) -> Iterator[Finding]:
    """Try sending, leasing, renewing, deleting and dead letters of the queue at ``uri``; leave nothing behind.

    A folder is tried through a queue of our own inside it, so its messages and workers notice nothing. An SQS
    queue is tried with a message only if it is idle, for a worker could take it.

    Parameters
    ----------
    uri
        ``fq://folder`` or ``sqs://NAME``.

    Raises
    ------
    SpecError
        If the address is malformed.
    """
    if uri.startswith("fq://"):
        yield from _examine_folder(uri)
        return
    try:
        queue = open_queue(uri, create=False)
        counts = queue.counts()
    except NotFoundError as error:
        yield Finding(
            "open", False, str(error), f"make it, with a place for dead letters: cloudseg queue create {uri}"
        )
        return
    except CloudsegError as error:
        yield Finding(
            "open", False, str(error), "check the address, the region and the rights of this account"
        )
        return
    yield Finding(
        "open", True, f"{counts.ready} waiting, {counts.leased} leased or delayed, {counts.dead} dead"
    )
    if counts.ready or counts.leased:
        for check in _RIGHTS:
            yield Finding(
                check, None, "not tried: the queue is at work, and a worker might take the trial message"
            )
    else:
        yield from _examine_messages(queue, "allow this account sqs:{} on the queue")
    yield _redrive_policy(uri)


def _examine_folder(uri: str) -> Iterator[Finding]:
    folder = Path(uri.removeprefix("fq://")).expanduser().absolute()
    existed = folder.exists()
    trial = folder / f"cloudseg-doctor-{uuid.uuid4().hex}"
    try:
        try:
            queue = open_queue(f"fq://{trial}", create=True)
        except CloudsegError as error:
            yield Finding(
                "open", False, str(error), "give a folder on a shared file system that may be written to"
            )
            return
        yield Finding("open", True, "the folder can be written to")
        yield from _examine_messages(queue, "check the rights and the free space of the folder ({})")
        yield _buried(queue)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)


def _examine_messages(queue: Queue, remedy: str) -> Iterator[Finding]:
    lease: Lease | None = None
    steps = iter(_RIGHTS)
    check = "send"
    try:
        for check in steps:
            match check:
                case "send":
                    queue.insert([_envelope()])
                case "lease":
                    lease = next((taken for _ in range(_N_LOOKS) if (taken := queue.lease(_LEASE_S))), None)
                    if lease is None:
                        yield Finding(
                            check,
                            False,
                            "the trial message did not come back",
                            "end the workers of this queue, and try again",
                        )
                        break
                case "renew":
                    if lease is not None and not queue.renew(lease, _LEASE_S):
                        yield Finding(
                            check,
                            False,
                            "the lease was lost at once",
                            "check the clocks, and the visibility timeout",
                        )
                        continue
                case _:
                    if lease is not None:
                        queue.delete(lease)
                        lease = None
            yield Finding(check, True, "works")
    except CloudsegError as error:
        yield Finding(check, False, str(error), remedy.format(_RIGHTS[check]))
    finally:
        if lease is not None:
            with suppress(CloudsegError):
                queue.delete(lease)
    for left in steps:
        yield Finding(left, None, "not tried, for the step before failed")


def _buried(queue: Queue) -> Finding:
    try:
        queue.insert([_envelope()])
        lease = queue.lease(_LEASE_S)
        if (
            lease is not None
            and queue.bury(lease, "a trial")
            and [d.reason for d in queue.dead()] == ["a trial"]
        ):
            return Finding("dead letters", True, "kept with their reason")
    except CloudsegError as error:
        return Finding("dead letters", False, str(error), "check the rights and the free space of the folder")
    return Finding(
        "dead letters", False, "a buried message is not among them", "use a file system with atomic renames"
    )


def _redrive_policy(uri: str) -> Finding:
    from cloudseg.tasking.sqs_client import SqsAddress, connect, plain_errors

    address = SqsAddress.parse(uri)
    client = connect(address, uri)
    try:
        with plain_errors(uri, "look into"):
            url = address.url or client.get_queue_url(QueueName=address.name)["QueueUrl"]
            found = client.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
    except CloudsegError as error:
        return Finding(
            "dead letters", False, str(error), "allow this account sqs:GetQueueAttributes on the queue"
        )
    policy = json.loads(found.get("Attributes", {}).get("RedrivePolicy") or "{}")
    if not policy:
        return Finding(
            "dead letters",
            False,
            "no redrive policy: a task whose workers vanish again and again would be tried for ever",
            f"set one: cloudseg queue create {uri}",
        )
    name = str(policy["deadLetterTargetArn"]).rpartition(":")[2]
    return Finding("dead letters", True, f"go to {name} after {policy['maxReceiveCount']} receipts")


def _envelope() -> Envelope:
    """A message that no worker knows what to do with: one that takes it by mistake puts it aside."""
    return Envelope(
        root="memory://cloudseg-doctor", step="doctor", task={"kind": "doctor/1", "id": uuid.uuid4().hex}
    )
