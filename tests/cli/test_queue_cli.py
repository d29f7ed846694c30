"""``cloudseg queue`` on both kinds of queue, through the command line's own door."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloudseg.cli.main import cli
from cloudseg.errors import NotFoundError
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import Queue, open_queue
from cloudseg.testing.tasks import EXTRA_KINDS, NoteTask


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLOUDSEG_EXTRA_KINDS", EXTRA_KINDS)


@pytest.fixture(params=["fq", "sqs"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Queue:
    if request.param == "fq":
        return open_queue(f"fq://{tmp_path}/queue")
    request.getfixturevalue("aws")
    return open_queue(f"sqs://cli-{uuid.uuid4()}", create=True)


def call(*arguments: str, **more: object) -> Result:
    return CliRunner().invoke(cli, ["queue", *arguments], catch_exceptions=False, **more)


def put(queue: Queue, n: int) -> list[Envelope]:
    tasks = [Envelope.of(NoteTask(folder="f", name=str(i)), root="file:///r", step="notes") for i in range(n)]
    queue.insert(tasks)
    return tasks


def test_a_queue_is_looked_into_and_mended(queue: Queue):
    tasks = put(queue, 3)
    for reason in ("RuntimeError: it broke\n\nTraceback (most recent call last): ...", "it vanished"):
        lease = queue.lease(60)
        assert lease is not None
        queue.bury(lease, reason)

    counts = json.loads(call("status", queue.uri, "--json").output)
    assert (counts["ready"], counts["leased"], counts["dead"]) == (1, 0, 2)
    assert counts["approximate"] is queue.uri.startswith("sqs://")
    about = "about " if counts["approximate"] else ""
    text = call("status", queue.uri).output
    assert f"{about}1 waiting, {about}0 leased or delayed, {about}2 dead" in text

    (row,) = json.loads(call("peek", queue.uri, "--json").output)
    assert (row["kind"], row["step"], row["root"]) == ("test_note/1", "notes", "file:///r")
    assert row["task_id"] in {task.task_id for task in tasks}
    assert (row["attempts"], row["leased"]) == (0, False)
    assert 0 <= row["age_s"] < 600
    assert row["task_id"] in call("peek", queue.uri).output

    letters = json.loads(call("dead", queue.uri, "--json").output)
    assert sorted(letter["reason"].splitlines()[0] for letter in letters) == [
        "RuntimeError: it broke",
        "it vanished",
    ]
    text = call("dead", queue.uri).output
    assert "Traceback (most recent call last)" in text
    assert "Traceback" not in call("dead", queue.uri, "--no-traceback").output

    vanished = next(letter for letter in letters if letter["reason"] == "it vanished")
    assert call("retry", queue.uri, "--kind=other").output == "0 dead letters put back\n"
    assert call("retry", queue.uri, vanished["task_id"]).output == "1 dead letters put back\n"
    wrong = call("retry", queue.uri, "nobody")
    assert (wrong.exit_code, "no dead letter has the id nobody" in wrong.output) == (1, True)
    assert queue.counts().ready == 2

    refused = call("purge", queue.uri, input="n\n")
    assert refused.exit_code == 1
    assert f"Remove {about}2 messages from {queue.uri}?" in refused.output
    assert queue.counts().ready == 2
    assert (
        f"{about}2 messages removed; {about}1 dead letters stay" in call("purge", queue.uri, "--yes").output
    )
    assert queue.is_empty()
    assert call("retry", queue.uri, "--kind=test_note").output == "1 dead letters put back\n"
    assert [letter.reason for letter in queue.dead()] == []


def test_what_other_programs_put_in_is_shown_as_what_it_is(tmp_path: Path):
    queue = open_queue(f"fq://{tmp_path}/queue")
    messages = {"a": '{"payload": {"class": "DownsampleTask"}}', "b": "garbage"}
    for name, text in messages.items():
        (tmp_path / "queue" / "queue" / f"0--{name}.json").write_text(text)
    rows = json.loads(call("peek", queue.uri, "--json").output)
    assert sorted((row["kind"], row["step"]) for row in rows if row["kind"]) == [
        ("DownsampleTask", "igneous")
    ]
    assert {row["kind"] for row in rows} == {"DownsampleTask", None}
    assert "?" in call("peek", queue.uri).output
    assert len(json.loads(call("peek", "-n", "1", queue.uri, "--json").output)) == 1


@pytest.mark.parametrize("command", ["status", "peek", "dead", "retry", "purge"])
def test_a_queue_that_is_not_there_is_not_made(tmp_path: Path, command: str):
    with pytest.raises(NotFoundError, match="there is no queue at fq://"):
        call(command, f"fq://{tmp_path}/tpyo")
    assert not (tmp_path / "tpyo").exists()


def test_a_queue_is_made_on_request_and_once(aws: str, tmp_path: Path):
    name = f"made-{uuid.uuid4()}"
    for uri in (f"sqs://{name}", f"fq://{tmp_path}/made"):
        for _ in range(2):
            assert call("create", uri).exit_code == 0
        counts = open_queue(uri, create=False).counts()
        assert (counts.ready, counts.dead) == (0, 0)
