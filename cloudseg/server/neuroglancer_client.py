"""The Neuroglancer client out of the ``neuroglancer`` package, with the endpoints it expects of a server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from cloudseg.errors import MissingExtraError
from cloudseg_viewer.links import CLIENT_PATH

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "application/javascript; charset=utf-8",
    ".map": "application/json",
    ".wasm": "application/wasm",
}
# The client takes its token from its own address, ``/v/<token>/``; with no session behind it, one is enough.
_TOKEN = CLIENT_PATH.strip("/").rpartition("/")[2]

# Bounded, for the file system's answer to a name longer than it takes is an error, not a no.
_FILE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,200}$")

# Neuroglancer 2.41.2 writes its state into the address while it still restores the layers, if that takes longer than
# 0.4 s. An annotation layer whose turn has not come has no list of relationships then; the error drops the layer
# that is being restored, for good. With the list that it begins with anyway, nothing is lost.
_UNSET = b"localAnnotationRelationships;localAnnotationsJson=void 0"
_SET = b'localAnnotationRelationships=["segments"];localAnnotationsJson=void 0'

# Proxies and browsers drop a silent stream after half a minute or more.
_KEEP_ALIVE_S = 15.0
# How soon a closed tab, or the server's end, is noticed.
_POLL_S = 0.5


def client_folder() -> Path:
    """Return the folder of the bundled client's files.

    The package is found without importing it: importing starts a web framework that we do not use, and costs
    half a second.

    Raises
    ------
    MissingExtraError
        If the package, or its client, is not installed.
    """
    spec = find_spec("neuroglancer")
    if spec is None or spec.origin is None:
        raise MissingExtraError("'neuroglancer' is not installed; install it with: pip install neuroglancer")
    folder = Path(spec.origin).parent / "static" / "client"
    if not (folder / "index.html").is_file():
        raise MissingExtraError(
            f"the installed 'neuroglancer' has no client in {folder}; "
            "install a release from PyPI: pip install --force-reinstall neuroglancer"
        )
    return folder


def client_router(folder: Path | None = None, *, closing: Callable[[], bool]) -> APIRouter:
    """Return the routes of the client: ``/v/0/`` and its stubs.

    The client is built to be driven from Python: without an event stream to listen to, and somewhere to put its
    state, it shows "Disconnected from Python server" for ever. Ours keeps its state in the link alone, so the
    stream says nothing and what is put is forgotten.

    Parameters
    ----------
    folder
        The client's files; those of the installed package when None.
    closing
        Whether the server is about to end: then the stream ends as well.
    """
    files = client_folder() if folder is None else folder
    router = APIRouter(include_in_schema=False)
    mended = lru_cache(maxsize=1)(mended_script)

    @router.api_route(f"/v/{_TOKEN}/{{name:path}}", methods=["GET", "HEAD"])
    def static(name: str) -> Response:
        name = name or "index.html"
        path = files / name
        if not _FILE.match(name) or not path.is_file():
            raise HTTPException(404, f"the client has no file {name[:80]!r}")
        # File names carry a digest of their content; only the page itself can change under its name.
        caching = "no-cache" if name == "index.html" else "public, max-age=31536000, immutable"
        kind = _TYPES.get(path.suffix, "application/octet-stream")
        if name.startswith("main.") and path.suffix == ".js":
            return Response(mended(path), media_type=kind, headers={"Cache-Control": caching})
        return FileResponse(path, media_type=kind, headers={"Cache-Control": caching})

    @router.get(f"/events/{_TOKEN}")
    async def events(request: Request) -> StreamingResponse:
        return StreamingResponse(
            _silence(request, closing), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    @router.post(f"/state/{_TOKEN}")
    async def set_state() -> JSONResponse:
        return JSONResponse({"g": "link/0"})

    @router.post(f"/action/{_TOKEN}")
    async def action() -> Response:
        return Response(status_code=204)

    return router


def mended_script(path: Path) -> bytes:
    """Return the client's main script, with the one field set whose absence makes it lose layers on a slow start.

    A client in which that field is written otherwise is returned as it is.
    """
    return path.read_bytes().replace(_UNSET, _SET)


async def _silence(request: Request, closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    yield b": ok\n\n"
    waited_s = 0.0
    while not closing() and not await request.is_disconnected():
        await asyncio.sleep(_POLL_S)
        waited_s += _POLL_S
        if waited_s >= _KEEP_ALIVE_S:
            waited_s = 0.0
            yield b": still here\n\n"
