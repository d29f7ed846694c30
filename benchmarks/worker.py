"""Does a worker keep its word? A failing task, SIGTERM, and a task longer than its lease, on a folder and on SQS.

    python benchmarks/worker.py [--trials 20] [--tasks 100] [--lease 2] [--queues fq sqs]

Workers are real processes of the command ``cloudseg worker``; SQS is a stand-in on this machine. Three tables:

- One task among ``--tasks`` fails each time it is tried: how many are done, the exit code, the dead letters.
- SIGTERM while two processes each hold a task that keeps the interpreter lock: seconds until another has leased both
  again, in ``--trials`` trials; and whether the attempt stayed uncounted. The workers' lease is 600 s.
- A task that takes five times its lease, with two workers after it: how often it ran.

Leaves with code 1 if anything came out otherwise than it should.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.queue import Queue, open_queue
from cloudseg.tasking.receipts import Receipts
from cloudseg.tasking.task import Task
from cloudseg.testing.emulators import aws_emulator, environment
from cloudseg.testing.runs import command_line, print_table
from cloudseg.testing.tasks import EXTRA_KINDS, FailTask, NoteTask
from cloudseg.volumes import open_objects

STEP = "benchmark.step"
LIMIT_S = 120.0
HELD_BY_EACH = 2


class Place:
    """A fresh queue, a folder for notes, and a root for receipts."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.root = f"file://{folder}/root"
        uri = f"fq://{folder}/queue" if kind == "fq" else f"sqs://benchmark-{uuid.uuid4()}"
        self.queue: Queue = open_queue(uri, create=True)
        self.receipts = Receipts(open_objects(self.root), STEP)

    def insert(self, *tasks: Task) -> None:
        """Put tasks into the queue."""
        self.queue.insert([Envelope.of(task, root=self.root, step=STEP, max_attempts=3) for task in tasks])

    def note(self, name: str, *, seconds: float = 0.0) -> NoteTask:
        """Return a task that leaves a note; while it waits it keeps the interpreter lock."""
        return NoteTask(folder=str(self.notes), name=name, seconds=seconds, hold_gil=True)

    @contextmanager
    def worker(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Run ``cloudseg worker``; it is gone afterwards."""
        command = command_line("worker", self.queue.uri, "--threads=1", *options)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextmanager
def place(kind: str) -> Iterator[Place]:
    """Make a place and remove it."""
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        yield Place(Path(folder), kind)


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + LIMIT_S
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {LIMIT_S:.0f} s in vain")
        time.sleep(0.005)


def one_fails(kind: str, n_tasks: int) -> tuple[list[object], bool]:
    """Drain a queue in which one task always fails; return a row, and whether all is well."""
    with place(kind) as p:
        bad = FailTask(folder=str(p.notes), name="bad")
        half = n_tasks // 2
        notes = [p.note(str(i)) for i in range(n_tasks - 1)]
        p.insert(*notes[:half], bad, *notes[half:])
        with p.worker("--until-empty", "--processes=2") as worker:
            worker.communicate(timeout=600)
        letters, buried = list(p.receipts.dead()), list(p.queue.dead())
        n_done = len(p.receipts.done())
        told = 'raise RuntimeError(f"task {self.name} fails on purpose")'
        traced = all(told in text for text in (letters[0].traceback, buried[0].reason)) if letters else False
        right = (n_done, worker.returncode, len(letters), len(buried), traced) == (n_tasks - 1, 1, 1, 1, True)
        left = p.queue.counts()
        right = right and (left.ready, left.leased) == (0, 0)
        row = [n_done, worker.returncode, len(letters), len(buried), "yes" if traced else "no"]
        return row, right


def sigterm(kind: str, n_trials: int) -> tuple[list[object], bool]:
    """Tell workers to stop while they work; return a row, and whether all is well."""
    waits, exits, codes, uncounted = [], [], set(), 0
    for _ in range(n_trials):
        with place(kind) as p:
            names = [str(i) for i in range(HELD_BY_EACH)]
            p.insert(*(p.note(name, seconds=600) for name in names))
            with p.worker("--lease-seconds=600", f"--processes={HELD_BY_EACH}") as worker:
                wait_for(lambda p=p, names=names: all((p.notes / name).exists() for name in names))
                started = time.monotonic()
                worker.send_signal(signal.SIGTERM)
                leases = []
                while len(leases) < HELD_BY_EACH and time.monotonic() < started + LIMIT_S:
                    lease = p.queue.lease(60)
                    leases += [lease] if lease is not None else []
                waits.append(time.monotonic() - started)
                codes.add(worker.wait(timeout=60))
                exits.append(time.monotonic() - started)
            uncounted += all(lease.attempt == 1 for lease in leases) and len(leases) == HELD_BY_EACH
    right = max(waits) < 1 and uncounted == n_trials and codes == {128 + signal.SIGTERM}
    row: list[object] = [n_trials, f"{statistics.median(waits):.2f}", f"{max(waits):.2f}"]
    row += [f"{max(exits):.2f}", f"{uncounted} of {n_trials}", " ".join(map(str, sorted(codes)))]
    return row, right


def outlives_its_lease(kind: str, lease_s: int) -> tuple[list[object], bool]:
    """Run a task that takes five leases; return a row, and whether all is well."""
    with place(kind) as p, ExitStack() as stack:
        task = p.note("long", seconds=5.0 * lease_s)
        p.insert(task)
        options = ("--until-empty", f"--lease-seconds={lease_s}")
        workers = [stack.enter_context(p.worker(*options)) for _ in range(2)]
        for worker in workers:
            worker.communicate(timeout=600)
        n_runs = (p.notes / "long").read_bytes().count(b"<")
        receipt = p.receipts.get(task.id)
        codes = [worker.returncode for worker in workers]
        right = n_runs == 1 and receipt is not None and receipt.attempt == 1 and codes == [0, 0]
        seconds = receipt.seconds["total"] if receipt is not None else 0.0
        return [f"{lease_s} s", f"{seconds:.1f} s", n_runs, receipt.attempt if receipt else "none"], right


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--lease", type=int, default=2)
    parser.add_argument("--queues", nargs="+", choices=["fq", "sqs"], default=["fq", "sqs"])
    args = parser.parse_args()
    questions: dict[str, tuple[list[str], Callable[[str], tuple[list[object], bool]]]] = {
        f"One failing task among {args.tasks}, two processes": (
            ["done", "exit code", "dead letters", "the same in the queue", "with traceback"],
            lambda kind: one_fails(kind, args.tasks),
        ),
        f"SIGTERM with {HELD_BY_EACH} tasks in hand": (
            ["trials", "back after, median s", "worst s", "worker gone, worst s", "uncounted", "exit code"],
            lambda kind: sigterm(kind, args.trials),
        ),
        "A task five times longer than its lease, two workers": (
            ["lease", "the task took", "runs", "attempt"],
            lambda kind: outlives_its_lease(kind, args.lease),
        ),
    }
    all_right = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="worker-")))
        if "sqs" in args.queues:
            stack.enter_context(aws_emulator(folder / "server.log", buckets=(), services="sqs"))
        stack.enter_context(environment(CLOUDSEG_EXTRA_KINDS=EXTRA_KINDS))
        for title, (header, ask) in questions.items():
            rows = []
            for kind in args.queues:
                row, right = ask(kind)
                rows.append([f"{kind}://", *row, "" if right else "WRONG"])
                all_right = all_right and right
            print_table(title, ["queue", *header, ""], rows)
    print(f"{os.cpu_count()} cores")
    sys.exit(0 if all_right else 1)


if __name__ == "__main__":
    main()
