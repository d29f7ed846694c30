"""The HTTP application: mounts, the client and health, put together and run."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from html import escape
from importlib import metadata

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse

from cloudseg.errors import CloudsegError, SpecError
from cloudseg.server.access import Access
from cloudseg.server.datasets import Datasets
from cloudseg.server.edge import Application, add_problems
from cloudseg.server.gateway import Asked, Folder, open_folder
from cloudseg.server.neuroglancer_client import client_router
from cloudseg.server.numbers import Numbers
from cloudseg.server.page import PAGE_PATH, page_router
from cloudseg.server.progress import progress_router
from cloudseg.server.somas import PROBLEMS, soma_router
from cloudseg.somas.requests import Query
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


def create_app(
    mounts: Sequence[Mount],
    *,
    links: Mapping[str, str] | None = None,
    datasets: Datasets | None = None,
    access: Access | None = None,
    origins: Sequence[str] = (),
    runs: Sequence[str] = (),
) -> Application:
    """Return the application that serves ``mounts``, soma catalogues and the Neuroglancer client.

    =========================  ====================================================
    ``/data/<mount>/<key>``    stored bytes: Range, ETag, CORS; 404 for what is not there
    ``/v1/datasets/...``       questions to soma catalogues, see ``/openapi.json``
    ``/v/0/``                  the Neuroglancer client
    ``/page/``                 the soma page, see :mod:`cloudseg.server.page`
    ``/v1/runs/...``           how far runs are, see :mod:`cloudseg.server.progress`
    ``/healthz``, ``/readyz``  JSON: alive, and what is mounted; whether catalogues can be asked
    ``/metrics``               for Prometheus; wants a token where questions do
    ``/``                      a page with the links
    =========================  ====================================================

    Parameters
    ----------
    mounts
        Folders to offer; opening them reads nothing.
    links
        Neuroglancer links by the name that the page shows for them; they may begin with a path of this server.
    datasets
        Soma catalogues; none when None.
    access
        Who may do what; everybody may read, nobody edit, when None.
    origins
        Origins of pages elsewhere that may ask the soma API, ``*`` for all.
    runs
        Roots whose runs the page of progress tells of.

    Raises
    ------
    NotFoundError
        If a local folder does not exist.
    """
    access = access or Access()
    datasets = datasets or Datasets([])
    folders = {access.capability(mount.name): open_folder(mount.uri) for mount in mounts}
    api = FastAPI(
        title="cloudseg",
        version=metadata.version("cloudseg"),
        description="Somas of a brain: rows, numbers, neighbours. Lengths are nm unless `units` says otherwise.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    closing = threading.Event()
    numbers = Numbers()
    api.include_router(client_router(closing=closing.is_set))
    api.include_router(soma_router(datasets, access, numbers))
    api.include_router(page_router(datasets, access, links or {}))
    api.include_router(progress_router(runs, access))
    add_problems(api)
    _add_data(api, folders, hidden=access.tokens is not None)
    hidden = access.tokens is not None
    _add_pages(api, folders, {} if hidden else dict(links or {}), datasets, hidden=hidden)
    _add_state(api, datasets, numbers, access)
    return Application(api, closing, numbers=numbers, origins=origins)


def _add_data(api: FastAPI, folders: Mapping[str, Folder], *, hidden: bool) -> None:
    @api.api_route(DATA_PATH + "{name}/{key:path}", methods=["GET", "HEAD"], include_in_schema=False)
    def data(name: str, key: str, request: Request) -> Response:
        folder = folders.get(name)
        if folder is None:
            # With tokens, the names of mounts are secrets.
            there = "" if hidden else f"; there are: {', '.join(folders)}"
            raise HTTPException(404, f"nothing is mounted as {name!r}{there}")
        answer = folder.answer(key, Asked.of(request.headers, method=request.method))
        if isinstance(answer.body, bytes):
            return Response(answer.body, answer.status, answer.headers)
        return StreamingResponse(answer.body, answer.status, answer.headers)


def _add_state(api: FastAPI, datasets: Datasets, numbers: Numbers, access: Access) -> None:
    @api.get("/readyz", responses={503: {"description": "A catalogue cannot be asked."}})
    def readyz() -> Response:
        """Whether every catalogue can be asked."""
        try:
            for name in datasets.all():
                datasets.catalogue(name, None)[2].query(Query(limit=1, columns=("soma_id",)))
        except CloudsegError:
            log.exception("not ready")
            return JSONResponse({"status": "a catalogue cannot be asked; the log says why"}, 503)
        return JSONResponse({"status": "ok", "datasets": len(datasets.all())})

    @api.get("/metrics", response_class=PlainTextResponse, responses=PROBLEMS)
    def metrics(request: Request) -> Response:
        """Return counts and times for Prometheus. Wants a token where questions do."""
        if access.tokens is not None:  # how much is asked, and what fails, is the lab's own business
            peer = request.client.host if request.client else "unknown"
            access.admit(request.headers.get("authorization"), peer=peer, scope="read")
        return PlainTextResponse(numbers.text(), media_type="text/plain; version=0.0.4")

    @api.get("/version")
    def version() -> dict[str, str]:
        """Return the version of cloudseg."""
        return {"cloudseg": metadata.version("cloudseg")}


def _add_pages(
    api: FastAPI,
    folders: Mapping[str, Folder],
    links: Mapping[str, str],
    datasets: Datasets,
    *,
    hidden: bool,
) -> None:
    @api.get("/healthz")
    def healthz() -> dict[str, object]:
        """Say that the server is alive."""
        return {"status": "ok", "mounts": {} if hidden else {name: f.uri for name, f in folders.items()}}

    @api.get("/", include_in_schema=False)
    def index() -> HTMLResponse:
        pages = (
            {} if hidden else {f"somas of {name}": f"{PAGE_PATH}?dataset={name}" for name in datasets.all()}
        )
        pages = pages or {"somas": PAGE_PATH}
        pages |= {"runs": f"{PAGE_PATH}progress.html"}
        rows = "".join(
            f'<li><a href="{escape(url)}">{escape(name)}</a></li>'
            for name, url in [*sorted(links.items()), *pages.items()]
        )
        return HTMLResponse(
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>cloudseg</title>'
            "<style>body{font:16px/1.6 system-ui,sans-serif;max-width:44rem;margin:4rem auto;padding:0 1rem}</style>"
            f"<h1>cloudseg</h1><ul>{rows}</ul></html>"
        )

    @api.api_route("/favicon.ico", methods=["GET", "HEAD"], include_in_schema=False)
    def icon() -> Response:
        return Response(_ICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Its backlog holds requests until the server runs.

    Raises
    ------
    SpecError
        If the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's algorithm off for such sockets alone: with it, the body of
    # an answer waits 40 ms for the client to acknowledge the headers.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
