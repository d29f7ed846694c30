"""``cloudseg link``: print the Neuroglancer link of a root."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("root")
@click.option("--server", metavar="URL", help="A running 'cloudseg serve', e.g. http://127.0.0.1:8642.")
@click.option(
    "--spelling",
    type=click.Choice(["pipeline", "prefix"]),
    default="pipeline",
    show_default=True,
    help="How sources are written; clients from before 2024-12 know only 'prefix' (precomputed://...).",
)
@click.option(
    "--through",
    default="",
    metavar="WAY",
    help="How private data is reached: ngauth+https://SERVER (buckets of Google), middleauth (login of a web server), "
    "or '?token=...' (goes with each request).",
)
@click.option(
    "--short",
    is_flag=True,
    help="Store the view in ROOT/links, and print a link to it: short, and it never changes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print link, server and state as one JSON object.")
def link(root: str, *, server: str | None, spelling: str, through: str, short: bool, as_json: bool) -> None:
    """Print the Neuroglancer link of ROOT, a pipeline root or one Precomputed volume.

    Data in public buckets (gs://, s3://, https://) opens in the public client; local data needs 'cloudseg serve ROOT'.
    """
    from cloudseg_viewer.links import build_link, shorten
    from cloudseg_viewer.roots import read_root

    found = read_root(root)
    made = build_link(
        found.uri,
        found.layers,
        server=server,
        focus_nm=found.focus_nm,
        spelling="prefix" if spelling == "prefix" else "pipeline",
        somas=found.somas,
        through=through,
    )
    if short:
        made = shorten(made, root=found.uri, through=through)
    if as_json:
        click.echo(json.dumps({"link": made.url, "server": made.server, "state": made.state}, indent=1))
        return
    click.echo(made.url)
    if made.server is not None and server is None:
        click.echo(f"(opens while this runs: cloudseg serve {root})", err=True)
