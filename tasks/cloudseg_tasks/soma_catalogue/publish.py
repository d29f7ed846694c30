"""The rows of a catalogue, gathered range by range, and published as a version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AwareDatetime, PositiveFloat, PositiveInt

from cloudseg.errors import CorruptDataError, NotFoundError
from cloudseg.ops.morton import morton_codes
from cloudseg.ops.remap import lookup
from cloudseg.ops.soma_places import ball_fractions, nearest_distances, neighbour_counts
from cloudseg.ops.soma_table import describe_somas
from cloudseg.somas.opinions import in_effect, read_opinions
from cloudseg.somas.renewal import Verdicts, tombstone_rows
from cloudseg.somas.rows import checked, sorted_rows
from cloudseg.somas.store import CatalogSpec, publish, read_latest, write_version
from cloudseg.specs import BoxField, FrozenModel
from cloudseg.tasking.task import Context, Task
from cloudseg.volumes.objects import Objects
from cloudseg.volumes.tables import get_table
from cloudseg_tasks.soma_catalogue.regions import region_names
from cloudseg_tasks.soma_catalogue.tables import merged_key, places_key, somas_of

# Rows that are in memory with all their columns at once.
_ROWS_AT_ONCE = 500_000

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


class CatalogueFields(FrozenModel):
    """What a version says about itself; see :class:`cloudseg.somas.store.CatalogSpec`."""

    dataset: str
    made_from: dict[str, Any]


class SomaCatalogueTask(Task):
    """Gather the somas of all partitions, add neighbours and opinions, write a version and publish it.

    Attributes
    ----------
    graph_uri
        Folder of the tables.
    catalogue_uri
        Folder of the catalogue.
    bounds, voxel_size_nm
        Of the somas.
    atlas_uri
        Regions; empty: none.
    names_uri
        Folder of the tables of the stage that gave the somas the ids of the version before; empty: none.
    previous
        That version.
    stitched_uri
        Folder of the tables of the stage that stitched the somas; empty: none.
    opinions_until
        Reference rows up to this time are taken in; None: none.
    neighbourhood_um
        Radius within which neighbours are counted for the density.
    has_interior, has_boundary, has_segments
        Which columns mean anything.
    """

    kind: Literal["soma_catalogue/1"] = "soma_catalogue/1"
    graph_uri: str
    catalogue_uri: str
    version: PositiveInt
    fields: CatalogueFields
    bounds: BoxField
    voxel_size_nm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    n_partitions: PositiveInt
    n_portions: PositiveInt
    neighbourhood_um: PositiveFloat
    atlas_uri: str = ""
    names_uri: str = ""
    stitched_uri: str = ""
    previous: PositiveInt | None = None
    opinions_until: AwareDatetime | None = None
    has_interior: bool = False
    has_boundary: bool = False
    has_segments: bool = False

    def run(self, ctx: Context) -> None:
        """Find neighbours among all, then write the rows in their order, some at a time."""
        tables = ctx.open_objects(self.graph_uri)
        catalogue = ctx.open_objects(self.catalogue_uri)
        verdicts = Verdicts()
        if self.opinions_until is not None:
            rows = [row for row in read_opinions(catalogue) if row.time <= self.opinions_until]
            verdicts = Verdicts.of(in_effect(rows).values())
        with ctx.step("compute"):
            every = self._neighbours(tables, verdicts)
        merges = self._merges(ctx, every.ids)
        names = region_names(ctx.open_objects(self.atlas_uri), self.atlas_uri) if self.atlas_uri else {}
        spec = CatalogSpec(
            dataset=self.fields.dataset,
            voxel_size_nm=self.voxel_size_nm,
            bounds_nm=self._bounds_nm(),
            regions=tuple(sorted({region for region, _ in names.values()})),
            made_from=self.fields.made_from,
        )
        extra = verdicts.manual_rows(known=every.ids)
        if self.names_uri:
            dead = get_table(ctx.open_objects(self.names_uri), "tombstones.parquet")
            extra = pa.concat_tables(
                [extra, tombstone_rows(catalogue, self.previous, dead["id"], dead["superseded_by"])]
            )
        with ctx.step("write"):
            batches = self._batches(tables, every, _Said(verdicts, names, merges), extra)
            written = write_version(catalogue, batches, spec, version=self.version)
            if not _is_past(catalogue, self.version):
                publish(catalogue, self.version)  # type: ignore[arg-type]  # stores of tasks are versioned ones
        ctx.count(somas=written.catalog.n_somas)

    def _bounds_nm(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        size = self.voxel_size_nm
        (ax, ay, az), (bx, by, bz) = self.bounds.start, self.bounds.stop
        return (ax * size[0], ay * size[1], az * size[2]), (bx * size[0], by * size[1], bz * size[2])

    def _neighbours(self, tables: Objects, verdicts: Verdicts) -> _Neighbours:
        ids, centres = [np.empty(0, np.uint64)], [np.empty((0, 3))]
        wanted = ["id", "n_voxels", *(f"sum_{axis}_vx" for axis in "xyz")]
        for part in range(self.n_partitions):
            table = get_table(tables, merged_key(part), columns=wanted)
            sums = np.stack([table[f"sum_{axis}_vx"] for axis in "xyz"], axis=1)
            ids.append(table["id"])
            centres.append((sums / table["n_voxels"][:, None] + 0.5) * np.asarray(self.voxel_size_nm))
        return _Neighbours.of(
            np.concatenate(ids),
            np.concatenate(centres),
            dead=verdicts.rejected,
            radius_nm=self.neighbourhood_um * 1000,
            bounds_nm=self._bounds_nm(),
        )

    def _batches(
        self,
        tables: Objects,
        every: _Neighbours,
        said: _Said,
        extra: pa.Table,
    ) -> Iterator[pa.RecordBatch]:
        lower, upper = self._bounds_nm()
        extra = checked(extra, lower=lower, upper=upper)
        cuts = every.cuts(_ROWS_AT_ONCE)
        for low, high in zip([0, *cuts], [*cuts, 1 << 63], strict=True):
            parts = [_within(extra, low, high)]
            for part in range(self.n_partitions):
                rows = self._rows(tables, part, every, said)
                parts.append(_within(checked(rows, lower=lower, upper=upper), low, high))
            yield from sorted_rows(pa.concat_tables(parts).unify_dictionaries()).to_batches()

    def _rows(self, tables: Objects, part: int, every: _Neighbours, said: _Said) -> pa.Table:
        merged = get_table(tables, merged_key(part))
        somas = somas_of(merged)
        found = describe_somas(somas, bounds=self.bounds, voxel_size_nm=self.voxel_size_nm)
        places = self._places(tables, part, somas.ids)
        nearest_um, density = every.of_ids(somas.ids)
        columns: dict[str, Any] = {"soma_id": somas.ids}
        for i, axis in enumerate("xyz"):
            columns[f"{axis}_nm"] = found["centroid_nm"][:, i]
            columns[f"anchor_{axis}_nm"] = places[f"anchor_{axis}_nm"]
            columns[f"bbox_min_{axis}_nm"] = found["start_nm"][:, i]
            columns[f"bbox_max_{axis}_nm"] = found["stop_nm"][:, i]
            columns[f"axis_dir_{axis}"] = _or_null(found["axis_dir"][:, i])
        for i, name in enumerate(("major", "mid", "minor")):
            columns[f"axis_{name}_um"] = _or_null(found["axes_um"][:, i])
        area = places["surface_um2"]
        with np.errstate(invalid="ignore", divide="ignore"):
            sphericity = np.cbrt(36 * np.pi * found["volume_um3"] ** 2) / area
        columns |= {
            "n_voxels": somas.n_voxels.astype(np.uint64),
            "volume_um3": found["volume_um3"],
            "radius_um": found["radius_um"].astype(np.float32),
            "surface_um2": _or_null(area),
            "sphericity": _or_null(sphericity),
            "edge_faces": found["edge_faces"],
            "n_blocks": np.minimum(somas.n_blocks, 0xFFFF).astype(np.uint16),
            "nearest_um": _or_null(nearest_um),
            "density_per_mm3": _or_null(density),
        }
        columns |= said.verdicts.status_columns(somas.ids)
        if said.merges is not None:
            joined = said.merges[np.searchsorted(every.ids, somas.ids)]
            columns["n_merges"] = np.minimum(joined, 0xFFFF).astype(np.uint16)
        if self.has_interior:
            columns["score"] = found["interior"].astype(np.float32)
        if self.has_boundary:
            columns["boundary_score"] = _or_null(np.where(somas.n_surface > 0, found["boundary"], np.nan))
        if self.has_segments:
            none = merged["segment"] == 0
            columns["segment_id"] = pa.array(merged["segment"], mask=none)
            columns["segment_fraction"] = (merged["segment_voxels"] / somas.n_voxels).astype(np.float32)
            columns["n_segments"] = np.minimum(merged["n_segments"], 0xFFFF).astype(np.uint16)
        if self.atlas_uri:
            there = [said.regions.get(int(region), (str(int(region)), "")) for region in places["region"]]
            columns["region"] = pa.array(
                [name if region else None for (name, _), region in zip(there, places["region"], strict=True)],
                pa.string(),
            )
            columns["side"] = pa.array([side or None for _, side in there], pa.string())
        columns |= said.verdicts.said_columns(somas.ids, columns)
        return pa.table(columns)

    def _merges(self, ctx: Context, ids: Ids) -> npt.NDArray[np.int64] | None:
        """Return how many pieces were joined to each soma; None where nothing was stitched."""
        if not self.stitched_uri:
            return None
        joined = get_table(ctx.open_objects(self.stitched_uri), "names.parquet")["new"]
        if self.names_uri:
            final = get_table(ctx.open_objects(self.names_uri), "names.parquet")
            joined = lookup(joined, final["old"], final["new"])
        found, counts = np.unique(joined[np.isin(joined, ids)], return_counts=True)
        merges = np.zeros(len(ids), np.int64)
        merges[np.searchsorted(ids, found)] = counts
        return merges

    def _places(self, tables: Objects, part: int, ids: Ids) -> dict[str, npt.NDArray[Any]]:
        found = [get_table(tables, places_key(part, portion)) for portion in range(self.n_portions)]
        joined = {name: np.concatenate([table[name] for table in found]) for name in found[0]}
        order = np.argsort(joined["id"])
        if not np.array_equal(joined["id"][order], ids):
            raise CorruptDataError(
                f"the deepest voxels in {self.graph_uri} are not those of the somas of partition {part}; "
                "delete the folder with the receipts of its stage and run the stage again"
            )
        return {name: values[order] for name, values in joined.items()}


@dataclass(frozen=True, slots=True)
class _Said:
    """What is known of somas beside their voxels: opinions, names and sides of regions, joins in the order of ids."""

    verdicts: Verdicts
    regions: Mapping[int, tuple[str, str]]
    merges: npt.NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """What only all somas together tell, 40 bytes a soma, sorted by id."""

    ids: Ids
    morton: Ids
    nearest_um: Floats
    density_per_mm3: Floats

    @classmethod
    def of(
        cls,
        ids: Ids,
        centres_nm: Floats,
        *,
        dead: Ids,
        radius_nm: float,
        bounds_nm: tuple[tuple[float, float, float], tuple[float, float, float]],
    ) -> _Neighbours:
        order = np.argsort(ids)
        ids, centres = ids[order], centres_nm[order]
        lower, upper = bounds_nm
        living = ~np.isin(ids, dead)
        nearest, density = np.full(len(ids), np.nan), np.full(len(ids), np.nan)
        alive = centres[living]
        nearest[living] = nearest_distances(alive) * 1e-3
        ball_mm3 = 4 / 3 * np.pi * (radius_nm * 1e-6) ** 3
        part = ball_fractions(alive, radius_nm=radius_nm, lower_nm=lower, upper_nm=upper)
        density[living] = neighbour_counts(alive, radius_nm=radius_nm) / (ball_mm3 * np.maximum(part, 1e-3))
        return cls(ids, morton_codes(centres, lower=lower, upper=upper), nearest, density)

    def of_ids(self, ids: Ids) -> tuple[Floats, Floats]:
        """Return both columns for some of the somas."""
        at = np.searchsorted(self.ids, ids)
        return self.nearest_um[at], self.density_per_mm3[at]

    def cuts(self, n_rows: int) -> list[int]:
        """Return Morton codes that cut the somas into ranges of about ``n_rows``."""
        codes = np.sort(self.morton)[n_rows::n_rows]
        return [int(code) for code in np.unique(codes)]


def _within(rows: pa.Table, low: int, high: int) -> pa.Table:
    codes = rows["morton"].to_numpy()
    return rows.filter(pa.array((codes >= low) & (codes < high)))


def _or_null(values: npt.NDArray[Any]) -> pa.Array:
    """Return float32 where NaN and infinite mean that nothing is known."""
    return pa.array(values.astype(np.float32), mask=~np.isfinite(values))


def _is_past(catalogue: Objects, version: int) -> bool:
    """Whether a later version is public: a task that comes again must not take it back."""
    try:
        latest = read_latest(catalogue)
    except NotFoundError:
        return False
    return latest.version > version
