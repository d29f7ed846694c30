"""The filter grammar: ``{"volume_um3": {">=": 50}, "side": "left"}`` becomes checked conditions, never text of SQL.

A value alone means ``==``, a list means ``in``; several operators of one column, and several columns, all must hold.
A null matches no comparison, ``!=`` and ``not_in`` included; ``is_null`` asks for it. An empty list matches nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudseg.errors import QueryError
from cloudseg.somas.schema import COLUMNS, Column, column, shortened, suggestion

OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "not_in", "is_null")
_FOR_TEXT = ("==", "!=", "in", "not_in", "is_null")

MAX_VALUES = 1_000_000
MAX_TEXT = 1_000
# A number in JSON that some program may have kept in a float: above, digits may be lost already.
MAX_EXACT = 1 << 53

Value = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Condition:
    """One column, one operator, and a value (a tuple for ``in`` and ``not_in``, a bool for ``is_null``)."""

    column: Column
    operator: str
    value: Value | tuple[Value, ...]


def parse_where(where: object, *, from_json: bool = False) -> tuple[Condition, ...]:
    """Return the conditions that ``where`` means.

    Parameters
    ----------
    where
        A mapping from names of columns to a value, a list of values, or a mapping from operators to values; None for
        no condition.
    from_json
        Whether it came as JSON. Then a bare number above 2^53 is no id: it may have lost digits on its way.

    Raises
    ------
    QueryError
        If a column or an operator is unknown, or a value does not fit its column; close names are given.
    """
    if where is None:
        return ()
    if not isinstance(where, Mapping):
        raise QueryError(
            f'where: expected a mapping from columns to conditions, e.g. {{"volume_um3": {{">=": 50}}}}, '
            f"got {shortened(where)}"
        )
    found: list[Condition] = []
    for name, asked in where.items():
        each = column(name, where="where")
        if isinstance(asked, Mapping):
            if not asked:
                raise QueryError(f"where.{name}: no operator given; there are {' '.join(OPERATORS)}")
            found += [_condition(each, op, value, from_json=from_json) for op, value in asked.items()]
        elif _is_list(asked):
            found.append(_condition(each, "in", asked, from_json=from_json))
        else:
            found.append(_condition(each, "==", asked, from_json=from_json))
    return tuple(found)


def where_schema() -> dict[str, Any]:
    """Return the grammar as JSON schema, for the description of an API."""
    kinds: dict[str, dict[str, Any]] = {
        "id": {"type": "string", "pattern": "^[0-9]{1,20}$", "maxLength": 20},
        "integer": {"type": "integer"},
        "number": {"type": "number"},
        "text": {"type": "string", "maxLength": MAX_TEXT},
    }

    def of(each: Column) -> dict[str, Any]:
        value = kinds[each.kind]
        values = {"type": "array", "items": value}
        types = dict.fromkeys(OPERATORS if each.kind != "text" else _FOR_TEXT, value)
        types |= {"in": values, "not_in": values, "is_null": {"type": "boolean"}}
        operators = {"type": "object", "properties": types, "additionalProperties": False, "minProperties": 1}
        return {"anyOf": [value, values, operators]}

    properties = {each.name: of(each) for each in COLUMNS}
    return {"properties": properties, "additionalProperties": False}


def to_json(conditions: Iterable[Condition]) -> dict[str, dict[str, Any]]:
    """Return conditions as JSON values, ids as text."""

    def written(each: Condition, value: Value) -> Value:
        return str(value) if each.column.kind == "id" and each.operator != "is_null" else value

    found: dict[str, dict[str, Any]] = {}
    for each in conditions:
        value = each.value
        found.setdefault(each.column.name, {})[each.operator] = (
            [written(each, v) for v in value] if isinstance(value, tuple) else written(each, value)
        )
    return found


def id_list(values: object, *, where: str, from_json: bool = False) -> tuple[int, ...]:
    """Return ids (a list, an array, a column, or a single one) as whole numbers, in the order given.

    Raises
    ------
    QueryError
        If one is no whole number from 0 to 2^64 - 1.
    """
    items = _listed(values) if _is_list(values) else [values]
    _refuse_too_many(items, where)
    found = tuple(_whole(item, where=where, is_id=True, from_json=from_json) for item in items)
    for item in found:
        if not 0 <= item < 1 << 64:
            raise QueryError(f"{where}: an id is a whole number from 0 to 2^64 - 1, got {item}")
    return found


def _condition(each: Column, op: object, value: object, *, from_json: bool) -> Condition:
    at = f"where.{each.name}"
    if not isinstance(op, str) or op not in OPERATORS:
        raise QueryError(f"{at}: there is no operator {shortened(op)}; {_close_operator(op)}")
    if each.kind == "text" and op not in _FOR_TEXT:
        raise QueryError(f"{at}: {op!r} compares numbers, and {each.name} is text; use {' '.join(_FOR_TEXT)}")
    if op == "is_null":
        if not isinstance(value, bool):
            raise QueryError(f"{at}.is_null: expected true or false, got {shortened(value)}")
        return Condition(each, op, value)
    if op in ("in", "not_in"):
        if not _is_list(value):
            raise QueryError(f"{at}.{op}: expected a list of values, got {shortened(value)}")
        items = _listed(value)
        _refuse_too_many(items, f"{at}.{op}")
        return Condition(each, op, tuple(_value(each, v, f"{at}.{op}", from_json=from_json) for v in items))
    if _is_list(value):
        raise QueryError(f"{at}.{op}: expected one value, got a list; for lists there are in and not_in")
    return Condition(each, op, _value(each, value, f"{at}.{op}", from_json=from_json))


def _value(each: Column, value: object, at: str, *, from_json: bool) -> Value:
    if value is None:
        raise QueryError(f'{at}: null is no value; to ask for rows without one write {{"is_null": true}}')
    if each.kind == "text":
        if not isinstance(value, str):
            raise QueryError(f"{at}: {each.name} is text, got {shortened(value)}")
        if len(value) > MAX_TEXT or "\0" in value or not _is_utf8(value):
            raise QueryError(f"{at}: a text has at most {MAX_TEXT} characters, no NUL, and is valid Unicode")
        return value
    if each.kind == "number":
        if isinstance(value, (bool, str, bytes)):
            raise QueryError(f"{at}: {each.name} is a number, got {shortened(value)}")
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise QueryError(f"{at}: {each.name} is a number, got {shortened(value)}") from error
        if not math.isfinite(number):
            raise QueryError(
                f"{at}: expected a finite number, got {number}; leave the condition out for no bound"
            )
        return number
    return _whole(value, where=at, is_id=each.kind == "id", from_json=from_json)


def _whole(value: object, *, where: str, is_id: bool, from_json: bool) -> int:
    if isinstance(value, str) and is_id and value.isascii() and value.isdigit() and len(value) <= 40:
        return int(value)
    if isinstance(value, float) and value.is_integer() and not is_id and abs(value) <= MAX_EXACT:
        return int(value)
    if isinstance(value, (bool, str, float)):
        why = "; a float cannot hold every id, so none is taken" if isinstance(value, float) and is_id else ""
        raise QueryError(f"{where}: expected a whole number, got {shortened(value)}{why}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise QueryError(f"{where}: expected a whole number, got {shortened(value)}") from error
    if from_json and is_id and abs(number) > MAX_EXACT:
        raise QueryError(
            f'{where}: ids above 2^53 lose digits in many JSON programs; write the id as text, e.g. "{number}"'
        )
    return number


def _is_list(value: object) -> bool:
    if isinstance(value, (str, bytes, Mapping)):
        return False
    # An array without dimensions is a number.
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0


def _listed(value: object) -> Sequence[object]:
    for method in ("to_pylist", "tolist"):  # Arrow, numpy and pandas, each without loss
        if hasattr(value, method):
            listed: list[object] = getattr(value, method)()
            return listed
    assert isinstance(value, Iterable)
    return list(value)


def _refuse_too_many(values: Sequence[object], where: str) -> None:
    if len(values) > MAX_VALUES:
        raise QueryError(
            f"{where}: at most {MAX_VALUES} values at once, got {len(values)}; ask in several parts"
        )


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _close_operator(op: object) -> str:
    known = {
        "=": "==",
        "<>": "!=",
        "gt": ">",
        "ge": ">=",
        "gte": ">=",
        "lt": "<",
        "le": "<=",
        "lte": "<=",
        "eq": "==",
    }
    if isinstance(op, str) and op in known:
        return f"did you mean {known[op]}?"
    return suggestion(str(op), OPERATORS)
