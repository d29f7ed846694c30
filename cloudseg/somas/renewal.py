"""From one version to the next: opinions become columns, and ids that are gone leave a row behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloudseg.somas.opinions import Opinion
from cloudseg.somas.schema import COLUMNS, arrow_schema
from cloudseg.somas.store import iter_batches, read_catalog
from cloudseg.volumes.objects import Objects

if TYPE_CHECKING:
    import pyarrow as pa

Ids = npt.NDArray[np.uint64]

TOMBSTONES = frozenset({"rejected", "merged"})
"""Values of ``status`` that say that a soma is none any more."""

_STATUSES = frozenset({"auto", "verified", "rejected", "merged", "manual"})
_TEXTS = ("region", "side")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The opinions in effect, by what they change in the next version.

    Attributes
    ----------
    status
        Of the systems ``status``: one of the values of that column; ``merged`` with ``target_id``, ``manual`` with a
        place.
    kind, region, side
        Of the systems of these names. Other systems (types, notes) stay opinions: they are no columns.
    """

    status: Mapping[int, Opinion] = field(default_factory=dict)
    kind: Mapping[int, Opinion] = field(default_factory=dict)
    region: Mapping[int, Opinion] = field(default_factory=dict)
    side: Mapping[int, Opinion] = field(default_factory=dict)

    @classmethod
    def of(cls, opinions: Iterable[Opinion]) -> Verdicts:
        """Sort out the opinions in effect. A status that is no value of the column is left out."""
        found: dict[str, dict[int, Opinion]] = {"status": {}, "kind": {}, "region": {}, "side": {}}
        for each in opinions:
            if each.system in found and (each.system != "status" or each.value in _STATUSES):
                found[each.system][each.soma_id] = each
        return cls(**found)

    @property
    def rejected(self) -> Ids:
        """Somas that are none: rejected or merged into another."""
        return _ids(soma for soma, each in self.status.items() if each.value in TOMBSTONES)

    @property
    def targets(self) -> dict[int, int]:
        """Which soma each merged one belongs to now."""
        return {
            soma: each.target_id
            for soma, each in self.status.items()
            if each.value == "merged" and each.target_id not in (None, soma)
        }

    @property
    def manual_places_nm(self) -> dict[int, tuple[float, float, float]]:
        """Where the somas lie that were added by hand."""
        return {
            soma: (each.x_nm, each.y_nm, each.z_nm)
            for soma, each in sorted(self.status.items())
            if each.value == "manual"
            and each.x_nm is not None
            and each.y_nm is not None
            and each.z_nm is not None
        }

    def status_columns(self, ids: Ids) -> dict[str, Any]:
        """Return ``status`` and ``superseded_by`` of somas that were measured."""
        import pyarrow as pa

        status = [self.status[soma].value if soma in self.status else "auto" for soma in ids.tolist()]
        targets = self.targets
        return {
            "status": pa.array(status, pa.string()),
            "superseded_by": pa.array([targets.get(soma) for soma in ids.tolist()], pa.uint64()),
        }

    def said_columns(self, ids: Ids, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``kind``, ``kind_score``, ``region`` and ``side``: what was said, else what ``columns`` has."""
        import pyarrow as pa

        found: dict[str, Any] = {}
        if self.kind:
            said = [self.kind.get(soma) for soma in ids.tolist()]
            found["kind"] = pa.array([each and each.value for each in said], pa.string())
            found["kind_score"] = pa.array([each and each.score for each in said], pa.float32())
        for name in _TEXTS:
            opinions: Mapping[int, Opinion] = getattr(self, name)
            if opinions:
                known = columns[name].to_pylist() if name in columns else [None] * len(ids)
                values = [
                    opinions[soma].value if soma in opinions else old
                    for soma, old in zip(ids.tolist(), known, strict=True)
                ]
                found[name] = pa.array(values, pa.string())
        return found

    def manual_rows(self, *, known: Ids) -> pa.Table:
        """Return rows of the somas that were added by hand and have no mask: a place, and no voxels."""
        import pyarrow as pa

        have = set(known.tolist())
        rows: list[dict[str, Any]] = []
        for soma, place in self.manual_places_nm.items():
            if soma in have:
                continue
            row: dict[str, Any] = dict.fromkeys((c.name for c in COLUMNS if c.required), 0)
            row |= {"soma_id": soma, "status": "manual"}
            for axis, value in zip("xyz", place, strict=True):
                for name in (f"{axis}_nm", f"anchor_{axis}_nm", f"bbox_min_{axis}_nm", f"bbox_max_{axis}_nm"):
                    row[name] = value
            for name in ("kind", *_TEXTS):
                said = getattr(self, name).get(soma)
                row[name] = said and said.value
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=_without_morton())


def tombstone_rows(catalogue: Objects, version: int | None, ids: Ids, superseded_by: Ids) -> pa.Table:
    """Return rows for ids that the next version no longer measures, taken from the version that had them.

    Parameters
    ----------
    catalogue
        Folder of the catalogue.
    version
        The version before.
    ids
        ``(n,)``, sorted.
    superseded_by
        ``(n,)``: the soma that covers most of the mask now; 0: none.

    Returns
    -------
    The old row of each, its neighbours removed. Its status is ``merged`` where there is a successor, else ``rejected``;
    somas that were added by hand stay what they are until there is a successor, and tombstones stay tombstones.
    """
    import pyarrow as pa

    found = [pa.Table.from_pylist([], schema=_without_morton())]
    successor = dict(zip(ids.tolist(), superseded_by.tolist(), strict=True))
    for batch in iter_batches(catalogue, read_catalog(catalogue, version)):
        rows = pa.Table.from_batches([batch])
        rows = rows.filter(pa.array(np.isin(rows["soma_id"].to_numpy(), ids)))
        if not rows.num_rows:
            continue
        somas, status = rows["soma_id"].to_pylist(), rows["status"].to_pylist()
        after = [
            successor[soma] or before
            for soma, before in zip(somas, rows["superseded_by"].to_pylist(), strict=True)
        ]
        now = [_status(old, successor[soma]) for soma, old in zip(somas, status, strict=True)]
        rows = _replaced(rows, "status", now)
        rows = _replaced(rows, "superseded_by", after)
        for name in ("nearest_um", "density_per_mm3"):
            rows = _replaced(rows, name, [None] * rows.num_rows)
        found.append(rows.drop_columns(["morton"]).cast(_without_morton()))
    return pa.concat_tables(found)


def _status(old: str, successor: int) -> str:
    if successor:
        return "merged"
    return old if old in TOMBSTONES or old == "manual" else "rejected"


def _replaced(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    import pyarrow as pa

    place = rows.column_names.index(name)
    type_ = arrow_schema().field(name).type
    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    return rows.set_column(place, arrow_schema().field(name), pa.array(values, plain).cast(type_))


def _without_morton() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([each for each in arrow_schema() if each.name != "morton"])


def _ids(values: Iterable[int]) -> Ids:
    return np.array(sorted(values), np.uint64)
