"""The inference benchmark runs, on an image small enough for every day."""

from __future__ import annotations

import importlib.util

import numpy as np

from cloudseg.testing.tiny_model import tiny_package


def test_the_benchmark_compares_a_task_with_the_raw_passes_of_the_same_patches(repository, tmp_path):
    path = repository / "benchmarks" / "inference.py"
    spec = importlib.util.spec_from_file_location("inference_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 20)).astype(np.uint8)
    figures = benchmark.measure(image, model_name=tiny_package(str(tmp_path / "m")), rounds=2, device="cpu")
    assert figures["n_patches"] == 4 * 3 * 2
    assert figures["ratio"] > 0
    assert figures["task_s"] > 0
