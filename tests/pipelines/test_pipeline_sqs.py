"""The main job on a bucket and a queue with workers of their own: the same bytes as on one machine."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudseg.tasking.queue import open_queue
from cloudseg.testing.runs import cloudseg, command_line, is_result
from cloudseg.testing.store import store_phantom
from cloudseg.testing.tiny_model import tiny_package
from cloudseg.volumes import open_objects

STAGES = """
threads_per_worker = 1

[[stage]]
kind = "affinities"
model = "{model}"
block_shape = [32, 32, 64]
chunk_shape = [32, 32, 32]

[[stage]]
kind = "supervoxels"
block_shape = [32, 32, 32]
chunk_shape = [32, 32, 32]

[[stage]]
kind = "agglomerate"
block_shape = [32, 32, 32]
chunk_shape = [32, 32, 32]

[[stage]]
kind = "statistics"
"""


def results(root: str) -> dict[str, bytes]:
    """Every object under the root but the books of the run, and the books' names."""
    objects = open_objects(root)
    return {key: objects.get(key) for key in objects.list() if is_result(key)}


def receipts(root: str) -> Counter[str]:
    """How many receipts each step has; a task's id depends on its addresses."""
    return Counter(key.split("/")[2] for key in open_objects(root).list("pipeline/receipts/"))


@contextmanager
def worker(queue: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command_line("worker", queue, "--threads=1", "--lease-seconds=20"),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pipeline_on_s3_and_sqs_with_two_workers_makes_the_bytes_of_a_local_run(aws: str, tmp_path: Path):
    name = f"run-{uuid.uuid4()}"
    model = tiny_package(f"file://{tmp_path}/model", patch_shape=(24, 24, 24))
    roots = {"local": f"file://{tmp_path}/{name}", "fleet": f"s3://vol/{name}"}
    queue = f"sqs://{name}"
    for where, root in roots.items():
        image, _ = store_phantom(root, shape=(64, 64, 64), seed=3)
        text = f'image = "{image}"\nroot = "{root}/out"\n' + STAGES.format(model=model)
        if where == "fleet":
            text = f'executor = "{queue}"\nworkers = 0\n' + text
        (tmp_path / f"{where}.toml").write_text(text)
    cloudseg("run", str(tmp_path / "local.toml"), "--workers=2")

    missing = cloudseg("run", str(tmp_path / "fleet.toml"), check=False)
    assert missing.returncode == 1
    assert f"error: there is no queue at {queue}" in missing.stderr
    assert results(f"{roots['fleet']}/out") == {}  # it was not there, and nothing was touched

    cloudseg("queue", "create", queue)
    with worker(queue, tmp_path / "one.log"), worker(queue, tmp_path / "two.log"):
        cloudseg("run", str(tmp_path / "fleet.toml"))
    cloudseg("status", f"{roots['fleet']}/out")
    there, here = results(f"{roots['fleet']}/out"), results(f"{roots['local']}/out")
    assert set(there) == set(here)
    differing = [key for key, data in here.items() if there[key] != data]
    assert differing == []
    assert any(key.startswith("segmentation/") for key in here)
    assert receipts(f"{roots['fleet']}/out") == receipts(f"{roots['local']}/out")
    assert open_queue(queue).is_empty()
    assert open_queue(queue).counts().dead == 0
    done = [(tmp_path / log).read_text().count(" done ") for log in ("one.log", "two.log")]
    assert min(done) > 0, f"both workers had work: {done}"
