"""The images: linted, pinned, without root, and made of what is named."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = REPOSITORY / "infra" / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text()


def hadolint(path):
    program = Path(sys.executable).parent / "hadolint"
    return subprocess.run(
        [str(program), "--no-color", "--failure-threshold", "style", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_hadolint_finds_nothing():
    result = hadolint(IMAGES / "Dockerfile")
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path):
    (tmp_path / "Dockerfile").write_text(
        "FROM python:latest\nRUN cd /src && apt-get install curl\nUSER root\n"
    )
    result = hadolint(tmp_path / "Dockerfile")
    assert result.returncode != 0
    assert {"DL3007", "DL3008"} <= set(re.findall(r"DL\d{4}", result.stdout))


def instructions(word):
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in joined.splitlines() if line.startswith(f"{word} ")]


def test_bases_have_exact_tags():
    bases = [line.partition("=")[2] for line in instructions("ARG") if "IMAGE=" in line]
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"python:3\.\d+\.\d+-[a-z-]+", base)
    stages = {line.split(" AS ")[1] for line in instructions("FROM")}
    for line in instructions("FROM"):
        source = line.split(" AS ")[0]
        assert source in stages or source in ("${PYTHON_IMAGE}", "${PYTHON_BUILD_IMAGE}")


def test_the_interpreter_is_one_that_cloudseg_supports():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    versions = set(re.findall(r"python:(3\.\d+)\.\d+", DOCKERFILE))
    assert len(versions) == 1
    assert f"Programming Language :: Python :: {versions.pop()}" in project["classifiers"]


def test_the_last_stages_run_without_root_and_without_compilers():
    assert instructions("USER") == ["65532:65532"]
    for target in ("cpu", "gpu"):
        assert f"FROM run AS {target}" in DOCKERFILE
    assert "FROM ${PYTHON_IMAGE} AS run" in DOCKERFILE


def test_every_install_is_pinned():
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert len(installs) == 4
    for line in installs:
        assert "--constraint constraints.txt" in line or "--no-deps" in line


def test_nothing_secret_is_asked_for():
    names = [line.partition("=")[0] for line in instructions("ARG") + instructions("ENV")]
    assert not [name for name in names if re.search(r"(?i)token|secret|password|key", name)]
    assert "--mount=type=secret" not in DOCKERFILE


def test_labels_say_what_it_is():
    (labels,) = instructions("LABEL")
    for key in ("title", "description", "licenses", "version", "revision", "created", "source"):
        assert f"org.opencontainers.image.{key}=" in labels
    # Giving the image away means giving away a combination with programs under the GPL.
    assert "GPL-3.0-or-later" in labels


def context():
    """Return the tracked files that reach a build, by the rules of .dockerignore: the last that matches decides."""
    rules = [
        line
        for line in (IMAGES / "Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    def enters(name):
        inside = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            parts = name.split("/")
            prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
            tail = pattern.removeprefix("**/")
            hit = any(fnmatch.fnmatch(prefix, pattern) for prefix in prefixes) or (
                tail != pattern and any(fnmatch.fnmatch(part, tail) for part in parts)
            )
            if hit:
                inside = rule.startswith("!")
        return inside

    return {name for name in listed if enters(name)}


def test_a_build_sees_the_sources_and_nothing_else():
    found = context()
    tops = {name.partition("/")[0] for name in found}
    assert tops == {
        "LICENSE",
        "README.md",
        "cloudseg",
        "constraints.txt",
        "pyproject.toml",
        "tasks",
        "viewer",
    }
    assert any(name.endswith("model.safetensors") or "zoo" in name for name in found)


def test_what_is_copied_exists():
    copied = [
        name for line in instructions("COPY") if not line.startswith("--from") for name in line.split()[:-1]
    ]
    assert copied
    for name in copied:
        assert (REPOSITORY / name).exists(), name


def test_the_program_that_is_started_is_ours():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (entry,) = instructions("ENTRYPOINT")
    assert entry == '["cloudseg"]'
    assert "cloudseg" in project["scripts"]
