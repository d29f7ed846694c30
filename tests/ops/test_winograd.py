"""Fewer multiplications, the same convolution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cloudseg.ops.winograd import Kernel, Workspace


@pytest.mark.parametrize(
    ("shape", "n_in", "n_out"), [((15, 15, 15), 3, 4), ((7, 20, 8), 2, 5), ((3, 4, 5), 1, 1)]
)
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_convolution_with_zeros_round_it(shape, n_in, n_out, relu):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*shape, n_in)).astype(np.float32)
    weights = rng.normal(size=(n_out, n_in, 3, 3, 3)).astype(np.float32)
    bias = rng.normal(size=n_out).astype(np.float32)
    seen = np.maximum(image, 0) if relu else image
    expected = np.stack(
        [
            sum(ndimage.correlate(seen[..., i], weights[o, i], mode="constant") for i in range(n_in))
            + bias[o]
            for o in range(n_out)
        ],
        axis=-1,
    )
    work = Workspace(shape, n_features=max(n_in, n_out))
    source, out = work.volume(n_in), work.volume(n_out)
    work.put(source, image)
    kernel = Kernel.of(weights, bias)
    work.convolve(source, kernel, out, relu=relu, add=False)
    np.testing.assert_allclose(work.get(out), expected, atol=2e-4)
    work.convolve(source, kernel, out, relu=relu, add=True)
    np.testing.assert_allclose(work.get(out), 2 * expected, atol=4e-4)
    work.put(out, np.zeros_like(work.get(out)))
    assert not out.any(), "the rim stays zero: the next convolution reads it"
