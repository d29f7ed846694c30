"""``cloudseg serve``: show roots in a browser, and answer questions about their somas."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloudseg_viewer.links import Mount
    from cloudseg_viewer.roots import Root


@click.command()
@click.argument("roots", metavar="ROOT...", nargs=-1, required=True)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every network."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.  [default: 8642]"
)
@click.option("--access-log/--no-access-log", default=False, show_default=True, help="Print each request.")
@click.option(
    "--tokens",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of bearer tokens, made by `cloudseg token`: questions want one, and links hold names nobody can guess.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=100,
    show_default=True,
    help="Questions a second from one address or token, twice as many at once; 0 for no bound.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin of a page elsewhere that may ask about somas, e.g. https://lab.org; '*' for all.",
)
@click.option(
    "--audit-log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to which a line is appended for each edit.",
)
@click.option(
    "--postgres",
    metavar="URL",
    help="Ask this PostgreSQL, filled by `cloudseg somas load`, instead of the Parquet files.",
)
def serve(
    roots: tuple[str, ...],
    *,
    host: str,
    port: int | None,
    access_log: bool,
    tokens: Path | None,
    rate: float,
    origins: tuple[str, ...],
    audit_log: Path | None,
    postgres: str | None,
) -> None:
    """Serve each ROOT: the volumes of a pipeline root, one volume, or a soma catalogue; and print the links.

    Whoever reaches the address can read everything below the roots, unless --tokens is given: the default listens
    to this machine alone. Questions about somas: /v1/datasets, described by /openapi.json.
    """
    from cloudseg.server.access import Access, read_tokens
    from cloudseg.server.app import base_url, create_app, listen, run
    from cloudseg.server.datasets import Datasets
    from cloudseg.server.page import PAGE_PATH
    from cloudseg_viewer.links import DATA_PATH, DEFAULT_PORT, build_link, mounts

    logging.basicConfig(format="%(levelname)s %(message)s")
    if audit_log is not None:
        _log_edits_to(audit_log)
    open_engine = None
    if postgres is not None:
        from cloudseg.somas.postgres import engines

        open_engine = engines(postgres)
    access = Access(None if tokens is None else read_tokens(tokens), rate_per_s=rate)
    datasets = Datasets(roots, open_engine=open_engine)
    found = [root for root in map(_root, roots) if root is not None]
    sock = listen(host, DEFAULT_PORT if port is None else port)
    base = base_url(sock)
    wanted: dict[str, Mount] = {}
    links: dict[str, str] = {}
    for root in found:
        own = mounts(root.uri, root.layers)
        wanted.update({mount.name: mount for mount in own})
        url = build_link(root.uri, root.layers, server=base, focus_nm=root.focus_nm, somas=root.somas).url
        for mount in own:
            url = url.replace(f"{DATA_PATH}{mount.name}", f"{DATA_PATH}{access.capability(mount.name)}")
        links[root.uri] = url
    app = create_app(
        list(wanted.values()),
        links=links,
        datasets=datasets,
        access=access,
        origins=origins,
        runs=roots,
    )
    for uri, url in links.items():
        click.echo(f"{uri}\n  {url}")
    for dataset in datasets.all().values():
        click.echo(f'{dataset.objects.uri}\n  Somas("{base}", dataset="{dataset.name}")')
        click.echo(f"  {base}{PAGE_PATH}?dataset={dataset.name}")
    click.echo(f"serving at {base}/  (Ctrl-C ends it)", err=True)
    run(app, sock, access_log=access_log)


def _root(uri: str) -> Root | None:
    """Return what can be seen at ``uri``; None where a soma catalogue or a run is, and no volume yet."""
    from cloudseg.errors import NotFoundError
    from cloudseg.pipelines.advance import PLAN_KEY
    from cloudseg.somas.store import LATEST
    from cloudseg.volumes import open_objects
    from cloudseg_viewer.roots import read_root

    try:
        return read_root(uri)
    except NotFoundError:
        if any(open_objects(place).exists(LATEST) for place in (uri, f"{uri.rstrip('/')}/somas")):
            return None
        if open_objects(uri).exists(PLAN_KEY):
            return None
        raise


def _log_edits_to(path: Path) -> None:
    logger = logging.getLogger("cloudseg.audit")
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
