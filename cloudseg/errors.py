"""The exception tree: the class of an error says who must act.

::

    CloudsegError
    ├── SpecError (ValueError)                 fix the request: a setting, a box, a file that does not fit
    │   ├── BoxOutOfBoundsError (IndexError)   a read or write reached outside the volume
    │   ├── AlignmentError                     a write that does not cover whole chunks
    │   ├── VolumeFormatError                  an info file, or a source file, that cannot be read
    │   ├── ConflictError (FileExistsError)    the output exists with other properties
    │   ├── ModelError                         a model package that is broken or does not fit the image
    │   ├── QueryError                         a question to a catalogue that is malformed, or too large
    │   └── UnknownTaskError (LookupError)     a queue message of a kind this worker does not know
    ├── NotFoundError (FileNotFoundError)      nothing lies at the address
    ├── StorageError (OSError)                 the storage refused or answered nonsense
    │   ├── TransientStorageError              try again
    │   ├── CorruptDataError                   stored bytes do not decode to what they must be
    │   ├── MissingChunkError                  a chunk that must exist does not
    │   ├── AuthError (PermissionError)        a server wants a token, or a better one
    │   └── ServerError                        a server failed; its log knows the request id
    ├── TaskFailedError (RuntimeError)         a task gave up; its dead letter has the traceback
    └── MissingExtraError (ImportError)        an optional part of cloudseg is not installed

Every class survives pickling: messages are built by class methods or by the caller, never in ``__init__``.
"""

from __future__ import annotations

from typing import Self


class CloudsegError(Exception):
    """Base of every error that cloudseg raises on purpose."""


class SpecError(CloudsegError, ValueError):
    """The request cannot be carried out as written: change it."""


class BoxOutOfBoundsError(SpecError, IndexError):
    """A read or write reached outside the volume."""

    @classmethod
    def of(cls, box: object, bounds: object, *, uri: str) -> Self:
        """Say what was asked, what exists, where, and the two ways out."""
        return cls(
            f"box {box} is not inside the bounds {bounds} of {uri}; "
            "clip it with box.intersect(bounds), or read with fill=0"
        )


class AlignmentError(SpecError):
    """A write does not cover whole chunks (or whole shards) of the volume."""

    @classmethod
    def of(cls, box: object, *, grid: tuple[int, int, int], origin: tuple[int, int, int], uri: str) -> Self:
        """Say which grid the box had to respect."""
        return cls(
            f"box {box} does not cover whole chunks of {uri}: each edge must lie on the grid of {grid} voxels "
            f"that starts at {origin}, or on the volume's own border; widen the box to the grid"
        )


class VolumeFormatError(SpecError):
    """A volume's description, or a source file, is malformed."""


class ConflictError(SpecError, FileExistsError):
    """The output exists already and differs from what was asked for."""


class ModelError(SpecError):
    """A model package is broken, or does not fit the image."""


class QueryError(SpecError):
    """A question to a catalogue is malformed, or asks for too much at once."""


class UnknownTaskError(SpecError, LookupError):
    """A queue message names a kind that this worker does not know."""


class NotFoundError(CloudsegError, FileNotFoundError):
    """Nothing lies at the address."""


class StorageError(CloudsegError, OSError):
    """The storage refused, or answered something that makes no sense."""


class TransientStorageError(StorageError):
    """The storage failed in a way that a second try may cure."""


class CorruptDataError(StorageError):
    """Stored bytes do not decode to what they must be."""


class MissingChunkError(StorageError):
    """A chunk that must exist does not."""


class AuthError(StorageError, PermissionError):
    """A server wants a token, or one that may do more."""


class ServerError(StorageError):
    """A server failed; its log knows the request by the id in the message."""


class TaskFailedError(CloudsegError, RuntimeError):
    """One or more tasks gave up; their dead letters hold the tracebacks."""


class MissingExtraError(CloudsegError, ImportError):
    """An optional part of cloudseg is not installed."""

    @classmethod
    def of(cls, package: str, *, extra: str) -> Self:
        """Name the missing package and the command that installs it."""
        return cls(f"{package!r} is not installed; install it with: pip install 'cloudseg[{extra}]'")
