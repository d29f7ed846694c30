"""A queue of Amazon SQS, in task-queue's wire format, beside a second queue for its dead letters.

What we ask of SQS, and where it differs from a folder:

- A lease is SQS's visibility timeout: renewed by moving its end, handed back by setting it to 0.
- Attempts are SQS's receive count. It cannot be lowered, so a message whose attempt shall not count is handed
  back as a copy that carries its count along (attributes ``cloudseg.*``); the original is deleted after it.
- A dead letter is the message itself in the queue of the redrive policy (or ``NAME-dead``), with the reason as an
  attribute: so AWS's own "start DLQ redrive" works on it too. SQS moves messages there by itself when their
  workers vanish again and again; those have no reason.
- Counts are approximate, so emptiness takes several looks.
- SQS delivers at least once, and nobody can hold a message for more than 12 hours in all.
"""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.tasking.envelope import Envelope, to_payload
from cloudseg.tasking.queue import DeadMessage, Lease, QueueCounts, Waiting
from cloudseg.tasking.sqs_client import (
    BATCH_ENTRIES,
    MISSING_QUEUE,
    STALE_RECEIPT,
    SqsAddress,
    code_of,
    connect,
    missing_queue,
    plain_errors,
    send_whole,
)

MAX_MESSAGE_BYTES = 256 * 1024  # of a message with its attributes, and of a batch
MAX_REASON_BYTES = 64 * 1024
MAX_HOLD_S = 12 * 3600
MAX_DELAY_S = 900
N_SENDERS = 4
# Deletions that SQS does not accept are sent again for 3 seconds: a worker that shall stop has no half minute.
DELETE_ROUNDS = 6
# While someone looks through the dead letters, others do not see them for this long.
LOOK_S = 120
# The numbers of AWS's servers lag behind, those of a single server on loopback do not.
N_LOOKS = 3
BETWEEN_LOOKS_S = 0.1
BETWEEN_LOOKS_AWS_S = 5.0
SETTLED_AWS_S = 60.0

RETENTION_S = 14 * 24 * 3600
# SQS's own last resort, for messages whose workers vanish before they can bury them; above any max_attempts in use.
MAX_RECEIVES = 50

ATTEMPTS, SENT, REASON, ID = "cloudseg.attempts", "cloudseg.sent", "cloudseg.reason", "cloudseg.id"
_SYSTEM = ["ApproximateReceiveCount", "SentTimestamp"]
_UNSENDABLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class SqsQueue:
    """The queue at ``sqs://NAME``. One object per thread.

    Parameters
    ----------
    uri
        Its address; see :func:`cloudseg.tasking.queue.open_queue`.
    create
        Whether to make it, with a queue for its dead letters, if it does not exist.

    Raises
    ------
    SpecError
        If ``uri`` is no address of a queue, or no region is known.
    NotFoundError
        If there is no such queue, or it has no place for dead letters.
    StorageError
        If SQS cannot be reached, or refuses.
    """

    def __init__(self, uri: str, *, create: bool = False) -> None:
        self._uri = uri
        self._address = SqsAddress.parse(uri)
        self._client = connect(self._address, uri)
        self._brisk = connect(self._address, uri, patience="short")
        self._last_insert = -math.inf
        with plain_errors(uri, "open"):
            found = self._find(self._address.name) if self._address.url is None else self._address.url
            if found is None:
                if not create:
                    raise missing_queue(uri)
                found = self._make(self._address.name)
            self._url = found
            self._dead_url = self._dead_letters_of(found, create=create)

    @property
    def uri(self) -> str:
        """Where it lives."""
        return self._uri

    @property
    def deletes_at_once(self) -> int:
        """How many messages one request deletes."""
        return BATCH_ENTRIES

    def insert(self, envelopes: Iterable[Envelope]) -> int:
        """Add one message for each envelope, lazily, ten at a time; return how many."""
        n_inserted = 0
        pending: deque[Future[int]] = deque()
        with plain_errors(self._uri, "insert into"), ThreadPoolExecutor(N_SENDERS) as senders:
            try:
                for batch in _batches(self._body(envelope) for envelope in envelopes):
                    pending.append(senders.submit(self._send_bodies, batch))
                    if len(pending) > 2 * N_SENDERS:
                        n_inserted += pending.popleft().result()
            finally:
                for sent in pending:
                    n_inserted += sent.result()
        return n_inserted

    def lease(self, seconds: int, *, wait_s: float = 0) -> Lease | None:
        """Take a message that nobody holds and count the attempt, or return None.

        Waits up to ``wait_s`` (at most 20 seconds, at least 1) for one to come: a receive that does not wait
        asks a few of SQS's servers only, and finds nothing where there is something.
        """
        if seconds < 1:
            raise SpecError(f"a lease lasts at least 1 second, got {seconds}")
        with plain_errors(self._uri, "lease from"):
            found = self._receive(self._url, 1, hold_s=seconds, wait_s=wait_s)
        return _as_lease(found[0]) if found else None

    def renew(self, lease: Lease, seconds: int) -> bool:
        """Hold the message for ``seconds`` from now; False if it is no longer ours."""
        return self._hide(lease, seconds, action="renew a lease of")

    def delete(self, lease: Lease) -> None:
        """Remove a message whose work is done."""
        with plain_errors(self._uri, "delete from"):
            self._delete(self._url, lease.name)

    def delete_all(self, leases: Sequence[Lease]) -> None:
        """Remove messages whose work is done, ten with one request; entries that are not accepted are sent again.

        Raises
        ------
        TransientStorageError
            If SQS still does not accept some after a few seconds. They come back when their leases end.
        """
        with plain_errors(self._uri, "delete from"):
            for start in range(0, len(leases), BATCH_ENTRIES):
                send_whole(
                    lambda some: dict(self._brisk.delete_message_batch(QueueUrl=self._url, Entries=some)),
                    [
                        {"Id": str(n), "ReceiptHandle": lease.name}
                        for n, lease in enumerate(leases[start : start + BATCH_ENTRIES])
                    ],
                    uri=self._uri,
                    n_rounds=DELETE_ROUNDS,
                    settled=STALE_RECEIPT,  # someone else has it, and will find the receipt
                )

    def release(self, lease: Lease, delay_s: float = 0, *, counted: bool = True) -> bool:
        """Hand the message back, to be leased again after ``delay_s``.

        ``counted=False`` takes the attempt back: a copy with the old count goes into the queue, then the message
        is deleted. Returns False if the message was no longer ours.
        """
        if counted:
            return self._hide(lease, math.ceil(delay_s), action="hand back to")
        with plain_errors(self._uri, "hand back to"):
            attributes = {ATTEMPTS: _number(lease.attempt - 1)} if lease.attempt > 1 else {}
            if lease.sent_s is not None:
                attributes[SENT] = _number(int(lease.sent_s * 1000))
            self._brisk.send_message(
                QueueUrl=self._url,
                MessageBody=lease.message.decode(),
                MessageAttributes=attributes,
                DelaySeconds=min(math.ceil(delay_s), MAX_DELAY_S),
            )
            return self._delete(self._url, lease.name)

    def bury(self, lease: Lease, reason: str) -> bool:
        """Move the message to the dead letters with its reason; False if it was no longer ours."""
        if not self.renew(lease, LOOK_S):
            return False
        with plain_errors(self._uri, "bury a message of"):
            body = lease.message.decode()
            attributes = {ID: _text(lease.id)}
            room = min(MAX_REASON_BYTES, MAX_MESSAGE_BYTES - len(lease.message) - 1024)
            if room > 0:
                attributes[REASON] = _text(shorten(reason, n_bytes=room) or "no reason was given")
            self._client.send_message(QueueUrl=self._dead_url, MessageBody=body, MessageAttributes=attributes)
            self._delete(self._url, lease.name)
        return True

    def peek(self, n: int) -> list[Waiting]:
        """Look at up to ``n`` waiting messages. Each is taken and handed back, uncounted, in a moment."""
        held: list[Lease] = []
        with plain_errors(self._uri, "look into"):
            try:
                while len(held) < n:
                    found = self._receive(self._url, min(n - len(held), BATCH_ENTRIES), hold_s=LOOK_S)
                    if not found:
                        break
                    held += map(_as_lease, found)
            finally:
                for lease in held:
                    self.release(lease, counted=False)
        return [Waiting(x.id, x.message, x.attempt - 1, sent_s=x.sent_s) for x in held]

    def counts(self) -> QueueCounts:
        """Count the messages, as well as SQS can tell."""
        with plain_errors(self._uri, "count"):
            ready, leased = self._numbers(self._url)
            return QueueCounts(ready, leased, sum(self._numbers(self._dead_url)), approximate=True)

    def is_empty(self) -> bool:
        """Whether no message is waiting, delayed or leased, as far as several looks can tell."""
        is_aws = ".amazonaws.com" in self._url
        if is_aws and time.monotonic() < self._last_insert + SETTLED_AWS_S:  # it may not be counted yet
            return False
        pause_s = BETWEEN_LOOKS_AWS_S if is_aws else BETWEEN_LOOKS_S
        with plain_errors(self._uri, "count"):
            for n_look in range(N_LOOKS):
                if n_look:
                    time.sleep(pause_s)
                if any(self._numbers(self._url)):
                    return False
        return True

    def dead(self) -> Iterator[DeadMessage]:
        """Yield the dead letters; for a while others do not see them."""
        held: list[str] = []
        try:
            for found in self._all_dead():
                held.append(found["ReceiptHandle"])
                yield _as_dead(found)
        finally:
            self._show_again(held)

    def redrive(self, wanted: Callable[[DeadMessage], bool] | None = None) -> int:
        """Make the (wanted) dead letters leasable again with fresh attempts; return how many."""
        n_moved = 0
        held: list[str] = []
        try:
            for found in self._all_dead():
                held.append(found["ReceiptHandle"])
                if wanted is not None and not wanted(_as_dead(found)):
                    continue
                with plain_errors(self._uri, "redrive"):
                    # First in, then out: killed in between, a task is there twice, which does no harm.
                    self._client.send_message(QueueUrl=self._url, MessageBody=found["Body"])
                    self._delete(self._dead_url, held.pop())
                n_moved += 1
        finally:
            self._show_again(held)
        return n_moved

    def purge(self) -> None:
        """Remove every message that is not dead, leased ones too; SQS takes up to a minute for it."""
        with plain_errors(self._uri, "purge"):
            self._client.purge_queue(QueueUrl=self._url)

    # --- finding and making queues ------------------------------------------------------------------------------

    def _find(self, name: str, *, account: str = "") -> str | None:
        from botocore.exceptions import ClientError

        owner = {"QueueOwnerAWSAccountId": account} if account else {}
        try:
            return str(self._client.get_queue_url(QueueName=name, **owner)["QueueUrl"])
        except ClientError as error:
            if code_of(error) in MISSING_QUEUE:
                return None
            raise

    def _make(self, name: str, **attributes: str) -> str:
        wanted = {"MessageRetentionPeriod": str(RETENTION_S), "VisibilityTimeout": "60", **attributes}
        return str(self._client.create_queue(QueueName=name, Attributes=wanted)["QueueUrl"])

    def _dead_letters_of(self, url: str, *, create: bool) -> str:
        """Return the URL of the dead letters' queue: the redrive policy's, or the one called ``NAME-dead``."""
        wanted = ["RedrivePolicy"]
        attributes = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=wanted).get(
            "Attributes", {}
        )
        policy = json.loads(attributes.get("RedrivePolicy") or "{}")
        if policy:
            *_, account, name = str(policy["deadLetterTargetArn"]).split(":")
            found = self._find(name, account=account)
            if found is None:
                raise NotFoundError(
                    f"the redrive policy of {self._uri} names the queue {name!r} for dead letters, and there is none; "
                    "make it, or correct the policy"
                )
            return found
        name = f"{self._address.name}-dead"
        found = self._find(name)
        if found is None:
            if not create:
                raise NotFoundError(
                    f"the queue {self._uri} has no place for dead letters: no redrive policy, and no queue {name!r}; "
                    f"make one with: cloudseg queue create {self._uri}"
                )
            found = self._make(name)
        if create:
            arn = self._client.get_queue_attributes(QueueUrl=found, AttributeNames=["QueueArn"])
            target = {
                "deadLetterTargetArn": arn["Attributes"]["QueueArn"],
                "maxReceiveCount": str(MAX_RECEIVES),
            }
            self._client.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(target)})
        return found

    # --- single operations --------------------------------------------------------------------------------------

    def _body(self, envelope: Envelope) -> str:
        message = {"payload": to_payload(envelope), "queueName": self._address.name, "id": str(uuid.uuid4())}
        body = json.dumps(message)
        if len(body) > MAX_MESSAGE_BYTES:
            raise SpecError(
                f"a task of kind {envelope.kind!r} takes {len(body)} bytes, more than the {MAX_MESSAGE_BYTES} of an "
                "SQS message; give it less to carry"
            )
        return body

    def _send_bodies(self, bodies: list[str]) -> int:
        self._last_insert = time.monotonic()
        entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)]
        send_whole(
            lambda some: dict(self._client.send_message_batch(QueueUrl=self._url, Entries=some)),
            entries,
            uri=self._uri,
        )
        return len(bodies)

    def _receive(self, url: str, n: int, *, hold_s: int, wait_s: float = 0) -> list[dict[str, Any]]:
        answer = self._client.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=n,
            VisibilityTimeout=min(hold_s, MAX_HOLD_S),
            WaitTimeSeconds=min(20, max(1, round(wait_s))),
            MessageSystemAttributeNames=_SYSTEM,
            MessageAttributeNames=["All"],
        )
        return list(answer.get("Messages", ()))

    def _hide(self, lease: Lease, seconds: int, *, action: str) -> bool:
        from botocore.exceptions import ClientError

        with plain_errors(self._uri, action):
            try:
                self._brisk.change_message_visibility(
                    QueueUrl=self._url, ReceiptHandle=lease.name, VisibilityTimeout=min(seconds, MAX_HOLD_S)
                )
            except ClientError as error:
                if code_of(error) in STALE_RECEIPT:
                    return False
                raise
        return True

    def _delete(self, url: str, receipt: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._brisk.delete_message(QueueUrl=url, ReceiptHandle=receipt)
        except ClientError as error:
            if code_of(error) in STALE_RECEIPT:  # someone else has it, and will find the receipt
                return False
            raise
        return True

    def _numbers(self, url: str) -> tuple[int, int]:
        """Return how many messages wait, and how many are held or delayed."""
        names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
        found = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        ready, held, delayed = (int(found[name]) for name in names)
        return ready, held + delayed

    def _all_dead(self) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while True:
            with plain_errors(self._uri, "read the dead letters of"):
                found = self._receive(self._dead_url, BATCH_ENTRIES, hold_s=LOOK_S)
            fresh = [letter for letter in found if letter["MessageId"] not in seen]
            if not fresh:  # nothing left, or the first ones come round again
                return
            seen.update(letter["MessageId"] for letter in fresh)
            yield from fresh

    def _show_again(self, receipts: list[str]) -> None:
        with plain_errors(self._uri, "read the dead letters of"):
            for start in range(0, len(receipts), BATCH_ENTRIES):
                entries = [
                    {"Id": str(n), "ReceiptHandle": receipt, "VisibilityTimeout": 0}
                    for n, receipt in enumerate(receipts[start : start + BATCH_ENTRIES])
                ]
                # Best effort: what is not shown now comes back by itself when the look ends.
                self._client.change_message_visibility_batch(QueueUrl=self._dead_url, Entries=entries)


def shorten(text: str, *, n_bytes: int) -> str:
    r"""Return ``text`` as SQS can carry it: without control characters, and with its middle left out if too long.

    Examples
    --------
    >>> shorten("ab\x00", n_bytes=10) == "ab\ufffd"
    True
    >>> shorten("0123456789" * 3, n_bytes=20)
    '01234\n...\n0123456789'
    """
    text = _UNSENDABLE.sub("\ufffd", text)
    data = text.encode()
    if len(data) <= n_bytes:
        return text
    gap = "\n...\n"
    n_head = (n_bytes - len(gap)) // 3
    n_tail = n_bytes - len(gap) - n_head
    tail = data[-n_tail:].decode(errors="ignore") if n_tail > 0 else ""
    return data[:n_head].decode(errors="ignore") + gap + tail


def _batches(bodies: Iterable[str]) -> Iterator[list[str]]:
    """Group bodies as SQS takes them: at most ten, and not too large together; none is lost if ``bodies`` fails."""
    batch: list[str] = []
    n_bytes = 0
    failure: Exception | None = None
    rest = iter(bodies)
    while True:
        try:
            body = next(rest)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - raised again, after what was yielded before it
            failure = error
            break
        if batch and (len(batch) == BATCH_ENTRIES or n_bytes + len(body) > MAX_MESSAGE_BYTES):
            yield batch
            batch, n_bytes = [], 0
        batch.append(body)
        n_bytes += len(body)
    if batch:
        yield batch
    if failure is not None:
        raise failure


def _as_lease(found: dict[str, Any]) -> Lease:
    system, ours = found.get("Attributes", {}), found.get("MessageAttributes", {})
    sent_ms = ours.get(SENT, {}).get("StringValue") or system.get("SentTimestamp")
    return Lease(
        id=found["MessageId"],
        message=found["Body"].encode(),
        attempt=int(system.get("ApproximateReceiveCount", 1))
        + int(ours.get(ATTEMPTS, {}).get("StringValue", 0)),
        name=found["ReceiptHandle"],
        sent_s=int(sent_ms) / 1000 if sent_ms else None,
    )


def _as_dead(found: dict[str, Any]) -> DeadMessage:
    ours = found.get("MessageAttributes", {})
    reason = ours.get(REASON, {}).get("StringValue")
    if reason is None:
        reason = (
            "no reason was recorded"
            if ID in ours
            else "SQS moved it here by its redrive policy: it was received too often without an outcome, so its "
            "worker vanished each time"
        )
    message_id = ours.get(ID, {}).get("StringValue") or found["MessageId"]
    return DeadMessage(message_id, found["Body"].encode(), reason)


def _number(value: int) -> dict[str, str]:
    return {"DataType": "Number", "StringValue": str(value)}


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}
