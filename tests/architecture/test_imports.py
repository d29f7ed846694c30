"""Every module imports, alone and without side effects; looking at results imports nothing heavy."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import cloudseg
import cloudseg_tasks
import cloudseg_viewer

PACKAGES = (cloudseg, cloudseg_tasks, cloudseg_viewer)
MODULES = sorted(
    {
        name
        for package in PACKAGES
        for name in (
            package.__name__,
            *(found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")),
        )
        if not name.endswith("__main__")
    }
)

HEAVY = ("cloudvolume", "cloudfiles", "igneous", "kimimaro", "numba", "scipy", "taskqueue", "torch", "zmesh")

READING_LEG = [
    name
    for name in MODULES
    if name.startswith(("cloudseg.client", "cloudseg.server", "cloudseg.somas", "cloudseg_viewer"))
]

REFUSE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ModuleNotFoundError(f"{{name}} is not part of a reading install", name=name)

sys.meta_path.insert(0, Refuse())
"""


def run_without_heavy_modules(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter where the heavy packages look absent, as after ``pip install cloudseg``."""
    script = REFUSE.format(heavy=HEAVY) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)


def test_all_three_packages_are_walked():
    assert len(MODULES) > 25
    for package in PACKAGES:
        assert package.__name__ in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_and_says_its_job_in_one_line(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = importlib.import_module(name)
    first = (module.__doc__ or "").strip().partition("\n")[0]
    if module.__file__ is not None and Path(module.__file__).read_text().strip():
        assert first, f"{name} does not say its job"
        assert first[-1] in ".:", f"the first line of {name} is no sentence: {first!r}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_promised_name_resolves(package):
    names = getattr(package, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(package, name) is not None, name


def test_every_all_of_every_module_resolves():
    checked = 0
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{name}.__all__ promises {public!r}, which is not there"
            checked += 1
    assert checked >= len(cloudseg.__all__)


def test_the_public_list_is_explicit_and_lazy():
    assert set(cloudseg.__all__) == {name for names in cloudseg._HOMES.values() for name in names}
    code = "import sys, cloudseg; cloudseg.Box; print({'numpy', 'pydantic', 'tensorstore', 'torch'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "set()", result.stdout + result.stderr


def test_an_unknown_public_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="module 'cloudseg' has no attribute 'segment_everything'"):
        _ = cloudseg.segment_everything


def test_the_version_is_the_installed_one():
    assert cloudseg.__version__.count(".") == 2


def test_the_refusal_works():
    result = run_without_heavy_modules("import torch")
    assert "torch is not part of a reading install" in result.stderr


def test_the_reading_leg_imports_without_torch_queue_or_igneous():
    assert READING_LEG
    code = "\n".join(f"importlib.import_module({name!r})" for name in READING_LEG)
    result = run_without_heavy_modules(code + f"\nassert not set({HEAVY!r}) & set(sys.modules)")
    assert result.returncode == 0, result.stderr


def test_promised_names_need_no_heavy_package():
    result = run_without_heavy_modules(
        "import cloudseg\nfor name in cloudseg.__all__: getattr(cloudseg, name)"
    )
    assert result.returncode == 0, result.stderr


def test_the_command_line_lists_its_commands_in_a_reading_install():
    code = "from cloudseg.cli.main import main; sys.argv[1:] = ['--help']; main()"
    result = run_without_heavy_modules(code)
    assert result.returncode == 0, result.stderr
    assert "serve" in result.stdout
