"""A chaos run: the main job on S3 and SQS servers of this machine, three workers, and one fault after another."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cloudseg.errors import TaskFailedError
from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.spec import read_spec
from cloudseg.tasking.queue import open_queue
from cloudseg.testing.chaos import probe, proofs
from cloudseg.testing.chaos import stage as chaos_stage
from cloudseg.testing.chaos.fronts import Dice, QueueFront, StorageFront
from cloudseg.testing.chaos.plan import Event, events
from cloudseg.testing.chaos.poison import poisons
from cloudseg.testing.chaos.processes import Program, left_over, pick, worker_events
from cloudseg.testing.chaos.records import Records, Store, collect, n_full
from cloudseg.testing.emulators import aws_emulator, environment, front, gcs_emulator
from cloudseg.testing.runs import cloudseg
from cloudseg.testing.store import store_phantom
from cloudseg.testing.tasks import EXTRA_KINDS
from cloudseg.testing.tiny_model import tiny_package

BUCKETS: dict[Store, str] = {"s3": "s3://vol", "gcs": "gs://vol"}
LEASE_S = 2
# Hours by which the clocks of the three workers are wrong.
CLOCK_SHIFTS_S = (0, 2 * 3600, -3 * 3600)
FROZEN_S = 2.5 * LEASE_S
# A run that ends by itself although nobody told it to is started again so often.
MAX_OWN_ENDS = 8
DRAIN_S = 180.0
MAX_S = 800.0

PIPELINE = """
image = "{base}/image"
root = "{base}/out"
threads_per_worker = 1
max_attempts = 40

[[stage]]
kind = "affinities"
model = "{base}/model"
block_shape = [16, 16, 16]
chunk_shape = [16, 16, 16]

[[stage]]
kind = "chaos_copy"
uri = "{copy}"
block_shape = [16, 16, 16]

[[stage]]
kind = "supervoxels"
block_shape = [16, 16, 16]
chunk_shape = [16, 16, 16]
{more}
"""
MORE = """
[[stage]]
kind = "agglomerate"
block_shape = [16, 16, 16]
chunk_shape = [16, 16, 16]

[[stage]]
kind = "downsample"
layers = ["segmentation"]

[[stage]]
kind = "meshes"
block_shape = [32, 32, 32]

[[stage]]
kind = "skeletons"
block_shape = [32, 32, 32]

[[stage]]
kind = "statistics"
block_shape = [32, 32, 32]
"""


def run_chaos(folder: Path, *, seed: int, store: Store, is_long: bool, disk: Path | None) -> Records:
    """Run the pipeline quietly and then in chaos; return the records of it.

    Parameters
    ----------
    folder
        For logs and everything local; empty.
    seed
        Decides the faults.
    store
        What the bucket is.
    is_long
        Whether to run the whole main job on 32 blocks with all faults, or a part of it on 18 with a few.
    disk
        Folder on a small file system of its own, which will be filled up; None leaves that fault out.
    """
    started = time.monotonic()
    shape, more = ((64, 64, 32), MORE) if is_long else ((48, 48, 32), "")
    queue_name = f"chaos-{seed}"
    copies = {"quiet": folder / "quiet-copy", "chaos": (disk or folder) / "copy"}
    with (
        environment(
            CLOUDSEG_EXTRA_KINDS=f"{EXTRA_KINDS},{chaos_stage.KINDS}",
            CLOUDSEG_EXTRA_STAGES=chaos_stage.STAGES,
        ),
        aws_emulator(folder / "servers.log") as aws,
        gcs_emulator(folder / "gcs.log") if store == "gcs" else nullcontext() as gcs,
    ):
        bases = {"quiet": f"file://{folder}/quiet", "chaos": f"{BUCKETS[store]}/chaos"}
        for where, base in bases.items():
            store_phantom(base, shape=shape, seed=seed)
            tiny_package(f"{base}/model")
            text = PIPELINE.format(base=base, copy=f"file://{copies[where]}", more=more)
            (folder / f"{where}.toml").write_text(text)
        cloudseg("run", str(folder / "quiet.toml"), "--workers=2")

        queue = open_queue(f"sqs://{queue_name}", create=True)
        steps = list(plan(read_spec(folder / "chaos.toml")).steps())
        notes = folder / "notes"
        notes.mkdir()
        client, queue_url = _client(aws, queue_name)
        planned = {task.id: step.name for step in steps for task in step.tasks()}
        n_tasks = len(planned)
        storage = StorageFront(dice=Dice(seed, "storage", n_tasks=n_tasks, is_long=is_long))
        storage.progress = lambda: storage.n_receipts
        waiting = QueueFront(
            dice=Dice(seed, "queue", n_tasks=n_tasks, is_long=is_long), client=client, queue_url=queue_url
        )
        waiting.progress = storage.progress
        records = Records(
            seed=seed,
            store=store,
            storage=storage,
            queue=waiting,
            poisons=poisons(
                root=f"{bases['chaos']}/out",
                step="supervoxels.label",
                elsewhere=f"{bases['chaos']}/poison",
                notes=str(notes),
            ),
            planned=planned,
        )
        n_before_disk = next(n for n, step in enumerate(steps) if step.name == "chaos_copy")
        todo = events(
            seed,
            n_tasks=n_tasks,
            n_before_disk=sum(step.n_tasks for step in steps[:n_before_disk]),
            is_long=is_long,
            with_disk=disk is not None,
        )
        upstream = aws if gcs is None else gcs.url
        with front(upstream, records.storage), front(aws, records.queue):
            _Chaos(folder, records, todo, queue=f"sqs://{queue_name}", disk=disk).run()
        collect(records, folder, copies=copies, queue=queue, base=bases["chaos"])
    records.seconds = time.monotonic() - started
    return records


class _Chaos:
    """The workers, the run, and who torments them."""

    def __init__(
        self, folder: Path, records: Records, todo: list[Event], *, queue: str, disk: Path | None
    ) -> None:
        self.records = records
        self.todo = todo
        self.disk = disk
        self.ballast_until: float | None = None
        self.n_full = 0
        self.ages_s: dict[Event, float] = {}
        site = folder / "site"
        site.mkdir()
        shutil.copy(probe.__file__, site / "sitecustomize.py")
        self.begun = folder / "begun.log"
        self.begun.touch()
        environ = {
            "AWS_ENDPOINT_URL": records.queue.url,
            "AWS_ENDPOINT_URL_S3": records.storage.url,
            "TENSORSTORE_GCS_HTTP_URL": records.storage.url,
            "STORAGE_EMULATOR_HOST": records.storage.url,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])),
            "CHAOS_BEGUN": str(self.begun),
        }
        words = ["worker", queue, "--threads=1", f"--lease-seconds={LEASE_S}", "--log-format=json"]
        self.workers = [
            Program(words, {**environ, "CHAOS_CLOCK_SHIFT_S": str(shift)}, folder / f"worker-{n}.log")
            for n, shift in enumerate(CLOCK_SHIFTS_S)
        ]
        run = ["run", str(folder / "chaos.toml"), "--executor", queue, "--workers=0"]
        self.coordinator = Program(run, environ, folder / "run.log")

    def run(self) -> None:
        """Start all, torment them until the run is complete and the queue is drained, and stop all."""
        for worker in self.workers:
            worker.start()
        self.coordinator.start()
        self.records.storage.is_calm = self.records.queue.is_calm = False
        end = time.monotonic() + MAX_S
        try:
            while not self._step():
                time.sleep(0.05)
                if time.monotonic() > end:
                    raise TaskFailedError(
                        f"chaos with seed {self.records.seed} was not over after {MAX_S:.0f} s, with "
                        f"{self.records.storage.n_receipts} of {len(self.records.planned)} receipts; the logs lie in "
                        f"{self.begun.parent}"
                    )
            self.records.storage.is_calm = self.records.queue.is_calm = True
            self._drain()
        finally:
            self._empty_disk()
            for worker in self.workers:
                worker.stop()
            self.coordinator.stop()
        time.sleep(0.5)  # children notice that their supervisor is gone
        records = self.records
        records.stray += left_over(str(self.begun))
        happened = sorted([*records.storage.happened, *records.queue.happened], key=lambda one: one.at_s)
        lines = [f"{one.at_s:.3f} {one.kind}: {one.line}\n" for one in happened]
        self.begun.with_name("faults.log").write_text("".join(lines))
        for line in self.begun.read_text().splitlines():
            task_id, pid, at_s = line.split()
            records.begun.append(proofs.Begun(task_id, int(pid), float(at_s)))
        records.worker_events = list(worker_events(self.workers))

    def _step(self) -> bool:
        """Do what is due; return whether the run is complete and nothing remains to be done to it."""
        n_receipts = self.records.storage.n_receipts
        for worker in self.workers:
            worker.thaw_if_due()
            if worker.code is not None:
                self._note_own_end(worker)
                worker.start()
        if self.ballast_until is not None and (
            self._n_full() > self.n_full or time.monotonic() > self.ballast_until
        ):
            self._empty_disk()
        is_complete = self.coordinator.code == 0
        for event in list(self.todo):
            if (event.at <= n_receipts or is_complete) and self._inject(event, is_complete=is_complete):
                self.todo.remove(event)
        code = self.coordinator.code
        if code not in (None, 0):
            self._note_own_end(self.coordinator)
            self.coordinator.start()
        return code == 0 and not self.todo and self.ballast_until is None

    def _inject(self, event: Event, *, is_complete: bool) -> bool:
        """Do what ``event`` says; False if it must wait."""
        match event.kind:
            case "poisoned message":
                poison = self.records.poisons[event.number % len(self.records.poisons)]
                self.records.queue.client.send_message(
                    QueueUrl=self.records.queue.queue_url, MessageBody=poison.body
                )
                self._did(event.kind, poison.name)
            case "write to a full disk":
                if self.ballast_until is not None:
                    return False
                self._fill_disk()
            case "run killed (SIGKILL)" | "run told to stop (SIGTERM)":
                return is_complete or self._end_run(event)
            case _:
                return self._hurt_worker(event)
        return True

    def _end_run(self, event: Event) -> bool:
        # Anywhere in its life: as it starts, fills the queue, or waits.
        age_s = self.ages_s.setdefault(event, event.random.uniform(0.2, 6))
        if self.coordinator.code is not None or self.coordinator.age_s < age_s:
            return False
        is_kill = "SIGKILL" in event.kind
        if self.coordinator.send(signal.SIGKILL if is_kill else signal.SIGTERM):
            assert self.coordinator.process is not None
            code = self.coordinator.process.wait(timeout=60)
            if code != 0:
                self._did(event.kind, f"exit code {code}")
                self.coordinator.start()
        return True

    def _hurt_worker(self, event: Event) -> bool:
        worker = pick(self.workers, event.random)
        if worker is None:
            return False
        in_hand = "with a task in hand" if worker.task_in_hand() else "idle"
        match event.kind:
            case "worker killed (SIGKILL)":
                sent = worker.send(signal.SIGKILL)
            case "worker told to stop (SIGTERM)":
                sent = worker.send(signal.SIGTERM)
            case "worker's child killed (SIGKILL)":
                children = worker.children()
                if not children:
                    return False
                children[0].kill()
                self._did(event.kind, in_hand)
                return True
            case _:
                if worker.freeze(FROZEN_S, with_children=event.number % 2 == 1):
                    self._did(event.kind, in_hand)
                return True
        if sent and worker.process is not None:
            worker.process.wait(timeout=60)
            self._did(event.kind, in_hand)
            worker.start()
        return True

    def _did(self, kind: str, detail: str) -> None:
        self.records.done[kind] += 1
        self.records.details.setdefault(kind, Counter())[detail] += 1

    def _note_own_end(self, program: Program) -> None:
        log = program.newest_log.read_text("utf-8", "replace").strip().splitlines()
        said = f"{program.words[0]} ended with {program.code}: {log[-1] if log else 'it said nothing'}"
        self.records.own_ends.append(said)
        if len(self.records.own_ends) > MAX_OWN_ENDS:
            raise TaskFailedError(
                f"chaos with seed {self.records.seed}: processes ended by themselves too often: "
                + "; ".join(self.records.own_ends)
            )

    # --- the disk -----------------------------------------------------------------------------------------------

    def _fill_disk(self) -> None:
        assert self.disk is not None
        with (self.disk / "ballast").open("wb", buffering=0) as ballast:
            size = 1 << 16
            while size:
                try:
                    ballast.write(b"\0" * size)
                except OSError:
                    size //= 2
        self.n_full = self._n_full() + 2
        self.ballast_until = time.monotonic() + 30

    def _empty_disk(self) -> None:
        if self.disk is not None and self.ballast_until is not None:
            (self.disk / "ballast").unlink()
            self.ballast_until = None

    def _n_full(self) -> int:
        return n_full(list(worker_events(self.workers)))

    # --- the end ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Wait until the queue holds nothing: duplicates were skipped, poison was buried."""
        end = time.monotonic() + DRAIN_S
        n_empty = 0
        while n_empty < 5 and time.monotonic() < end:
            for worker in self.workers:
                worker.thaw_if_due()
                if worker.code is not None:
                    self._note_own_end(worker)
                    worker.start()
            names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
            names.append("ApproximateNumberOfMessagesDelayed")
            found = self.records.queue.client.get_queue_attributes(
                QueueUrl=self.records.queue.queue_url, AttributeNames=names
            )["Attributes"]
            n_empty = 0 if any(int(found[name]) for name in names) else n_empty + 1
            time.sleep(0.2)


def _client(upstream: str, queue_name: str) -> tuple[Any, str]:
    import boto3

    client = boto3.client("sqs", endpoint_url=upstream)
    return client, str(client.get_queue_url(QueueName=queue_name)["QueueUrl"])
