"""The processes of a chaos run: workers and the run itself, started as users start them, killed and frozen."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cloudseg.testing.runs import command_line

_TAIL_BYTES = 20_000


@dataclass
class Program:
    """A command that is started again whenever it ends.

    Attributes
    ----------
    words
        Of the ``cloudseg`` command line.
    environ
        Of its process.
    log
        Its logs are ``<log>.<n>``.
    """

    words: list[str]
    environ: Mapping[str, str]
    log: Path
    n_started: int = 0
    started_s: float = 0.0
    thaw_s: float = 0.0
    frozen: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with a log of its own."""
        self.n_started += 1
        with self.newest_log.open("wb") as out:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                command_line(*self.words),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environ},
            )
        self.started_s = time.monotonic()

    @property
    def newest_log(self) -> Path:
        """The log of the process that runs now."""
        return self.log.with_name(f"{self.log.name}.{self.n_started}")

    @property
    def logs(self) -> list[Path]:
        """All its logs, the oldest first."""
        return [self.log.with_name(f"{self.log.name}.{n}") for n in range(1, self.n_started + 1)]

    @property
    def code(self) -> int | None:
        """How the process ended; None while it runs."""
        return None if self.process is None else self.process.poll()

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started_s

    def task_in_hand(self) -> bool:
        """Whether its log says that it runs a task."""
        last = ""
        for event in _events(_tail(self.newest_log)):
            last = event.get("event", last)
        return last == "started" and self.code is None

    def children(self) -> list[psutil.Process]:
        """The processes that run its tasks."""
        if self.process is None or self.code is not None:
            return []
        with suppress(psutil.Error):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False if it has ended already."""
        if self.process is None or self.code is not None:
            return False
        self.process.send_signal(number)
        return True

    def freeze(self, seconds: float, *, with_children: bool) -> bool:
        """Stop it in the middle of whatever it does; False if it has ended already."""
        if self.frozen or self.process is None or self.code is not None:
            return False
        self.frozen = [self.process.pid, *(c.pid for c in self.children() if with_children)]
        self._signal_frozen(signal.SIGSTOP)
        self.thaw_s = time.monotonic() + seconds
        return True

    def thaw_if_due(self, *, now: bool = False) -> None:
        """Let it go on once its time has come."""
        if self.frozen and (now or time.monotonic() > self.thaw_s):
            self._signal_frozen(signal.SIGCONT)
            self.frozen = []

    def stop(self) -> int | None:
        """Tell it to stop, and wait until it has; return its exit code."""
        self.thaw_if_due(now=True)
        self.send(signal.SIGTERM)
        if self.process is not None:
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.code

    def _signal_frozen(self, number: signal.Signals) -> None:
        for pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def worker_events(workers: list[Program]) -> Iterator[dict[str, Any]]:
    """Yield every event that the logs of ``workers`` tell of."""
    for worker in workers:
        for log in worker.logs:
            yield from _events(log.read_text("utf-8", "replace"))


def pick(programs: list[Program], dice: random.Random) -> Program | None:
    """Return a running program, rather one that has a task in hand."""
    able = [p for p in programs if p.code is None and p.process is not None and not p.frozen]
    busy = [p for p in able if p.task_in_hand()]
    return dice.choice(busy or able) if able else None


def left_over(mark: str) -> list[str]:
    """Name the processes that carry ``mark`` in their environment's ``CHAOS_BEGUN``."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("CHAOS_BEGUN") == mark:
                found.append(f"process {process.pid}: {' '.join(process.cmdline())[:120]}")
    return found


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def _events(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("{"):
            with suppress(ValueError):  # cut by a kill
                event = json.loads(line)
                if "event" in event:
                    yield event
