"""Toy stages, a small image, and ways to run the command: in this process, or as a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cloudseg.cli.main import main
from cloudseg.geometry import Box
from cloudseg.pipelines.execute import execute
from cloudseg.pipelines.plan import plan
from cloudseg.pipelines.progress import LineProgress
from cloudseg.pipelines.spec import read_spec
from cloudseg.testing.runs import is_result
from cloudseg.volumes import VolumeInfo, create_volume

HERE = Path(__file__).parent
SHAPE = (64, 48, 48)


@pytest.fixture(autouse=True, scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make the toy kinds known, here and in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        import toy_kinds

        elsewhere = tmp_path_factory.mktemp("toys")
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("CLOUDSEG_EXTRA_KINDS", toy_kinds.KINDS)
        patch.setenv("CLOUDSEG_EXTRA_STAGES", toy_kinds.STAGES)
        patch.setenv("TOY_LOG", str(elsewhere / "runs.log"))
        patch.setenv("TOY_POISON", str(elsewhere / "poison"))
        yield


@pytest.fixture(scope="module")
def quiet_outputs(image: Path, tmp_path_factory: pytest.TempPathFactory, toys: None) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    it = write_toy(image, tmp_path_factory.mktemp("quiet"))
    execute(plan(read_spec(it.file)), progress=LineProgress(Console(file=StringIO())))
    return it.outputs()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image of 36 blocks of 16 voxels edge."""
    folder = tmp_path_factory.mktemp("source") / "image"
    info = VolumeInfo(
        bounds=Box.of_shape(SHAPE, at=(8, 0, -16)), voxel_size_nm=(8, 8, 8), chunk_shape=(32, 32, 32)
    )
    voxels = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    create_volume(folder, info).write(info.bounds, np.asfortranarray(voxels))
    return folder


@dataclass
class Toy:
    """A pipeline file, its root, and the log of what really ran."""

    file: Path
    root: Path
    log: Path
    poison: Path

    def receipts(self, step: str = "") -> set[str]:
        """Ids of the finished tasks."""
        return {path.stem for path in (self.root / "pipeline" / "receipts").glob(f"{step or '*'}/*.json")}

    def runs(self) -> list[str]:
        """Ids of the tasks that ran, once for each time."""
        return [line.split()[1] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def outputs(self) -> dict[str, bytes]:
        """Every file under the root but the books of the run."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.root)): path.read_bytes() for path in files}
        return {name: data for name, data in found.items() if is_result(name)}


def write_toy(image: Path, folder: Path, head: str = "", **options: object) -> Toy:
    """Write a pipeline file of the two toy stages; keywords are options of the first."""
    lines = [f'image = "{image}"', f'root = "{folder}/root"', "workers = 2", head]
    lines += ["[[stage]]", 'kind = "toy_invert"', *(f"{k} = {v}" for k, v in options.items())]
    lines += ["[[stage]]", 'kind = "toy_sum"']
    file = folder / "toy.toml"
    file.write_text("\n".join(lines) + "\n")
    return Toy(file=file, root=folder / "root", log=folder / "runs.log", poison=folder / "poison")


@pytest.fixture
def toy(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Toy]:
    """Write a pipeline of this test's own; see :func:`write_toy`."""
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "runs.log"))
    monkeypatch.setenv("TOY_POISON", str(tmp_path / "poison"))
    return partial(write_toy, image, tmp_path)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call ``cloudseg ...`` in this process; return exit code, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cloudseg", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``cloudseg ...`` as a process of its own; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        code = "from cloudseg.cli.main import main; main()"
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ.copy(),
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()
