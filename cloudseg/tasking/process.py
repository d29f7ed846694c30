"""A supervisor's hold on its child process: start it, talk to it, watch it, kill it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from cloudseg.errors import TaskFailedError
from cloudseg.tasking.child import READY

# Importing the libraries takes seconds on a cold, busy machine; minutes mean that something is broken.
START_SECONDS = 300
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

Seen = Literal["answer", "died", "woken", "nothing"]


class ChildProcess:
    """One running child. Make it, and kill it, from the same thread: Linux ties its life to that thread.

    Parameters
    ----------
    n_threads
        How many threads its numerical libraries may use.
    gpu
        Which GPU it uses; it refuses to start where there is none. Empty: the system's choice; None: it may do
        without.
    module
        What it runs.
    purpose
        What it does, for messages.
    extra
        Its further arguments.
    inherited
        File descriptors that it gets besides its socket.
    """

    def __init__(
        self,
        *,
        n_threads: int,
        gpu: str | None = None,
        module: str = "cloudseg.tasking.child",
        purpose: str = "runs tasks",
        extra: Sequence[str] = (),
        inherited: Sequence[int] = (),
    ) -> None:
        self._purpose = purpose
        self._was_ready = False
        ours, theirs = socket.socketpair()
        # The libraries read these when they are first imported: they must be set before the process starts.
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(n_threads))}
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        arguments = [
            str(theirs.fileno()),
            str(os.getpid()),
            str(n_threads),
            str(int(gpu is not None)),
            *extra,
        ]
        self._process = subprocess.Popen(
            # -P: a file of the working directory must not stand in for a library.
            [sys.executable, "-P", "-m", module, *arguments],
            pass_fds=[theirs.fileno(), *inherited],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that what it starts can be killed with it
        )
        theirs.close()
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def await_ready(self, wake: Connection) -> bool:
        """Wait until the child can take a task; False if ``wake`` came first.

        Raises
        ------
        TaskFailedError
            If the child ends, or says nothing for minutes: no task of this worker could run.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            match self.look(deadline - time.monotonic(), wake):
                case "woken":
                    return False
                case "died":
                    break
                case "answer":
                    if self._connection.recv_bytes() == READY:
                        self._was_ready = True
                        return True
        how = explain_exit(self.kill())
        raise TaskFailedError(
            f"the process that {self._purpose} did not start: {how}; its own messages say why"
        )

    def ask(self, request: dict[str, Any]) -> None:
        """Send one request."""
        self._connection.send_bytes(json.dumps(request).encode())

    def answer(self) -> dict[str, Any]:
        """Receive the answer that :meth:`look` has seen."""
        answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        return answer

    def look(self, timeout_s: float, wake: Connection) -> Seen:
        """Wait for an answer, the child's end, or ``wake``, whichever is first."""
        ready = wait([self._connection, wake], max(0.0, timeout_s))
        if self._connection in ready:
            try:
                # A closed socket is readable too; only reading tells, and an answer must not be lost.
                return "answer" if _has_data(self._connection) else "died"
            except OSError:
                return "died"
        return "woken" if wake in ready else "nothing"

    def was_ready(self) -> bool:
        """Whether it has ever been ready, though nobody may have waited for it."""
        try:
            return self._was_ready or _has_data(self._connection)
        except OSError:
            return False

    def exit_code(self) -> int | None:
        """Return its exit code if it has ended."""
        return self._process.poll()

    def memory_bytes(self) -> int:
        """Return the resident memory of the child, 0 if it is gone."""
        import psutil

        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def kill(self) -> int:
        """Kill the child and what it started, wait for its end; return its exit code (-9: killed)."""
        if self._process.poll() is None:  # else the number may belong to another process by now
            # macOS refuses (PermissionError) where the last member of the group is a zombie.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        self._connection.close()
        return code

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it."""
        code = self._process.poll()
        return code is not None and code < 0


def share_gpus(n_processes: int) -> list[str]:
    """Return which GPU each process uses, in turns; all empty where this machine does not say what it has."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed:
        found = [name.strip() for name in listed.split(",") if name.strip()]
    else:
        found = []
        with suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run(
                ["nvidia-smi", "-L"],  # noqa: S607 - wherever the driver has put it
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            found = [str(n) for n, _ in enumerate(asked.stdout.strip().splitlines())]
    return [found[n % len(found)] if found else "" for n in range(n_processes)]


def _has_data(connection: Connection) -> bool:
    with socket.socket(fileno=os.dup(connection.fileno())) as peek:
        return bool(peek.recv(1, socket.MSG_PEEK))


def explain_exit(code: int) -> str:
    """Say in words how a process ended."""
    if code >= 0:
        return f"it left with exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    if -code == signal.SIGKILL:
        return (
            f"it was killed ({name}) from outside, most often by the system because memory ran out; "
            "give the worker more memory, or run fewer processes or smaller blocks"
        )
    return f"it was ended by {name}; the worker's log has what it said last"
