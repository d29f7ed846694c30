"""Instruments of a chaos run inside its processes: on their path as ``sitecustomize.py``, needing no other module.

``CHAOS_CLOCK_SHIFT_S`` moves the clock of the process, as far as Python reads it. ``CHAOS_BEGUN`` names a file to which
each process that runs tasks appends one line as a task begins: its id, the process, and the monotonic clock, which all
processes of a machine share and no shift touches.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REGISTRY = "cloudseg_tasks.registry"
_RealTime = dt.datetime


class _AnyDatetime(type):
    """Makes times that were made by C code instances of the shifted class."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _RealTime)


def shift_clock(seconds: float) -> None:
    """Make ``time`` and ``datetime`` tell another time than this machine."""
    now, now_ns = time.time, time.time_ns
    delta = dt.timedelta(seconds=seconds)

    class Shifted(_RealTime, metaclass=_AnyDatetime):
        __slots__ = ()

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return _RealTime.now(tz) + delta

        @classmethod
        def utcnow(cls) -> Any:
            return _RealTime.now(dt.UTC).replace(tzinfo=None) + delta

    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)
    dt.datetime = Shifted  # type: ignore[misc]


class _NoteBeginnings(MetaPathFinder, Loader):
    """Finds the registry of tasks, and has it note each task that it makes: made, it is run at once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loader: Loader | None = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        assert self._loader is not None
        self._loader.exec_module(module)
        load = module.load_task

        def load_task(message: str) -> Any:
            task = load(message)
            line = f"{task.id} {os.getpid()} {time.monotonic():.6f}\n"
            with open(self._path, "ab", buffering=0) as log:  # noqa: PTH123 - one short append is atomic
                log.write(line.encode())
            return task

        module.load_task = load_task  # type: ignore[attr-defined]


if shift_s := float(os.environ.get("CHAOS_CLOCK_SHIFT_S") or 0):
    shift_clock(shift_s)
if (begun := os.environ.get("CHAOS_BEGUN")) and "cloudseg.tasking.child" in sys.orig_argv:
    sys.meta_path.insert(0, _NoteBeginnings(begun))
