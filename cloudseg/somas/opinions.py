"""Reference rows: what people and programs say about somas, appended and never changed.

One object for each batch of rows, ``somas/opinions/<time>-<hash>.json``, or ``once-<hash>.json`` where a request that
may be repeated has brought them. The rows in effect are those of the latest time, see :func:`in_effect`. Versions of
the table stay as they are; the next version takes the opinions in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from pydantic import AwareDatetime, Field, ValidationError, field_serializer, field_validator

from cloudseg.errors import CorruptDataError, QueryError, SpecError
from cloudseg.somas.schema import Column
from cloudseg.specs import FrozenModel, canonical_json, explain
from cloudseg.volumes.objects import Objects

FOLDER = "opinions"
_KEY = re.compile(rf"^{FOLDER}/(\d{{20}}-[0-9a-f]{{16}}|once-[0-9a-f]{{32}})\.json$")
_MAX_ID = (1 << 64) - 1

COLUMNS: tuple[Column, ...] = (
    Column("soma_id", "uint64", "", True, "the soma it is about; a new id for a soma that is added by hand"),
    Column("system", "string", "", True, "which question it answers: status, kind, type, region, note, ..."),
    Column("value", "string", "", True, "the answer"),
    Column("score", "float32", "", False, "confidence, 0 to 1"),
    Column("source", "string", "", True, "who says so: a person, or a program with its version"),
    Column("time", "string", "", True, "when, UTC, ISO 8601 with microseconds"),
    Column("version", "uint32", "", False, "version of the table that was looked at"),
    Column("target_id", "uint64", "", False, "another soma that it names, e.g. the one merged into"),
    Column("x_nm", "float64", "nm", False, "place of a soma that is added by hand, x"),
    Column("y_nm", "float64", "nm", False, "place of a soma that is added by hand, y"),
    Column("z_nm", "float64", "nm", False, "place of a soma that is added by hand, z"),
)


class Opinion(FrozenModel):
    """One reference row. See ``COLUMNS`` for what the fields mean."""

    soma_id: int = Field(gt=0, le=_MAX_ID)
    system: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    value: str = Field(min_length=1, max_length=1000)
    score: float | None = Field(default=None, ge=0, le=1)
    source: str = Field(min_length=1, max_length=200)
    time: AwareDatetime
    version: int | None = Field(default=None, gt=0, lt=1 << 32)
    target_id: int | None = Field(default=None, gt=0, le=_MAX_ID)
    x_nm: float | None = None
    y_nm: float | None = None
    z_nm: float | None = None

    @field_validator("soma_id", "target_id", mode="before")
    @classmethod
    def _no_float(cls, value: object) -> object:
        """Take whole numbers and their decimal text, nothing that went through a float."""
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
            return int(value)
        if isinstance(value, (bool, float, str)):
            raise ValueError("an id is a whole number or its decimal text")
        return value

    @field_serializer("time")
    def _time(self, value: datetime) -> str:
        return value.astimezone(UTC).isoformat(timespec="microseconds")


def append_opinions(objects: Objects, opinions: Sequence[Opinion]) -> str:
    """Append rows as one object; all of them or none are there. Returns its key.

    The same rows appended twice (a repeated request) are stored once.

    Raises
    ------
    SpecError
        If there are none.
    """
    data = _stored(opinions)
    latest = max(each.time for each in opinions)
    micros = int((latest - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)
    key = f"{FOLDER}/{micros:020d}-{hashlib.sha256(data).hexdigest()[:16]}.json"
    objects.put_if_absent(key, data)
    return key


def append_once(objects: Objects, opinions: Sequence[Opinion], *, request: str) -> tuple[str, bool]:
    """Append rows unless this request has done so before; return their key, and whether they are new.

    Parameters
    ----------
    objects
        The catalogue's folder.
    opinions
        The rows; of a repeated request, their times may be later, and the first ones stay.
    request
        What tells this request from all others.

    Raises
    ------
    QueryError
        If the request brought other rows before.
    SpecError
        If there are none.
    """
    key = f"{FOLDER}/once-{hashlib.sha256(request.encode()).hexdigest()[:32]}.json"
    if objects.put_if_absent(key, _stored(opinions)):
        return key, True
    if _timeless(_batch(objects, key)) != _timeless(opinions):
        raise QueryError(
            "Idempotency-Key: this key came with other rows before, so these were not appended; take a new key for "
            "each request, and the same only to repeat one"
        )
    return key, False


def read_opinions(objects: Objects) -> list[Opinion]:
    """Return every row, in the order of time, then of their keys.

    Raises
    ------
    CorruptDataError
        If an object there is not what was appended.
    SpecError
        If the storage cannot list (a web server).
    """
    found: list[Opinion] = []
    for key in objects.list(f"{FOLDER}/"):
        if not _KEY.match(key):
            continue
        found += _batch(objects, key)
    return sorted(found, key=lambda each: each.time)


def _stored(opinions: Sequence[Opinion]) -> bytes:
    if not opinions:
        raise SpecError("there are no opinions to append; give at least one")
    rows = [json.loads(each.model_dump_json()) for each in opinions]
    # Ids in 64 bits: as text, as everywhere in JSON.
    for row in rows:
        for name in ("soma_id", "target_id"):
            row[name] = None if row[name] is None else str(row[name])
    return canonical_json({"format": "cloudseg-opinions/1", "rows": rows}).encode() + b"\n"


def _batch(objects: Objects, key: str) -> list[Opinion]:
    data = objects.get(key)
    try:
        return [Opinion.model_validate(row) for row in json.loads(data)["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        why = explain(error) if isinstance(error, ValidationError) else str(error)
        raise CorruptDataError(
            f"{objects.uri}/{key} is no batch of reference rows: {why}; restore it, or remove it if it was not "
            "written by cloudseg"
        ) from error


def _timeless(opinions: Sequence[Opinion]) -> list[dict[str, object]]:
    return [each.model_dump(exclude={"time"}) for each in opinions]


def in_effect(opinions: Iterable[Opinion]) -> dict[tuple[int, str], Opinion]:
    """Return the latest row of each (soma, system). Of two at one time, the one that was stored later wins."""
    latest: dict[tuple[int, str], Opinion] = {}
    for each in opinions:
        known = latest.get((each.soma_id, each.system))
        if known is None or each.time >= known.time:
            latest[each.soma_id, each.system] = each
    return latest
