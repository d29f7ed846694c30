"""Docstrings and signatures of the reference as their authors wrote them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_PROSE_SECTIONS = {"Returns": "returns", "Yields": "yields"}


def prose_sections(lines: list[str]) -> list[str]:
    """Turn ``Returns`` and ``Yields`` sections that hold sentences, not types, into fields.

    numpydoc would take the first line of such a section for a type.
    """
    out: list[str] = []
    n = 0
    while n < len(lines):
        title = lines[n].strip()
        if (
            title in _PROSE_SECTIONS
            and n + 1 < len(lines)
            and lines[n + 1].strip("- ") == ""
            and lines[n + 1].strip()
        ):
            end = n + 2
            while end < len(lines) and not (end + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[end + 1])):
                end += 1
            body = lines[n + 2 : end]
            if any(line.startswith(" ") and not line.lstrip().startswith(("-", "*")) for line in body):
                out += lines[n:end]  # name and description, as numpydoc has it
            else:
                # Two empty lines end the section before.
                indented = (f"    {line}" if line else "" for line in body)
                out += ["", "", f":{_PROSE_SECTIONS[title]}:", *indented, ""]
            n = end
        else:
            out.append(lines[n])
            n += 1
    return out


def rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Prepare a docstring for napoleon."""
    lines[:] = prose_sections(lines)


def qualified(annotation: str, scope: dict[str, Any]) -> str:
    """Return an annotation with our own classes under their full names, so that they become links."""

    def full(match: re.Match[str]) -> str:
        first, *rest = match.group().split(".")
        value = scope.get(first)
        for part in rest:
            value = getattr(value, part, None)
        if isinstance(value, type) and value.__module__.startswith("cloudseg"):
            return f"~{value.__module__}.{value.__qualname__}"
        return match.group()

    return _NAME.sub(full, annotation)


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, given: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Show annotations as they stand in the source, instead of what they evaluate to."""
    if what == "class" and issubclass(obj, BaseModel):
        return "", None  # its fields are listed below, each with its meaning
    if what not in ("function", "method", "class"):
        return None
    function = inspect.unwrap(
        getattr(obj, "py_func", obj)
    )  # a compiled function keeps the one it was made of
    module: ModuleType | None = inspect.getmodule(function)
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    scope = vars(module) if module else {}
    parameters = []
    for parameter in found.parameters.values():
        if parameter.name in ("self", "cls") and what == "method":
            continue
        changed = parameter
        if isinstance(parameter.annotation, str):
            changed = changed.replace(annotation=_Verbatim(qualified(parameter.annotation, scope)))
        if parameter.default is not parameter.empty and not isinstance(
            parameter.default, str | int | float | bool | tuple | type(None)
        ):
            changed = changed.replace(default=_Verbatim("..."))
        parameters.append(changed)
    text = str(found.replace(parameters=parameters, return_annotation=found.empty))
    result = found.return_annotation
    wanted = what != "class" and not dataclasses.is_dataclass(obj) and isinstance(result, str)
    return text, qualified(result, scope) if wanted else None


class _Verbatim:
    """Text that inspect prints as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx, before napoleon reads the docstrings."""
    app.connect("autodoc-process-docstring", rewrite, priority=100)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True}
