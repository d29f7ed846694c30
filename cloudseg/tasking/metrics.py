"""What a worker measures, for Prometheus; and whether it is alive and ready, for whoever restarts it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol

from cloudseg.errors import CloudsegError, MissingExtraError, StorageError
from cloudseg.tasking.queue import Queue
from cloudseg.tasking.slot import WorkerEvent

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# A scrape may come every few seconds, and each look at a queue costs requests or a scan.
QUEUE_LOOK_S = 30.0
AGE_WINDOW_S = 300.0
TASK_BUCKETS_S = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
OUTCOMES = ("done", "skipped", "failed", "dead", "returned", "lost")


class Watched(Protocol):
    """A part of the worker that can say how it is."""

    def trouble(self) -> str:
        """Why it should be restarted, or nothing."""
        ...

    def obstacle(self) -> str:
        """Why it can take no task now, or nothing."""
        ...


class Health:
    """Whether a worker lives and works; filled by :func:`cloudseg.tasking.worker.work`."""

    def __init__(self) -> None:
        self._parts: Sequence[Watched] = ()
        self._stopping = threading.Event()

    def watch(self, parts: Sequence[Watched], *, stopping: threading.Event) -> None:
        """Tell whose health it is."""
        self._parts, self._stopping = parts, stopping

    def live(self) -> list[str]:
        """Return why the worker should be restarted; empty if it lives."""
        return [trouble for part in self._parts if (trouble := part.trouble())]

    def ready(self) -> list[str]:
        """Return why no task can be taken; empty if at least one slot works."""
        if self._stopping.is_set():
            return ["it is stopping"]
        obstacles = [part.obstacle() for part in self._parts]
        return [] if not all(obstacles) and obstacles else (obstacles or ["it is starting"])


class WorkerMetrics:
    """Counts and times of a worker's tasks.

    Parameters
    ----------
    open_queue
        Opens the queue once more, for its counts.

    Raises
    ------
    MissingExtraError
        If prometheus-client is not installed.
    """

    def __init__(self, open_queue: Callable[[], Queue]) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise MissingExtraError.of("prometheus-client", extra="tasks") from error
        self.registry: CollectorRegistry = prometheus.CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._tasks = prometheus.Counter(
            "cloudseg_tasks", "Tasks by kind and how they ended.", ("kind", "outcome"), **own
        )
        self._running = prometheus.Gauge("cloudseg_tasks_running", "Tasks that run now.", **own)
        self._seconds = prometheus.Histogram(
            "cloudseg_task_seconds", "Duration of finished tasks.", ("kind",), buckets=TASK_BUCKETS_S, **own
        )
        self._step_seconds = prometheus.Counter(
            "cloudseg_task_step_seconds",
            "Seconds spent in each step of finished tasks.",
            ("kind", "step"),
            **own,
        )
        self._bytes = prometheus.Counter(
            "cloudseg_bytes",
            "Bytes of voxels that finished tasks read and wrote.",
            ("kind", "direction"),
            **own,
        )
        self._memory = prometheus.Gauge(
            "cloudseg_task_peak_memory_bytes", "Largest peak memory of a finished task.", ("kind",), **own
        )
        self._peaks: dict[str, int] = {}
        self._ages: deque[tuple[float, float]] = deque()
        self._lock = threading.Lock()
        oldest = prometheus.Gauge(
            "cloudseg_queue_oldest_seconds",
            "Longest time since its arrival of a message leased here in the last five minutes.",
            **own,
        )
        oldest.set_function(self._oldest)
        messages = prometheus.Gauge(
            "cloudseg_queue_messages", "Messages in the queue; SQS counts approximately.", ("state",), **own
        )
        look = _QueueLook(open_queue)
        for state in ("ready", "leased", "dead"):
            messages.labels(state).set_function(partial(look.number, state))

    def note(self, event: WorkerEvent) -> None:
        """Count an event."""
        kind = event.kind or "unreadable"
        if event.name == "started":
            self._running.inc()
            if event.waited_s is not None:
                with self._lock:
                    self._ages.append((time.monotonic(), event.waited_s))
            return
        if event.was_started:
            self._running.dec()
        self._tasks.labels(kind, event.name).inc()
        if event.name != "done":
            return
        self._seconds.labels(kind).observe(event.seconds)
        receipt = event.receipt
        if receipt is None:  # of an igneous task
            return
        for step, seconds in receipt.seconds.items():
            if step != "total":
                self._step_seconds.labels(kind, step).inc(seconds)
        for direction, counter in (("read", "bytes_read"), ("written", "bytes_written")):
            self._bytes.labels(kind, direction).inc(receipt.counters.get(counter, 0))
        with self._lock:
            peak = self._peaks[kind] = max(self._peaks.get(kind, 0), receipt.peak_memory_bytes)
        self._memory.labels(kind).set(peak)

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))

    def _oldest(self) -> float:
        with self._lock:
            while self._ages and self._ages[0][0] < time.monotonic() - AGE_WINDOW_S:
                self._ages.popleft()
            return max((age for _, age in self._ages), default=0.0)


class _QueueLook:
    """The queue's counts, not asked for more often than is polite; NaN while it does not answer."""

    def __init__(self, open_queue: Callable[[], Queue]) -> None:
        self._open = open_queue
        self._queue: Queue | None = None
        self._numbers: dict[str, float] = {}
        self._next = 0.0
        self._lock = threading.Lock()

    def number(self, state: str) -> float:
        with self._lock:
            if time.monotonic() >= self._next:
                try:
                    self._queue = self._queue or self._open()
                    counts = self._queue.counts()
                    self._numbers = {"ready": counts.ready, "leased": counts.leased, "dead": counts.dead}
                except CloudsegError:
                    self._numbers = {}
                self._next = time.monotonic() + QUEUE_LOOK_S
            return self._numbers.get(state, float("nan"))


@contextmanager
def serving(metrics: WorkerMetrics, health: Health, *, host: str, port: int) -> Iterator[int]:
    """Answer ``/metrics``, ``/livez`` and ``/readyz`` over HTTP meanwhile; yields the port.

    Parameters
    ----------
    metrics, health
        What there is to tell.
    host
        Address to listen on; empty: all of this machine's.
    port
        0 for any that is free.

    Raises
    ------
    StorageError
        If the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer."""
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._send(200, metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
                case "/livez":
                    self._tell(health.live())
                case "/readyz":
                    self._tell(health.ready())
                case _:
                    self._send(404, b"there are /metrics, /livez and /readyz\n", "text/plain")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Keep quiet."""

        def _tell(self, problems: list[str]) -> None:
            text = "\n".join(problems) if problems else "ok"
            self._send(503 if problems else 200, f"{text}\n".encode(), "text/plain; charset=utf-8")

        def _send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise StorageError(
            f"cannot listen on port {port} for --metrics-port: {error.strerror or error}; choose another"
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
    )
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
