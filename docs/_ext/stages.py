"""A page for each kind of stage, its options read from its class: names, types, defaults, meanings."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import types
import typing
from typing import Any

from carried import DOCS, put
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util import logging

from cloudseg.pipelines.spec import PipelineSpec
from cloudseg_tasks.stages import STAGES, stage_class

log = logging.getLogger(__name__)

# What the base class says in one sentence, and so in no list.
COMMON = {
    "kind": "Which stage.",
    "name": "What it is called in receipts, in `--set` and by other stages; the kind, unless given.",
    "after": "Stages that must be complete before it starts; the one above it in the file, unless given.",
    "barrier": "`neighbours`: a task starts when the blocks that it reads are done, not the whole step before it.",
}

GROUPS = {
    "Affinities to neurons": ("affinities", "supervoxels", "agglomerate", "multicut"),
    "Boundaries to cells": (
        "boundaries",
        "boundary_affinities",
        "distance_watershed",
        "hmin_watershed",
    ),
    "Thresholds": ("threshold", "morphology", "components", "classify"),
    "Section to section": ("max_extend", "colour_track"),
    "Flood filling": ("consensus",),
    "Somas": ("tissue",),
    "Products": ("downsample", "meshes", "skeletons", "statistics"),
}


def group_of(kind: str) -> str:
    """Return the heading under which ``kind`` stands."""
    for title, kinds in GROUPS.items():
        if kind in kinds:
            return title
    prefixes = {"soma_": "Somas", "ffn": "Flood filling"}
    return next((title for prefix, title in prefixes.items() if kind.startswith(prefix)), "Others")


def meanings(cls: type) -> dict[str, str]:
    """Return what the ``Attributes`` sections of a class and its bases say of each field."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        lines = inspect.cleandoc(base.__doc__ or "").splitlines() if "__doc__" in vars(base) else []
        inside, names = False, []
        for n, line in enumerate(lines):
            if n + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[n + 1]):
                inside = line in ("Attributes", "Parameters")
            elif inside and line and not line.startswith((" ", "-")):
                names = [name.strip() for name in line.split(":")[0].split(",")]
                found.update(dict.fromkeys(names, ""))
            elif inside and line.strip():
                for name in names:
                    found[name] = f"{found[name]} {line.strip()}".strip()
    return {name: as_markdown(text) for name, text in found.items()}


def as_markdown(text: str) -> str:
    """Turn a docstring's markup into that of a page: code, and names of ours as links."""
    text = re.sub(r":(func|class|mod|meth):`(~?cloudseg[\w.]+)`", r"{py:\1}`\2`", text.replace("``", "`"))
    return re.sub(r"(?<!})(?<!py):\w+:`~?([\w.]+)`", r"`\1`", text)


def type_text(annotation: Any, field: FieldInfo | None = None) -> str:
    """Say a type in the words of a TOML file."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "nothing"
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(part) for part in arguments if part is not type(None))
    if origin is typing.Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list of {type_text(arguments[0])}"
        if len(set(map(type_text, arguments))) == 1:
            return f"{len(arguments)} × {type_text(arguments[0])}"
        return f"list: {', '.join(map(type_text, arguments))}"
    if origin in (list, set, frozenset):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"table of {type_text(arguments[1])}"
    if inspect.isclass(annotation):
        if issubclass(annotation, enum.Enum):
            return " or ".join(f'`"{value.value}"`' for value in annotation)
        words = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}
        words |= {"Box": 'box, `"x,y,z:x,y,z"`', "datetime": "date and time", "Path": "path"}
        if issubclass(annotation, BaseModel):
            return f"table, see {annotation.__name__}"
        return words.get(annotation.__name__, annotation.__name__)
    return "any"


def default_text(field: FieldInfo) -> str:
    """Say a default as TOML writes it."""
    if field.is_required():
        return "**needed**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return ""
    return as_toml(value)


def as_toml(value: Any) -> str:
    """Return a value as a TOML file has it, between backquotes."""
    if isinstance(value, BaseModel):
        return "as below" if type(value).model_fields else "`{}`"

    def plain(item: Any) -> str:
        if isinstance(item, bool):
            return str(item).lower()
        if isinstance(item, str):
            return f'"{item}"'
        if isinstance(item, tuple | list):
            return f"[{', '.join(map(plain, item))}]"
        if isinstance(item, dict):
            return "{}" if not item else "{ ... }"
        if isinstance(item, BaseModel):
            return "{ ... }"
        return str(item)

    return f"`{plain(value)}`"


def options_table(
    cls: type[BaseModel], *, skip: tuple[str, ...] = ()
) -> tuple[list[str], list[type[BaseModel]]]:
    """Return the rows of a Markdown table of a model's fields, and the models that its fields hold."""
    known = {**COMMON, **meanings(cls)}
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    nested: list[type[BaseModel]] = []
    for name, field in cls.model_fields.items():
        if name in skip:
            continue
        if not known.get(name):
            log.warning(
                "%s.%s has no meaning: write it into the Attributes of its docstring", cls.__name__, name
            )
        nested += [model for model in models_in(field.annotation) if model not in nested]
        cells = (f"`{name}`", type_text(field.annotation, field), default_text(field), known.get(name, ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""], nested


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a type is made of."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def prose(docstring: str) -> str:
    """Return the sentences of a docstring, without its sections, as Markdown."""
    lines = inspect.cleandoc(docstring).splitlines()
    for n, line in enumerate(lines[1:], 1):
        if re.fullmatch(r"-{3,}", line):
            lines = lines[: n - 1]
            break
    return as_markdown("\n".join(lines).strip())


def describe(title: str, cls: type[BaseModel], *, level: str, skip: tuple[str, ...] = ()) -> list[str]:
    """Return a section on a model, and on those that its fields hold."""
    rows, nested = options_table(cls, skip=skip)
    lines = [f"{level} {title}", "", prose(cls.__doc__ or ""), "", *rows]
    seen: list[type[BaseModel]] = []
    while nested:
        model = nested.pop(0)
        if model in seen:
            continue
        seen.append(model)
        inner, deeper = options_table(model)
        lines += [f"**{model.__name__}**: {prose(model.__doc__ or '')}", "", *inner]
        nested += deeper
    return lines


def make_pages(app: Sphinx) -> None:
    """Write docs/made/stages/*.md and docs/made/pipeline.md."""
    folder = DOCS / "made" / "stages"
    by_group: dict[str, list[str]] = {title: [] for title in GROUPS}
    for kind in STAGES:
        cls = stage_class(kind)
        by_group.setdefault(group_of(kind), []).append(kind)
        module = prose(importlib.import_module(cls.__module__).__doc__ or "")
        lines = [f"# `{kind}`", "", prose(cls.__doc__ or ""), ""]
        table = describe("Options", cls, level="##", skip=("kind",))
        lines += [table[0], "", *table[4:], "## How it works", "", module, ""]
        put(folder / f"{kind}.md", "\n".join(lines))
    index = ["# Stages", "", "Kinds of `[[stage]]` tables in a [pipeline file](../pipeline.md).", ""]
    for title, kinds in by_group.items():
        if kinds:
            index += [f"## {title}", "", "| kind | does |", "|---|---|"]
            for kind in kinds:
                first = " ".join(prose(stage_class(kind).__doc__ or "").split("\n\n")[0].split())
                first = first.partition(". ")[0].removesuffix(".") + "."
                index.append(f"| [`{kind}`]({kind}.md) | {first} |")
            index += ["", "```{toctree}", ":hidden:", "", *kinds, "```", ""]
    put(folder / "index.md", "\n".join(index))
    rows, _ = options_table(PipelineSpec, skip=("stages",))
    text = [
        "# The pipeline file",
        "",
        "One TOML file: these keys, then a `[[stage]]` table for each stage, in order.",
        "",
        *rows,
        "Kinds of stages and their options: [stages](stages/index.md). `${NAME}` in an address is replaced by",
        "the environment's variable. `--set key=value` overrides a key, `--set stage.key=value` a stage's.",
        "",
    ]
    put(DOCS / "made" / "pipeline.md", "\n".join(text))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", make_pages)
    return {"parallel_read_safe": True}
