"""Show that a fleet makes the bytes of one machine: examples/fib25.toml on GCS + SQS and on S3 + SQS servers.

The example runs once on this machine, into a folder. Then it runs with its root and its image in a bucket of a server
on loopback, its tasks in an SQS queue, and three workers that were started like those of a fleet. Every object outside
``pipeline/`` must be equal, and each task must have its receipt.

Usage: python benchmarks/fleet.py [--data $CLOUDSEG_DATA] [--edge 250] [--stores gcs s3] [--workers 3]
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cloudseg.tasking.queue import open_queue
from cloudseg.testing.emulators import aws_emulator, gcs_emulator
from cloudseg.testing.runs import cloudseg, command_line, object_digests, print_table, real_or_phantom, store
from cloudseg.volumes import open_objects

EXAMPLE = Path(__file__).parents[1] / "examples" / "fib25.toml"
# A line of a worker's log, of a task that ran here.
DONE = re.compile(r"^\d\d:\d\d:\d\d done ", re.MULTILINE)
BUCKETS = {"gcs": "gs://vol", "s3": "s3://vol"}


@contextmanager
def fleet(queue: str, folder: Path, *, n_workers: int) -> Iterator[list[Path]]:
    """Run workers of one thread; give their logs, and stop them by SIGTERM at the end."""
    logs = [folder / f"worker-{n}.log" for n in range(n_workers)]
    with ExitStack() as stack:
        workers = []
        for log in logs:
            out = stack.enter_context(log.open("wb"))
            words = command_line("worker", queue, "--threads=1")
            workers.append(subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT))
        try:
            yield logs
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait(timeout=60)


def receipts(root: str) -> dict[str, int]:
    """Return how many receipts each step has."""
    found: dict[str, int] = {}
    for key in open_objects(root).list("pipeline/receipts/"):
        step = key.split("/")[2]
        found[step] = found.get(step, 0) + 1
    return found


def run(image: str, root: str, *more: str) -> float:
    """Run the example into ``root``; return its seconds."""
    started = time.monotonic()
    cloudseg("run", str(EXAMPLE), "--set", f"image={image}", "--set", f"root={root}", *more)
    return time.monotonic() - started


def main() -> None:
    """Print the table; exit code 1 if an object differs or a receipt is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOUDSEG_DATA"))
    parser.add_argument("--edge", type=int, default=250)
    parser.add_argument("--stores", nargs="+", choices=list(BUCKETS), default=list(BUCKETS))
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    image, _ = real_or_phantom(args.data and Path(args.data), args.edge)
    wrong = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder = Path(name)
        local = f"file://{folder}/run"
        seconds = run(store(f"file://{folder}/image", image), local)
        expected, n_receipts = object_digests(local), receipts(local)
        rows: list[tuple[object, ...]] = [
            ("this machine, 2 workers", f"{seconds:.0f} s", sum(n_receipts.values()), "", len(expected), "")
        ]
        servers.enter_context(aws_emulator(folder / "aws.log"))
        if "gcs" in args.stores:
            servers.enter_context(gcs_emulator(folder / "gcs.log"))
        for kind in args.stores:
            queue, root = f"sqs://fleet-{kind}", f"{BUCKETS[kind]}/run"
            open_queue(queue, create=True)
            image_uri = store(f"{BUCKETS[kind]}/image", image)
            with fleet(queue, folder, n_workers=args.workers) as logs:
                seconds = run(image_uri, root, "--executor", queue, "--workers=0")
            found, n_found = object_digests(root), receipts(root)
            differing = sorted(
                key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
            )
            wrong += [f"{kind}: {key}" for key in differing]
            if n_found != n_receipts:
                wrong.append(f"{kind}: receipts {n_found}, expected {n_receipts}")
            shares = "+".join(str(len(DONE.findall(log.read_text()))) for log in logs)
            rows.append(
                (
                    f"{kind} + sqs, {args.workers} workers",
                    f"{seconds:.0f} s",
                    sum(n_found.values()),
                    shares,
                    len(found),
                    len(differing),
                )
            )
    header = ("where", "took", "tasks with a receipt", "by worker", "objects", "that differ")
    print_table(f"examples/fib25.toml, {args.edge}^3", header, rows)
    if wrong:
        sys.exit(f"{len(wrong)} differences: {'; '.join(wrong[:10])}")


if __name__ == "__main__":
    main()
