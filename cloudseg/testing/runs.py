"""Whole runs for tests and benchmarks: images, pipelines as a user starts them, digests of what they made."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cloudseg.geometry import Box
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.volumes import VolumeInfo, create_volume, open_objects, open_volume
from cloudseg.volumes.compressed_files import ENDINGS, decompressed

VOXEL_NM = (8.0, 8.0, 8.0)
# What is not a result: receipts hold times and hosts, queues and scratch come and go.
NOT_RESULTS = ("pipeline",)
# Beside the info of each layer: it says when and from where the layer was made.
PROVENANCE = "provenance"


def real_or_phantom(data: Path | None, edge: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
    """Return image and truth ``(edge, edge, edge)``: FIB-25 from the data folder, or a phantom without one.

    The real truth covers z < 160; above it is 0 (unknown). An edge over 250 continues the image by mirroring.
    """
    folder = data / "fib25" if data is not None else None
    if folder is None or not (folder / "sample2_image.npz").is_file():
        phantom = neurite_phantom((edge, edge, edge), seed=0)
        return phantom.image, phantom.labels
    image = np.load(folder / "sample2_image.npz")["image"]
    labels = np.zeros(image.shape, np.uint64)
    labels[:, :, :160] = np.load(folder / "sample2_labels_z000_160.npz")["labels"]
    if edge > 250:
        lack = [(0, edge - s) for s in image.shape]
        image, labels = np.pad(image, lack, mode="symmetric"), np.pad(labels, lack)
    cut = (slice(edge),) * 3
    return np.asfortranarray(image[cut]), np.asfortranarray(labels[cut])


def store(uri: str, array: npt.NDArray[np.generic]) -> str:
    """Write a whole image (uint8) or segmentation (uint64) of 8 nm voxels; return ``uri``."""
    is_labels = array.dtype == np.uint64
    x, y, z = array.shape[-3:]
    info = VolumeInfo(
        bounds=Box.of_shape((x, y, z)),
        voxel_size_nm=VOXEL_NM,
        dtype="uint64" if is_labels else "uint8",
        n_channels=array.shape[0] if array.ndim == 4 else 1,
        layer="segmentation" if is_labels else "image",
    )
    create_volume(uri, info).write(info.bounds, array)
    return uri


def stage_options(pipeline: Path) -> dict[str, dict[str, Any]]:
    """Return the options of each stage of a pipeline file, by the stage's kind."""
    stages = tomllib.loads(pipeline.read_text(encoding="utf-8"))["stage"]
    return {stage["kind"]: {k: v for k, v in stage.items() if k != "kind"} for stage in stages}


def cloudseg(
    *args: str, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does; its output is captured."""
    command = command_line(*args)
    done = subprocess.run(  # noqa: S603 - our own interpreter and words
        command, check=False, capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(args)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def command_line(*args: str) -> Sequence[str]:
    """Return the words that start ``cloudseg`` with this interpreter."""
    return [sys.executable, "-c", "from cloudseg.cli.main import main; main()", *args]


def is_result(key: str, *, leave_out: Iterable[str] = NOT_RESULTS) -> bool:
    """Whether a file of a run's root must be the same in every run: no books, no provenance."""
    return key.partition("/")[0] not in set(leave_out) and key.rpartition("/")[2] != PROVENANCE


def file_digests(folder: Path, *, leave_out: Iterable[str] = NOT_RESULTS) -> dict[str, str]:
    """Return the SHA-256 of every result below ``folder`` by its relative path; top-level ``leave_out`` is left out."""
    found = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in found.items()
        if is_result(name, leave_out=leave_out)
    }


def object_digests(root: str, *, leave_out: Iterable[str] = NOT_RESULTS) -> dict[str, str]:
    """Return the SHA-256 of every result below ``root``, a bucket's or a folder, as a reader sees it.

    What is stored compressed is decompressed: a bucket notes that beside the object, a folder in the file's ending.
    """
    objects, found = open_objects(root), {}
    for key in objects.list():
        if not is_result(key, leave_out=leave_out):
            continue
        data, name = objects.get(key), key
        for ending in ENDINGS:
            if key.endswith(ending):
                data, name = decompressed(data, ending, where=key), key.removesuffix(ending)
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def voxel_digest(uri: str) -> str:
    """Return the SHA-256 of all voxels of a volume, whatever its chunks are."""
    volume = open_volume(uri)
    return hashlib.sha256(np.asfortranarray(volume.read(volume.info.bounds)).tobytes(order="F")).hexdigest()


class Watched(NamedTuple):
    """What a command took: seconds, processor seconds, highest memory in MB; and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    text: str


def watched(*command: str) -> Watched:
    """Run a command to its end; return what it took.

    Raises
    ------
    RuntimeError
        If it ends with another exit code than 0.
    """
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own words
    assert child.stdout is not None
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{text}")
    return Watched(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, text)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a Markdown table to standard output."""
    lines = [f"\n### {title}\n", _row(header), "|" + "---|" * len(header), *map(_row, rows), "\n"]
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
