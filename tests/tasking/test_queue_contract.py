"""What every kind of queue promises: the same tests on a folder and on SQS."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.tasking.envelope import Envelope, parse_message
from cloudseg.tasking.queue import Lease, Queue, open_queue
from cloudseg.testing.tasks import NoteTask


def envelopes(n: int) -> Iterator[Envelope]:
    return (
        Envelope.of(NoteTask(folder="f", name=str(i)), root="memory://r", step="s", max_attempts=9)
        for i in range(n)
    )


def names(messages: list[bytes]) -> list[str]:
    found = [parse_message(message) for message in messages]
    assert all(isinstance(job, Envelope) for job in found)
    return sorted((job.task["name"] for job in found), key=int)


def numbers(queue: Queue) -> tuple[int, int, int]:
    counts = queue.counts()
    return counts.ready, counts.leased, counts.dead


def take(queue: Queue, seconds: int = 60) -> Lease:
    lease = queue.lease(seconds)
    assert lease is not None
    return lease


def test_every_message_is_delivered_as_it_was_put_in(any_queue: Queue):
    before = time.time()
    assert any_queue.insert(envelopes(47)) == 47
    assert numbers(any_queue) == (47, 0, 0)
    leases = [take(any_queue) for _ in range(47)]
    assert any_queue.lease(60) is None
    assert names([lease.message for lease in leases]) == [str(i) for i in range(47)]
    assert {lease.attempt for lease in leases} == {1}
    assert all(lease.sent_s is not None and before - 1 <= lease.sent_s <= time.time() + 1 for lease in leases)
    assert numbers(any_queue) == (0, 47, 0)
    assert not any_queue.is_empty()
    for lease in leases:
        any_queue.delete(lease)
    assert any_queue.is_empty()
    assert numbers(any_queue) == (0, 0, 0)


def test_a_message_is_leased_by_one_and_comes_back_only_when_its_lease_ends(any_queue: Queue):
    any_queue.insert(envelopes(1))
    rival = open_queue(any_queue.uri)
    lease = take(any_queue, 2)
    assert rival.lease(1) is None
    deadline = time.monotonic() + 10
    while (taken := rival.lease(60)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (taken.id, taken.attempt) == (lease.id, 2)
    assert any_queue.renew(lease, 60) is False
    assert any_queue.release(lease) is False
    assert any_queue.bury(lease, "too late") is False
    assert rival.renew(taken, 60) is True
    assert numbers(rival) == (0, 1, 0)


def test_a_renewed_lease_outlives_its_first_end(any_queue: Queue):
    any_queue.insert(envelopes(1))
    rival = open_queue(any_queue.uri)
    lease = take(any_queue, 3)
    for _ in range(4):
        time.sleep(1)
        assert any_queue.renew(lease, 3)
        assert rival.lease(1) is None
    any_queue.delete(lease)
    assert any_queue.is_empty()


def test_a_message_handed_back_is_leasable_at_once_and_keeps_or_forgets_its_attempt(any_queue: Queue):
    any_queue.insert(envelopes(1))
    sent = None
    for counted, attempt in [(False, 1), (True, 1), (True, 2), (False, 3), (False, 3), (True, 3), (True, 4)]:
        lease = take(any_queue, 600)
        assert lease.attempt == attempt
        assert sent is None or lease.sent_s == pytest.approx(
            sent, abs=0.01
        )  # a copy is as old as its original
        sent = lease.sent_s
        assert any_queue.release(lease, counted=counted)
        assert numbers(any_queue) == (1, 0, 0)


def test_a_message_that_is_to_wait_waits(any_queue: Queue):
    any_queue.insert(envelopes(1))
    released = time.monotonic()
    any_queue.release(take(any_queue), 4)
    assert any_queue.lease(60) is None
    assert not any_queue.is_empty()
    while (lease := any_queue.lease(60)) is None:
        time.sleep(0.1)
    assert time.monotonic() - released >= 3.9
    assert lease.attempt == 2


def test_a_dead_letter_keeps_message_and_reason_and_gets_fresh_attempts(any_queue: Queue):
    any_queue.insert(envelopes(3))
    for reason in ("first", "second\n\nTraceback \x00 …", "third"):
        lease = take(any_queue)
        any_queue.release(lease)
        assert any_queue.bury(take(any_queue), reason)
    assert any_queue.is_empty()
    assert numbers(any_queue) == (0, 0, 3)
    letters = list(any_queue.dead())
    reasons = sorted(letter.reason.replace("\x00", "\ufffd") for letter in letters)
    assert reasons == ["first", "second\n\nTraceback \ufffd …", "third"]
    assert names([letter.message for letter in letters]) == ["0", "1", "2"]
    assert any_queue.redrive(lambda letter: letter.reason.startswith("second")) == 1
    assert take(any_queue).attempt == 1
    assert sorted(letter.reason for letter in any_queue.dead()) == ["first", "third"]
    assert any_queue.redrive() == 2
    assert list(any_queue.dead()) == []
    assert any_queue.redrive() == 0
    assert numbers(any_queue) == (2, 1, 0)


def test_a_look_at_messages_changes_nothing(any_queue: Queue):
    any_queue.insert(envelopes(12))
    for lease in [take(any_queue) for _ in range(12)]:
        any_queue.release(lease)
    seen = any_queue.peek(11)
    assert len(seen) == 11
    assert {(found.n_attempts, found.leased) for found in seen} == {(1, False)}
    assert len(set(names([found.message for found in seen]))) == 11
    assert numbers(any_queue) == (12, 0, 0)
    assert take(any_queue).attempt == 2
    assert any_queue.peek(0) == []


def test_purge_takes_messages_from_their_holders_and_leaves_the_dead(any_queue: Queue):
    any_queue.insert(envelopes(3))
    lease = take(any_queue)
    any_queue.bury(take(any_queue), "broke")
    any_queue.purge()
    assert numbers(any_queue) == (0, 0, 1)
    assert any_queue.renew(lease, 60) is False


def test_what_an_iterator_yielded_before_it_failed_is_in_the_queue(any_queue: Queue):
    def failing() -> Iterator[Envelope]:
        yield from envelopes(15)
        raise NotFoundError("nothing lies at memory://mask")

    with pytest.raises(NotFoundError, match="nothing lies at memory://mask"):
        any_queue.insert(failing())
    assert any_queue.counts().ready == 15


def test_a_lease_of_no_seconds_is_refused(any_queue: Queue):
    with pytest.raises(SpecError, match="at least 1 second, got 0"):
        any_queue.lease(0)
