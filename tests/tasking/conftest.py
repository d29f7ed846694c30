"""Queues, roots and task kinds for the tests of tasking."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.file_queue import FileQueue
from cloudseg.tasking.queue import Queue, open_queue
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.task import Task
from cloudseg.testing.tasks import EXTRA_KINDS
from cloudseg.volumes import open_objects


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSEG_EXTRA_KINDS", EXTRA_KINDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where test tasks leave their notes."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"


@pytest.fixture
def queue(tmp_path: Path) -> FileQueue:
    return FileQueue(f"fq://{tmp_path}/queue")


@pytest.fixture
def sqs_uri(aws: str) -> str:
    """An SQS queue of this test's own."""
    uri = f"sqs://test-{uuid.uuid4()}"
    open_queue(uri, create=True)
    return uri


@pytest.fixture(params=["fq", "sqs"])
def any_queue(request: pytest.FixtureRequest) -> Queue:
    """A queue of each kind that there is."""
    if request.param == "fq":
        found: Queue = request.getfixturevalue("queue")
        return found
    return open_queue(request.getfixturevalue("sqs_uri"))


@pytest.fixture
def receipts(root: str) -> Receipts:
    return Receipts(open_objects(root), "stage.step")


@pytest.fixture
def wrap(root: str) -> Callable[..., Envelope]:
    """Make the envelope of a task."""

    def make(task: Task, *, max_attempts: int = 3, step: str = "stage.step") -> Envelope:
        return Envelope.of(task, root=root, step=step, max_attempts=max_attempts)

    return make
