"""The site builds without a warning: no broken link, no name that is not there, no option without a meaning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloudseg.cli.main import COMMANDS
from cloudseg_tasks.stages import STAGES

pytestmark = pytest.mark.timeout(900)  # half a minute of computing, on a machine that may be busy


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory) -> Path:
    """The whole site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-b", "html", "-d", str(folder / "trees")]
    command = [sys.executable, "-m", "sphinx", *options, str(repository / "docs"), str(folder / "html")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "html"


def test_every_stage_and_command_has_its_place(site):
    for kind in STAGES:
        assert (site / "made" / "stages" / f"{kind}.html").is_file()
    commands = (site / "made" / "commands.html").read_text()
    for name in COMMANDS:
        assert f'href="#{name}"' in commands, name


def test_the_reference_has_signatures_and_meanings(site):
    page = (site / "made" / "python" / "cloudseg.ops.watershed.html").read_text()
    text = re.sub(r"<[^>]+>", "", page)
    assert "affinities: npt.NDArray[np.uint8]" in text, "annotations as the source has them"
    assert "Weakest link that may hold a voxel" in text
    assert 'href="cloudseg.geometry.html#cloudseg.geometry.Box"' in page, "our own types are links"
    stage = (site / "made" / "stages" / "agglomerate.html").read_text()
    assert "threshold" in stage
    assert "octree" in stage


def test_what_lies_outside_of_docs_is_carried_in_with_its_links(site):
    results = (site / "made" / "results.html").read_text()
    assert "Accuracy on FIB-25" in results
    infra = (site / "made" / "infra.html").read_text()
    assert 'href="../dependencies.html' in infra


def test_nothing_comes_from_elsewhere(site):
    """No script, style or font of another host: the site opens without a network."""
    for page in (site / "index.html", site / "made" / "results.html"):
        loaded = re.findall(
            r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text()
        )
        assert loaded == []


def test_a_broken_link_ends_a_build(repository, tmp_path):
    source = tmp_path / "docs"
    source.mkdir()
    conf = (repository / "docs" / "conf.py").read_text()
    own = ["carried", "commands", "docstrings", "modules", "questions", "stages"]
    for name in own:
        conf = conf.replace(f'    "{name}",\n', "")
    (source / "conf.py").write_text(conf)
    (source / "_static").mkdir()
    (source / "index.md").write_text(
        "# Front\n\n[a page](nowhere.md), {py:func}`cloudseg.geometry.nothing`\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", "--keep-going", "-b", "html"]
    result = subprocess.run(
        [*command, source, tmp_path / "html"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode != 0
    assert "nowhere.md" in result.stderr
    assert "cloudseg.geometry.nothing" in result.stderr
