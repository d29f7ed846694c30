"""``cloudseg worker`` as a fleet runs it: JSON logs, metrics, liveness and readiness."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloudseg.cli.worker import parse_limit
from cloudseg.errors import SpecError
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import Queue, open_queue
from cloudseg.tasking.worker import TaskLimits
from cloudseg.testing.tasks import EXTRA_KINDS, FailTask, NoteTask

COMMAND = [sys.executable, "-c", "from cloudseg.cli.main import main; main()", "worker"]


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLOUDSEG_EXTRA_KINDS", EXTRA_KINDS)


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return open_queue(f"fq://{tmp_path}/queue")


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for(what: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_a_worker_of_a_fleet_says_what_it_does_how_it_is_and_what_it_measured(queue: Queue, tmp_path: Path):
    notes = tmp_path / "notes"
    notes.mkdir()

    def wrap(task: object, **more: int) -> Envelope:
        return Envelope.of(task, root=f"file://{tmp_path}/root", step="stage", **more)

    bad = FailTask(folder=str(notes), name="bad", how="spec")
    queue.insert([wrap(NoteTask(folder=str(notes), name=str(i), seconds=0.2)) for i in range(3)])
    queue.insert([wrap(bad)])
    options = ["--threads=1", "--metrics-port=0", "--metrics-host=127.0.0.1", "--log-format=json"]
    worker = subprocess.Popen(
        [*COMMAND, queue.uri, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None
        first = json.loads(worker.stdout.readline())
        assert first["event"] == "listening"
        url = f"http://127.0.0.1:{first['port']}"
        assert get(f"{url}/livez") == (200, "ok\n")
        status, text = get(f"{url}/readyz")  # the process that runs tasks takes its time to start
        assert status == 200 or (status == 503 and "starting" in text)
        wait_for(lambda: queue.is_empty() and len(list(notes.iterdir())) == 4)
        wait_for(lambda: get(f"{url}/readyz") == (200, "ok\n"))
        assert get(f"{url}/nonsense")[0] == 404
        wait_for(
            lambda: (
                'cloudseg_task_step_seconds_total{kind="test_note/1",step="wait"}' in get(f"{url}/metrics")[1]
            )
        )
        numbers = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(get(f"{url}/metrics")[1])
            for sample in family.samples
        }
    finally:
        worker.terminate()
        out, err = worker.communicate(timeout=60)
    assert worker.returncode == 1, err  # a task went dead
    assert numbers["cloudseg_tasks_total", "test_note/1", "done"] == 3
    assert numbers["cloudseg_tasks_total", "test_fail/1", "dead"] == 1
    assert 0.6 <= numbers["cloudseg_task_step_seconds_total", "test_note/1", "wait"] < 30
    assert numbers["cloudseg_task_seconds_count", "test_note/1"] == 3
    assert numbers["cloudseg_bytes_total", "read", "test_note/1"] == 0
    assert numbers["cloudseg_task_peak_memory_bytes", "test_note/1"] > 1e7
    assert numbers["cloudseg_tasks_running",] == 0
    assert 0 < numbers["cloudseg_queue_oldest_seconds",] < 600
    assert {("cloudseg_queue_messages", state) for state in ("ready", "leased", "dead")} <= set(numbers)

    lines = [json.loads(line) for line in out.splitlines()]
    assert all({"time", "host", "pid", "level"} <= set(line) for line in lines)
    started = [line for line in lines if line.get("event") == "started"]
    done = [line for line in lines if line.get("event") == "done"]
    assert len(started) == 4
    assert len(done) == 3
    assert all(line["seconds_by_step"]["wait"] >= 0.2 and line["counters"] == {"notes": 1} for line in done)
    (dead,) = [line for line in lines if line.get("event") == "dead"]
    assert (dead["level"], dead["task_id"], dead["step"]) == ("error", bad.id, "stage")
    assert "asks for the impossible" in dead["message"]
    last = lines[-1]
    assert (last["event"], last["n_done"], last["n_dead"], last["stopped_by"]) == ("stopped", 3, 1, 15)


@pytest.mark.parametrize(("processes", "what"), [(1, "runs tasks"), (2, "runs networks")])
def test_a_worker_that_is_to_use_a_gpu_says_when_there_is_none(queue: Queue, processes: int, what: str):
    import os

    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*COMMAND, queue.uri, "--gpu", "--until-empty", f"--processes={processes}"],
        capture_output=True,
        text=True,
        env=without,
        timeout=170,
    )
    assert done.returncode == 1
    assert "no task can run here: device 'cuda' was asked for, but this machine has no usable" in done.stderr
    assert f"error: the process that {what} did not start" in done.stderr


def test_a_port_that_is_taken_is_named(queue: Queue):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = [f"--metrics-port={port}", "--metrics-host=127.0.0.1", "--until-empty"]
        done = subprocess.run([*COMMAND, queue.uri, *options], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"error: cannot listen on port {port} for --metrics-port: Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("text", "kind", "limits"),
    [
        ("affinities=8GiB,600s", "affinities", TaskLimits(max_memory_bytes=2**33, max_seconds=600)),
        ("a/1=1.5s", "a/1", TaskLimits(max_seconds=1.5)),
        ("DownsampleTask=512M", "DownsampleTask", TaskLimits(max_memory_bytes=2**29)),
    ],
)
def test_limits_of_a_kind_are_read(text: str, kind: str, limits: TaskLimits):
    assert parse_limit(text) == (kind, limits)


@pytest.mark.parametrize("text", ["", "a", "a=", "=4GiB", "a=1s,2s", "a=0s", "a=1GiB,2GiB"])
def test_what_is_no_limit_is_refused(text: str):
    with pytest.raises(SpecError, match="is not a limit: expected KIND=SIZE,SECONDSs"):
        parse_limit(text)
