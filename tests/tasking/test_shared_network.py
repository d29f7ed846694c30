"""Tasks of one worker that share a network: the same bytes, fewer networks, and what happens when it dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import psutil
import pytest

from cloudseg.errors import ModelError, NotFoundError, TaskFailedError
from cloudseg.models.predict import load_model
from cloudseg.models.shared import SharedNetwork
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.file_queue import FileQueue
from cloudseg.tasking.network import NetworkProcess
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.worker import WorkerEvent, WorkerOptions, WorkerReport, work
from cloudseg.testing.runs import file_digests, store
from cloudseg.testing.tiny_model import OFFSETS, tiny_package
from cloudseg.volumes import create_volume, open_objects, open_volume
from cloudseg_tasks.affinities import AffinitiesStage

Wrap = Callable[..., Envelope]
SHAPE = (16, 16, 20)
NOBODY_WAKES = Pipe(duplex=False)
DRAIN = WorkerOptions(until_empty=True, backoff_s=0, n_processes=3, threads_per_process=1, share_network=True)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return tiny_package(f"file://{tmp_path}/model")


@pytest.fixture
def network() -> Iterator[NetworkProcess]:
    process = NetworkProcess(n_threads=1, gpu=None)  # so that patches have to wait, and meet
    assert process.start(NOBODY_WAKES[0])
    yield process
    process.close()
    assert not Path(process.path).parent.exists()


def patches(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE)).astype(np.uint8)


def opened(network: NetworkProcess, model: str, **more: object) -> SharedNetwork:
    settings = {"offsets": OFFSETS[:3], "device": "cpu", "precision": "float32"} | more
    return SharedNetwork(network.path, model, **settings)


def test_a_shared_network_gives_the_bits_of_an_own_one_to_all_who_ask_at_once(
    network: NetworkProcess, model: str
):
    own = load_model(model, device="cpu", precision="float32")
    clients = [opened(network, model) for _ in range(2)]
    assert {(c.device_type, c.precision, c.n_channels) for c in clients} == {("cpu", "float32", 3)}
    asked = [patches(24, seed) for seed in range(2)]
    lanes = [client.lanes(SHAPE, batch_size=4) for client in clients]
    assert {lane.n_threads for lane in lanes} == {8}
    grey_range = (10.0, 200.0)
    with ThreadPoolExecutor(16) as pool:
        jobs = [
            (seed, pool.submit(clients[seed].predict, asked[seed][n][None], grey_range=grey_range))
            for n in range(24)
            for seed in range(2)
        ]
        for seed, client_patches in enumerate(asked):
            found = np.concatenate([job.result() for owner, job in jobs if owner == seed])
            np.testing.assert_array_equal(found, own.predict(client_patches, grey_range=grey_range))
    assert sum(client.n_shared for client in clients) > 0


def test_what_is_wrong_with_a_model_is_said_as_without_sharing(
    network: NetworkProcess, model: str, tmp_path: Path
):
    with pytest.raises(NotFoundError, match="no model"):
        opened(network, f"file://{tmp_path}/nothing")
    with pytest.raises(ModelError, match="but this task was planned with 0000"):
        opened(network, model, sha256="0" * 64)
    client = opened(network, model)
    with pytest.raises(ModelError, match="15 voxels on x, which is no multiple of"):
        client.predict(np.zeros((1, 15, 16, 16), np.uint8))
    assert client.predict(patches(1, 0)).shape == (1, 3, *SHAPE)


def test_a_network_that_dies_is_started_again_and_whoever_asked_gets_an_answer(
    network: NetworkProcess, model: str, caplog: pytest.LogCaptureFixture
):
    client = opened(network, model)
    before = client.predict(patches(1, 0))
    assert network._child is not None
    psutil.Process(network._child.pid).kill()
    threading.Timer(1.0, network.keep).start()  # as the worker does ten times a second
    np.testing.assert_array_equal(client.predict(patches(1, 0)), before)
    assert "ended and is started again: it was killed (SIGKILL)" in caplog.text


def test_a_network_that_is_gone_for_good_is_an_error_of_the_task(model: str):
    network = NetworkProcess(n_threads=1, gpu=None)
    network.start(NOBODY_WAKES[0])
    client = opened(network, model)
    network.close()
    with pytest.raises(TaskFailedError, match="the process that runs the worker's networks ended"):
        client.predict(patches(1, 0))


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A folder that breaks torch for whom it is on the path."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('broken on purpose')")
    return str(tmp_path / "broken")


def test_a_network_that_does_not_start_ends_the_worker_before_it_takes_a_task(
    queue: FileQueue, broken: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", broken)
    with pytest.raises(
        TaskFailedError, match="the process that runs networks did not start: it left with exit code 1"
    ):
        work(queue.uri, DRAIN)


def test_a_network_that_dies_and_never_starts_again_is_given_up(
    network: NetworkProcess, broken: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", broken)
    assert network._child is not None
    psutil.Process(network._child.pid).kill()

    def keep() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            network.keep()
            time.sleep(0.05)

    with pytest.raises(TaskFailedError, match="did not start, 3 times: it left with exit code 1"):
        keep()


def test_a_network_that_is_not_waited_for_is_left_alone(network: NetworkProcess):
    other = NetworkProcess(n_threads=1, gpu=None)
    reading, writing = Pipe(duplex=False)
    writing.send_bytes(b"stop")
    started = time.monotonic()
    assert not other.start(reading)
    other.close()
    assert time.monotonic() - started < 2
    network.keep()  # it lives: nothing to do


@pytest.fixture
def affinities(tmp_path: Path, model: str) -> Callable[[str], list]:
    """Make the layer below a root, and the tasks that fill it."""
    image = np.random.default_rng(1).integers(0, 256, (64, 48, 40)).astype(np.uint8)
    uri = store(f"file://{tmp_path}/image", image)

    def make(root: str) -> list:
        info = open_volume(uri).info
        site = Site(root, {"image": Layer("image", uri, info)}, open_volume, open_objects)
        options = {"model": model, "precision": "float32", "block_shape": (16, 48, 16)}
        plan = AffinitiesStage(**options, chunk_shape=(16, 16, 16), batch_size=4).expand(site)
        create_volume(plan.layers[0].uri, plan.layers[0].info)
        return list(plan.steps[0].tasks())

    return make


def test_workers_tasks_that_share_a_network_write_the_same_bytes(
    queue: FileQueue, affinities: Callable[[str], list], wrap: Wrap, tmp_path: Path, receipts: Receipts
):
    own, shared = affinities(f"file://{tmp_path}/own"), affinities(f"file://{tmp_path}/shared")
    assert len(own) == 12
    queue.insert(map(wrap, own))
    report = work(queue.uri, DRAIN.model_copy(update={"share_network": False, "n_processes": 1}))
    assert report == WorkerReport(n_done=12)
    queue.insert(map(wrap, shared))
    torch_in_child: list[bool] = []

    def note(event: WorkerEvent) -> None:
        if event.name != "done":
            return
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it may end while we look
                if "cloudseg.tasking.child" in child.cmdline():
                    names = [Path(area.path).name for area in child.memory_maps()]
                    torch_in_child.append(any("libtorch" in name for name in names))

    assert work(queue.uri, DRAIN, on_event=note) == WorkerReport(n_done=12)
    digests = file_digests(tmp_path / "own")
    assert len(digests) > 12
    assert file_digests(tmp_path / "shared") == digests
    books = [receipts.get(task.id) for task in shared]
    counters = [receipt.counters for receipt in books if receipt is not None]
    assert sum(c["patches_in_common_batches"] for c in counters) > 0
    assert all(c["patches_cpu_float32"] == c["patches"] for c in counters)
    assert torch_in_child
    assert not any(torch_in_child), "only the shared process has to hold torch"


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["cloudseg.tasking.network", "cloudseg.tasking.child"])
def test_a_kill_of_the_network_or_of_one_who_uses_it_changes_no_byte(
    queue: FileQueue, affinities: Callable[[str], list], wrap: Wrap, tmp_path: Path, victim: str
):
    alone, hurt = affinities(f"file://{tmp_path}/alone"), affinities(f"file://{tmp_path}/hurt")
    queue.insert(map(wrap, alone))
    assert work(queue.uri, DRAIN.model_copy(update={"share_network": False})).n_done == 12
    queue.insert(map(wrap, hurt))
    killed: list[int] = []

    def note(event: WorkerEvent) -> None:
        if event.name == "started" and not killed:
            time.sleep(0.2)
            found = [c for c in psutil.Process().children(recursive=True) if victim in c.cmdline()]
            found[0].kill()
            killed.append(found[0].pid)

    report = work(queue.uri, DRAIN, on_event=note)
    assert killed
    assert report.n_done == 12
    assert report.n_dead == 0
    assert file_digests(tmp_path / "hurt") == file_digests(tmp_path / "alone")


def test_sharing_is_for_several_processes_on_a_gpu_unless_asked_for():
    assert not WorkerOptions(n_processes=4).shares_network
    assert not WorkerOptions(gpu=True).shares_network
    assert WorkerOptions(gpu=True, n_processes=2).shares_network
    assert not WorkerOptions(gpu=True, n_processes=2, share_network=False).shares_network
    assert WorkerOptions(share_network=True).shares_network
