"""Reading Precomputed annotations: by id, by what they relate to, cell by cell, or all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import CorruptDataError, NotFoundError, VolumeFormatError
from cloudseg.geometry import XYZ
from cloudseg.ops.annotations import compressed_morton, record_dtype
from cloudseg.volumes.addresses import Address
from cloudseg.volumes.numbered import NumberedObjects
from cloudseg.volumes.objects import open_objects

_COORDINATES = {"POINT": 3, "ELLIPSOID": 6}


class Annotations:
    """A folder of sharded annotations of points or ellipsoids, opened for reading.

    Parameters
    ----------
    uri
        The folder that holds the ``info``.

    Raises
    ------
    NotFoundError
        If there is none.
    VolumeFormatError
        If it is of a kind that cloudseg does not write.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = Address.parse(uri).uri
        try:
            self.info: dict[str, Any] = json.loads(open_objects(self.uri).get("info"))
            kind = str(self.info["annotation_type"]).upper()
            properties = {each["id"]: each["type"] for each in self.info["properties"]}
            self.dtype = record_dtype(properties, n_coordinates=_COORDINATES[kind])
        except NotFoundError as error:
            raise NotFoundError(f"no annotations at {self.uri}: there is no info file") from error
        except (ValueError, KeyError, TypeError) as error:
            raise VolumeFormatError(
                f"{self.uri}/info describes no annotations that cloudseg reads ({type(error).__name__}: {error}); "
                "expected points or ellipsoids, with numbers for properties"
            ) from error
        self._by_id = self._index(self.info["by_id"])
        self._related = {each["id"]: self._index(each) for each in self.info["relationships"]}
        self._levels = [self._index(each) for each in self.info["spatial"]]

    def by_id(self, number: int) -> tuple[npt.NDArray[Any], dict[str, tuple[int, ...]]]:
        """Return one record, and the ids that it relates to, by the names of relationships.

        Raises
        ------
        NotFoundError
            If there is no such annotation.
        """
        data = self._by_id.get(number)
        if data is None:
            raise NotFoundError(f"there is no annotation {number} at {self.uri}")
        at = self.dtype.itemsize
        related = {}
        for name in self._related:
            n = int(np.frombuffer(data, "<u4", 1, at)[0])
            related[name] = tuple(np.frombuffer(data, "<u8", n, at + 4).tolist())
            at += 4 + 8 * n
        self._check_length(data, at, what=f"annotation {number}")
        return np.frombuffer(data, self.dtype, 1)[0], related

    def related(self, relationship: str, number: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
        """Return ids and records of the annotations that relate to ``number``; none where nothing does."""
        return self._listed(self._related[relationship].get(number), what=f"{relationship} {number}")

    def cell(self, level: int, place: XYZ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
        """Return ids and records of one cell of a level of the spatial index."""
        grid = tuple(self.info["spatial"][level]["grid_shape"])
        code = compressed_morton(np.asarray([place], np.int64), grid=grid)[0]
        return self._listed(self._levels[level].get(int(code)), what=f"cell {place} of level {level}")

    def all(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
        """Return ids and records of all cells of all levels; what touches several cells comes several times."""
        found = [self._listed(None, what="")]
        for level, index in zip(self.info["spatial"], self._levels, strict=True):
            n_cells = int(np.prod([1 << (n - 1).bit_length() for n in level["grid_shape"]]))
            found += [self._listed(data, what="a cell") for data in index.get_all(range(n_cells)) if data]
        ids, records = zip(*found, strict=True)
        return np.concatenate(ids), np.concatenate(records)

    def _index(self, entry: Mapping[str, Any]) -> NumberedObjects:
        return NumberedObjects(f"{self.uri}/{entry['key']}", entry["sharding"])

    def _listed(self, data: bytes | None, *, what: str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
        if data is None:
            return np.zeros(0, np.uint64), np.zeros(0, self.dtype)
        n = int(np.frombuffer(data, "<u8", 1)[0])
        stop = 8 + n * self.dtype.itemsize
        self._check_length(data, stop + 8 * n, what=what)
        return np.frombuffer(data, "<u8", n, stop), np.frombuffer(data, self.dtype, n, 8)

    def _check_length(self, data: bytes, n: int, *, what: str) -> None:
        if len(data) != n:
            raise CorruptDataError(
                f"{what} at {self.uri} has {len(data)} bytes and should have {n}; delete the folder and write it again"
            )
