"""``cloudseg serve``: show roots in a browser."""

from __future__ import annotations

import logging

import click


@click.command()
@click.argument("roots", metavar="ROOT...", nargs=-1, required=True)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every network."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.  [default: 8642]"
)
@click.option("--access-log/--no-access-log", default=False, show_default=True, help="Print each request.")
def serve(roots: tuple[str, ...], *, host: str, port: int | None, access_log: bool) -> None:
    """Serve each ROOT (a pipeline root or one volume) and the Neuroglancer client, and print the links.

    Whoever reaches the address can read everything below the roots: the default listens to this machine alone.
    """
    from cloudseg.server.app import base_url, create_app, listen, run
    from cloudseg_viewer.links import DEFAULT_PORT, Mount, build_link, mounts
    from cloudseg_viewer.roots import read_root

    logging.basicConfig(format="%(levelname)s %(message)s")
    found = [read_root(root) for root in roots]
    sock = listen(host, DEFAULT_PORT if port is None else port)
    base = base_url(sock)
    wanted: dict[str, Mount] = {}
    links: dict[str, str] = {}
    for root in found:
        wanted.update({mount.name: mount for mount in mounts(root.uri, root.layers)})
        links[root.uri] = build_link(root.uri, root.layers, server=base, focus_nm=root.focus_nm).url
    app = create_app(list(wanted.values()), links=links)
    for uri, url in links.items():
        click.echo(f"{uri}\n  {url}")
    click.echo(f"serving at {base}/  (Ctrl-C ends it)", err=True)
    run(app, sock, access_log=access_log)
