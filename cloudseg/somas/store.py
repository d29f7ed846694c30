"""Versions of a soma catalogue in a bucket: written whole, then published by one put.

::

    somas/latest.json              which version readers get, and which there are
    somas/v3/catalog.json          what the version holds; it exists only when everything it names does
    somas/v3/part-00000-<hash>.parquet
    somas/opinions/...             reference rows, see cloudseg.somas.opinions
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from cloudseg.errors import ConflictError, CorruptDataError, NotFoundError, SpecError, VolumeFormatError
from cloudseg.somas.schema import SCHEMA_VERSION
from cloudseg.specs import FrozenModel, explain
from cloudseg.volumes.objects import Objects, VersionedObjects

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT: Literal["cloudseg-somas/1"] = "cloudseg-somas/1"
LATEST = "latest.json"

ROWS_PER_GROUP = 20_000
# Readers fetch whole parts and know the bounds of each: 110 MB or so, out of which a box needs few.
ROWS_PER_PART = 1_000_000

Nm = tuple[float, float, float]
Ids = npt.NDArray[np.uint64]


class Part(FrozenModel):
    """One Parquet file of a version."""

    key: str
    n_rows: int = Field(gt=0)
    n_bytes: int = Field(gt=0)
    sha256: str
    lower_nm: Nm
    upper_nm: Nm


class CatalogSpec(FrozenModel):
    """What the maker of a version says about it; all else is computed.

    Attributes
    ----------
    dataset
        Name under which servers and clients know it.
    voxel_size_nm
        Of the segmentation that was counted: the size that ``n_voxels`` refers to, and that ``units="voxel"`` means.
    bounds_nm
        Lower and upper corner of the imaged volume.
    frame
        Where zero is, in words.
    regions
        Names of the atlas' regions, where there is an atlas.
    made_from
        Provenance: addresses and versions of the segmentations, hashes of models, thresholds. JSON values.
    """

    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    voxel_size_nm: Nm
    bounds_nm: tuple[Nm, Nm]
    frame: str = "nm from the corner of voxel (0, 0, 0)"
    regions: tuple[str, ...] = ()
    made_from: dict[str, Any] = Field(default_factory=dict)


class Catalog(CatalogSpec):
    """``catalog.json``: one published or publishable version."""

    format: Literal["cloudseg-somas/1"] = FORMAT
    schema_version: int = SCHEMA_VERSION
    version: int = Field(gt=0)
    n_somas: int = Field(ge=0)
    parts: tuple[Part, ...]


class Latest(FrozenModel):
    """``latest.json``: the version that readers get, and all there are."""

    format: Literal["cloudseg-somas/1"] = FORMAT
    version: int = Field(gt=0)
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A version that lies in the bucket and is not published by that."""

    catalog: Catalog
    sha256: str


def catalog_key(version: int) -> str:
    """Return the key of a version's ``catalog.json``."""
    return f"v{version}/catalog.json"


def write_version(
    objects: Objects,
    rows: pa.Table | Iterable[pa.RecordBatch],
    spec: CatalogSpec,
    *,
    version: int,
    rows_per_part: int = ROWS_PER_PART,
    rows_per_group: int = ROWS_PER_GROUP,
) -> Written:
    """Write a version of the catalogue; readers do not see it before :func:`publish`.

    The same rows give the same bytes, so a task that is repeated after a kill writes the same objects.

    Parameters
    ----------
    objects
        The catalogue's folder.
    rows
        The somas. Columns may come in any order; ``morton`` is computed; columns that may be null may be absent. A
        table is sorted here; batches must come sorted by (Morton code, soma id) and are never in memory at once.
    spec
        What the version is.
    version
        Its number, see :func:`next_version`.
    rows_per_part, rows_per_group
        How the files are cut.

    Raises
    ------
    SpecError
        If a column is missing, unknown or of another type, a number is no finite number, an id is 0 or comes twice.
    ConflictError
        If the version exists and holds something else.
    """
    import pyarrow as pa

    from cloudseg.somas.rows import checked, sorted_rows

    lower, upper = spec.bounds_nm
    batches: Iterable[pa.Table]
    if isinstance(rows, pa.Table):
        batches = [sorted_rows(checked(rows, lower=lower, upper=upper))]
    else:
        batches = (checked(pa.Table.from_batches([batch]), lower=lower, upper=upper) for batch in rows)
    ids: list[Ids] = []
    parts = []
    for number, table in enumerate(_cut(_in_order(batches, ids), rows_per_part)):
        parts.append(_write_part(objects, table, version, number, rows_per_group))
    _refuse_twins(ids)
    catalog = Catalog(
        **{**dict(spec), "version": version, "n_somas": sum(len(each) for each in ids), "parts": tuple(parts)}
    )
    data = catalog.canonical_json().encode() + b"\n"
    if not objects.put_if_absent(catalog_key(version), data):
        if objects.get(catalog_key(version)) != data:
            raise ConflictError(
                f"version {version} of the somas at {objects.uri} exists and holds other rows: versions never change; "
                "write the next one"
            )
    return Written(catalog, hashlib.sha256(data).hexdigest())


def publish(objects: VersionedObjects, version: int) -> None:
    """Make ``version`` the one that readers get: one atomic put. Going back to an older one is allowed.

    Raises
    ------
    NotFoundError
        If the version is not there, or not complete.
    """
    read_catalog(objects, version)
    while True:
        data, generation = objects.get_versioned(LATEST)
        known = () if data is None else _latest(objects, data).versions
        latest = Latest(version=version, versions=tuple(sorted({*known, version})))
        new = latest.canonical_json().encode() + b"\n"
        if data == new:
            return
        stored = (
            objects.put_if_absent(LATEST, new)
            if data is None
            else objects.put_if_unchanged(LATEST, new, version=generation)
        )
        if stored:
            return


def read_latest(objects: Objects) -> Latest:
    """Return what ``latest.json`` says.

    Raises
    ------
    NotFoundError
        If no version was published there.
    """
    try:
        data = objects.get(LATEST)
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no soma catalogue at {objects.uri}: it has no {LATEST}; check the address (it ends in the "
            "folder of the somas, e.g. gs://bucket/run/somas), or run the pipeline that makes one"
        ) from error
    return _latest(objects, data)


def read_catalog(objects: Objects, version: int | None = None) -> Catalog:
    """Return the description of a version; of the published one for None.

    Raises
    ------
    NotFoundError
        If there is no such version; those that exist are named.
    """
    if version is None:
        version = read_latest(objects).version
    try:
        data = objects.get(catalog_key(version))
    except NotFoundError as error:
        try:
            known = ", ".join(str(each) for each in read_latest(objects).versions)
        except NotFoundError:
            known = "none"
        raise NotFoundError(
            f"there is no version {version} of the somas at {objects.uri}; published versions: {known}"
        ) from error
    try:
        return Catalog.model_validate_json(data)
    except ValidationError as error:
        raise VolumeFormatError(
            f"{objects.uri}/{catalog_key(version)} is no catalogue that this cloudseg reads ({explain(error)}); "
            "a newer cloudseg may have written it"
        ) from error


def next_version(objects: Objects) -> int:
    """Return the number after the highest version that was completed or published; 1 for the first."""
    known = [0]
    for key in objects.list("v"):
        folder, _, name = key.partition("/")
        if name == "catalog.json" and folder[1:].isdigit():
            known.append(int(folder[1:]))
    return max(known) + 1


def iter_batches(
    objects: Objects, catalog: Catalog, *, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a version in their stored order, a row group at a time."""
    import pyarrow.parquet as pq

    for part in catalog.parts:
        file = pq.ParquetFile(io.BytesIO(part_bytes(objects, part)))
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns).to_batches()


def part_bytes(objects: Objects, part: Part) -> bytes:
    """Return a part, compared with the hash that the catalogue holds of it.

    Raises
    ------
    CorruptDataError
        If it is not what was written.
    """
    data = objects.get(part.key)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise CorruptDataError(
            f"{objects.uri}/{part.key} ({len(data)} bytes) does not have the SHA-256 that its catalog.json names "
            f"(expected {part.n_bytes} bytes, {part.sha256[:12]}...); write the version again under the next number"
        )
    return data


def _in_order(batches: Iterable[pa.Table], ids: list[Ids]) -> Iterator[pa.Table]:
    """Pass batches on, keep their ids, and refuse rows out of order."""
    last = (-1, -1)
    for table in batches:
        if not table.num_rows:
            continue
        morton, soma = table["morton"].to_numpy(), table["soma_id"].to_numpy()
        rising = (morton[1:] > morton[:-1]) | ((morton[1:] == morton[:-1]) & (soma[1:] >= soma[:-1]))
        first = (int(morton[0]), int(soma[0]))
        if first < last or not rising.all():
            at = first if first < last else (int(morton[1:][~rising][0]), int(soma[1:][~rising][0]))
            raise SpecError(
                f"batches of somas must come sorted by (Morton code, soma id), but soma {at[1]} (code {at[0]}) came "
                "too late; sort them, or give one table, which is sorted here"
            )
        last = (int(morton[-1]), int(soma[-1]))
        ids.append(soma)
        yield table


def _cut(tables: Iterable[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """Yield tables of ``n_rows`` rows, the last with what is left."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    n_waiting = 0
    for table in tables:
        waiting.append(table)
        n_waiting += table.num_rows
        while n_waiting >= n_rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, n_rows)
            waiting, n_waiting = [joined.slice(n_rows)], n_waiting - n_rows
    if n_waiting:
        yield pa.concat_tables(waiting)


def _write_part(objects: Objects, table: pa.Table, version: int, number: int, rows_per_group: int) -> Part:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(
        table.combine_chunks().unify_dictionaries(), sink, compression="zstd", row_group_size=rows_per_group
    )
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    # With the hash in the name, a second writer of the same version cannot change a part that the first one named.
    key = f"v{version}/part-{number:05d}-{digest[:12]}.parquet"
    objects.put(key, data)
    points = np.stack([table[f"{axis}_nm"].to_numpy() for axis in "xyz"], axis=1)
    lower, upper = (tuple(points.min(axis=0).tolist()), tuple(points.max(axis=0).tolist()))
    return Part(
        key=key, n_rows=table.num_rows, n_bytes=len(data), sha256=digest, lower_nm=lower, upper_nm=upper
    )


def _refuse_twins(ids: list[Ids]) -> None:
    ordered = np.sort(np.concatenate([*ids, np.zeros(0, np.uint64)]))
    twins = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twins):
        raise SpecError(
            f"each soma must come once, but soma {twins[0]} comes twice ({len(twins)} such); merge its rows"
        )


def _latest(objects: Objects, data: bytes) -> Latest:
    try:
        return Latest.model_validate_json(data)
    except ValidationError as error:
        raise VolumeFormatError(
            f"{objects.uri}/{LATEST} is not what cloudseg writes there ({explain(error)}); publish a version again"
        ) from error
