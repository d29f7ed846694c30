"""Run one task in this process: skip what has its receipt, run the rest, write the receipt last."""

from __future__ import annotations

import functools
import importlib
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.memory import give_back
from cloudseg.tasking.receipts import Receipt, Receipts
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes.claims import new_owner

# The libraries whose version may change a result.
VERSIONED = ("cloudseg", "cloud-volume", "igneous-pipeline", "numba", "numpy", "tensorstore", "torch")
# Whoever starts a container may say which image it is, best with its digest.
IMAGE_VARIABLE = "CLOUDSEG_IMAGE"
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def load_task(message: str) -> Task:
    """Rebuild a task from its JSON by the registry of kinds.

    The registry is a layer above this one, so it is reached by name, as the wire reaches us.
    """
    task: Task = importlib.import_module("cloudseg_tasks.registry").load_task(message)
    return task


def default_context(warm: dict[Any, Any] | None = None, *, network: str = "") -> Context:
    """Return the context of real workers: real storage, ``warm`` for what outlives a task, and a shared network."""
    volumes = importlib.import_module("cloudseg.volumes")  # heavy: not before it is needed
    return Context(
        open_volume=volumes.open_volume, open_objects=volumes.open_objects, warm=warm, network=network
    )


def run_task(
    envelope: Envelope, ctx: Context, *, attempt: int = 1, load: Callable[[str], Task] = load_task
) -> Receipt:
    """Run the task of ``envelope`` unless it has its receipt; return the receipt.

    Parameters
    ----------
    envelope
        The task and where its outputs go.
    ctx
        Storage and warm resources; its books are left alone.
    attempt
        Recorded in the receipt.
    load
        How JSON becomes a task.

    Raises
    ------
    UnknownTaskError
        If the kind is not known here.
    SpecError
        If the task's fields do not validate.
    Exception
        Whatever the task raises; no receipt is written then.
    """
    return run_or_skip(envelope, ctx, attempt=attempt, load=load)[0]


def run_or_skip(
    envelope: Envelope, ctx: Context, *, attempt: int = 1, load: Callable[[str], Task] = load_task
) -> tuple[Receipt, bool]:
    """Do what :func:`run_task` does; also say whether the task ran (False: it had its receipt)."""
    objects = ctx.warm(("objects", envelope.root), lambda: ctx.open_objects(envelope.root))
    receipts = Receipts(objects, envelope.step)
    stored = receipts.get(envelope.task_id)
    if stored is not None:
        return stored, False
    task = load(envelope.canonical_task_json())
    books = ctx.fresh()
    reset_peak_memory()
    started, clock = datetime.now(UTC), time.monotonic()
    task.run(books)
    receipt = Receipt(
        owner=new_owner(),
        task_id=envelope.task_id,
        kind=envelope.kind,
        step=envelope.step,
        attempt=attempt,
        counters=books.counters,
        seconds={**books.seconds, "total": time.monotonic() - clock},
        peak_memory_bytes=peak_memory_bytes(),
        versions=versions(),
        host=socket.gethostname(),
        started=started,
        finished=datetime.now(UTC),
    )
    if not receipts.write(receipt):  # a duplicate finished first: its books are the ones that count
        stored = receipts.get(envelope.task_id)
    return stored or receipt, True


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that shape results."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    image = os.environ.get(IMAGE_VARIABLE)
    return {**found, "image": image} if image else found


def reset_peak_memory() -> None:
    """Give unused memory back, and start a new measurement of :func:`peak_memory_bytes`, where the system can (Linux).

    A warm process keeps what earlier tasks freed, up to hundreds of megabytes: it would count for the next task, and
    be missing to other processes.
    """
    give_back()
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process since the last reset (since its start elsewhere)."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
