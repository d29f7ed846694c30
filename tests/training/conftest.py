"""Small volumes, small settings and small runs that the tests of training share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloudseg.geometry import Box
from cloudseg.testing.phantom import neurite_phantom
from cloudseg.training.config import TrainingConfig
from cloudseg.training.fit import fit
from cloudseg.volumes import VolumeInfo, create_volume

SHAPE = (48, 48, 48)


class StoppedError(Exception):
    """A run is broken off from outside."""


class Runs:
    """Settings and runs in one folder."""

    StoppedError = StoppedError

    def __init__(self, folder, data):
        self.folder, self.data = folder, data

    @staticmethod
    def volume(uri, data, *, at=(0, 0, 0), voxel_size_nm=(8, 8, 8), **more):
        info = VolumeInfo(
            bounds=Box.of_shape(data.shape, at=at),
            voxel_size_nm=voxel_size_nm,
            chunk_shape=(32, 32, 32),
            dtype=data.dtype.name,
            **more,
        )
        create_volume(uri, info).write(info.bounds, np.asfortranarray(data))
        return uri

    def settings(self, **changes):
        base = {
            "name": "small",
            "output": str(self.folder / "package"),
            "checkpoint": str(self.folder / "run.ckpt"),
            "licence": "Apache-2.0",
            "patch_shape": [16, 16, 16],
            "validate_every": 3,
            "schedule": {"n_steps": 8, "checkpoint_every": 2, "learning_rate": 0.005, "n_samplers": 1},
            "network": {
                "arguments": {"n_out": 4, "widths": [4, 6], "pools": [[2, 2, 2]]},
                "voxel_size_nm": [8, 8, 8],
                "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [-4, 0, 0]],
                "patch_shape": [32, 32, 32],
                "context": [2, 2, 2],
                "blend": [2, 2, 2],
            },
            "volume": [self.data],
            "phantom": [{"count": 1, "shape": [32, 32, 32], "weight": 0.3}],
            "validation": [self.data | {"box": "0,0,32:48,48,48"}],
        }
        return base | changes

    def config(self, **changes) -> TrainingConfig:
        return TrainingConfig.load(self.settings(**changes), where="test")

    @staticmethod
    def run(settings, *, stop_after=None, **more):
        """Return what the package says, and the lines of the log."""
        lines = []

        def report(line):
            lines.append(line)
            if line.step == stop_after:
                raise StoppedError

        return fit(settings, make_phantom=make_phantom, report=report, **more), lines


def make_phantom(tissue, shape, seed, voxel_size_nm):
    made = neurite_phantom(shape, seed=seed)
    return made.image, made.labels


@pytest.fixture(scope="session")
def phantom():
    return neurite_phantom(SHAPE, seed=3)


@pytest.fixture
def runs(tmp_path, phantom):
    image = Runs.volume(f"file://{tmp_path}/image", phantom.image)
    labels = Runs.volume(
        f"file://{tmp_path}/labels", phantom.labels, layer="segmentation", encoding="compressed_segmentation"
    )
    return Runs(tmp_path, {"image": image, "labels": labels, "box": "0,0,0:48,48,32"})


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
