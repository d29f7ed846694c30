"""How fast is the file queue? Ours against task-queue's own, the same tasks, the same folder layout.

    python benchmarks/file_queue.py [--tasks 2000] [--rounds 3] [--workers 1 4]

Prints tasks per second, the median of the rounds: inserting, and leasing and deleting all of them (nothing is run)
with 1 and with 4 processes. The two take turns, so that a busy machine disturbs both alike.

Over all rounds it counts what went wrong. ``left``: files that a drained queue still holds, tasks whose deletion was
lost among them. ``never``: tasks that no worker got. ``twice``: leases of a task that another worker had already. All
must be 0 for ours.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.file_queue import FileQueue

OURS = """
import sys, time
from cloudseg.tasking.file_queue import FileQueue
queue = FileQueue(sys.argv[1])
print("ready", flush=True); sys.stdin.readline()
ids = []
while (lease := queue.lease(600)) is not None:
    queue.delete(lease); ids.append(lease.id)
"""
STOCK = """
import sys, time
from taskqueue import TaskQueue
from taskqueue.taskqueue import QueueEmptyError
import cloudseg_tasks.wire
queue = TaskQueue(sys.argv[1], n_threads=0, progress=False)
print("ready", flush=True); sys.stdin.readline()
ids = []
while True:
    try:
        task = queue.lease(600)
    except QueueEmptyError:
        break
    queue.delete(task, tally=True); ids.append(task.id)
"""
REPORT = "\nprint(time.monotonic(), *ids, flush=True)\n"
# What a queue's folder holds besides counters, under both designs.
FOLDERS = ("queue", "movement", "attempts", "dead", "tmp")
COUNTS = ("left", "never", "twice")


def envelopes(n: int) -> Iterator[Envelope]:
    """Return ``n`` different small tasks."""
    return (Envelope(root="memory://r", step="s", task={"kind": "noop/1", "number": i}) for i in range(n))


def insert_ours(uri: str, n: int) -> None:
    """Insert with our queue."""
    FileQueue(uri).insert(envelopes(n))


def insert_stock(uri: str, n: int) -> None:
    """Insert the same messages with task-queue, without threads (its 40 contend for one interpreter)."""
    from functools import partial

    from taskqueue import TaskQueue

    from cloudseg_tasks.wire import execute

    queue = TaskQueue(uri, n_threads=0, progress=False)
    queue.insert((partial(execute, envelope.canonical_json()) for envelope in envelopes(n)), total=n)


def drain(script: str, uri: str, n_workers: int) -> tuple[float, list[str]]:
    """Drain a queue with processes that start together.

    Returns seconds until the last of them found nothing more, and the ids of all leases.
    """
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script + REPORT, uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(n_workers)
    ]
    for worker in workers:
        worker.stdout.readline()
    started = time.monotonic()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    ended, leased = started, []
    for worker in workers:
        out, _ = worker.communicate()
        if worker.returncode:
            raise SystemExit(f"a worker failed with exit code {worker.returncode}")
        # The clock is the system's, the same in all processes.
        at, *ids = out.split()
        ended = max(ended, float(at))
        leased += ids
    return ended - started, leased


def drain_column(n_workers: int) -> str:
    """Return the heading of a column."""
    return f"drain, {n_workers} worker" + "s" * (n_workers > 1)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    args = parser.parse_args()
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    wrong: dict[tuple[str, str], int] = defaultdict(int)
    contenders = {"cloudseg": (insert_ours, OURS), "task-queue": (insert_stock, STOCK)}
    for name, n_workers in itertools.product(["warm-up"] + ["round"] * args.rounds, args.workers):
        for queue, (insert, script) in contenders.items():
            folder = tempfile.mkdtemp(prefix="file-queue-")
            n = args.tasks if name == "round" else min(args.tasks, 200)
            try:
                started = time.monotonic()
                insert(f"fq://{folder}", n)
                inserted_s = time.monotonic() - started
                drained_s, leased = drain(script, f"fq://{folder}", n_workers)
                wrong[queue, "left"] += sum(1 for f in FOLDERS for _ in Path(folder).glob(f"{f}/*"))
                wrong[queue, "never"] += n - len(set(leased))
                wrong[queue, "twice"] += len(leased) - len(set(leased))
            finally:
                shutil.rmtree(folder)
            if name == "round":
                rates[queue, "insert"].append(n / inserted_s)
                rates[queue, drain_column(n_workers)].append(n / drained_s)
    columns = ("insert", *map(drain_column, args.workers))
    print(
        f"{args.tasks} tasks, median of {args.rounds} rounds, tasks/s; {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, task-queue {metadata.version('task-queue')}"
    )
    print(f"{'':<12}" + "".join(f"{c:>20}" for c in columns) + "".join(f"{c:>8}" for c in COUNTS))
    for queue in contenders:
        cells = "".join(f"{statistics.median(rates[queue, c]):>20.0f}" for c in columns)
        print(f"{queue:<12}{cells}" + "".join(f"{wrong[queue, c]:>8}" for c in COUNTS))
    ratios = (
        statistics.median(rates["cloudseg", c]) / statistics.median(rates["task-queue", c]) for c in columns
    )
    print(f"{'ratio':<12}" + "".join(f"{r:>20.2f}" for r in ratios))


if __name__ == "__main__":
    main()
