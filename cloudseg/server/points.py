"""The somas of a page as a Neuroglancer source: all of them in one cell, in the order of the table's columns.

The sharded annotations of a catalogue thin out what is far away, as a link wants it. A page shows as many points as
its table has rows, and switches them on and off by itself: a point's place in the cell is its row, and its property
``state`` is the page's to change in memory. So nothing is fetched when a filter changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import NotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = (
    "soma_id",
    "segment_id",
    "status",
    "x_nm",
    "y_nm",
    "z_nm",
    "volume_um3",
    "radius_um",
    "score",
    "nearest_um",
)
"""Columns that a point holds."""

_NUMBERS = ("volume_um3", "radius_um", "score", "nearest_um")
_RECORD = np.dtype(
    [("at", "<f4", 3), *((name, "<f4") for name in _NUMBERS), ("state", "u1"), ("padding", "u1", 3)]
)
_STATES = ("hidden", "shown", "accepted", "rejected", "chosen")
_SEGMENT = "segment"


@dataclass(frozen=True, slots=True)
class Points:
    """The files of one version, by key.

    Attributes
    ----------
    records
        What the viewer draws, ``(n,)``.
    soma_ids, segment_ids
        Beside them; 0 where there is no segment.
    by_soma
        Rows in the order of soma ids.
    """

    records: npt.NDArray[Any]
    soma_ids: npt.NDArray[np.uint64]
    segment_ids: npt.NDArray[np.uint64]
    by_soma: npt.NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> Points:
        """Make the points of a table that holds at least the columns of ``NAMES``."""
        import pyarrow.compute as pc

        records = np.zeros(table.num_rows, _RECORD)
        for axis, name in enumerate(("x_nm", "y_nm", "z_nm")):
            records["at"][:, axis] = table[name].to_numpy()
        for name in _NUMBERS:
            records[name] = table[name].to_numpy(zero_copy_only=False)
        # Before the page says otherwise: tombstones are no somas.
        gone = pc.is_in(table["status"].cast("string"), _words("rejected", "merged"))
        records["state"] = np.where(gone.to_numpy(zero_copy_only=False), 0, 1)
        soma_ids = table["soma_id"].to_numpy().astype(np.uint64)
        segment_ids = pc.fill_null(table["segment_id"], 0).to_numpy().astype(np.uint64)
        return cls(records, soma_ids, segment_ids, np.argsort(soma_ids))

    def info(self) -> dict[str, Any]:
        """Return the ``info`` of the source. The numbers of its records are nm."""
        at = self.records["at"].astype(np.float64)
        lower = np.floor(at.min(axis=0)) - 1 if len(at) else np.zeros(3)
        upper = np.ceil(at.max(axis=0)) + 1 if len(at) else np.ones(3)
        numbers = [{"id": name, "type": "float32"} for name in _NUMBERS]
        state = {
            "id": "state",
            "type": "uint8",
            "description": "how the page shows it",
            "enum_values": list(range(len(_STATES))),
            "enum_labels": list(_STATES),
        }
        return {
            "@type": "neuroglancer_annotations_v1",
            "dimensions": {axis: [1e-9, "m"] for axis in "xyz"},
            "lower_bound": lower.tolist(),
            "upper_bound": upper.tolist(),
            "annotation_type": "POINT",
            "properties": [*numbers, state],
            "relationships": [{"id": _SEGMENT, "key": "by_segment"}],
            "by_id": {"key": "by_id"},
            "spatial": [
                {
                    "key": "all",
                    "grid_shape": [1, 1, 1],
                    "chunk_size": (upper - lower).tolist(),
                    # The least there is: from the number of points in a cell the viewer works out which to leave out.
                    "limit": 1,
                }
            ],
        }

    def get(self, key: str) -> bytes:
        """Return one file.

        Raises
        ------
        NotFoundError
            If there is none of this name.
        """
        folder, _, name = key.partition("/")
        if key == "all/0_0_0":
            return self._several(np.arange(len(self.records)))
        if name.isascii() and name.isdigit() and len(name) <= 20:
            if folder == "by_id":
                return self._one(int(name))
            if folder == "by_segment":
                number = np.uint64(min(int(name), (1 << 64) - 1))
                return self._several(np.flatnonzero((self.segment_ids == number) & (number != 0)))
        raise NotFoundError(f"there is no {key[:80]!r} among the points of somas")

    def _one(self, soma_id: int) -> bytes:
        place = int(np.searchsorted(self.soma_ids[self.by_soma], min(soma_id, (1 << 64) - 1)))
        if place == len(self.by_soma) or int(self.soma_ids[self.by_soma[place]]) != soma_id:
            raise NotFoundError(f"there is no soma {soma_id} here")
        row = self.by_soma[place]
        segment = self.segment_ids[row : row + 1]
        number = 1 if segment[0] else 0
        return bytes(
            self.records[row].tobytes()
            + number.to_bytes(4, "little")
            + segment[:number].astype("<u8").tobytes()
        )

    def _several(self, rows: npt.NDArray[np.int64]) -> bytes:
        ids = self.soma_ids[rows].astype("<u8").tobytes()
        return len(rows).to_bytes(8, "little") + self.records[rows].tobytes() + ids


def _words(*words: str) -> Any:
    import pyarrow as pa

    return pa.array(words, pa.string())
