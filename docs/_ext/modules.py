"""One page of the reference for each module that others may use, made from its docstrings."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Any

from carried import DOCS, put
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import cloudseg

# Packages and modules by the page that lists them: what somebody outside may want to call. The command line, the
# stages and the server's questions have pages of their own; the inside of training, workers and servers has none.
GROUPS = {
    "errors": ("cloudseg.errors",),
    "geometry": ("cloudseg.geometry", "cloudseg.specs"),
    "client": ("cloudseg.client.somas", "cloudseg.client.arguments", "cloudseg.client.viewer"),
    "volumes": ("cloudseg.volumes",),
    "pipelines": ("cloudseg.pipelines",),
    "tasks": (
        "cloudseg.tasking.task",
        "cloudseg.tasking.steps",
        "cloudseg.tasking.blocks",
        "cloudseg.tasking.envelope",
        "cloudseg.tasking.queue",
        "cloudseg.tasking.receipts",
        "cloudseg.tasking.options",
        "cloudseg.tasking.worker",
    ),
    "somas": (
        "cloudseg.somas.store",
        "cloudseg.somas.schema",
        "cloudseg.somas.catalogue",
        "cloudseg.somas.opinions",
    ),
    "models": ("cloudseg.models.package", "cloudseg.models.arguments", "cloudseg.models.predict"),
    "ops": ("cloudseg.ops",),
    "viewer": ("cloudseg_viewer",),
}
TITLES = {
    "errors": "Errors",
    "geometry": "Boxes and settings",
    "client": "The soma client",
    "volumes": "Volumes and storage",
    "pipelines": "Pipelines",
    "tasks": "Tasks, queues, workers",
    "somas": "The soma catalogue",
    "models": "Networks and their packages",
    "ops": "Algorithms on arrays",
    "viewer": "Links",
}


def modules_of(package: str) -> list[str]:
    """Return the modules below ``package``, or the module itself."""
    module = importlib.import_module(package)
    if not hasattr(module, "__path__"):
        return [package]
    found = pkgutil.walk_packages(module.__path__, package + ".")
    return sorted({item.name for item in found if not item.ispkg and "._" not in item.name})


def first_sentence(module: str) -> str:
    """Return what a module says of itself, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def make_pages(app: Sphinx) -> None:
    """Write the pages into docs/made/python/."""
    folder = DOCS / "made" / "python"
    for group, packages in GROUPS.items():
        names = [name for package in packages for name in modules_of(package)]
        title = TITLES[group]
        lines = [title, "=" * len(title), ""]
        for name in names:
            lines += [f":doc:`{name} <{name}>`", f"   {first_sentence(name)}", ""]
            # In no table of contents: it is on every page, and hundreds of modules would make it slow.
            page = [":orphan:", "", name, "=" * len(name), "", f"Part of :doc:`{title} <{group}>`.", ""]
            page += [f".. automodule:: {name}", "   :members:", ""]
            put(folder / f"{name}.rst", "\n".join(page))
        put(folder / f"{group}.rst", "\n".join(lines))
    title = "Promised names"
    lines = [title, "=" * len(title), "", "``import cloudseg`` offers these, and keeps them.", ""]
    homes = {"XYZ": "cloudseg.geometry"}  # a type alias knows no home
    for name in cloudseg.__all__:
        home = homes.get(name) or getattr(cloudseg, name).__module__
        role = "data" if name in homes else "func" if name.islower() else "class"
        lines += [f"- :py:{role}:`cloudseg.{name} <{home}.{name}>`"]
    put(folder / "promised.rst", "\n".join([*lines, ""]))


def find_home(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element
) -> nodes.Element | None:
    """Resolve a name that is not where it is looked for.

    Packages offer what their modules define, such as ``cloudseg.open_volume``: the link leads to the definition. A name
    of a module without a page stays text. A name that does not exist stays unresolved, which ends the build.
    """
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not target.startswith("cloudseg"):
        return None
    found: Any = None
    parts = target.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        break
    try:
        for part in parts[n:]:
            found = getattr(found, part)
    except AttributeError:
        return None
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    domain = env.get_domain("py")
    link = domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], home, node, text)
    return link or text


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", make_pages)
    app.connect("missing-reference", find_home)
    return {"parallel_read_safe": True}
