"""The base of every typed setting: frozen, strict about unknown keys, errors that name the field."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from cloudseg.errors import SpecError
from cloudseg.geometry import Box


class FrozenModel(BaseModel):
    """An immutable typed setting. Unknown keys are refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def load(cls, data: object, *, where: str) -> Self:
        """Validate ``data`` (a mapping, or JSON text) and turn a failure into one readable sentence.

        Parameters
        ----------
        data
            A mapping, or a JSON document as ``str`` or ``bytes``.
        where
            What is being read (a file name, a message id): it opens the error message.

        Raises
        ------
        SpecError
            If the data does not validate; every offending key is named.
        """
        try:
            if isinstance(data, (str, bytes, bytearray)):
                return cls.model_validate_json(data)
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(f"{where}: {explain(error)}") from error

    def canonical_json(self) -> str:
        """Return the one JSON text of this value: sorted keys, no spaces, ASCII."""
        return canonical_json(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def explain(error: ValidationError) -> str:
    """Say in one line what pydantic found: each key, what is wrong with it, what was given."""
    parts = []
    for item in error.errors():
        key = ".".join(str(p) for p in item["loc"]) or "(whole document)"
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown key {key!r}: remove it or correct its spelling")
        elif item["type"] == "missing":
            parts.append(f"missing key {key!r}")
        else:
            got = repr(item.get("input"))
            parts.append(f"{key}: {item['msg']} (got {got if len(got) < 120 else got[:117] + '...'})")
    return "; ".join(parts)


def _to_box(value: object) -> object:
    if isinstance(value, str):
        return Box.parse(value)
    if isinstance(value, dict):
        return Box(**value)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return Box(tuple(value[0]), tuple(value[1]))
    return value


BoxField = Annotated[Box, BeforeValidator(_to_box), PlainSerializer(str, return_type=str)]
"""A :class:`~cloudseg.geometry.Box` in a model: written ``x0,y0,z0:x1,y1,z1`` in JSON and TOML."""
