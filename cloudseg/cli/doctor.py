"""``cloudseg doctor``: whether buckets and queues do what cloudseg needs of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from cloudseg.volumes.doctor import Finding, examine_bucket

_MARKS = {True: "ok", False: "FAILED", None: "-"}


@click.command()
@click.argument("uris", metavar="URI...", nargs=-1, required=True)
@click.option("--read-only", is_flag=True, help="Try only what needs no rights to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line instead of text.")
def doctor(uris: tuple[str, ...], *, read_only: bool, as_json: bool) -> None:
    """Try out buckets (gs://, s3://, folders) and queues (fq://, sqs://): one line a check, with the remedy.

    Leaves nothing behind. Exit code 1 if any check fails.
    """
    # A person waits: a server that does not answer is told of soon.
    os.environ.setdefault("CLOUDSEG_STORAGE_RETRIES", "1")
    failed = False
    for uri in uris:
        if not as_json:
            click.echo(uri)
        for finding in _findings(uri, read_only=read_only):
            failed |= finding.ok is False
            if as_json:
                click.echo(json.dumps({"uri": uri, **asdict(finding)}))
            else:
                remedy = f" -> {finding.remedy}" if finding.remedy else ""
                click.echo(f"  {_MARKS[finding.ok]:<7} {finding.check}: {finding.found}{remedy}")
    if failed:
        sys.exit(1)


def _findings(uri: str, *, read_only: bool) -> Iterator[Finding]:
    if uri.startswith(("fq://", "sqs://", "https://sqs.")):
        from cloudseg.tasking.doctor import examine_queue

        return examine_queue(uri)
    return examine_bucket(uri, read_only=read_only)
