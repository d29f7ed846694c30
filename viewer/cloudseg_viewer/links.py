"""Links: which address a browser reads a volume from, and the Neuroglancer URL of a whole root."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from cloudseg.errors import SpecError
from cloudseg.specs import canonical_json
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.objects import Objects, open_objects
from cloudseg_viewer.layers import Json, LayerFacts, SomaFacts, soma_layers
from cloudseg_viewer.state import viewer_state

PUBLIC_CLIENT = "https://neuroglancer-demo.appspot.com/"
"""A client that anybody can open; it reads public buckets."""

DEFAULT_PORT = 8642
"""Port of ``cloudseg serve``, unless another is given."""

DEFAULT_SERVER = f"http://127.0.0.1:{DEFAULT_PORT}"
"""Where links to local data point when no server is named."""

CLIENT_PATH = "/v/0/"
"""Path of the bundled client on our server; the client asks for ``/v/<token>/``."""

DATA_PATH = "/data/"
"""Path under which our server mounts folders."""

LINKS = "links"
"""Folder of a root that holds the states of short links."""

# Schemes that the public client reads by itself. Plain http is not among them: a page that came by https may not.
_PUBLIC_SCHEMES = frozenset({"gs", "s3", "https"})

MIDDLEAUTH = "middleauth"

_NGAUTH = re.compile(r"^(?:gs\+)?ngauth\+(https?://[^/?#]+)/?$")

Spelling = Literal["pipeline", "prefix"]
"""``url/|neuroglancer-precomputed:`` (Neuroglancer since 2024-12), or ``precomputed://url`` (every version)."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder that a server must offer for a link to work: its name under ``/data/`` and its address."""

    name: str
    uri: str


@dataclass(frozen=True, slots=True)
class Link:
    """A link and what it is made of.

    Attributes
    ----------
    url
        To open in a browser.
    state
        The Neuroglancer state inside.
    server
        Base URL of the ``cloudseg serve`` that must be running, or None where buckets are read directly.
    """

    url: str
    state: Json
    server: str | None


def address_of(uri: str) -> Address:
    """Return the address of a folder that a browser can be shown.

    Raises
    ------
    SpecError
        If no browser can reach such an address.
    """
    address = Address.parse(uri)
    if address.scheme == "memory":
        raise SpecError(
            f"{address} lives in the memory of one process, where no browser can read it; "
            "write to a folder (file://) or a bucket instead"
        )
    return address


def child(root: str, name: str) -> str:
    """Return the address of the folder ``name`` below ``root``."""
    address = Address.parse(root)
    return replace(address, path=f"{address.path}/{name}" if address.path else name).uri


def mount_name(uri: str) -> str:
    """Return the name under which every server mounts the folder ``uri``: readable, and the same everywhere.

    It depends on the address alone, so that a link made without asking the server is right whatever else the
    server mounts, and in whichever order.
    """
    address = address_of(uri)
    last = re.sub(r"[^A-Za-z0-9_-]+", "-", address.path.rsplit("/", 1)[-1]).strip("-")
    return f"{last[:40] or 'root'}-{hashlib.sha256(address.uri.encode()).hexdigest()[:8]}"


def mounts(root: str, layers: Sequence[LayerFacts]) -> list[Mount]:
    """Return the folders a server must mount to show ``layers``: the root, and volumes that lie elsewhere."""
    found = {address_of(root).uri: Mount(mount_name(root), address_of(root).uri)}
    for facts in layers:
        if _path_below(facts.uri, root) is None:
            uri = address_of(facts.uri).uri
            found.setdefault(uri, Mount(mount_name(uri), uri))
    return list(found.values())


def layer_source(
    uri: str, *, root: str, server: str | None, spelling: Spelling = "pipeline", through: str = ""
) -> str:
    """Return Neuroglancer's address of the Precomputed folder at ``uri``. The only place that spells one.

    Parameters
    ----------
    uri
        Address of the folder.
    root
        The root it belongs to; what lies below it shares its mount.
    server
        Base URL of our server, or None to read the bucket directly.
    spelling
        Old clients know ``prefix`` only.
    through
        How private data is reached, see :func:`build_link`.
    """
    url, query = _reached(uri, root=root, server=server, through=through)
    if spelling == "prefix":
        if query:
            raise SpecError(
                f"{uri} carries a query (?...), which the spelling precomputed:// cannot; use the spelling 'pipeline'"
            )
        return f"precomputed://{url}"
    return f"{url}/{query}|neuroglancer-precomputed:"


def _reached(uri: str, *, root: str, server: str | None, through: str) -> tuple[str, str]:
    """Return the URL by which a browser reaches ``uri``, and the query that goes behind it (with its ``?``)."""
    token = through if through.startswith("?") else ""
    if server is None:
        address = address_of(uri)
        url, query = replace(address, query="").uri, f"?{address.query}" if address.query else ""
        if token and address.scheme not in ("http", "https"):
            raise SpecError(f"a token ({token[:5]}...) goes to a web server, and {uri} is read from a bucket")
    else:
        below = _path_below(uri, root)
        name = mount_name(uri if below is None else root)
        url, query = server + DATA_PATH + name + quote(below or ""), ""
    if token:
        query = f"{query}&{token[1:]}" if query else token
    elif match := _NGAUTH.match(through):
        if not url.startswith("gs://"):
            raise SpecError(
                f"{through} gives tokens for buckets of Google, and {uri} is reached at {url.split('://')[0]}://"
            )
        url = f"gs+ngauth+{match[1]}/{url.removeprefix('gs://')}"
    elif through == MIDDLEAUTH:
        if not url.startswith("https://"):
            raise SpecError(
                f"middleauth wants https, and {uri} is reached at {url.split('://')[0]}://; name the "
                "https:// address of the server with --server"
            )
        url = f"middleauth+{url}"
    elif through:
        raise SpecError(
            f"data is reached through ngauth+https://SERVER, {MIDDLEAUTH}, or ?token=..., got {through!r}"
        )
    return url, query


def build_link(
    root: str,
    layers: Sequence[LayerFacts],
    *,
    server: str | None = None,
    focus_nm: tuple[float, float, float] | None = None,
    spelling: Spelling = "pipeline",
    somas: SomaFacts | None = None,
    through: str = "",
) -> Link:
    """Return the link that shows ``layers`` of ``root``.

    Parameters
    ----------
    root, layers
        The root and what lies there.
    server
        Base URL of a running ``cloudseg serve``. None picks the public client where every layer lies in a bucket
        that it can read, and :data:`DEFAULT_SERVER` otherwise.
    focus_nm
        Where to look; the middle when None.
    spelling
        See :func:`layer_source`.
    somas
        Annotations of a soma catalogue, if there are any.
    through
        How private data is reached: ``ngauth+https://SERVER`` for buckets of Google, by tokens that such a server gives
        to those who log in there; ``middleauth``, by the login of a web server; ``?token=...``, a query that goes with
        each request. Empty: directly.

    Raises
    ------
    SpecError
        If ``server`` is no http(s) address, there is no layer, or data is not reached that way.
    """
    if server is not None:
        server = _checked_server(server)
    elif not all(address_of(facts.uri).scheme in _PUBLIC_SCHEMES for facts in layers):
        server = DEFAULT_SERVER
    source = partial(layer_source, root=root, server=server, spelling=spelling, through=through)
    name = address_of(root).path.rsplit("/", 1)[-1] or address_of(root).host
    state = viewer_state(
        [(facts, source(facts.uri)) for facts in layers],
        title=f"{name} · cloudseg",
        focus_nm=focus_nm,
        annotations=()
        if somas is None
        else soma_layers(
            somas,
            points=source(somas.points),
            ellipsoids=source(somas.ellipsoids),
            others=[facts.name for facts in layers],
        ),
        properties={facts.name: [source(uri) for uri in facts.properties] for facts in layers},
    )
    # The client that our server brings is built for Python, and has no logins of its own.
    client = PUBLIC_CLIENT if server is None or through == MIDDLEAUTH else server + CLIENT_PATH
    return Link(url=client + "#!" + state_fragment(state), state=state, server=server)


def link_for_root(root: str, server: str | None = None, *, short: bool = False, through: str = "") -> str:
    """Return the Neuroglancer URL of a pipeline root, or of a single volume. Reads infos and a few chunks.

    Parameters
    ----------
    root
        Address of a pipeline root or of one Precomputed volume.
    server
        Base URL of a running ``cloudseg serve``; see :func:`build_link` for what None means.
    short
        Whether to store the state in the root, and return a link to it.
    through
        How private data is reached, see :func:`build_link`.

    Raises
    ------
    NotFoundError
        If no volume lies there.
    """
    from cloudseg_viewer.roots import read_root

    found = read_root(root)
    link = build_link(
        found.uri,
        found.layers,
        server=server,
        focus_nm=found.focus_nm,
        somas=found.somas,
        through=through,
    )
    return shorten(link, root=found.uri, through=through).url if short else link.url


def shorten(link: Link, *, root: str, through: str = "") -> Link:
    """Store the state of a link in its root, and return a link to it.

    The object is called after what is in it, so the same state is stored once and what a link shows never changes.

    Parameters
    ----------
    link
        Of :func:`build_link`, or any other with its state in the address.
    root
        Where to store; its ``links/`` is readable to whoever may read the volumes.
    through
        How private data is reached, as for the link itself.

    Raises
    ------
    SpecError
        If nothing can be stored there.
    """
    key = store_state(open_objects(root), link.state)
    url, query = _reached(child(root, key), root=root, server=link.server, through=through)
    return replace(link, url=f"{link.url.partition('#')[0]}#!{url}{query}")


def store_state(objects: Objects, state: Json) -> str:
    """Store a state under a name made of its content; return its key."""
    data = canonical_json(state).encode()
    key = f"{LINKS}/{hashlib.sha256(data).hexdigest()[:16]}.json"
    objects.put(key, data)
    return key


def state_fragment(state: Json) -> str:
    """Return ``state`` as it stands in a URL after ``#!``; Neuroglancer's own encoding."""
    return quote(json.dumps(state, separators=(",", ":")), safe="~@#$&()*!+=:;,.?/'")


def state_of(url: str) -> Json:
    """Return the state inside a link that :func:`build_link` made."""
    state: Json = json.loads(unquote(urlsplit(url).fragment).removeprefix("!"))
    return state


def _checked_server(server: str) -> str:
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SpecError(f"a server is written http://host:port (e.g. {DEFAULT_SERVER}), got {server!r}")
    return server.rstrip("/")


def _path_below(uri: str, root: str) -> str | None:
    """Return the path from ``root`` down to ``uri`` (empty, or with a slash in front), None where it lies elsewhere."""
    inner, outer = address_of(uri), address_of(root)
    if (inner.scheme, inner.host, inner.query) != (outer.scheme, outer.host, outer.query):
        return None
    if inner.path == outer.path:
        return ""
    prefix = outer.path.rstrip("/") + "/" if outer.path else ""
    return "/" + inner.path[len(prefix) :] if inner.path.startswith(prefix) else None
