"""Put the FIB-25 cubes and their labels into volumes that ``cloudseg train examples/train_fib25.toml`` reads.

Usage: python examples/fib25_volumes.py FOLDER_WITH_NPZ_FILES OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cloudseg.geometry import Box
from cloudseg.volumes import VolumeInfo, create_volume


def store(folder: Path, name: str, data: np.ndarray, *, layer: str) -> None:
    """Write ``(x, y, z)`` voxels of 8 nm as the volume ``name``."""
    info = VolumeInfo(
        bounds=Box.of_shape(data.shape),
        voxel_size_nm=(8, 8, 8),
        dtype=data.dtype.name,
        layer=layer,
        encoding="compressed_segmentation" if layer == "segmentation" else "raw",
    )
    create_volume(folder / name, info).write(info.bounds, np.asfortranarray(data))
    print(folder / name)


def main(source: Path, folder: Path) -> None:
    """Write two images, the dense labels of one and the label planes of the other."""
    for sample in ("sample1", "sample2"):
        store(folder, f"{sample}_image", np.load(source / f"{sample}_image.npz")["image"], layer="image")
    dense = np.load(source / "sample2_labels_z000_160.npz")["labels"].astype(np.uint64)
    store(folder, "sample2_labels", dense, layer="segmentation")
    planes = np.load(source / "sample1_label_planes.npz")
    labels = np.zeros((250, 250, 250), np.uint64)
    labels[:, :, planes["z"]] = planes["labels"].transpose(1, 2, 0)
    store(folder, "sample1_planes", labels, layer="segmentation")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
