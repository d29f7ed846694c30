"""The HTTP application: mounts, the client and health, put together and run."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, StreamingResponse

from cloudseg.errors import CloudsegError, NotFoundError, SpecError, TransientStorageError
from cloudseg.server.gateway import Asked, Folder, open_folder
from cloudseg.server.neuroglancer_client import client_router
from cloudseg_viewer.links import DATA_PATH, Mount

log = logging.getLogger(__name__)

# A mark in the tab, so that browsers do not ask for one in vain.
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#12202b"/>'
    '<path d="M3 13C6 9 4 7 8 6s3-3 5-4" fill="none" stroke="#7fd1c7" stroke-width="1.6"/>'
    '<circle cx="8" cy="6" r="2.6" fill="#7fd1c7"/></svg>'
)

# How long requests under way may take when the server is told to stop.
_GRACE_S = 5

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app(mounts: Sequence[Mount], *, links: Mapping[str, str] | None = None) -> Application:
    """Return the application that serves ``mounts`` and the Neuroglancer client.

    =========================  ====================================================
    ``/data/<mount>/<key>``    stored bytes: Range, ETag, CORS; 404 for what is not there
    ``/v/0/``                  the Neuroglancer client
    ``/healthz``               JSON: alive, and what is mounted
    ``/``                      a page with the links
    =========================  ====================================================

    Parameters
    ----------
    mounts
        Folders to offer; opening them reads nothing.
    links
        Neuroglancer links by the name that the page shows for them; they may begin with a path of this server.

    Raises
    ------
    NotFoundError
        If a local folder does not exist.
    """
    folders = {mount.name: open_folder(mount.uri) for mount in mounts}
    api = FastAPI(title="cloudseg", docs_url=None, redoc_url=None, openapi_url=None)
    closing = threading.Event()
    api.include_router(client_router(closing=closing.is_set))
    _add_data(api, folders)
    _add_pages(api, folders, dict(links or {}))
    return Application(api, closing)


def _add_data(api: FastAPI, folders: Mapping[str, Folder]) -> None:
    @api.api_route(DATA_PATH + "{name}/{key:path}", methods=["GET", "HEAD"], include_in_schema=False)
    def data(name: str, key: str, request: Request) -> Response:
        folder = folders.get(name)
        if folder is None:
            raise HTTPException(404, f"nothing is mounted as {name!r}; there are: {', '.join(folders)}")
        answer = folder.answer(key, Asked.of(request.headers, method=request.method))
        if isinstance(answer.body, bytes):
            return Response(answer.body, answer.status, answer.headers)
        return StreamingResponse(answer.body, answer.status, answer.headers)

    @api.exception_handler(CloudsegError)
    def refused(request: Request, error: CloudsegError) -> PlainTextResponse:
        status = 404 if isinstance(error, NotFoundError) else 400 if isinstance(error, SpecError) else 500
        if isinstance(error, TransientStorageError):
            status = 503
        if status >= 500:
            log.error("%s %s: %s", request.method, request.url.path, error)
        return PlainTextResponse(f"{error}\n", status)


def _add_pages(api: FastAPI, folders: Mapping[str, Folder], links: Mapping[str, str]) -> None:
    @api.get("/healthz")
    def healthz() -> dict[str, object]:
        return {"status": "ok", "mounts": {name: folder.uri for name, folder in folders.items()}}

    @api.get("/", include_in_schema=False)
    def index() -> HTMLResponse:
        rows = "".join(
            f'<li><a href="{escape(url)}">{escape(name)}</a></li>' for name, url in sorted(links.items())
        )
        return HTMLResponse(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>cloudseg</title>'
            "<style>body{font:16px/1.6 system-ui,sans-serif;max-width:44rem;margin:4rem auto;padding:0 1rem}</style>"
            f"<h1>cloudseg</h1><ul>{rows or '<li>nothing to look at yet</li>'}</ul></html>"
        )

    @api.api_route("/favicon.ico", methods=["GET", "HEAD"], include_in_schema=False)
    def icon() -> Response:
        return Response(_ICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})


class Application:
    """The routes, with leave for pages of any origin to read, errors included.

    A viewer elsewhere must be able to tell a 404 from no answer. Reading is all there is, and no cookie or
    credential is involved, so ``*`` gives nothing away that the address does not. It stands outside the framework,
    whose own answer to a crash would otherwise go out without headers.

    Parameters
    ----------
    app
        The routes.
    closing
        Set when the server is told to stop; streams without an end take it as theirs.
    """

    def __init__(self, app: App, closing: threading.Event) -> None:
        self._app = app
        self.closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (the ASGI protocol)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            await self._preflight(scope, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"access-control-allow-origin", b"*"),
                    (b"access-control-expose-headers", b"*"),
                    # Stored bytes are data: no browser may guess that they are a page.
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    async def _preflight(self, scope: Scope, send: Send) -> None:
        asked = next((v for k, v in scope["headers"] if k == b"access-control-request-headers"), b"range")
        headers = [
            (b"access-control-allow-origin", b"*"),
            (b"access-control-allow-methods", b"GET, HEAD, OPTIONS"),
            (b"access-control-allow-headers", asked),
            # A public page that reads from this machine asks for this as well.
            (b"access-control-allow-private-network", b"true"),
            (b"access-control-max-age", b"86400"),
            (b"allow", b"GET, HEAD, OPTIONS"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Its backlog holds requests until the server runs.

    Raises
    ------
    SpecError
        If the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
    except (OSError, OverflowError) as error:
        sock.close()
        raise SpecError(
            f"cannot listen on {host}:{port} ({error}); give another --port, or 0 for a free one"
        ) from error
    return sock


def base_url(sock: socket.socket) -> str:
    """Return the address under which a browser on this machine reaches ``sock``."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Application, sock: socket.socket, *, access_log: bool = False) -> None:
    """Serve until SIGINT or SIGTERM."""
    # The server ends in good order and then raises the signal again; Ctrl-C is how one ends it, and no failure.
    with suppress(KeyboardInterrupt):
        _server(app, access_log=access_log).run(sockets=[sock])


@contextmanager
def running(app: Application, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve in a thread of this process, for notebooks and tests; yields the base URL.

    >>> with running(create_app([])) as url:  # doctest: +SKIP
    ...     print(url + "/healthz")
    """
    sock = listen(host, port)
    server = _server(app, access_log=False)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [sock]}, name="cloudseg-serve", daemon=True
    )
    thread.start()
    try:
        yield base_url(sock)
    finally:
        server.should_exit = True
        thread.join(timeout=_GRACE_S + 8)
        sock.close()


class _Server(uvicorn.Server):
    """Tells the application before it waits for the connections to end."""

    def __init__(self, app: Application, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._application = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close down."""
        self._application.closing.set()
        await super().shutdown(sockets)


def _server(app: Application, *, access_log: bool) -> _Server:
    config = uvicorn.Config(
        app,
        log_level="info" if access_log else "warning",
        access_log=access_log,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
    )
    return _Server(app, config)
