"""Task kinds for tests of queues, workers and pipelines. ``CLOUDSEG_EXTRA_KINDS=EXTRA_KINDS`` adds them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal

from cloudseg.errors import SpecError
from cloudseg.tasking.task import Context, Task


class NoteTask(Task):
    """Append one byte to ``<folder>/<name>`` at its start, wait, and append another at its end."""

    kind: Literal["test_note/1"] = "test_note/1"
    folder: str
    name: str
    seconds: float = 0.0
    hold_gil: bool = False

    def run(self, ctx: Context) -> None:
        """Leave the notes; ``hold_gil`` waits inside one C call that no other Python thread can interrupt."""
        note = Path(self.folder, self.name)
        with note.open("ab") as file:
            file.write(b"<")
        with ctx.step("wait"):
            if self.hold_gil:
                import ctypes

                # PyDLL, unlike CDLL, keeps the interpreter lock during the call, as meshing and codecs do.
                ctypes.PyDLL(None).usleep(int(self.seconds * 1e6))
            else:
                time.sleep(self.seconds)
        with note.open("ab") as file:
            file.write(b">")
        ctx.count(notes=1)


class FailTask(Task):
    """Fail, for good or ``n_times`` (counted in ``<folder>/<name>``)."""

    kind: Literal["test_fail/1"] = "test_fail/1"
    folder: str
    name: str
    n_times: int = 1_000_000
    how: Literal["error", "spec", "kill", "exit"] = "error"

    def run(self, ctx: Context) -> None:  # noqa: ARG002 - the contract of Task
        """Fail in the way that ``how`` says."""
        note = Path(self.folder, self.name)
        with note.open("ab") as file:
            file.write(b"x")
            n_runs = file.tell()
        if n_runs > self.n_times:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            raise SystemExit(3)
        if self.how == "spec":
            raise SpecError(f"task {self.name} asks for the impossible")
        raise RuntimeError(f"task {self.name} fails on purpose")


class ThreadsTask(Task):
    """Count the threads that numerical libraries may use."""

    kind: Literal["test_threads/1"] = "test_threads/1"

    def run(self, ctx: Context) -> None:
        """Ask the environment and, as an example of a library, numba."""
        import numba

        ctx.count(omp=int(os.environ["OMP_NUM_THREADS"]), numba=numba.get_num_threads())


class HogTask(Task):
    """Fill memory, 16 MiB at a time, until ``bytes`` are held."""

    kind: Literal["test_hog/1"] = "test_hog/1"
    bytes: int

    def run(self, ctx: Context) -> None:
        """Hold the memory for a moment."""
        held = []
        for _ in range(self.bytes // 2**24):
            held.append(bytearray(os.urandom(1) * 2**24))
            time.sleep(0.02)
        ctx.count(blocks=len(held))


EXTRA_KINDS = ",".join(
    f"{cls.model_fields['kind'].default}=cloudseg.testing.tasks:{cls.__name__}"
    for cls in (NoteTask, FailTask, ThreadsTask, HogTask)
)
