"""Put the plant images and labels into volumes that ``cloudseg train examples/plant_train_3d.toml`` reads.

Section 31 of the lateral root's labels has other ids than both its neighbours in every voxel: a slip of the annotation,
not a wall. Here it becomes 0, unknown: left in, it teaches walls that nobody sees, and is scored.

Usage: python examples/plant_volumes.py FOLDER_WITH_NPZ_FILES OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cloudseg.geometry import Box
from cloudseg.volumes import VolumeInfo, create_volume

VOXEL_NM = {"root": (163.0, 163.0, 250.0), "ovule": (150.0, 150.0, 235.0)}
FILES = {"root": "lateral_root_x000_120.npz", "ovule": "ovule.npz"}


def slipped(labels: np.ndarray) -> list[int]:
    """Return the sections that share no label with the section before nor with the one after, in any voxel."""
    changed = [bool((labels[:, :, z] != labels[:, :, z + 1]).all()) for z in range(labels.shape[2] - 1)]
    return [z for z in range(1, labels.shape[2] - 1) if changed[z - 1] and changed[z]]


def main(source: Path, target: Path) -> None:
    """Write image and labels of both."""
    for name, file in FILES.items():
        stored = np.load(source / file)
        image, labels = stored["image"], stored["labels"].astype(np.uint64)
        for z in slipped(labels):
            print(f"{name}: section {z} of the labels is unknown")
            labels[:, :, z] = 0
        for kind, voxels in (("image", image), ("labels", labels)):
            info = VolumeInfo(
                bounds=Box.of_shape(voxels.shape),
                voxel_size_nm=VOXEL_NM[name],
                dtype=voxels.dtype.name,
                layer="image" if kind == "image" else "segmentation",
                encoding="raw" if kind == "image" else "compressed_segmentation",
            )
            create_volume(target / f"{name}_{kind}", info).write(info.bounds, np.asfortranarray(voxels))
            print(target / f"{name}_{kind}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
