"""The outermost layer: origins that may read, sizes of bodies, ids of requests, and problems in words."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from cloudseg.errors import CloudsegError, NotFoundError, SpecError, TransientStorageError
from cloudseg.server.access import RefusedError
from cloudseg.server.numbers import Numbers
from cloudseg.somas.schema import shortened

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/v1/"
MAX_BODY_BYTES = 32 << 20


class Application:
    """The routes, with what each request needs: an id, a bound on its body, leave for pages of other origins to read.

    Stored bytes may be read by pages of any origin, errors included: a viewer elsewhere must be able to tell a 404
    from no answer, and no cookie or credential is involved, so ``*`` gives nothing away that the address does not.
    The soma API answers pages of the listed origins alone. All this stands outside the framework, whose own answer
    to a crash would otherwise go out without headers.

    Parameters
    ----------
    app
        The routes.
    closing
        Set when the server is told to stop; streams without an end take it as theirs.
    numbers
        Counts the requests.
    origins
        Origins that may ask the soma API, ``*`` for all.
    """

    def __init__(
        self,
        app: App,
        closing: threading.Event,
        *,
        numbers: Numbers | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        self._app = app
        self.closing = closing
        self._numbers = numbers or Numbers()
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (the ASGI protocol)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = self._cors(scope)
        if scope["method"] == "OPTIONS":
            await self._preflight(scope, send, headers)
            return
        request_id = secrets.token_hex(8)
        scope["cloudseg_request_id"] = request_id
        began = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *headers,
                    # Stored bytes are data: no browser may guess that they are a page.
                    (b"x-content-type-options", b"nosniff"),
                    (b"x-request-id", request_id.encode()),
                ]
                route = getattr(scope.get("route"), "path", "other")
                self._numbers.request(scope["method"], route, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, _bounded(receive), send_with_headers)

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origin = next((v for k, v in scope["headers"] if k == b"origin"), b"").decode("latin-1")
        if not scope["path"].startswith(API):
            allowed = "*"
        elif origin and (origin in self._origins or "*" in self._origins):
            allowed = origin
        else:
            return [(b"vary", b"Origin")] if self._origins else []
        found = [(b"access-control-allow-origin", allowed.encode("latin-1"))]
        # The star does not cover answers to requests with an Authorization header; names do.
        exposed = b"*" if allowed == "*" else b"Cloudseg-Facts, ETag, X-Request-Id, Retry-After"
        found.append((b"access-control-expose-headers", exposed))
        return found if allowed == "*" else [*found, (b"vary", b"Origin")]

    async def _preflight(self, scope: Scope, send: Send, cors: list[tuple[bytes, bytes]]) -> None:
        is_api = scope["path"].startswith(API)
        asked = next((v for k, v in scope["headers"] if k == b"access-control-request-headers"), b"range")
        methods = b"GET, HEAD, POST, OPTIONS" if is_api else b"GET, HEAD, OPTIONS"
        headers = [*cors, (b"allow", methods)]
        if any(name == b"access-control-allow-origin" for name, _ in cors):
            headers += [
                (b"access-control-allow-methods", methods),
                (
                    b"access-control-allow-headers",
                    b"authorization, content-type, idempotency-key" if is_api else asked,
                ),
                # A public page that reads from this machine asks for this as well.
                (b"access-control-allow-private-network", b"true"),
                (b"access-control-max-age", b"86400"),
            ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def add_problems(api: FastAPI) -> None:
    """Make every failure an answer in words: JSON with the request's id below ``/v1/``, plain text elsewhere."""

    @api.exception_handler(CloudsegError)
    def refused(request: Request, error: CloudsegError) -> Response:
        status = 404 if isinstance(error, NotFoundError) else 500
        if isinstance(error, SpecError):
            status = 422 if _is_api(request) else 400
        if isinstance(error, TransientStorageError):
            status = 503
        if status >= 500:
            log.error("%s %s: %s", request.method, request.url.path, error)
        if status == 500 and _is_api(request):
            return _problem(request, status, "the server failed; its log says why")
        return _problem(request, status, str(error), kind=type(error).__name__)

    @api.exception_handler(RefusedError)
    def not_admitted(request: Request, error: RefusedError) -> Response:
        response = _problem(request, error.status, error.reason)
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        return response

    @api.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        parts = []
        for item in error.errors()[:10]:
            at = ".".join(str(part) for part in item["loc"] if part not in ("body", "query", "path"))
            got = "" if item["type"] == "missing" else f" (got {shortened(item.get('input'))})"
            parts.append(f"{at or 'body'}: {item['msg']}{got}")
        return _problem(request, 422, "; ".join(parts))

    @api.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        response = _problem(request, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(Exception)
    def crashed(request: Request, error: Exception) -> Response:  # noqa: ARG001  (it is raised again and logged)
        return _problem(request, 500, "the server failed; its log says why")


def _is_api(request: Request) -> bool:
    return request.url.path.startswith(API)


def _problem(request: Request, status: int, message: str, *, kind: str = "") -> Response:
    if not _is_api(request):
        return PlainTextResponse(f"{message}\n", status)
    body = {"message": message, "request_id": request.scope.get("cloudseg_request_id")}
    return JSONResponse({"error": {**body, "type": kind} if kind else body}, status)


def _bounded(receive: Receive) -> Receive:
    """Return ``receive`` that gives up on a body above the bound, whatever its header said."""
    so_far = 0

    async def bounded() -> Message:
        nonlocal so_far
        message = await receive()
        if message["type"] == "http.request":
            so_far += len(message.get("body", b""))
            if so_far > MAX_BODY_BYTES:
                # One that the framework lets pass while it reads a body.
                raise HTTPException(
                    413, f"the body is larger than {MAX_BODY_BYTES} bytes; ask in several parts"
                )
        return message

    return bounded
