"""Running: real processes, killed, doubled, poisoned and cancelled; the outputs are those of a quiet run."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cloudseg.errors import ConflictError, NotFoundError
from cloudseg.geometry import Box
from cloudseg.pipelines import advance
from cloudseg.pipelines.control import cancel
from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.progress import BarProgress, LineProgress, duration, progress_for
from cloudseg.pipelines.report import status
from cloudseg.pipelines.spec import read_spec
from cloudseg.tasking.queue import open_queue
from cloudseg.testing.emulators import Fault, front
from cloudseg.volumes import open_objects, open_volume

N_INVERT, N_ALL = 36, 61


@pytest.fixture(scope="module")
def truth(image: Path) -> dict[str, int]:
    """The sums that a right run ends with."""
    voxels = open_volume(str(image)).read(Box.of_shape((64, 48, 48), at=(8, 0, -16)))
    return {"total": int((255 - voxels).sum(dtype="uint64"))}


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def finish(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = child.communicate(timeout=90)
    return child.returncode, out, err


def test_a_run_makes_what_it_should_and_a_second_one_does_nothing(
    toy: Callable, command: Callable, truth: dict[str, int]
) -> None:
    it = toy()
    code, out, _ = command("run", it.file)
    assert code == 0
    assert json.loads((it.root / "sums" / "total.json").read_text()) == truth["total"]
    assert len(it.receipts()) == N_ALL
    assert Counter(it.runs()) == Counter(it.receipts())
    assert "toy_invert: 36/36" in out
    assert not (it.root / "pipeline" / "queues").exists()
    before = it.outputs()
    assert command("run", it.file)[0] == 0
    assert it.outputs() == before
    assert len(it.runs()) == N_ALL
    code, out, _ = command("status", it.root)
    assert code == 0
    assert out.count("complete") == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_it_ends_with_the_same_bytes_and_repeats_no_finished_task(
    toy: Callable, process: Callable, quiet_outputs: dict[str, bytes], seed: int
) -> None:
    it = toy(sleep_s=0.03)
    moment = random.Random(seed)
    settled: dict[str, int] = {}
    for _ in range(2):
        child = process("run", it.file)
        n_before = len(it.receipts())
        # Somewhere in its life: before the first task, or after a few of them.
        n_wanted = moment.choice([0, 1, 5, 12])
        wait_for(lambda: len(it.receipts()) >= n_before + n_wanted or child.poll() is not None)  # noqa: B023
        time.sleep(moment.uniform(0, 0.6))
        child.kill()
        child.communicate()
        for task_id in it.receipts():
            settled.setdefault(task_id, Counter(it.runs())[task_id])
    assert finish(process("run", it.file))[0] == 0
    assert it.outputs() == quiet_outputs
    assert len(it.receipts()) == N_ALL
    runs = Counter(it.runs())
    assert settled, "no kill came after a receipt: the test has shown nothing"
    assert {task_id: runs[task_id] for task_id in settled} == settled
    assert not list((it.root / "pipeline").glob("queues/*"))


def test_two_runs_on_one_root_at_once_end_well(
    toy: Callable, process: Callable, quiet_outputs: dict[str, bytes]
) -> None:
    it = toy(sleep_s=0.02)
    children = [process("run", it.file) for _ in range(2)]
    assert [finish(child)[0] for child in children] == [0, 0]
    assert it.outputs() == quiet_outputs
    assert len(it.receipts()) == N_ALL
    # They share the work: only what both had in hand at once ran twice.
    assert len(it.runs()) < 1.6 * N_ALL


def test_a_task_that_gives_up_stops_the_run_after_its_step_and_retry_mends_it(
    toy: Callable, command: Callable, quiet_outputs: dict[str, bytes]
) -> None:
    it = toy("max_attempts = 2", poison="[3]")
    it.poison.touch()
    code, out, err = command("run", it.file)
    assert code == 1
    assert "1 of 36 tasks of step 'toy_invert' gave up" in err
    assert f"{it.root}/pipeline/dead/toy_invert/" in err
    assert "will be tried again (attempt 1)" in out
    (letter,) = (it.root / "pipeline" / "dead" / "toy_invert").iterdir()
    assert letter.stem in err
    assert len(it.receipts("toy_invert")) == N_INVERT - 1
    assert not it.receipts("toy_sum.blocks")
    code, out, _ = command("status", it.file)
    assert code == 1
    assert "RuntimeError: block 56,0,-16:72,16,0 is poisoned" in out
    n_runs = len(it.runs())
    assert command("run", it.file)[0] == 1
    assert len(it.runs()) == n_runs
    it.poison.unlink()
    assert "1 dead letters cleared" in command("retry", it.root)[1]
    assert command("status", it.root)[0] == 3
    assert command("run", it.file)[0] == 0
    assert it.outputs() == quiet_outputs
    assert len(it.runs()) == N_ALL


def test_cancel_stops_a_run_and_the_next_run_goes_on(
    toy: Callable, process: Callable, command: Callable, quiet_outputs: dict[str, bytes]
) -> None:
    it = toy(sleep_s=0.1)
    child = process("run", it.file)
    wait_for(lambda: len(it.receipts()) >= 2)
    asked = time.monotonic()
    assert command("cancel", it.root)[0] == 0
    code, _, err = finish(child)
    assert time.monotonic() - asked < 15
    assert code == 3
    assert "cancelled; run again to go on" in err
    assert 2 <= len(it.receipts()) < N_INVERT
    assert command("status", it.root)[0] == 3
    assert finish(process("run", it.file))[0] == 0
    assert it.outputs() == quiet_outputs


def test_sigterm_stops_a_run_at_once_and_says_so(toy: Callable, process: Callable) -> None:
    it = toy(sleep_s=5.0)
    child = process("run", it.file)
    wait_for(lambda: list((it.root / "pipeline").glob("queues/*/attempts/*")))
    child.send_signal(signal.SIGTERM)
    stopped = time.monotonic()
    code, _, err = finish(child)
    assert code == 128 + signal.SIGTERM
    assert "run again to go on" in err
    assert time.monotonic() - stopped < 5
    assert not list((it.root / "pipeline").glob("queues/*"))


def test_a_shared_queue_is_filled_once_and_served_by_other_workers(
    toy: Callable, process: Callable, tmp_path: Path, quiet_outputs: dict[str, bytes]
) -> None:
    it = toy()
    queue = open_queue(f"fq://{tmp_path}/queue")
    arguments = ("run", it.file, "--executor", queue.uri, "--workers", 0)
    first = process(*arguments)
    note = it.root / "pipeline" / "enqueued" / "toy_invert.json"
    wait_for(note.exists)
    first.kill()
    second = process(*arguments)
    assert second.stdout is not None
    assert "toy_invert: 36 tasks" in second.stdout.readline()
    time.sleep(1.0)  # it has looked at the queue; time to fill it again, if it were wrong about it
    assert second.poll() is None
    assert queue.counts().ready == N_INVERT
    worker = process("worker", queue.uri, "--processes", 2)
    assert finish(second)[0] == 0
    worker.send_signal(signal.SIGTERM)
    assert it.outputs() == quiet_outputs
    assert Counter(it.runs()) == Counter(it.receipts())


def test_cancel_takes_its_own_tasks_out_of_a_shared_queue_and_no_others(
    toy: Callable, process: Callable, tmp_path: Path
) -> None:
    from cloudseg.tasking.envelope import Envelope

    it = toy()
    queue = open_queue(f"fq://{tmp_path}/queue")
    (first, *_) = plan(read_spec(it.file)).steps()
    queue.insert([Envelope.of(next(first.tasks()), root="file:///elsewhere", step="x")])
    child = process("run", it.file, "--executor", queue.uri, "--workers", 0)
    wait_for((it.root / "pipeline" / "enqueued" / "toy_invert.json").exists)
    assert cancel(open_objects(it.root)) == N_INVERT
    assert finish(child)[0] == 3
    assert queue.counts().ready == 1
    again = process("run", it.file, "--executor", queue.uri, "--workers", 0)
    wait_for(lambda: queue.counts().ready == N_INVERT + 1)
    again.kill()


def test_a_queue_that_was_emptied_by_hand_is_filled_again(
    toy: Callable, process: Callable, tmp_path: Path
) -> None:
    it = toy()
    queue = open_queue(f"fq://{tmp_path}/queue")
    child = process("run", it.file, "--executor", queue.uri, "--workers", 0)
    wait_for((it.root / "pipeline" / "enqueued" / "toy_invert.json").exists)
    queue.purge()
    wait_for(lambda: queue.counts().ready == N_INVERT)
    child.kill()


def test_a_root_that_holds_another_run_is_refused_with_the_keys_that_differ(
    toy: Callable, command: Callable
) -> None:
    it = toy()
    assert command("run", it.file)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in it.root.rglob("*") if path.is_file()}
    code, _, err = command("run", it.file, "--set", "toy_invert.options.ceiling=200")
    assert code == 2
    assert "toy_invert.options.ceiling: 255 there, 200 here" in err
    assert {path: path.stat().st_mtime_ns for path in it.root.rglob("*") if path.is_file()} == before
    assert command("run", it.file, "--set", "max_attempts=9", "--workers", "1")[0] == 0


def test_a_layer_that_exists_with_other_properties_is_refused_before_anything_is_written(
    toy: Callable, command: Callable, image: Path
) -> None:
    from cloudseg.volumes import create_volume

    it = toy()
    info = open_volume(str(image)).info.model_copy(update={"chunk_shape": (32, 32, 32)})
    create_volume(it.root / "inverted", info)
    code, _, err = command("run", it.file)
    assert code == 2
    assert "chunk" in err
    assert [path.name for path in it.root.iterdir()] == ["inverted"]


def test_a_plan_that_no_longer_fits_the_image_is_refused(toy: Callable) -> None:
    it = toy()
    expanded = plan(read_spec(it.file))
    objects = open_objects(it.root)
    record = advance.claim(expanded, objects)
    step = next(expanded.steps())
    state = advance.survey(step, objects, digest=next(record.steps())[1].tasks_digest)
    assert (state.n_tasks, state.n_done, state.n_missing, state.is_complete) == (N_INVERT, 0, N_INVERT, False)
    with pytest.raises(
        ConflictError, match=r"step 'toy_invert' of .* was planned with other tasks.*plan.json"
    ):
        advance.survey(step, objects, digest="of other tasks")
    text = objects.get(advance.PLAN_KEY).decode().replace('"n_tasks": 36', '"n_tasks": 35')
    objects.put(advance.PLAN_KEY, text.encode())
    with pytest.raises(ConflictError, match=r"steps toy_invert of .* was planned with other tasks"):
        advance.claim(expanded, objects)


def test_what_cannot_be_run_is_refused_with_a_way_out(
    toy: Callable, command: Callable, tmp_path: Path
) -> None:
    it = toy()
    code, _, err = command("run", it.file, "--workers", 0)
    assert code == 2
    assert "leaves nobody to do the work" in err
    code, _, err = command("run", it.file, "--set", "root=memory://somewhere")
    assert code == 2
    assert "workers are other processes" in err
    assert not it.root.exists()
    for name in ("status", "retry", "cancel", "verify"):
        code, _, err = command(name, tmp_path / "nowhere")
        assert code == 1
        assert "no pipeline was run there" in err
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(NotFoundError, match="start one with: cloudseg run"):
        status(open_objects(tmp_path / "nowhere"))


def test_progress_moves_on_a_terminal_and_is_plain_lines_elsewhere() -> None:
    for is_terminal, kind in ((True, BarProgress), (False, LineProgress)):
        text = StringIO()
        progress = progress_for(Console(file=text, force_terminal=is_terminal, width=120))
        assert type(progress) is kind
        with progress:
            count = progress.counting(3)
            for _ in range(3):
                count(1)
            progress.begin("step-one", n_tasks=10, n_done=4)
            progress.update("step-one", n_done=10, n_dead=0, voxels_per_task=0)
            progress.say("a [bracket] is shown")
            progress.end("step-one")
        assert "step-one" in text.getvalue()
        assert "10/10" in text.getvalue()
        assert "a [bracket] is shown" in text.getvalue()
        assert ("\x1b" in text.getvalue()) == is_terminal
    assert [duration(s) for s in (0.42, 12.3, 61, 7500)] == ["0.4 s", "12 s", "1 min 01 s", "2 h 05 min"]


def test_a_dead_letter_of_another_task_in_the_books_of_a_step_is_not_counted_as_an_outcome(
    toy: Callable, process: Callable, tmp_path: Path, quiet_outputs: dict[str, bytes]
) -> None:
    """It lies there when an older version's task, or a poisoned message, names the step."""
    from cloudseg.tasking.envelope import Envelope
    from cloudseg.tasking.receipts import DeadLetter, Receipts

    it = toy(sleep_s=0.05)
    queue = open_queue(f"fq://{tmp_path}/queue")
    other = Envelope(root=f"file://{it.root}", step="toy_invert", task={"kind": "toy_gone/1"})
    letter = DeadLetter(
        task_id=other.task_id, kind=other.kind, step=other.step, reason="unknown", attempts=1, envelope=other
    )
    Receipts(open_objects(it.root), "toy_invert").write_dead(letter)
    child = process("run", it.file, "--executor", queue.uri, "--workers", 0)
    worker = process("worker", queue.uri, "--processes", 2)
    code, _, err = finish(child)
    assert code == 0, err
    assert "left the queue without an outcome" not in err
    worker.send_signal(signal.SIGTERM)
    assert it.outputs() == quiet_outputs
    assert Counter(it.runs()) == Counter(it.receipts())


@pytest.mark.faults
def test_a_run_sits_out_a_bucket_that_stays_busy_longer_than_the_client_asks(
    toy: Callable, process: Callable, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = toy(sleep_s=0.1)
    monkeypatch.setenv("CLOUDSEG_STORAGE_RETRIES", "0")
    with front(aws) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.url)
        child = process("run", it.file, "--set", f"root=s3://vol/{uuid.uuid4()}", "--workers", 2)
        wait_for(lambda: any(re.search("^PUT .*/receipts/toy_invert/", x) for x in list(before.requests)))
        before.faults[:] = [Fault(r"^GET .*prefix=.*/pipeline/receipts/", status=503, times=2)]
        code, _, err = finish(child)
    assert code == 0, err
    assert before.faults[0].times == 0, "the bucket was not busy"
    assert err.count("step toy_invert: will look again in") == 2


@pytest.mark.faults
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda chunk: chunk.unlink(), "was never written"),
        (lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-7]), "is damaged"),
        (lambda chunk: chunk.write_bytes(b""), "is damaged"),
    ],
    ids=["missing", "truncated", "empty"],
)
def test_a_chunk_damaged_where_it_lies_is_a_dead_letter_that_names_the_layer_and_never_a_hole(
    toy: Callable, command: Callable, quiet_outputs: dict[str, bytes], damage: Callable, words: str
) -> None:
    it = toy("max_attempts = 1")
    assert command("run", it.file)[0] == 0
    for lost in ("sums", "pipeline/receipts/toy_sum.blocks", "pipeline/receipts/toy_sum.total"):
        shutil.rmtree(it.root / lost)
    chunk = next(path for path in sorted((it.root / "inverted").glob("*/*_*_*")))
    whole = chunk.read_bytes()
    damage(chunk)
    code, _, err = command("run", it.file)
    assert code == 1
    assert "1 of 24 tasks of step 'toy_sum.blocks' gave up" in err
    assert words in err
    assert "/inverted" in err
    assert not (it.root / "sums" / "total.json").exists()
    chunk.write_bytes(whole)
    assert command("retry", it.root)[0] == 0
    assert command("run", it.file)[0] == 0
    assert it.outputs() == quiet_outputs
