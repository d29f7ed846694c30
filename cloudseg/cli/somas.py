"""``cloudseg somas``: what one can do with a finished catalogue of somas."""

from __future__ import annotations

import click


@click.group()
def somas() -> None:
    """Work with a catalogue of somas: report; a database for many users."""


@somas.command()
@click.argument("root")
@click.option("--version", type=click.IntRange(1), help="Which version [the published one].")
@click.option(
    "--output", metavar="FOLDER", help="Folder or address to write to [the folder of the version, /report]."
)
def report(root: str, *, version: int | None, output: str | None) -> None:
    """Write the statistics of the somas of ROOT: one page with plots, and its numbers as CSV and Parquet.

    ROOT is the root of a pipeline, or the folder of a catalogue. Counts by region and side, sizes, a map of their
    density, distances, somas cut by the border, and segments with no, one and several somas.
    """
    from cloudseg.errors import NotFoundError
    from cloudseg.somas.report import gather, write_report
    from cloudseg.somas.store import LATEST, read_catalog
    from cloudseg.volumes import open_objects

    uri = root.rstrip("/")
    objects = open_objects(uri)
    if not objects.exists(LATEST):
        objects = open_objects(f"{uri}/somas")
        if not objects.exists(LATEST):
            raise NotFoundError(
                f"there is no soma catalogue at {uri} nor at {objects.uri}: neither has a {LATEST}; run a pipeline "
                "with the stage soma_catalogue first"
            )
    catalog = read_catalog(objects, version)
    segments = str(catalog.made_from.get("segments") or "")
    # A web server cannot list: then nobody knows which segments have no soma, and the page says so.
    listable = segments and not segments.startswith(("http://", "https://"))
    numbers = gather(objects, catalog, segments=open_objects(segments) if listable else None)
    folder = open_objects(output or f"{objects.uri}/v{catalog.version}/report")
    names = write_report(numbers, folder)
    click.echo(f"{folder.uri}/{names[0]}")
    click.echo(f"{numbers.n_living:,} somas; tables beside it: {', '.join(names[1:])}", err=True)


@somas.command()
@click.argument("root")
@click.argument("database")
@click.option("--version", type=click.IntRange(1), help="Which version [the published one].")
def load(root: str, database: str, *, version: int | None) -> None:
    """Copy the somas of ROOT into DATABASE, postgresql://user@host/name, for `cloudseg serve --postgres`.

    The bucket stays the truth: what is in the database can be removed and loaded again at any time. Loading a version
    that is there does nothing.
    """
    from cloudseg.somas import postgres
    from cloudseg.somas.store import LATEST, read_catalog
    from cloudseg.volumes import open_objects

    uri = root.rstrip("/")
    objects = open_objects(uri)
    if not objects.exists(LATEST):
        objects = open_objects(f"{uri}/somas")
    catalog = read_catalog(objects, version)
    done = postgres.load(database, objects, catalog)
    what = f"version {catalog.version} of {catalog.dataset} ({catalog.n_somas} somas)"
    click.echo(f"loaded {what}" if done else f"{what} is there already")


@somas.command()
@click.argument("database")
@click.argument("dataset")
@click.argument("version", type=click.IntRange(1))
def unload(database: str, dataset: str, version: int) -> None:
    """Remove VERSION of DATASET from DATABASE."""
    from cloudseg.somas import postgres

    done = postgres.unload(database, dataset, version)
    click.echo(
        f"removed version {version} of {dataset}" if done else f"there is no version {version} of {dataset}"
    )
