from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudseg.specs import FrozenModel
from cloudseg.tasking.envelope import Envelope, parse_message, to_payload
from cloudseg.tasking.receipts import DeadLetter, Receipt
from cloudseg_tasks.registry import KINDS, load_task

HERE = Path(__file__).parent
TASKS = sorted((HERE / "tasks").glob("*.json"))


def _golden_tasks(path: Path) -> list[dict[str, Any]]:
    golden = json.loads(path.read_text())
    return golden if isinstance(golden, list) else [golden]


GOLDEN = [
    pytest.param(one, id=f"{path.stem}-{i}") for path in TASKS for i, one in enumerate(_golden_tasks(path))
]


def _wire(name: str) -> str:
    return (HERE / "wire" / name).read_text()


def test_there_is_a_golden_task_for_every_kind():
    assert {one["task"]["kind"] for path in TASKS for one in _golden_tasks(path)} >= set(KINDS)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_file_holds_tasks_of_the_kind_that_it_is_named_after(path: Path):
    kinds = [one["task"]["kind"].replace("/", "_") for one in _golden_tasks(path)]
    assert kinds == [path.stem] * max(1, len(kinds))


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_golden_task_loads_and_its_messages_keep_their_id(golden: dict[str, Any]):
    task = load_task(json.dumps(golden["task"]))
    assert task.kind == golden["task"]["kind"]
    envelope = Envelope(root="gs://bucket/run", step="step", task=golden["task"])
    assert envelope.task_id == golden["task_id"]
    # A field added later has a default: nothing that was sent is lost or changed.
    assert golden["task"].items() <= json.loads(task.canonical_json()).items()


def test_the_golden_message_loads_and_is_still_what_we_write():
    message = _wire("message_1.json")
    envelope = parse_message(message)
    assert isinstance(envelope, Envelope)
    assert envelope == Envelope.load(_wire("envelope_1.json"), where="envelope_1.json")
    assert json.loads(message)["payload"] == to_payload(envelope)
    assert load_task(envelope.canonical_task_json()).id == envelope.task_id


@pytest.mark.parametrize(("name", "model"), [("receipt_1.json", Receipt), ("dead_letter_1.json", DeadLetter)])
def test_golden_books_load_and_are_still_what_we_write(name: str, model: type[FrozenModel]):
    text = _wire(name)
    # As with tasks: fields may be added, with a default, and none is lost or changed.
    assert json.loads(text).items() <= json.loads(model.load(text, where=name).canonical_json()).items()


def test_the_address_of_the_queueable_function_has_not_moved():
    from taskqueue.queueablefns import REGISTRY

    import cloudseg_tasks.wire

    assert REGISTRY["cloudseg_tasks.wire", "execute"] is cloudseg_tasks.wire.execute
