"""Checked questions to SQL with bound parameters: names come from the schema, values never enter the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cloudseg.somas.filters import Condition, Value
from cloudseg.somas.requests import Point, Predicate
from cloudseg.somas.schema import BY_NAME, Column

Box = tuple[Point, Point]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STATISTICS = ("n", "mean", "std", "min", "p5", "p25", "median", "p75", "p95", "max")
_COMPARE = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_LIMITS = {"uint8": 1 << 8, "uint16": 1 << 16, "uint32": 1 << 32, "uint64": 1 << 64}
# Up to so many values are compared one by one, more are joined: each is the faster there.
_FEW = 4


class Dialect(Protocol):
    """What differs between databases."""

    def type_of(self, column: Column) -> str:
        """Return the type in which a value of the column is compared."""
        ...

    def value(self, column: Column, value: Value) -> Value:
        """Return a value as the column stores it."""
        ...

    def centroid_in(self, bind: Bind, box: Box) -> str:
        """Return a further condition, implied by the box, that an index can answer; or nothing."""
        ...


@dataclass
class Bind:
    """Collects parameters; each call gives its placeholder."""

    values: list[Any] = field(default_factory=list)

    def __call__(self, value: Any, type_: str) -> str:
        """Keep a value, return its placeholder with a cast to ``type_``."""
        self.values.append(value)
        return f"${len(self.values)}::{type_}"


@dataclass(frozen=True, slots=True)
class Statement:
    """Text and its parameters."""

    text: str
    parameters: list[Any]


def where_clause(
    dialect: Dialect,
    bind: Bind,
    conditions: Iterable[Condition],
    box: Box | None,
    predicate: Predicate,
    *more: str,
) -> str:
    """Return ``WHERE ...``, or nothing."""
    parts = [_condition(dialect, bind, each) for each in conditions]
    if box is not None:
        parts += _in_box(dialect, bind, box, predicate)
    parts += [each for each in more if each]
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def select(
    columns: Sequence[str],
    source: str,
    where: str,
    bind: Bind,
    *,
    order: tuple[str, bool] | None = None,
    limit: int | None = None,
) -> Statement:
    """Return rows; nulls come last in either order, ties go by soma id."""
    text = f"SELECT {', '.join(quoted(name) for name in columns)} FROM {source}{where}"
    if order is not None:
        name, descending = order
        direction = "DESC" if descending else "ASC"
        keys = [f"{_sort_key(name)} {direction} NULLS LAST"]
        if name != "soma_id":
            keys.append('"soma_id" ASC')
        text += f" ORDER BY {', '.join(keys)}"
    if limit is not None:
        text += f" LIMIT {int(limit)}"
    return Statement(text, bind.values)


def after(dialect: Dialect, bind: Bind, order: tuple[str, bool], value: Value | None, soma_id: int) -> str:
    """Return the condition of the rows that follow one: its value in the order's column, and its id."""
    name, descending = order
    soma = BY_NAME["soma_id"]
    if name == "soma_id":
        return f'"soma_id" {"<" if descending else ">"} {bind(dialect.value(soma, soma_id), dialect.type_of(soma))}'
    later = f'"soma_id" > {bind(dialect.value(soma, soma_id), dialect.type_of(soma))}'
    if value is None:
        return f"({quoted(name)} IS NULL AND {later})"
    column = BY_NAME[name]
    placeholder = bind(dialect.value(column, value), dialect.type_of(column))
    key = _sort_key(name)
    return (
        f"({key} {'<' if descending else '>'} {placeholder} OR ({key} = {placeholder} AND {later}) "
        f"OR {quoted(name)} IS NULL)"
    )


def count(by: Sequence[str], source: str, where: str, bind: Bind) -> Statement:
    """Return the number of rows, by groups."""
    groups = "".join(f"{quoted(name)}, " for name in by)
    text = f'SELECT {groups}count(*) AS "n" FROM {source}{where}'
    if by:
        text += f" GROUP BY {groups.rstrip(', ')}"
    return Statement(text, bind.values)


def aggregate(name: str, by: Sequence[str], source: str, where: str, bind: Bind) -> Statement:
    """Return :data:`STATISTICS` of a column, by groups. Quantiles interpolate linearly, as numpy's do."""
    groups = "".join(f"{quoted(each)}, " for each in by)
    value = f"CAST({quoted(name)} AS DOUBLE PRECISION)"
    quantiles = {
        label: f"percentile_cont({q}) WITHIN GROUP (ORDER BY {value})"
        for label, q in zip(("p5", "p25", "median", "p75", "p95"), QUANTILES, strict=True)
    }
    what = {"n": f"count({quoted(name)})", "mean": f"avg({value})", "std": f"stddev_samp({value})"}
    what |= {"min": f"min({value})", **quantiles, "max": f"max({value})"}
    text = f"SELECT {groups}{', '.join(f'{what[each]} AS {quoted(each)}' for each in STATISTICS)} FROM {source}{where}"
    if by:
        text += f" GROUP BY {groups.rstrip(', ')}"
    return Statement(text, bind.values)


def quoted(name: str) -> str:
    """Return a name of the schema (or of our own) as SQL writes it."""
    assert name.replace("_", "").isalnum(), name
    return f'"{name}"'


def _sort_key(name: str) -> str:
    # Bytes, not a language's alphabet: every back-end sorts texts alike.
    return f'{quoted(name)} COLLATE "C"' if BY_NAME[name].kind == "text" else quoted(name)


def _condition(dialect: Dialect, bind: Bind, each: Condition) -> str:
    name, column = quoted(each.column.name), each.column
    if each.operator == "is_null":
        return f"{name} IS {'' if each.value else 'NOT '}NULL"
    type_ = dialect.type_of(column)
    if isinstance(each.value, tuple):
        possible = [value for value in each.value if _side(column, value) == 0]
        if not possible:
            return "FALSE" if each.operator == "in" else f"{name} IS NOT NULL"
        values = [dialect.value(column, value) for value in possible]
        if len(values) <= _FEW:
            items = ", ".join(bind(value, type_) for value in values)
        else:
            items = f"SELECT unnest({bind(values, f'{type_}[]')})"
        negation = "NOT " if each.operator == "not_in" else ""
        return f"{_compared(name, column, type_)} {negation}IN ({items})"
    side = _side(column, each.value)
    if side == 0:
        value = bind(dialect.value(column, each.value), type_)
        return f"{_compared(name, column, type_)} {_COMPARE[each.operator]} {value}"
    # A number that no value of the column can be: below all (side -1) or above all (side 1).
    holds = each.operator == "!=" or each.operator.startswith(">" if side < 0 else "<")
    return f"{name} IS NOT NULL" if holds else "FALSE"


def _compared(name: str, column: Column, type_: str) -> str:
    # Numbers compare as float64, however they are stored: what was asked is not rounded.
    return f"CAST({name} AS {type_})" if column.type == "float32" else name


def _side(column: Column, value: Value) -> int:
    if column.type not in _LIMITS:
        return 0
    assert isinstance(value, int)
    return -1 if value < 0 else 1 if value >= _LIMITS[column.type] else 0


def _in_box(dialect: Dialect, bind: Bind, box: Box, predicate: Predicate) -> list[str]:
    parts = []
    number = BY_NAME["x_nm"]
    type_ = dialect.type_of(number)
    for axis, low, high in zip("xyz", *box, strict=True):
        if predicate == "centroid":
            parts += [f'"{axis}_nm" >= {bind(low, type_)}', f'"{axis}_nm" < {bind(high, type_)}']
        else:
            # An empty box overlaps nothing, though half-open boxes around it would say so.
            parts += [
                f'"bbox_max_{axis}_nm" > {bind(low, type_)}',
                f'"bbox_min_{axis}_nm" < {bind(high, type_)}',
            ]
            if low == high:
                parts.append("FALSE")
    if predicate == "centroid":
        parts.append(dialect.centroid_in(bind, box))
    return [part for part in parts if part]
