"""Compiled functions call compiled functions of their own module only.

numba keeps a compiled function until the file that defines it changes. If it called a compiled function of another
file, a change there would not be noticed, and the old code would go on running from the cache. That is why small
compiled parts (a hash table, finding a root) stand in each module that needs them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def borrowed(source: str) -> list[str]:
    """Names that compiled functions of a module use and that it imports from cloudseg."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0].startswith("cloudseg")
        for alias in node.names
    }
    return [
        f"{function.name} uses {name.id}"
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any("njit" in ast.unparse(decorator) for decorator in function.decorator_list)
        for statement in function.body
        for name in ast.walk(statement)
        if isinstance(name, ast.Name) and name.id in imported
    ]


def compiled_modules() -> list[Path]:
    return [path for path in sorted((REPOSITORY / "cloudseg").rglob("*.py")) if "njit" in path.read_text()]


def test_there_is_something_compiled():
    assert len(compiled_modules()) > 3


@pytest.mark.parametrize("path", compiled_modules(), ids=lambda path: path.stem)
def test_compiled_functions_borrow_nothing_that_their_cache_would_not_see_change(path):
    assert borrowed(path.read_text()) == []


def test_the_search_finds_a_borrowed_function():
    source = "from cloudseg.ops.a import f\n@numba.njit(cache=True)\ndef g(x):\n    return f(x)\n"
    assert borrowed(source) == ["g uses f"]
    assert borrowed(source.replace("@numba.njit(cache=True)\n", "")) == []
