"""One page of the reference for each module that others may use, made from its docstrings."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from typing import Any

from carried import DOCS, put
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import cloudseg

# Packages by the page that lists them. Not here: the command line and the stages, which have pages of their own.
GROUPS = {
    "errors": ("cloudseg.errors",),
    "geometry": ("cloudseg.geometry", "cloudseg.specs"),
    "client": ("cloudseg.client",),
    "volumes": ("cloudseg.volumes",),
    "pipelines": ("cloudseg.pipelines", "cloudseg.tasking"),
    "somas": ("cloudseg.somas",),
    "models": ("cloudseg.models",),
    "ops": ("cloudseg.ops",),
    "viewer": ("cloudseg_viewer",),
    "training": ("cloudseg.training",),
    "testing": ("cloudseg.testing",),
}
TITLES = {
    "errors": "Errors",
    "geometry": "Boxes and settings",
    "client": "The soma client",
    "volumes": "Volumes and storage",
    "pipelines": "Pipelines, queues, workers",
    "somas": "The soma catalogue",
    "models": "Networks and their packages",
    "ops": "Algorithms on arrays",
    "viewer": "Links",
    "training": "Training",
    "testing": "Phantoms, for trying things on",
}
# Programs rather than interfaces.
LEFT_OUT = re.compile(
    r"cloudseg\.(tasking\.child|models\.shared_server|testing\.(?!phantom|cell_phantom|store).*|testing\..*\.paint)"
)


def modules_of(package: str) -> list[str]:
    """Return the modules below ``package``, or the module itself."""
    module = importlib.import_module(package)
    if not hasattr(module, "__path__"):
        return [package]
    found = pkgutil.walk_packages(module.__path__, package + ".")
    return sorted(
        {
            item.name
            for item in found
            if not item.ispkg and "._" not in item.name and not LEFT_OUT.fullmatch(item.name)
        }
    )


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
    """Resolve a name by which a package offers what one of its modules defines, such as cloudseg.open_volume."""
    package, _, name = str(node.get("reftarget", "")).rpartition(".")
    if node.get("refdomain") != "py" or not package.startswith("cloudseg"):
        return None
    try:
        found = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError):
        return None
    home = f"{getattr(found, '__module__', package)}.{getattr(found, '__qualname__', name)}"
    if home == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], home, node, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", make_pages)
    app.connect("missing-reference", find_home)
    return {"parallel_read_safe": True}
