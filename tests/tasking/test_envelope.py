from __future__ import annotations

import json

import pytest

from cloudseg.errors import SpecError, UnknownTaskError
from cloudseg.tasking.envelope import Envelope, ForeignTask, parse_message, to_payload
from cloudseg.testing.tasks import NoteTask


def _message(**change: object) -> bytes:
    envelope = Envelope.of(NoteTask(folder="f", name="n"), root="memory://r", step="s")
    return json.dumps({"payload": to_payload(envelope), "queueName": "q", "id": "1", **change}).encode()


def test_an_envelope_survives_the_wire_and_keeps_the_id_of_its_task():
    task = NoteTask(folder="/data/ü", name="n", seconds=0.1)
    envelope = Envelope.of(task, root="gs://bucket/run", step="stage.step", max_attempts=5)
    message = json.dumps({"payload": to_payload(envelope), "queueName": "q", "id": "1"})
    assert parse_message(message) == envelope
    assert envelope.task_id == task.id
    assert envelope.kind == "test_note/1"


def test_the_order_of_keys_on_the_wire_does_not_change_the_id():
    one = Envelope(root="r", step="s", task={"kind": "a/1", "x": 1, "y": [1, 2]})
    two = Envelope(root="r", step="s", task={"y": [1, 2], "x": 1, "kind": "a/1"})
    assert one.task_id == two.task_id


def test_an_igneous_message_is_recognised_and_kept_whole():
    payload = {"class": "DownsampleTask", "mip": 2}
    assert parse_message(json.dumps({"payload": payload, "id": "1"})) == ForeignTask(payload)
    assert ForeignTask(payload).name == "DownsampleTask"
    function = [["igneous.tasks.image.image", "CountVoxelsTask"], ["gs://bucket/layer"], {"mip": 0}, -1]
    assert parse_message(json.dumps({"payload": function, "id": "1"})) == ForeignTask(function)
    assert ForeignTask(function).name == "CountVoxelsTask"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "must be JSON, got nothing"),
        (b"{", "must be JSON, got '{'"),
        (b"\xff\xfe\x00garbage", "must be JSON"),
        (b"[1, 2]", "must have a 'payload'"),
        (b'{"id": "1"}', "must have a 'payload'"),
        (b'{"payload": {"mip": 2}}', "must have a 'payload'"),
        (_message(payload=[["os", "system"], ["true"], {}, -1]), "calls 'os.system', but workers only run"),
        (_message(payload=[["cloudseg_tasks.wire", "execute"], [], {}, -1]), "must carry one JSON text"),
        (
            _message(payload=[["cloudseg_tasks.wire", "execute"], ["{}"], {"a": 1}, -1]),
            "must carry one JSON text",
        ),
        (_message(payload=[["cloudseg_tasks.wire", "execute"], [{}], {}, -1]), "must carry one JSON text"),
    ],
)
def test_a_malformed_message_is_refused_with_its_reason(message: bytes, reason: str):
    with pytest.raises(UnknownTaskError, match=reason):
        parse_message(message)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": "../../elsewhere"}, "step: String should match pattern"),
        ({"step": ""}, "step: String should match pattern"),
        ({"root": ""}, "root: String should have at least 1 character"),
        ({"max_attempts": 0}, "max_attempts: Input should be greater than 0"),
        ({"task": {"x": 1}}, "a task needs a 'kind'"),
        ({"version": 2}, "version: Input should be 1"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_an_envelope_that_does_not_validate_names_the_key(change: dict, reason: str):
    body = {"root": "r", "step": "s", "task": {"kind": "a/1"}, **change}
    message = {"payload": [["cloudseg_tasks.wire", "execute"], [json.dumps(body)], {}, -1]}
    with pytest.raises(SpecError, match=reason):
        parse_message(json.dumps(message))
