"""What a worker says: one line for each event, for people or as JSON for log collectors."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from cloudseg.tasking.slot import WorkerEvent

LogFormat = Literal["text", "json"]
VARIABLE = "CLOUDSEG_LOG_FORMAT"
"""Tells the processes that run tasks how to log; set by :func:`configure`."""


def configure(log_format: LogFormat, *, stream: TextIO | None = None) -> None:
    """Send warnings and errors of this process, and of those that it starts, to ``stream`` in ``log_format``.

    Parameters
    ----------
    log_format
        ``text`` or ``json``.
    stream
        Standard error unless given.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    os.environ[VARIABLE] = log_format


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, ``exception``, ``host``, ``pid``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``."""
        fields: dict[str, Any] = {
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json_line(fields, at=record.created)


def json_line(fields: dict[str, Any], *, at: float | None = None) -> str:
    """Return ``fields`` as one line of JSON, with time, host and process beside them."""
    moment = datetime.fromtimestamp(time.time() if at is None else at, tz=UTC)
    head = {
        "time": moment.isoformat(timespec="milliseconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    return json.dumps({**head, **fields}, ensure_ascii=False, default=str)


def describe(event: WorkerEvent, log_format: LogFormat) -> str | None:
    """Return the line of an event; None for one that a person need not see."""
    if log_format == "text":
        if event.name == "started":  # its end says it all
            return None
        line = f"{time.strftime('%H:%M:%S')} {event.name:<8} {event.step} {event.kind} {event.task_id[:12]}"
        if event.attempt > 1:
            line += f" attempt {event.attempt}"
        return f"{line} {event.seconds:.2f} s" + (f": {event.message}" if event.message else "")
    levels = {"failed": "warning", "lost": "warning", "returned": "warning", "dead": "error"}
    fields: dict[str, Any] = {
        "level": levels.get(event.name, "info"),
        "event": event.name,
        "task_id": event.task_id,
        "kind": event.kind,
        "step": event.step,
        "attempt": event.attempt,
        "slot": event.slot,
    }
    if event.name == "started":
        fields["waited_s"] = None if event.waited_s is None else round(event.waited_s, 3)
    else:
        fields["seconds"] = round(event.seconds, 3)
    if event.message:
        fields["message"] = event.message
    if event.receipt is not None and event.name == "done":
        fields["seconds_by_step"] = {name: round(s, 3) for name, s in event.receipt.seconds.items()}
        fields["counters"] = event.receipt.counters
        fields["peak_memory_bytes"] = event.receipt.peak_memory_bytes
    return json_line(fields)
