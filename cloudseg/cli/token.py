"""``cloudseg token``: make a bearer token for ``cloudseg serve --tokens``."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("name")
@click.option("--edit", is_flag=True, help="It may append reference rows, too.")
@click.option("--days", type=click.IntRange(min=1), help="It expires after so many days.")
def token(file: Path, name: str, *, edit: bool, days: int | None) -> None:
    """Make a token called NAME, add it to FILE, and print it, once: FILE keeps its SHA-256 alone."""
    from cloudseg.server.access import TokenEntry, add_token

    value = "cs_" + secrets.token_urlsafe(32)
    entry = TokenEntry.load(
        {
            "name": name,
            "sha256": hashlib.sha256(value.encode()).hexdigest(),
            "scopes": ["read", "edit"] if edit else ["read"],
            "expires": datetime.now(UTC) + timedelta(days=days) if days else None,
        },
        where="token",
    )
    add_token(file, entry, secret=secrets.token_urlsafe(32))
    click.echo(value)
    click.echo(f"{name} may now {' and '.join(entry.scopes)}; restart the server to let it know", err=True)
