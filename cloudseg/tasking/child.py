"""The warm process that runs a worker's tasks: ``python -m cloudseg.tasking.child FD PARENT_PID THREADS GPU NETWORK``.

It reads one request at a time from the socket FD and answers it; all else (leases, limits, signals,
retries) is its supervisor's business. It ends when the supervisor does, however that ends.

NETWORK is the socket of the process that runs networks for all tasks of the worker; empty: tasks run their own.

Requests and answers are JSON::

    {"envelope": "<json>", "attempt": 2}   ->  {"ok": true, "ran": true, "receipt": "<json>"}
    {"foreign": {"class": ...}}            ->  {"ok": true, "ran": true, "receipt": null}
    a failure                              ->  {"ok": false, "hopeless": false, "error": ..., "traceback": ...}
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from cloudseg.errors import CloudsegError, SpecError
from cloudseg.tasking.envelope import Envelope
from cloudseg.tasking.logs import VARIABLE, configure
from cloudseg.tasking.run_task import default_context, run_or_skip
from cloudseg.tasking.task import Context

READY = b"ready"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Serve the supervisor at the other end of the socket until it goes away."""
    fd, parent_pid, n_threads, wants_gpu = (int(arg) for arg in argv[:4])
    (network,) = argv[4:]
    connection = begin(fd, parent_pid)
    if wants_gpu:
        check_gpu()
    ctx = default_context({}, network=network)
    set_threads = getattr(importlib.import_module("cloudseg.volumes"), "set_threads", None)
    if set_threads is not None:
        set_threads(n_threads)
    connection.send_bytes(READY)
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(json.dumps(_answer(request, ctx)).encode())


def begin(fd: int, parent_pid: int) -> Connection:
    """Do what each process of a worker begins with: end with the supervisor, leave signals to it, log as it does."""
    # A Ctrl-C or a group-wide SIGTERM may reach us too; what they mean is for the supervisor to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    _die_with(parent_pid)
    connection = Connection(fd)
    threading.Thread(target=_exit_at_hang_up, args=(fd,), name="hang-up", daemon=True).start()
    if log_format := os.environ.get(VARIABLE):
        configure("json" if log_format == "json" else "text")
    return connection


def _answer(request: dict[str, Any], ctx: Context) -> dict[str, Any]:
    try:
        if "foreign" in request:
            importlib.import_module("cloudseg_tasks.igneous").run_foreign(request["foreign"])
            return {"ok": True, "ran": True, "receipt": None}
        envelope = Envelope.load(request["envelope"], where="envelope")
        receipt, ran = run_or_skip(envelope, ctx, attempt=request["attempt"])
    except BaseException as error:  # noqa: BLE001 - task-queue raises BaseException; sys.exit in a task is a failure
        return {
            "ok": False,
            "hopeless": isinstance(error, SpecError),
            "error": "".join(traceback.format_exception_only(error)).strip(),
            "traceback": traceback.format_exc(),
        }
    return {"ok": True, "ran": ran, "receipt": receipt.canonical_json()}


def check_gpu() -> None:
    """Leave, with the reason, where no GPU can be used: every task would fail, or crawl on the processor."""
    try:
        importlib.import_module("cloudseg.models.predict").pick_device("cuda")
    except CloudsegError as error:
        logging.getLogger(__name__).error("no task can run here: %s", error)
        sys.exit(1)


def _die_with(parent_pid: int) -> None:
    """Ask the kernel to kill us with our supervisor: a thread of ours may not get to run for minutes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


def _exit_at_hang_up(fd: int) -> None:
    """Leave when the other end of the socket is closed: where the kernel does not do it for us."""
    poll = select.poll()
    poll.register(fd, 0)  # no event but hang-up and error, which are always reported
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
