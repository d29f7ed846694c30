from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloudseg.errors import SpecError, UnknownTaskError
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.run_task import default_context, peak_memory_bytes, reset_peak_memory, run_task
from cloudseg.testing.tasks import FailTask, NoteTask


def test_a_task_runs_once_and_leaves_a_receipt(
    folder: Path, wrap: Callable[..., Envelope], receipts: Receipts
):
    envelope = wrap(NoteTask(folder=str(folder), name="n", seconds=0.05))
    first = run_task(envelope, default_context(), attempt=2)
    again = run_task(envelope, default_context())
    assert (folder / "n").read_bytes() == b"<>"
    assert first == again == receipts.get(envelope.task_id)
    assert (first.task_id, first.kind, first.step) == (envelope.task_id, "test_note/1", "stage.step")
    assert first.attempt == 2
    assert first.counters == {"notes": 1}
    assert first.seconds["total"] >= first.seconds["wait"] >= 0.05
    assert first.wall_s >= 0.05
    assert first.peak_memory_bytes > 2**20
    assert {"cloudseg", "python", "numpy"} <= first.versions.keys()


def test_books_of_one_task_do_not_leak_into_the_next(folder: Path, wrap: Callable[..., Envelope]):
    ctx = default_context({})
    for name in ("a", "b"):
        assert run_task(wrap(NoteTask(folder=str(folder), name=name)), ctx).counters == {"notes": 1}
    assert ctx.counters == {}


def test_a_task_that_fails_leaves_no_receipt(folder: Path, wrap: Callable[..., Envelope], receipts: Receipts):
    envelope = wrap(FailTask(folder=str(folder), name="n"))
    with pytest.raises(RuntimeError, match="task n fails on purpose"):
        run_task(envelope, default_context())
    assert receipts.done() == set()


def test_an_unknown_kind_is_refused_by_name(root: str):
    envelope = Envelope(root=root, step="s", task={"kind": "no_such_kind/7"})
    with pytest.raises(
        UnknownTaskError, match=r"unknown task kind 'no_such_kind/7'; this worker has: .*relabel/1"
    ):
        run_task(envelope, default_context())


def test_a_task_whose_fields_do_not_validate_is_refused_by_key(root: str):
    envelope = Envelope(root=root, step="s", task={"kind": "test_note/1", "folder": "f", "title": "n"})
    with pytest.raises(
        SpecError, match="task message of kind test_note/1: missing key 'name'; unknown key 'title'"
    ):
        run_task(envelope, default_context())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("kind", "expected kind=module:Class, got 'kind'"),
        ("relabel/1=a:B", "'relabel/1' is one of cloudseg's own"),
    ],
)
def test_malformed_extra_kinds_are_refused(
    monkeypatch: pytest.MonkeyPatch, root: str, value: str, reason: str
):
    monkeypatch.setenv("CLOUDSEG_EXTRA_KINDS", value)
    with pytest.raises(SpecError, match=reason):
        run_task(Envelope(root=root, step="s", task={"kind": "test_note/1"}), default_context())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the peak")
def test_peak_memory_is_that_of_the_task_and_not_of_the_ones_before():
    block = np.ones(2**26, np.uint8)
    high = peak_memory_bytes()
    del block
    reset_peak_memory()
    assert peak_memory_bytes() < high - 2**25
