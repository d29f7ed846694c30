"""Patches of several callers in common batches: the bits of each must not change."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from cloudseg.errors import ModelError
from cloudseg.models import batches
from cloudseg.models.batches import CommonBatches, Request
from cloudseg.models.network import Lanes
from cloudseg.models.predict import Model, set_weights
from cloudseg.models.registry import build_network
from cloudseg.testing.tiny_model import tiny_description, tiny_weights

SHAPE = (16, 16, 20)


class GpuLike(Model):
    """A model that computes whole batches on the processor, as it does on a GPU; it notes their sizes."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.sizes: list[int] = []

    def lanes(self, patch_shape, *, batch_size) -> Lanes:
        n_patches = batch_size if self.mixes(patch_shape, batch_size=batch_size) else 1
        return Lanes(1, n_patches, padded_to=batch_size)

    def predict(self, patches, *, grey_range=None):
        self.sizes.append(len(patches))
        deviation = self.spec.normalisation.deviation
        return self._pass(patches, scale=1 / deviation, shift=-self.spec.normalisation.mean / deviation)


def tiny(cls=Model) -> Model:
    description = tiny_description()
    network = build_network(description)
    set_weights(network, tiny_weights(description), where="test")
    return cls(description, network)


def requests(model, n, *, owners, batch_size=4, seed=0, shape=SHAPE, grey_range=None) -> list[Request]:
    patches = np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)
    return [
        Request(
            model=model,
            patch=patch,
            out=np.full((model.n_channels, *shape), np.nan, np.float32),
            grey_range=grey_range,
            batch_size=batch_size,
            owner=f"owner-{k % owners}",
        )
        for k, patch in enumerate(patches)
    ]


def computed(asked: list[Request], *, n_threads=1) -> list[frozenset[str]]:
    common = CommonBatches(n_threads)
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(common.predict, asked))


@pytest.mark.parametrize("cls", [Model, GpuLike])
def test_each_patch_gets_the_bits_that_it_gets_alone(cls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "LINGER_S", 0.2)
    model = tiny(cls)
    asked = requests(model, 10, owners=3)
    alone = requests(model, 10, owners=1)
    for request in alone:
        assert computed([request]) == [frozenset({"owner-0"})]
    owners = computed(asked, n_threads=2)
    for request, single in zip(asked, alone, strict=True):
        np.testing.assert_array_equal(request.out, single.out)
    assert all(request.owner in found for request, found in zip(asked, owners, strict=True))
    if cls is GpuLike:
        assert sum(len(found) > 1 for found in owners) >= 8
        assert set(model.sizes) == {4}, "a network rounds differently for another size"


def test_full_batches_do_not_wait_and_others_do_not_wait_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "LINGER_S", 20)
    model = tiny(GpuLike)
    computed(requests(model, 8, owners=2))
    assert len(model.sizes) == 2
    monkeypatch.setattr(batches, "LINGER_S", 0.01)
    computed(requests(model, 1, owners=1))
    assert len(model.sizes) == 3


def test_what_must_not_share_a_batch_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "LINGER_S", 0.05)
    model, other = tiny(GpuLike), tiny(GpuLike)
    asked = [
        *requests(model, 2, owners=1),
        *requests(other, 2, owners=1),
        *requests(model, 2, owners=1, shape=(20, 16, 16)),
        *requests(model, 2, owners=1, grey_range=(0.0, 100.0)),
    ]
    common = CommonBatches(1)
    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(common.predict, asked))
    assert len(model.sizes) == 3
    assert len(other.sizes) == 1
    assert not any(np.isnan(request.out).any() for request in asked)


class Coupled(nn.Module):
    """A network whose patches touch each other."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        return out + 1e-6 * out.sum(dim=0, keepdim=True)


def test_where_patches_of_a_batch_touch_each_other_each_is_computed_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    assert tiny(GpuLike).mixes(SHAPE, batch_size=4)
    monkeypatch.setattr(batches, "LINGER_S", 0.2)
    model = tiny(GpuLike)
    model._network = Coupled(model._network)
    asked, alone = requests(model, 6, owners=2), requests(model, 6, owners=1)
    for request in alone:
        computed([request])
    computed(asked)
    for request, single in zip(asked, alone, strict=True):
        np.testing.assert_array_equal(request.out, single.out)
    assert set(model.sizes) == {4}
    assert "touch each other's rounding" in caplog.text


def test_an_error_reaches_all_who_wait_and_nobody_else():
    model = tiny()
    told: list[BaseException] = []
    done = threading.Event()

    def note(_model: Model, error: BaseException) -> None:
        told.append(error)
        done.set()

    common = CommonBatches(1, on_error=note)
    (wrong,) = requests(model, 1, owners=1, shape=(15, 16, 16))
    with pytest.raises(ModelError, match="15 voxels on x, which is no multiple of"):
        common.predict(wrong)
    assert done.wait(10)
    assert isinstance(told[0], ModelError)
    (right,) = requests(model, 1, owners=1)
    assert common.predict(right) == {"owner-0"}
