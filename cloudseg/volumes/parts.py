"""Parts of objects: byte ranges and versions, for those who pass stored bytes on unread.

Whole objects of a bucket are compared with the digest that it keeps. There is none of a range: one that ends before its
stop, where the object may end or the answer was cut, is believed when two readings agree; its bytes are passed on
as they came.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorstore as ts

from cloudseg.errors import CorruptDataError, NotFoundError
from cloudseg.volumes.addresses import Address, check_key
from cloudseg.volumes.checked import CheckedObjects
from cloudseg.volumes.kvstore import n_retries, open_kvstore, translated


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one object.

    Attributes
    ----------
    data
        The bytes, or None where the object still has the version that the caller knows.
    start
        Place of the first byte in the object.
    version
        Changes whenever the object does; empty where the storage tells none.
    size_bytes
        Size of the whole object, or None where reading the part did not tell.
    """

    data: bytes | None
    start: int
    version: bytes
    size_bytes: int | None


class Parts:
    """A folder whose objects can be read in part.

    Parameters
    ----------
    uri
        ``file://``, ``gs://``, ``s3://`` or ``http(s)://``.
    """

    def __init__(self, uri: str) -> None:
        self._address = Address.parse(uri)
        self._store = open_kvstore(self._address)

    @property
    def uri(self) -> str:
        """Where it lives."""
        return self._address.uri

    def read(
        self,
        key: str,
        *,
        first: int | None = None,
        stop: int | None = None,
        known_version: bytes | None = None,
    ) -> Part:
        """Return the bytes ``[first, stop)`` of an object, cut at its end; the whole by default.

        Parameters
        ----------
        key
            Name of the object.
        first, stop
            Half-open range. A negative ``first`` counts from the end: then the whole object is read to learn its
            size, which no storage tells beside a part.
        known_version
            Do not send the bytes again if the object has this version.

        Raises
        ------
        NotFoundError
            If there is no such object.
        EOFError
            If ``first`` lies at or behind the end of the object.
        CorruptDataError
            If an object, or the length of a part, is another each time it is read.
        """
        check_key(key, uri=self.uri)
        if first is not None and first < 0:
            whole = self.read(key, known_version=known_version)
            if whole.data is None:
                return whole
            start = max(0, len(whole.data) + first)
            return Part(whole.data[start:], start, whole.version, len(whole.data))
        if first is None and stop is None and not known_version and self._in_bucket:
            return self._whole(key)
        start, asked_stop = first or 0, stop
        result = self._read(key, slice(start or None, stop), known_version)
        if result is None and stop is not None:
            # The storage refuses a range that reaches past the end; HTTP cuts it there.
            stop = None
            result = self._read(key, slice(start or None, None), known_version)
        nothing = result is not None and result.state == "value" and not result.value
        if result is None or (nothing and first is not None and stop != first):
            raise EOFError(f"byte {start} lies behind the end of {self.uri}/{key}")
        if result.state == "missing":
            raise NotFoundError(f"no object {key!r} in {self.uri}")
        # Not every storage heeds the condition; what it sent then is no news either.
        unchanged = result.state == "unspecified" or (known_version and _version(result) == known_version)
        data = None if unchanged else bytes(result.value)
        # All up to the end, or less than was asked for: either way the end is known.
        ended = data is not None and (stop is None or len(data) < stop - start)
        if data is not None and ended and self._in_bucket:
            if first is None and stop is None:  # it has changed since the caller's version
                return self._whole(key)
            data = self._agreed(key, slice(start or None, stop), data)
            ended = stop is None or len(data) < stop - start
        size = start + len(data) if data is not None and ended else None
        if data is not None and asked_stop is not None:
            data = data[: asked_stop - start]  # it did not end there after all
        return Part(data, start, _version(result), size)

    @property
    def _in_bucket(self) -> bool:
        return self._address.scheme in ("gs", "s3")

    def _agreed(self, key: str, part: slice[int | None, int | None, None], before: bytes) -> bytes:
        """Read until two readings in a row are the same."""
        for _ in range(1 + n_retries()):
            result = self._read(key, part, None)
            now = bytes(result.value) if result is not None else b""
            if now == before:
                return now
            before = now
        raise CorruptDataError(
            f"bytes {part.start or 0} to {part.stop or 'the end'} of {self.uri}/{key} were different each time they "
            "were read; check what lies between here and the bucket"
        )

    def _whole(self, key: str) -> Part:
        found = CheckedObjects(self._address).read(key)
        if found.data is None:
            raise NotFoundError(f"no object {key!r} in {self.uri}")
        return Part(found.data, 0, found.version, len(found.data))

    def _read(
        self, key: str, part: slice[int | None, int | None, None], known: bytes | None
    ) -> ts.KvStore.ReadResult | None:
        """Read; None if the range is not inside the object."""
        with translated(f"{self.uri}/{key}", "read"):
            try:
                if known:
                    return self._store.read(key, byte_range=part, if_not_equal=known).result()
                return self._store.read(key, byte_range=part).result()
            except ValueError as error:
                if str(error).startswith("OUT_OF_RANGE"):
                    return None
                raise


def _version(result: ts.KvStore.ReadResult) -> bytes:
    return bytes(result.stamp.generation)
