"""Small objects by number in few files: shards, read by ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorstore as ts

from cloudseg.volumes.addresses import Address
from cloudseg.volumes.kvstore import context, kvstore_spec, translated

# Requests under way at once.
_AT_ONCE = 1024


class NumberedObjects:
    """The objects of a folder of shards, by number.

    Parameters
    ----------
    uri
        The folder of the shards. In the memory of this process there is none.
    sharding
        The entry ``sharding`` of the ``info`` that describes them.
    """

    def __init__(self, uri: str, sharding: Mapping[str, Any]) -> None:
        self.uri = uri
        spec = {
            "driver": "neuroglancer_uint64_sharded",
            "metadata": dict(sharding),
            "base": kvstore_spec(Address.parse(uri)),
        }
        with translated(uri, "open"):
            self._store = ts.KvStore.open(spec, context=context()).result()

    def get(self, number: int) -> bytes | None:
        """Return an object; None if there is none of this number."""
        return self.get_all([number])[0]

    def get_all(self, numbers: Iterable[int]) -> list[bytes | None]:
        """Return objects in the order of their numbers; None for those that are not there."""
        wanted, found = list(numbers), list[bytes | None]()
        for start in range(0, len(wanted), _AT_ONCE):
            with translated(self.uri, "read"):
                keys = [int(number).to_bytes(8, "big") for number in wanted[start : start + _AT_ONCE]]
                for read in [self._store.read(key) for key in keys]:
                    result = read.result()
                    found.append(bytes(result.value) if result.state == "value" else None)
        return found
