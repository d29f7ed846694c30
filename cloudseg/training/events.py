"""Event files that TensorBoard reads, written without TensorBoard.

TensorBoard brings a dozen packages and a web server; what training needs of it is three messages. A file is a row of
records: length, checksum of the length, an ``Event`` message, checksum of the message. Field numbers are those of
``event.proto`` and ``summary.proto`` of TensorFlow.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from cloudseg.training.picture import Picture, encode_png

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_START = 1  # SessionLog.START: what an earlier session wrote at this step or later is void
_RGB = 3


class EventFile:
    """One event file in a folder; each process that trains writes its own.

    Parameters
    ----------
    folder
        TensorBoard's ``--logdir``; made if it does not exist.
    first_step
        Step at which this session begins. What earlier sessions wrote from there on is not shown any more.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Sessions are sorted by name: whole nanoseconds, so that two of one second stay in order.
        self._file: BinaryIO = (folder / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}").open(
            "wb"
        )
        self._write(_bytes(3, b"brain.Event:2"))
        self._write(_number(2, first_step) + _bytes(7, _number(1, _START)))

    def scalar(self, tag: str, value: float, *, step: int) -> None:
        """Add one point of a curve."""
        self._summary(step, _bytes(1, tag.encode()) + _key(2, _FIXED32) + struct.pack("<f", value))

    def image(self, tag: str, picture: Picture, *, step: int) -> None:
        """Add one picture."""
        rows, columns, _ = picture.shape
        image = _number(1, rows) + _number(2, columns) + _number(3, _RGB) + _bytes(4, encode_png(picture))
        self._summary(step, _bytes(1, tag.encode()) + _bytes(4, image))

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def _summary(self, step: int, value: bytes) -> None:
        self._write(_number(2, step) + _bytes(5, _bytes(1, value)))

    def _write(self, message: bytes) -> None:
        event = _key(1, _FIXED64) + struct.pack("<d", time.time()) + message
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))
        self._file.flush()


def _checksum(data: bytes) -> bytes:
    """CRC-32C, turned and shifted so that the checksum of something with a checksum in it stays a good one."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(data)) + data
