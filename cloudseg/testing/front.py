"""A server before a stand-in for a bucket: repairs what the stand-in gets wrong, injects faults, counts."""

from __future__ import annotations

import http.client
import json
import random
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_OBJECT = re.compile(r"^/storage/v1/b/([^/]+)/o/([^/?]+)$")


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
    flip
        How many bytes of the body are changed.
    cut
        Break the connection ``before`` the request is forwarded, ``after`` it was carried out (the answer is
        lost), or ``mid`` in the body of the answer.
    delay_s
        Seconds to wait in the middle of the body.
    without
        Regular expression over names of headers that the answer then lacks.
    times
        How many requests suffer.
    """

    match: str
    status: int | None = None
    shorten: float | None = None
    flip: int = 0
    cut: Literal["before", "after", "mid"] | None = None
    delay_s: float = 0
    without: str = ""
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
    n_faults
        How many requests have suffered.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    n_faults: int = 0
    # Positions of flipped bytes, the same in every run.
    random: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault_for(self, line: str) -> Fault | None:
        """Note a request and return what shall go wrong with it.

        ``line`` is ``METHOD path?query``, and for requests of SQS the operation after it.
        """
        with self.lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, line):
                    fault.times -= 1
                    self.n_faults += 1
                    return fault
        return None

    def rewritten(self, line: str, body: bytes) -> bytes:  # noqa: ARG002 - for subclasses
        """Return the body that is forwarded in place of ``body``."""
        return body

    def answered(self, line: str, fault: Fault, status: int, data: bytes) -> tuple[int, bytes]:  # noqa: ARG002
        """Return what the client gets in place of the server's answer; ``fault`` still happens to it."""
        return status, data


class BatchFront(Front):
    """A front before SQS that refuses entries of batches.

    Parameters
    ----------
    refuse
        Gives the ``Failed`` entry with which an entry of a batch is refused, or None to let it pass.

    Attributes
    ----------
    sizes
        How many entries each batch brought, by operation.
    """

    def __init__(self, refuse: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        super().__init__()
        self.sizes: dict[str, list[int]] = {}
        self._refuse = refuse
        # A request and its answer pass through one thread.
        self._now = threading.local()

    def rewritten(self, line: str, body: bytes) -> bytes:
        """Leave out the entries that are refused."""
        self._now.refused = []
        if not line.endswith("Batch"):
            return body
        call = json.loads(body)
        with self.lock:
            self.sizes.setdefault(line.rpartition(" ")[2], []).append(len(call["Entries"]))
            refused = [answer for entry in call["Entries"] if (answer := self._refuse(entry))]
        self._now.refused = refused
        names = {answer["Id"] for answer in refused}
        call["Entries"] = [entry for entry in call["Entries"] if entry["Id"] not in names]
        return json.dumps(call).encode()

    def answered(self, line: str, fault: Fault, status: int, data: bytes) -> tuple[int, bytes]:  # noqa: ARG002
        """Name them in the answer. A batch of which nothing was left, the server has refused as empty."""
        refused = self._now.refused
        if not refused:
            return status, data
        answer = json.loads(data) if status == 200 else {"Successful": []}
        return 200, json.dumps({**answer, "Failed": [*answer.get("Failed", ()), *refused]}).encode()


@contextmanager
def front(upstream: str, made: Front | None = None) -> Iterator[Front]:
    """Run a front, or the one that was ``made`` for it, before the server at ``upstream``."""
    used = made or Front()

    class Handler(_FrontHandler):
        state = used
        host = urlsplit(upstream).netloc

    with serving(Handler) as port:
        used.url = f"http://127.0.0.1:{port}"
        yield used


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[int]:
    """Run an HTTP server on a free port of 127.0.0.1; give the port."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # With the default of 5, the connections of one parallel read overflow it, and each lost one costs a second.
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that clients, or faults, have cut."""


class _FrontHandler(BaseHTTPRequestHandler):
    """Forwards to ``host``, once repaired."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: Front
    host: str
    connection_up: http.client.HTTPConnection | None = None  # kept as long as the client keeps its own

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Keep quiet."""

    def finish(self) -> None:
        """Close both connections."""
        with suppress(OSError):  # cut by a fault
            super().finish()
        if self.connection_up is not None:
            self.connection_up.close()

    def do_any(self) -> None:
        """Answer a request of any method."""
        body = self._body()
        operation = self.headers.get("X-Amz-Target", "").replace("AmazonSQS.", " ")
        line = f"{self.command} {unquote(self.path)}{operation}"
        fault = self.state.fault_for(line) or Fault("")
        if fault.cut == "before":
            self._cut()
            return
        if fault.status:
            self._answer(fault.status, [("Content-Type", "application/json")], _error("injected"), Fault(""))
            return
        body = self.state.rewritten(line, body)
        path, headers = self.path, {name.title(): value for name, value in self.headers.items()}
        if self.command == "POST" and "uploadType=media" in path:
            path, headers, body = _as_multipart(path, headers, body)
        for name in ("Host", "Connection", "Transfer-Encoding", "Content-Length", "Expect"):
            headers.pop(name, None)
        if self.command == "DELETE" and "ifGenerationMatch=" in path:
            with self.state.lock:  # fake-gcs-server ignores the condition of a DELETE
                status, reply, data = self._delete_if_unchanged(path, headers)
        else:
            status, reply, data = self._forward(self.command, path, headers, body)
        status, data = self.state.answered(line, fault, status, data)
        if fault.cut == "after":
            self._cut()
            return
        if fault.shorten is not None:
            data = data[: int(len(data) * fault.shorten)]
        if fault.flip and data:
            data = _flipped(data, fault.flip, self.state.random)
        self._answer(status, reply, data, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = do_any

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        if self.connection_up is None:
            self.connection_up = http.client.HTTPConnection(self.host, timeout=60)
        self.connection_up.request(method, path, body=body or None, headers=headers)
        reply = self.connection_up.getresponse()
        return reply.status, reply.getheaders(), reply.read()

    def _delete_if_unchanged(
        self, path: str, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        parts = urlsplit(path)
        wanted = dict(parse_qsl(parts.query))["ifGenerationMatch"]
        found = _OBJECT.match(parts.path)
        name = quote(unquote(found[2]), safe="") if found else ""
        where = f"/storage/v1/b/{found[1]}/o/{name}" if found else parts.path
        status, _, data = self._forward("GET", where, {}, b"")
        generation = str(json.loads(data)["generation"]) if status == 200 else "0"
        if generation != wanted:
            return 412, [("Content-Type", "application/json")], _error("conditionNotMet")
        return self._forward("DELETE", path, headers, b"")

    def _body(self) -> bytes:
        if (self.headers.get("Transfer-Encoding") or "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault) -> None:
        self.send_response_only(status)
        for name, value in headers:
            dropped = fault.without and re.search(fault.without, name, re.IGNORECASE)
            if name.lower() not in ("content-length", "transfer-encoding", "connection") and not dropped:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD" or status in (204, 304):
            return
        half = len(data) // 2 if fault.cut == "mid" or fault.delay_s else 0
        self.wfile.write(data[:half])
        if fault.cut == "mid":
            self._cut()
            return
        time.sleep(fault.delay_s)
        self.wfile.write(data[half:])

    def _cut(self) -> None:
        """Break the connection: with lingering off, the other side sees a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


def _flipped(data: bytes, n: int, source: random.Random) -> bytes:
    changed = bytearray(data)
    for place in source.sample(range(len(changed)), min(n, len(changed))):
        changed[place] ^= source.randrange(1, 256)
    return bytes(changed)


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
