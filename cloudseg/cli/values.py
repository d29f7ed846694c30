"""Numbers on the command line: ``8,8,8``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import click

from cloudseg.errors import SpecError
from cloudseg.geometry import XYZ

Number = TypeVar("Number", int, float)


def positive_numbers(text: str | None, *, option: str) -> tuple[float, float, float] | None:
    """Read ``X,Y,Z`` with numbers above 0; None stays None.

    Raises
    ------
    SpecError
        If it is something else.
    """
    read = _three(text, float, form="three numbers, e.g. 8,8,8", option=option)
    if read is not None and not all(0 < value < float("inf") for value in read):
        raise SpecError(f"{option} must be above 0 on every axis, got {text!r}")
    return read


def whole_numbers(text: str | None, *, option: str) -> XYZ | None:
    """Read ``X,Y,Z`` with whole numbers; None stays None.

    Raises
    ------
    SpecError
        If it is something else.
    """
    return _three(text, int, form="three whole numbers, e.g. 64,64,64", option=option)


def _three(
    text: str | None, number: Callable[[str], Number], *, form: str, option: str
) -> tuple[Number, Number, Number] | None:
    if text is None:
        return None
    try:
        x, y, z = (number(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError(f"{option} is written X,Y,Z with {form}; got {text!r}") from error
    return (x, y, z)


def ids(text: str, *, option: str) -> tuple[int, ...]:
    """Read ``0,5,17``, ids from 0 up; ``none`` is the empty list.

    Raises
    ------
    SpecError
        If it is something else.
    """
    if text.strip() == "none":
        return ()
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (-1,)
    if min(values) < 0 or max(values) >= 2**64:
        raise SpecError(f"{option} is written as ids from 0 up, e.g. 0,5,17, or none; got {text!r}")
    return values


def numbers(values: Iterable[float]) -> str:
    """Write numbers the way options read them."""
    return ",".join(str(value) if isinstance(value, int) else f"{value:g}" for value in values)


def print_notes(notes: Iterable[str]) -> None:
    """Tell the user, beside the output, how something was understood."""
    for note in notes:
        click.echo(f"note: {note}", err=True)
