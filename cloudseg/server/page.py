"""The soma page: its files, and what it asks for beyond the soma API."""

from __future__ import annotations

import gzip
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse

from cloudseg.server import columns, points
from cloudseg.server.access import Access, Identity
from cloudseg.server.answers import tagged
from cloudseg.server.datasets import Dataset, Datasets
from cloudseg.server.ranges import matches
from cloudseg.server.somas import PROBLEMS, VersionQuery
from cloudseg.somas.filters import id_list
from cloudseg.somas.schema import COLUMNS, columns_named
from cloudseg.somas.store import Catalog
from cloudseg.somas.thumbnails import has_thumbnails, read_thumbnail
from cloudseg_viewer.layers import Json
from cloudseg_viewer.links import DATA_PATH, state_of

PAGE_PATH = "/page/"
POINTS_PATH = "/points/"

_FILE = re.compile(r"^[a-z0-9_]{1,100}\.(?:html|css|js)$")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "application/javascript"}
# Nothing but what this server sends; a name in the data is text, whatever it looks like.
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
)
_SERVER = re.compile(rf"https?://[^/|]+(?={re.escape(DATA_PATH)})")
HERE = "{here}"
"""Stands for the origin of the page in its state: the server may have several names."""

# Of each kind so many answers are kept: the published version, and the one before it.
_KEPT = 2


def page_router(datasets: Datasets, access: Access, links: Mapping[str, str]) -> APIRouter:
    """Return the routes of the page.

    ============================================  ==========================================================
    ``/page/<file>``                              the page itself, without data
    ``/v1/datasets/<d>/page``                     what it opens with: version, view, who may edit
    ``/v1/datasets/<d>/columns``                  the table, see :mod:`cloudseg.server.columns`
    ``/v1/datasets/<d>/thumbnails/<soma>``        three sections of a soma, where the pipeline drew them
    ``/points/<name>/<version>/...``              a Neuroglancer source, see :mod:`cloudseg.server.points`
    ============================================  ==========================================================

    Parameters
    ----------
    datasets, access
        As in the soma API.
    links
        Neuroglancer links by the address of the root that they show.
    """
    router = APIRouter(responses=PROBLEMS)
    folder = page_folder()
    tables, packed = _Kept(_KEPT), _Kept(_KEPT)

    def may_read(request: Request) -> Identity:
        peer = request.client.host if request.client else "unknown"
        return access.admit(request.headers.get("authorization"), peer=peer, scope="read")

    reader = Depends(may_read)

    def table_of(found: Dataset, catalog: Catalog) -> tuple[bytes, points.Points]:
        def make() -> tuple[bytes, points.Points]:
            names = list(dict.fromkeys([*columns.NAMES, *points.NAMES]))
            table = columns.read_table(found.objects, catalog, names)
            return columns.to_bytes(table.select(columns.NAMES), catalog), points.Points.of(table)

        kept: tuple[bytes, points.Points] = tables.get((found.name, catalog.version), make)
        return kept

    @router.api_route(PAGE_PATH + "{name}", methods=["GET", "HEAD"], include_in_schema=False)
    @router.api_route(PAGE_PATH, methods=["GET", "HEAD"], include_in_schema=False)
    def file(request: Request, name: str = "index.html") -> Response:
        path = folder / name
        if not _FILE.match(name) or not path.is_file():
            raise HTTPException(404, f"the page has no file {name[:80]!r}")
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
        response = FileResponse(path, media_type=_TYPES[path.suffix] + "; charset=utf-8", headers=headers)
        response.set_stat_headers(path.stat())
        if matches(request.headers.get("if-none-match"), response.headers["etag"]):
            return Response(status_code=304, headers={"ETag": response.headers["etag"], **headers})
        return response

    @router.get(PAGE_PATH.rstrip("/"), include_in_schema=False)
    def without_slash() -> Response:
        return RedirectResponse(PAGE_PATH)

    @router.get("/v1/datasets/{dataset}/page", tags=["page"])
    def page(
        dataset: str, request: Request, version: VersionQuery = None, who: Identity = reader
    ) -> Response:
        """What the soma page opens with: version, view, who may edit."""
        found, catalog, _ = datasets.catalogue(dataset, version)
        facts = catalog.model_dump(
            mode="json", include={"dataset", "version", "n_somas", "voxel_size_nm", "bounds_nm", "made_from"}
        )
        name = access.capability(f"{POINTS_PATH.strip('/')}-{found.name}")
        body = {
            **facts,
            "versions": list(found.latest.versions),
            "latest": found.latest.version,
            "columns": {each.name: each.kind for each in COLUMNS},
            "you": {"name": who.name, "scopes": sorted(who.scopes), "tokens": access.tokens is not None},
            "thumbnails": has_thumbnails(found.objects, catalog.version),
            "state": state_for(found.objects.uri, links),
            "points": f"{HERE}{POINTS_PATH}{quote(name)}/{catalog.version}",
        }
        return tagged(JSONResponse(body), request, immutable=False)

    @router.get("/v1/datasets/{dataset}/columns", dependencies=[reader], tags=["page"])
    def table(
        dataset: str,
        request: Request,
        version: VersionQuery = None,
        names: Annotated[str | None, Query(max_length=2000, description="Columns, with commas.")] = None,
    ) -> Response:
        """Return whole columns, packed for a page: those it shows, or the named ones."""
        found, catalog, _ = datasets.catalogue(dataset, version)
        if names is None:
            body = table_of(found, catalog)[0]
        else:
            wanted = columns_named(names.split(","), where="names")
            body = columns.to_bytes(columns.read_table(found.objects, catalog, wanted), catalog)
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        if zipped:
            plain = body
            body = packed.get((found.name, catalog.version, names), lambda: gzip.compress(plain, 1, mtime=0))
        response = Response(body, media_type="application/octet-stream")
        response = tagged(response, request, immutable=version is not None)
        response.headers["Vary"] = "Accept-Encoding"
        if zipped and response.status_code == 200:
            response.headers["Content-Encoding"] = "gzip"
        return response

    @router.get(
        "/v1/datasets/{dataset}/thumbnails/{soma_id}",
        dependencies=[reader],
        tags=["page"],
        responses={200: {"content": {"image/png": {}}}},
        response_class=Response,
    )
    def thumbnail(dataset: str, soma_id: str, request: Request, version: VersionQuery = None) -> Response:
        """Three sections through a soma, xy, xz and yz, as a PNG."""
        found, catalog, _ = datasets.catalogue(dataset, version)
        (wanted,) = id_list(soma_id, where="soma_id")
        data = read_thumbnail(found.objects, wanted, version=catalog.version)
        return tagged(Response(data, media_type="image/png"), request, immutable=version is not None)

    @router.get(POINTS_PATH + "{name}/{version}/{key:path}", include_in_schema=False)
    def point_files(name: str, version: int, key: str) -> Response:
        # Viewers send no tokens: with tokens, the name is the permission.
        by_name = {access.capability(f"{POINTS_PATH.strip('/')}-{each}"): each for each in datasets.all()}
        if name not in by_name:
            raise HTTPException(404, "no points are here under this name")
        found, catalog, _ = datasets.catalogue(by_name[name], version)
        made = table_of(found, catalog)[1]
        headers = {"Cache-Control": "private, max-age=3600"}
        if key == "info":
            return JSONResponse(made.info(), headers=headers)
        return Response(made.get(key), media_type="application/octet-stream", headers=headers)

    return router


def page_folder() -> Path:
    """Return the folder of the page's files."""
    return Path(str(files("cloudseg_viewer"))) / "page"


def state_for(uri: str, links: Mapping[str, str]) -> Json | None:
    """Return the Neuroglancer state of the root in which a catalogue lies, None where no volume was found.

    Parameters
    ----------
    uri
        Address of the catalogue.
    links
        Links by the address of their root. Addresses of this server become ``{here}``.
    """
    for root, link in sorted(links.items(), key=lambda each: -len(each[0])):
        if uri == root or uri.startswith(root.rstrip("/") + "/"):
            state: Json = _with_origin(state_of(link))
            return state
    return None


def _with_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_origin(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_origin(each) for each in value]
    return _SERVER.sub(HERE, value) if isinstance(value, str) else value


class _Kept:
    """The last few answers, each made once however many ask for it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[object, ...], Any] = OrderedDict()

    def get(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        """Return what was made for ``key``."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
            else:
                self._made[key] = make()
                while len(self._made) > self._number:
                    self._made.popitem(last=False)
            return self._made[key]
