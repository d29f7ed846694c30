"""The pipeline file: which image, which root, which stages, in which order."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    Field,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.specs import FrozenModel, explain
from cloudseg.tasking.sqs_client import SqsAddress
from cloudseg.tasking.steps import Stage
from cloudseg.volumes.addresses import Address
from cloudseg_tasks.stages import stage_class

_LABEL = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")

HOW_KEYS = ("executor", "workers", "threads_per_worker", "max_attempts")
"""Keys that say how a pipeline is run, not what it makes: they may change between two runs on one root."""


class PipelineSpec(FrozenModel):
    """A pipeline.

    Attributes
    ----------
    image
        Address of the image volume.
    root
        Address of the folder that receives everything.
    inputs
        Layers that exist already, by the name stages know them by, e.g. ``affinities`` made elsewhere.
    executor
        ``local``, or the queue that other workers serve, e.g. ``fq:///shared/queue`` or ``sqs://NAME``.
    workers
        Worker processes that this machine starts; None means one per core (divided by the threads).
    threads_per_worker
        Threads that a task may use.
    max_attempts
        How often a failing task is tried before it becomes a dead letter.
    stages
        In the file's order; ``[[stage]]`` tables in TOML.
    """

    image: Annotated[str, Field(min_length=1)]
    root: Annotated[str, Field(min_length=1)]
    inputs: dict[str, str] = Field(default_factory=dict)
    executor: str = "local"
    workers: Annotated[int, Field(ge=0)] | None = None
    threads_per_worker: PositiveInt = 1
    max_attempts: PositiveInt = 3
    stages: Annotated[tuple[SerializeAsAny[Stage], ...], Field(min_length=1)]

    @field_validator("stages", mode="before")
    @classmethod
    def _stages_are_known_kinds(cls, value: object) -> object:
        if not isinstance(value, (list, tuple)):
            return value
        return tuple(_load_stage(item, number=n) for n, item in enumerate(value, 1))

    @field_validator("executor")
    @classmethod
    def _executor_is_known(cls, value: str) -> str:
        if value.startswith(("sqs://", "https://sqs.")):
            SqsAddress.parse(value)
        elif value != "local" and not value.startswith("fq://"):
            raise ValueError(
                f"executor must be 'local' or a queue, 'fq://folder' or 'sqs://NAME', got {value!r}"
            )
        return value

    @field_validator("inputs")
    @classmethod
    def _inputs_do_not_hide_the_image(cls, value: dict[str, str]) -> dict[str, str]:
        if "image" in value:
            raise ValueError("the image is named by the key image, not under inputs")
        return value

    @model_validator(mode="after")
    def _labels_are_unique(self) -> Self:
        seen: set[str] = set()
        for stage in self.stages:
            if not _LABEL.match(stage.label):
                raise ValueError(
                    f"stage name {stage.label!r} must be letters, digits, '-' and '_' (it becomes a folder name)"
                )
            if stage.label in seen:
                raise ValueError(
                    f"two stages are called {stage.label!r}; give one of them another, e.g. name = '{stage.label}2'"
                )
            seen.add(stage.label)
        return self

    @model_validator(mode="after")
    def _stages_can_be_ordered(self) -> Self:
        _topological(self.stages)
        return self

    @property
    def n_workers(self) -> int:
        """Worker processes to start on this machine."""
        if self.workers is not None:
            return self.workers
        return max(1, (os.cpu_count() or 1) // self.threads_per_worker)

    def ordered(self) -> tuple[Stage, ...]:
        """Return the stages so that each follows all that it comes after; the file's order otherwise."""
        return _topological(self.stages)

    def before(self, label: str) -> frozenset[str]:
        """Return the labels of all stages that must be complete before ``label`` starts."""
        direct = _direct(self.stages)
        found: set[str] = set()
        waiting = list(direct[label])
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(direct[name])
        return frozenset(found)

    def to_toml(self) -> str:
        """Return the whole specification, defaults included, as TOML that :func:`parse_spec` reads back."""
        data = self.model_dump(mode="json", exclude_none=True)
        data["stage"] = [
            {k: v for k, v in stage.items() if (k, v) != ("name", "")} for stage in data.pop("stages")
        ]
        return _toml_table(data)


def read_spec(path: str | Path, *, overrides: Sequence[str] = ()) -> PipelineSpec:
    """Load a pipeline file.

    Parameters
    ----------
    path
        A TOML file.
    overrides
        ``key=value`` texts; see :func:`apply_overrides`.

    Raises
    ------
    NotFoundError
        If there is no such file.
    SpecError
        If it is no TOML, or does not validate; every offending key is named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no pipeline file {path}; examples/ has some to start from") from error
    except IsADirectoryError as error:
        raise SpecError(
            f"{path} is a folder; a pipeline file is a TOML file such as examples/fib25.toml"
        ) from error
    return parse_spec(text, where=str(path), overrides=overrides)


def parse_spec(text: str, *, where: str, overrides: Sequence[str] = ()) -> PipelineSpec:
    """Load a pipeline from TOML text; ``where`` opens the error messages."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{where} is not valid TOML: {error}") from error
    return load_spec(apply_overrides(data, overrides), where=where)


def load_spec(data: Mapping[str, Any], *, where: str) -> PipelineSpec:
    """Validate a pipeline given as plain data, resolve its addresses, and name every key that is wrong.

    Raises
    ------
    SpecError
        If the data does not validate.
    """
    fields = dict(data)
    if "stages" in fields:
        raise SpecError(f"{where}: unknown key 'stages': did you mean [[stage]] tables?")
    stages = fields.pop("stage", None)
    if not isinstance(stages, (list, tuple)) or not stages:
        raise SpecError(f"{where}: a pipeline needs at least one [[stage]] table with a kind")
    loaded = tuple(_load_stage(item, number=n, where=f"{where}: ") for n, item in enumerate(stages, 1))
    for key in ("image", "root"):
        if isinstance(fields.get(key), str):
            fields[key] = resolve_uri(fields[key], where=f"{where}: {key}")
    if isinstance(fields.get("inputs"), Mapping):
        fields["inputs"] = {
            name: resolve_uri(uri, where=f"{where}: inputs.{name}") if isinstance(uri, str) else uri
            for name, uri in fields["inputs"].items()
        }
    if isinstance(fields.get("executor"), str) and fields["executor"].startswith("fq://"):
        folder = resolve_uri(fields["executor"].removeprefix("fq://"), where=f"{where}: executor")
        fields["executor"] = "fq://" + folder.removeprefix("file://")
    try:
        return PipelineSpec.model_validate({**fields, "stages": loaded})
    except ValidationError as error:
        raise SpecError(f"{where}: {_explain_with_hints(error, PipelineSpec, hide=('stages',))}") from error


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``data`` with ``key=value`` texts applied.

    Parameters
    ----------
    data
        A pipeline as plain data (it is not changed).
    overrides
        ``image=...``, ``root=...``, ``workers=4``, or an option of a stage, by the stage's name or kind:
        ``agglomerate.threshold=0.6``. Values are TOML; what is no TOML is a string.

    Raises
    ------
    SpecError
        If a text has no ``=``, or names no stage, or a kind that several stages have.
    """
    result = dict(data)
    result["stage"] = [dict(s) if isinstance(s, Mapping) else s for s in result.get("stage", ())]
    for text in overrides:
        key, equals, raw = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(path):
            raise SpecError(f"--set needs key=value, e.g. agglomerate.threshold=0.6, got {text!r}")
        value = _toml_value(raw.strip())
        if path[0] == "inputs" and len(path) == 2:
            result["inputs"] = {**result.get("inputs", {}), path[1]: raw.strip().strip("\"'")}
            continue
        if len(path) == 1:
            # Addresses stay text even where they read like a number or a date.
            result[path[0]] = (
                raw.strip() if path[0] in ("image", "root") and not isinstance(value, str) else value
            )
            continue
        _set_nested(_stage_called(path[0], result["stage"], text=text), path[1:], value)
    return result


def resolve_uri(text: str, *, where: str) -> str:
    """Return ``text`` as an absolute address: ``${NAME}`` expanded, local paths as ``file://``.

    Raises
    ------
    SpecError
        If an environment variable is not set, or the text is no address.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise SpecError(
                f"{where} uses ${{{name}}}, but the environment has no variable {name!r}; set it first"
            )
        return os.environ[name]

    expanded = _VARIABLE.sub(value_of, text).strip()
    if not expanded:
        raise SpecError(f"{where} is empty; give a folder or an address such as gs://bucket/folder")
    try:
        return Address.parse(expanded).uri
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error


def differing_keys(a: PipelineSpec, b: PipelineSpec) -> list[str]:
    """Name the keys in which two pipelines would make different things, with both values."""
    left, right = _flat(a), _flat(b)
    missing = "(not there)"
    return [
        f"{key}: {left.get(key, missing)!r} there, {right.get(key, missing)!r} here"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, missing) != right.get(key, missing)
    ]


def _load_stage(item: object, *, number: int, where: str = "") -> Stage:
    if isinstance(item, Stage):
        return item
    if not isinstance(item, Mapping):
        raise SpecError(f"{where}stage {number} must be a table with a kind, got {item!r}")
    kind = item.get("kind")
    if not isinstance(kind, str):
        raise SpecError(f'{where}stage {number} has no kind; write e.g. kind = "affinities"')
    label = str(item.get("name") or kind)
    try:
        cls = stage_class(kind)
    except SpecError as error:
        raise SpecError(f"{where}stage {number}: {error}") from error
    fields = dict(item)
    if isinstance(fields.get("after"), str):
        fields["after"] = (fields["after"],)
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        raise SpecError(f"{where}stage {number} ({label}): {_explain_with_hints(error, cls)}") from error


def _direct(stages: Sequence[Stage]) -> dict[str, tuple[str, ...]]:
    """Return what each stage comes directly after."""
    labels = [stage.label for stage in stages]
    direct: dict[str, tuple[str, ...]] = {}
    for n, stage in enumerate(stages):
        after = stage.after if stage.after is not None else tuple(labels[n - 1 : n])
        for name in after:
            if name not in labels:
                hint = _hint(name, labels)
                raise ValueError(
                    f"stage {stage.label!r} comes after {name!r}, which is no stage of this pipeline{hint}; "
                    f"there are: {', '.join(labels)}"
                )
        direct[stage.label] = after
    return direct


def _topological(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    direct = _direct(stages)
    waiting = list(stages)
    done: set[str] = set()
    ordered: list[Stage] = []
    while waiting:
        ready = next((s for s in waiting if done.issuperset(direct[s.label])), None)
        if ready is None:
            raise ValueError(
                "these stages wait for one another in a circle: "
                + ", ".join(f"{s.label} (after {', '.join(direct[s.label])})" for s in waiting)
                + "; remove one 'after'"
            )
        waiting.remove(ready)
        done.add(ready.label)
        ordered.append(ready)
    return tuple(ordered)


def _stage_called(name: str, stages: list[Any], *, text: str) -> dict[str, Any]:
    tables = [s for s in stages if isinstance(s, dict)]
    labels = [str(s.get("name") or s.get("kind")) for s in tables]
    found = [s for s, label in zip(tables, labels, strict=True) if label == name]
    found = found or [s for s in tables if s.get("kind") == name]
    if len(found) > 1:
        raise SpecError(
            f"--set {text}: several stages are of kind {name!r}; name one of: {', '.join(labels)}"
        )
    if not found:
        raise SpecError(
            f"--set {text}: no stage {name!r}{_hint(name, labels)}; there are: {', '.join(labels)}"
        )
    return found[0]


def _set_nested(table: dict[str, Any], path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        inner = table.get(part)
        table[part] = dict(inner) if isinstance(inner, Mapping) else {}
        table = table[part]
    table[path[-1]] = value


def _toml_value(raw: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return raw
    return parsed["value"] if parsed.keys() == {"value"} else raw


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _explain_with_hints(error: ValidationError, model: type[BaseModel], *, hide: Sequence[str] = ()) -> str:
    """Explain like :func:`cloudseg.specs.explain`, and add the nearest known key to each unknown one."""
    text = explain(error).replace("Value error, ", "")
    if (
        len(error.errors()) == 1
        and error.errors()[0]["type"] == "value_error"
        and not error.errors()[0]["loc"]
    ):
        # A rule about the whole document: its own sentence says everything, the input would only repeat the file.
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    hints = []
    for item in error.errors():
        if item["type"] != "extra_forbidden":
            continue
        owner = _model_at(model, item["loc"][:-1])
        known = [k for k in owner.model_fields if k not in hide] if owner else []
        hints.append(
            f"{item['loc'][-1]!r}{_hint(str(item['loc'][-1]), known)}: the keys here are {', '.join(known)}"
        )
    return text + ("; " + "; ".join(hints) if hints else "")


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return None
        model = field.annotation
    return model


def _flat(spec: PipelineSpec) -> dict[str, object]:
    """Return every key that says what is made, e.g. ``agglomerate.threshold``."""
    found: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        else:
            found[prefix] = value

    for key, value in spec.model_dump(mode="json", exclude={"stages", *HOW_KEYS}).items():
        walk(key, value)
    direct = _direct(spec.stages)
    for stage in spec.stages:
        for key, value in stage.model_dump(mode="json", exclude={"name", "after", "barrier"}).items():
            walk(f"{stage.label}.{key}", value)
        found[f"{stage.label}.after"] = list(direct[stage.label])
    return found


def _toml_table(data: Mapping[str, Any], prefix: str = "") -> str:
    """Write a table: plain values first, then sub-tables, then arrays of tables (TOML 1.0)."""
    lines, tables, arrays = [], [], []
    for key, value in data.items():
        if isinstance(value, dict):
            tables.append((key, value))
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            arrays.append((key, value))
        else:
            lines.append(f"{_toml_key(key)} = {_toml_text(value)}")
    text = "".join(line + "\n" for line in lines)
    for key, value in tables:
        text += f"\n[{prefix}{_toml_key(key)}]\n" + _toml_table(value, f"{prefix}{_toml_key(key)}.")
    for key, items in arrays:
        for item in items:
            text += f"\n[[{prefix}{_toml_key(key)}]]\n" + _toml_table(item, f"{prefix}{_toml_key(key)}.")
    return text


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else ("\\" + c if c in '"\\' else c)
            for c in value
        )
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_text(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_text(v)}" for k, v in value.items()) + "}"
    raise SpecError(f"a pipeline file cannot hold {value!r}")
