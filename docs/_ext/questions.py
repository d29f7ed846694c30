"""The page on the server's questions, read from the description that the server gives of itself."""

from __future__ import annotations

import json
from typing import Any

from carried import DOCS, put
from fastapi import FastAPI
from sphinx.application import Sphinx

from cloudseg.server.access import Access
from cloudseg.server.datasets import Datasets
from cloudseg.server.numbers import Numbers
from cloudseg.server.somas import soma_router

INTRODUCTION = """# Questions over HTTP

What `cloudseg serve` answers below its address; `/openapi.json` says the same for programs. Answers are JSON, CSV,
Arrow or Parquet, by the `Accept` header or `format`; ids in JSON are text, lengths nm. Errors are JSON too: what was
wrong, where, what was expected. With `--tokens`, send `Authorization: Bearer TOKEN`. The same in Python:
{py:class}`cloudseg.client.somas.Somas`; by example: [query](../query.md).
"""


def text_of(schema: dict[str, Any]) -> str:
    """Say a type of a JSON schema in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        parts = [text_of(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if schema.get("type") == "array":
        return f"list of {text_of(schema['items'])}" if schema.get("items") else "list"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "table"}
    return words.get(schema.get("type", ""), schema.get("type", "any"))


def cell(text: object) -> str:
    """Return text that fits into a cell of a table."""
    return " ".join(str(text).replace("``", "`").replace("|", "\\|").split())


def section(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """Return what the page says of one question."""
    lines = [f"## {method.upper()} `{path}`", "", (operation.get("description") or "").replace("``", "`"), ""]
    rows = [
        (p["name"], p["in"], text_of(p["schema"]), p.get("description", ""))
        for p in operation.get("parameters", ())
        if p["in"] != "path"
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    model = schemas.get(body.get("$ref", "").rpartition("/")[2], {})
    for name, field in model.get("properties", {}).items():
        default = json.dumps(field["default"]) if field.get("default") is not None else ""
        meaning = field.get("description", "") + (f" Default: `{default}`." if default else "")
        needed = ", needed" if name in model.get("required", ()) else ""
        rows.append((name, f"body{needed}", text_of(field), meaning))
    if rows:
        lines += ["| name | in | type | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {where} | {cell(kind)} | {cell(meaning)} |" for name, where, kind, meaning in rows
        ]
        lines.append("")
    return lines


def make_page(app: Sphinx) -> None:
    """Write docs/made/http.md."""
    api = FastAPI()
    api.include_router(soma_router(Datasets([]), Access(), Numbers()))
    document = api.openapi()
    lines = [INTRODUCTION]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += section(method, path, operation, document["components"]["schemas"])
    put(DOCS / "made" / "http.md", "\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", make_page)
    return {"parallel_read_safe": True}
