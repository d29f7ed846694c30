from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime

import pytest

from cloudseg.errors import CorruptDataError, SpecError
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.receipts import DeadLetter, Receipt, Receipts
from cloudseg.testing.emulators import Fault, front
from cloudseg.testing.tasks import NoteTask
from cloudseg.volumes import open_objects

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _receipt(task_id: str, **more: object) -> Receipt:
    return Receipt(task_id=task_id, kind="a/1", step="stage.step", started=NOW, finished=NOW, **more)


def _letter(task_id: str) -> DeadLetter:
    envelope = Envelope.of(NoteTask(folder="f", name=task_id), root="memory://r", step="stage.step")
    return DeadLetter(
        task_id=task_id,
        kind="a/1",
        step="stage.step",
        reason="broke",
        attempts=3,
        traceback="T",
        envelope=envelope,
    )


def test_only_the_first_receipt_of_a_task_counts(receipts: Receipts):
    assert receipts.write(_receipt("one", counters={"voxels": 1})) is True
    assert receipts.write(_receipt("one", counters={"voxels": 2})) is False
    stored = receipts.get("one")
    assert stored == _receipt("one", counters={"voxels": 1}, owner=stored.owner)
    assert stored.owner


def test_a_finisher_knows_its_own_receipt_again(receipts: Receipts):
    """In a bucket, the answer to the first write may be lost, and the write sent again."""
    mine = _receipt("one", owner="me")
    assert receipts.write(mine) is True
    assert receipts.write(mine) is True
    assert receipts.write(_receipt("one", owner="somebody")) is False
    assert receipts.get("one") == mine


@pytest.mark.parametrize("bucket", ["gs", "s3"])
def test_a_receipt_whose_answer_is_lost_counts_for_one_finisher(request, monkeypatch, bucket):
    if bucket == "gs":
        before = request.getfixturevalue("gcs")
        context = nullcontext(before)
    else:
        context = front(request.getfixturevalue("aws"))
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "2")
    with context as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.url)
        books = Receipts(open_objects(f"{bucket}://vol/receipts"), "stage.step")
        before.faults[:] = [Fault(r"^(PUT|POST) .*one\.json", cut="after", times=1)]
        try:
            with ThreadPoolExecutor(4) as pool:
                won = list(pool.map(lambda n: books.write(_receipt("one", counters={"n": n})), range(4)))
            assert before.faults[0].times == 0, "no answer was lost"
        finally:
            before.faults.clear()
        assert won.count(True) == 1
        assert books.get("one").counters == {"n": won.index(True)}


def test_a_receipt_of_before_owners_were_noted_is_read(receipts: Receipts, root: str):
    old = _receipt("one").model_dump(mode="json", exclude={"owner"})
    open_objects(root).put("pipeline/receipts/stage.step/one.json", json.dumps(old).encode())
    assert receipts.get("one") == _receipt("one")


def test_receipts_are_listed_by_step(receipts: Receipts, root: str):
    n = 300  # more than one window of readers
    for i in range(n):
        receipts.write(_receipt(f"{i:04d}", counters={"voxels": i}))
    assert receipts.done() == {f"{i:04d}" for i in range(n)}
    assert [r.task_id for r in receipts.all()] == [f"{i:04d}" for i in range(n)]
    assert sum(r.counters["voxels"] for r in receipts.all()) == n * (n - 1) // 2
    # a step whose name begins like ours has its own books
    assert Receipts(open_objects(root), "stage.step2").done() == set()
    assert Receipts(open_objects(root), "stage").done() == set()


def test_a_task_that_has_not_finished_has_no_receipt(receipts: Receipts):
    assert receipts.get("unknown") is None
    assert receipts.done() == set()
    assert list(receipts.all()) == []
    assert list(receipts.dead()) == []


def test_a_receipt_of_another_step_is_refused(receipts: Receipts):
    wrong = _receipt("one").model_copy(update={"step": "other"})
    with pytest.raises(SpecError, match=r"step 'other' cannot go into the books of step 'stage.step'"):
        receipts.write(wrong)


def test_a_broken_receipt_is_named_and_not_taken_for_a_missing_one(receipts: Receipts, root: str):
    open_objects(root).put("pipeline/receipts/stage.step/one.json", b'{"task_id": ')
    with pytest.raises(
        CorruptDataError, match=r"receipts/stage.step/one.json: .* delete .* to have the task run"
    ):
        receipts.get("one")


def test_errors_are_kept_for_each_attempt(receipts: Receipts):
    receipts.write_error("one", 1, "first")
    receipts.write_error("one", 10, "tenth")
    receipts.write_error("one", 2, "second \ud800")  # a traceback may hold what UTF-8 cannot
    receipts.write_error("two", 1, "other")
    assert receipts.errors("one") == {1: "first", 2: "second ?", 10: "tenth"}
    assert receipts.n_errors() == 4


def test_a_dead_letter_is_kept_until_it_is_cleared_or_its_task_finishes(receipts: Receipts):
    receipts.write_dead(_letter("one"))
    receipts.write_dead(_letter("two"))
    assert list(receipts.dead()) == [_letter("one"), _letter("two")]
    receipts.write(_receipt("one"))
    assert [letter.task_id for letter in receipts.dead()] == ["two"]
    assert receipts.clear_dead() == 2
    assert list(receipts.dead()) == []


def test_wall_time_is_the_time_between_start_and_finish():
    receipt = _receipt("one").model_copy(update={"finished": datetime(2026, 1, 2, 3, 5, 5, tzinfo=UTC)})
    assert receipt.wall_s == 60
