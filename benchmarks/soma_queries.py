"""How long do questions about somas take? From a folder, over HTTP, with many clients at once, in a large table.

    python benchmarks/soma_queries.py [--somas 143000] [--large 10000000] [--clients 50] [--seconds 60] [--rounds 100]
                                      [--folder FOLDER]

Somas are made up, in clusters. Each box has edges of a tenth of the volume's; each question is asked anew with other
numbers. ``wall`` is what a user waits (on this machine, with what else it does), ``CPU`` is the work of the process
that asks, and answers where there is no server. The large table is asked in a process of its own, whose peak memory is
given, then read whole, over HTTP as well; 0 leaves it out. ``--folder`` keeps it for another time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cloudseg import Somas
from cloudseg.somas.rows import checked, sorted_rows
from cloudseg.somas.store import CatalogSpec, publish, write_version
from cloudseg.testing.runs import print_table
from cloudseg.testing.somas import BOUNDS_NM, SPEC, soma_table
from cloudseg.volumes import open_objects

COLUMNS = ["soma_id", "x_nm", "y_nm", "z_nm", "volume_um3", "radius_um", "segment_id", "region"]
LOWER, UPPER = (np.asarray(corner) for corner in BOUNDS_NM)
# Morton codes run through cubes of this edge one after the other: so a table is made cube by cube, in order.
CUBE_NM = 50_000.0


def small_catalogue(folder: Path, n: int) -> None:
    """Store ``n`` somas."""
    objects = open_objects(folder)
    write_version(objects, soma_table(n, large_ids=False), SPEC, version=1)
    publish(objects, 1)


def large_catalogue(folder: Path, n: int) -> None:
    """Store ``n`` somas in bounded memory."""
    grid = [
        (x, y, z)
        for x in range(int(np.ceil(UPPER[0] / CUBE_NM)))
        for y in range(int(np.ceil(UPPER[1] / CUBE_NM)))
        for z in range(int(np.ceil(UPPER[2] / CUBE_NM)))
    ]
    grid.sort(key=lambda cell: sum(((cell[a] >> b) & 1) << (3 * b + a) for b in range(5) for a in range(3)))

    def batches() -> Iterator[pa.RecordBatch]:
        made = 0
        for number, cell in enumerate(grid):
            count = n * (number + 1) // len(grid) - made
            rng = np.random.default_rng(number)
            low = np.asarray(cell) * CUBE_NM
            high = np.minimum(low + CUBE_NM, UPPER)
            points = rng.uniform(low, high, (count, 3))
            volume = rng.lognormal(4.5, 0.6, count)
            radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
            columns: dict[str, Any] = {"soma_id": np.arange(made + 1, made + count + 1, dtype=np.uint64)}
            for axis, name in enumerate("xyz"):
                columns |= {f"{name}_nm": points[:, axis], f"anchor_{name}_nm": points[:, axis]}
                columns[f"bbox_min_{name}_nm"] = points[:, axis] - radius * 1000
                columns[f"bbox_max_{name}_nm"] = points[:, axis] + radius * 1000
            columns |= {
                "n_voxels": (volume * 97656).astype(np.uint64),
                "volume_um3": volume,
                "radius_um": radius.astype(np.float32),
                "edge_faces": np.zeros(count, np.uint8),
                "segment_id": rng.integers(1, n, count).astype(np.uint64),
                "region": np.array(["MB", "LO", "ME"])[rng.integers(0, 3, count)],
                "status": np.full(count, "auto"),
            }
            made += count
            table = sorted_rows(checked(pa.table(columns), lower=BOUNDS_NM[0], upper=BOUNDS_NM[1]))
            yield from table.combine_chunks().to_batches()

    objects = open_objects(folder)
    spec = CatalogSpec(**{**dict(SPEC), "dataset": "large"})
    write_version(objects, batches(), spec, version=1)
    publish(objects, 1)


def questions(somas: Somas, rng: np.random.Generator) -> dict[str, Callable[[], Any]]:
    """Return the questions, each with new numbers at each call."""

    def box() -> list[list[float]]:
        edge = (UPPER - LOWER) / 10
        low = rng.uniform(LOWER, UPPER - edge)
        return [low.tolist(), (low + edge).tolist()]

    return {
        "box, 8 columns": lambda: somas.query(bbox=box(), columns=COLUMNS),
        "box, all columns": lambda: somas.query(bbox=box()),
        "10 nearest": lambda: somas.nearest(rng.uniform(LOWER, UPPER), 10, columns=COLUMNS),
        "count by region": lambda: somas.count(by="region"),
        "somas of 10 segments": lambda: somas.of_segments(rng.integers(1, 100_000, 10), columns=COLUMNS),
    }


def timed(ask: Callable[[], Any], rounds: int) -> list[str]:
    """Return median and 95th percentile of the wall time, and the mean of the CPU time, in ms."""
    ask()
    walls = []
    began_cpu = time.process_time()
    for _ in range(rounds):
        began = time.perf_counter()
        ask()
        walls.append(time.perf_counter() - began)
    cpu = (time.process_time() - began_cpu) / rounds
    return [
        f"{statistics.median(walls) * 1e3:.1f}",
        f"{np.quantile(walls, 0.95) * 1e3:.1f}",
        f"{cpu * 1e3:.1f}",
    ]


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """Run ``cloudseg serve`` in a process of its own; give its address and its number."""
    command = [sys.executable, "-u", "-c", "from cloudseg.cli.main import main; main()"]
    process = subprocess.Popen(
        [*command, "serve", str(folder), "--port", "0", "--rate", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.stdout.readline().split('"')[1], process.pid
    finally:
        process.terminate()
        process.wait(30)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used; NaN where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has held; NaN where the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def crowd(url: str, pid: int, n_clients: int, seconds: float) -> list[str]:
    """Let clients ask without pause; return requests, errors, rate, times, and the server's work for each."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=n_clients)
    times: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < end:
            low = rng.uniform(LOWER, UPPER * 0.9)
            box = [low.tolist(), (low + (UPPER - LOWER) / 10).tolist()]
            asked = [
                ("query", {"bbox": box, "columns": COLUMNS}),
                ("nearest", {"points": [low.tolist()], "k": 10, "columns": COLUMNS}),
                ("count", {"by": ["region"]}),
            ][rng.integers(0, 3)]
            began = time.perf_counter()
            try:
                answer = pool.request(
                    "POST",
                    f"{url}/v1/datasets/made-up/somas:{asked[0]}",
                    body=json.dumps(asked[1]),
                    headers={
                        "Accept": "application/vnd.apache.arrow.stream",
                        "Content-Type": "application/json",
                    },
                    timeout=60,
                    retries=False,
                )
                if answer.status != 200:
                    errors.append(str(answer.status))
            except urllib3.exceptions.HTTPError as error:
                errors.append(type(error).__name__)
            times.append(time.perf_counter() - began)

    began_cpu = cpu_s(pid)
    threads = [threading.Thread(target=client, args=(number,)) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
    return [
        str(n_clients),
        str(len(times)),
        str(len(errors)),
        f"{len(times) / seconds:.0f}",
        f"{p50:.0f}",
        f"{p99:.0f}",
        f"{(cpu_s(pid) - began_cpu) / len(times) * 1e3:.1f}",
    ]


def read_whole(somas: Somas) -> list[str]:
    """Read eight columns of all rows, in the order of their ids; return rows, and the time and work they took."""
    began, began_cpu = time.perf_counter(), time.process_time()
    n = sum(batch.num_rows for batch in somas.query_batches(columns=COLUMNS))
    return [str(n), f"{time.perf_counter() - began:.1f}", f"{time.process_time() - began_cpu:.1f}"]


def _questions(folder: str, rounds: int, out: Any) -> None:
    somas = Somas(folder)
    rng = np.random.default_rng(0)
    rows = [[name, *timed(ask, rounds)] for name, ask in questions(somas, rng).items()]
    out.put((rows, peak_mib(os.getpid())))


def _whole(address: str, out: Any) -> None:
    row = read_whole(Somas(address))
    out.put([*row, f"{peak_mib(os.getpid()):.0f}"])


def apart(work: Callable[..., None], *arguments: Any) -> Any:
    """Return what a process of its own, whose memory is its own, puts out."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=work, args=(*arguments, out))
    process.start()
    found = out.get(timeout=1800)
    process.join()
    return found


def large(folder: Path, n: int, rounds: int, heads: list[str]) -> None:
    """Ask a large table, read it whole, and read it whole over HTTP."""
    if not (folder / "latest.json").exists():
        began = time.process_time()
        large_catalogue(folder, n)
        print(f"\n{n} somas written in {time.process_time() - began:.0f} s of CPU")
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    rows, peak = apart(_questions, str(folder), rounds)
    print_table(f"{n} somas, {size / 1e6:.0f} MB of Parquet; peak memory {peak:.0f} MiB", heads, rows)
    whole = [["folder", *apart(_whole, str(folder)), "-", "-"]]
    with server(folder) as (url, pid):
        row = apart(_whole, url)
        whole.append(["HTTP", *row, f"{cpu_s(pid):.1f}", f"{peak_mib(pid):.0f}"])
    heads = ["from", "rows", "wall s", "CPU s", "peak MiB", "server CPU s", "server peak MiB"]
    print_table("all rows, 8 columns, by id", heads, whole)


def main(arguments: list[str] | None = None) -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--somas", type=int, default=143_000)
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the large table is kept, or lies already")
    options = parser.parse_args(arguments)
    heads = ["question", "wall p50 ms", "wall p95 ms", "CPU ms"]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "small"
        small_catalogue(folder, options.somas)
        with Somas(folder) as somas:
            rng = np.random.default_rng(0)
            rows = [[name, *timed(ask, options.rounds)] for name, ask in questions(somas, rng).items()]
        print_table(f"{options.somas} somas in a local folder", heads, rows)
        with server(folder) as (url, pid):
            with Somas(url) as somas:
                rng = np.random.default_rng(0)
                far = [[name, *timed(ask, options.rounds)] for name, ask in questions(somas, rng).items()]
            for near, row in zip(rows, far, strict=True):
                row[3] = f"{float(row[1]) - float(near[1]):+.1f}"
            print_table("the same over HTTP, on the same machine", [*heads[:3], "p50 more, ms"], far)
            result = crowd(url, pid, options.clients, options.seconds)
            title = "clients that ask without pause: a box, the 10 nearest of a point, or counts by region"
            columns = ["clients", "requests", "errors", "per s", "p50 ms", "p99 ms", "server CPU ms each"]
            print_table(title, columns, [result])
        if options.large:
            folder = options.folder or Path(temporary) / "large"
            large(folder, options.large, max(3, options.rounds // 5), heads)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
