"""What pip installs: three packages, light to read with, under the licences we say."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def build(target: str, into: Path, source: Path = REPOSITORY) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(into)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    (archive,) = into.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_three_typed_packages_and_nothing_else(wheel):
    names = names_in(wheel)
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"cloudseg", "cloudseg_tasks", "cloudseg_viewer"}
    for package in tops:
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_module_of_the_checkout(wheel):
    for folder in ("cloudseg", "tasks/cloudseg_tasks", "viewer/cloudseg_viewer"):
        root = (REPOSITORY / folder).parent if "/" in folder else REPOSITORY
        modules = {path.relative_to(root).as_posix() for path in (REPOSITORY / folder).rglob("*.py")}
        assert modules
        assert modules <= names_in(wheel)


def test_the_wheel_holds_every_file_of_the_soma_page(wheel):
    page = REPOSITORY / "viewer" / "cloudseg_viewer" / "page"
    files = {f"cloudseg_viewer/page/{path.name}" for path in page.iterdir()}
    assert "cloudseg_viewer/page/index.html" in files
    assert files <= names_in(wheel)


def test_the_wheel_alone_imports(wheel, tmp_path):
    """Not the checkout: the unpacked wheel, with the editable install out of sight."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys\n"
        f"home, here = {str(REPOSITORY)!r}, {str(tmp_path)!r}\n"
        "sys.path = [here] + [p for p in sys.path if not p.startswith(home) or 'site-packages' in p]\n"
        "import cloudseg, cloudseg_tasks, cloudseg_viewer, cloudseg.cli.main\n"
        "assert all(m.__file__.startswith(here) for m in (cloudseg, cloudseg_tasks, cloudseg_viewer))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    archive = build("sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    for name in ("constraints.txt", "Makefile", "tests/conftest.py", "docs/dependencies.md", "LICENSE"):
        assert (source / name).is_file(), f"{name} is missing from the source archive"
    again = build("wheel", tmp_path / "again", source)
    assert names_in(again) == names_in(wheel)


def closure(requirements: list[str]) -> set[str]:
    """Return the names of ``requirements`` and of what they require, as installed here."""
    pending, seen = [Requirement(text) for text in requirements], set()
    while pending:
        requirement = pending.pop()
        for extra in (*requirement.extras, ""):
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                below = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            pending += [
                found
                for found in map(Requirement, below)
                if found.marker is None or found.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in seen}


def licence(name: str) -> str:
    metadata = importlib.metadata.metadata(name)
    said = [
        metadata.get("License-Expression"),
        metadata.get("License"),
        *(metadata.get_all("Classifier") or []),
    ]
    return "\n".join(text for text in said if text and ("icense" in text or "Classifier" not in text))


def is_copyleft(name: str) -> bool:
    text = "\n".join(
        line for line in licence(name).splitlines()[:40] if "::" not in line or "License ::" in line
    )
    return re.search(r"\b[AL]?GPL|GNU (?:Lesser |Affero )?General Public", text) is not None


def test_reading_installs_nothing_heavy():
    names = closure(PROJECT["dependencies"])
    assert "numpy" in names
    assert not names & {
        "torch",
        "task-queue",
        "igneous-pipeline",
        "cloud-volume",
        "kimimaro",
        "zmesh",
        "numba",
        "scipy",
    }


def test_reading_installs_nothing_under_the_gpl():
    found = {name for name in closure(PROJECT["dependencies"]) if is_installed(name) and is_copyleft(name)}
    assert not found


def test_the_search_for_copyleft_finds_it():
    assert is_copyleft("igneous-pipeline")
    assert is_copyleft("kimimaro")
    assert is_copyleft("edt")
    assert not is_copyleft("numpy")


def test_every_copyleft_package_is_named_in_the_page_on_dependencies():
    page = (REPOSITORY / "docs" / "dependencies.md").read_text()
    everything = [line for extra in EXTRAS.values() for line in extra if not line.startswith("cloudseg")]
    found = {
        name
        for name in closure(PROJECT["dependencies"] + everything)
        if is_installed(name) and is_copyleft(name)
    }
    assert len(found) >= 5
    missing = [
        name
        for name in sorted(found)
        if not re.search(rf"\b{re.escape(name)}\b", page.lower().replace("_", "-"))
    ]
    assert not missing, f"under a GPL or LGPL, but not on docs/dependencies.md: {missing}"


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_extra_all_is_all_that_users_run():
    (line,) = EXTRAS["all"]
    assert set(Requirement(line).extras) == set(EXTRAS) - {"all", "docs", "test"}


def test_torch_is_pinned_to_the_version_with_a_build_for_every_platform():
    assert "torch==2.13.0" in EXTRAS["tasks"]
