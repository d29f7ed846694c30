"""Try several settings of a pipeline on a small box, in this process; what settings share is computed once."""

from __future__ import annotations

import itertools
import json
import math
import time
import tomllib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloudseg.errors import SpecError
from cloudseg.geometry import Box
from cloudseg.pipelines.spec import PipelineSpec, read_spec
from cloudseg.tasking.steps import Layer, Site
from cloudseg.tasking.task import Context
from cloudseg.volumes import clear_memory, create_volume, open_objects, open_volume

# All layers of all settings lie in memory.
MAX_VOXELS = 64_000_000
MAX_SETTINGS = 200


@dataclass(frozen=True, slots=True)
class Trial:
    """What one setting made.

    Attributes
    ----------
    overrides
        The setting, as ``--set`` takes it.
    labels
        ``(x, y, z)``: the layer, over the box.
    seconds
        Of the stages that this setting did not share with one before.
    """

    overrides: tuple[str, ...]
    labels: npt.NDArray[Any]
    seconds: float

    @property
    def n_objects(self) -> int:
        """Different ids, without background."""
        ids = np.unique(self.labels)
        return len(ids) - int(ids[0] == 0)

    @property
    def foreground(self) -> float:
        """Share of the voxels that belong to something."""
        return float(np.count_nonzero(self.labels) / self.labels.size)


def settings_of(tries: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every combination of ``key=[value, value, ...]`` texts as overrides, the last key changing fastest.

    Raises
    ------
    SpecError
        If a text is malformed, or there are too many combinations.

    Examples
    --------
    >>> settings_of(["threshold.contrast=[0.1, 0.2]", 'threshold.polarity=["dark"]'])
    [('threshold.contrast=0.1', 'threshold.polarity="dark"'), ('threshold.contrast=0.2', 'threshold.polarity="dark"')]
    """
    choices = []
    for text in tries:
        key, _, raw = text.partition("=")
        try:
            values = tomllib.loads(f"v = {raw}")["v"]
        except tomllib.TOMLDecodeError:
            values = None
        if not key.strip() or not isinstance(values, list) or not values:
            raise SpecError(f"--try is written stage.option=[value, value, ...] in TOML; got {text!r}")
        choices.append([f"{key.strip()}={json.dumps(value)}" for value in values])
    n = math.prod(map(len, choices))
    if n > MAX_SETTINGS:
        raise SpecError(
            f"--try makes {n} settings, at most {MAX_SETTINGS} are tried at once; take fewer values"
        )
    return list(itertools.product(*choices))


def tune(
    file: Path, *, box: Box, settings: Sequence[tuple[str, ...]], layer: str, overrides: Sequence[str] = ()
) -> Iterator[Trial]:
    """Run a pipeline up to ``layer`` on a part of its image, once for each setting.

    Parameters
    ----------
    file
        The pipeline.
    box
        The part, in voxels of the image. Its faces count as the border of the volume.
    settings
        From :func:`settings_of`.
    layer
        The layer to look at.
    overrides
        Hold in all settings.

    Yields
    ------
    A trial for each setting, in order.

    Raises
    ------
    SpecError
        If the box is too large or outside of an input, or no stage makes ``layer``.
    """
    if box.n_voxels > MAX_VOXELS:
        raise SpecError(
            f"the box {box} has {box.n_voxels:,} voxels; settings are tried on at most {MAX_VOXELS:,}"
        )
    scratch = f"memory://tune-{uuid.uuid4().hex[:8]}"
    try:
        cut: dict[str, Layer] = {}
        done: dict[tuple[str, ...], tuple[Layer, ...]] = {}
        for number, setting in enumerate(settings):
            spec = read_spec(file, overrides=[*overrides, *setting])
            for name, uri in {"image": spec.image, **spec.inputs}.items():
                key = f"{name}={uri}"
                if key not in cut:
                    cut[key] = _cut_out(name, uri, box, to=f"{scratch}/inputs/{len(cut)}")
            given = [cut[f"{name}={uri}"] for name, uri in {"image": spec.image, **spec.inputs}.items()]
            started = time.monotonic()
            found = _run(spec, given, wanted=layer, root=f"{scratch}/{number}", done=done)
            seconds = time.monotonic() - started
            yield Trial(setting, open_volume(found.uri).read(found.info.bounds), seconds)
    finally:
        clear_memory(scratch)


def _run(
    spec: PipelineSpec,
    given: Sequence[Layer],
    *,
    wanted: str,
    root: str,
    done: dict[tuple[str, ...], tuple[Layer, ...]],
) -> Layer:
    """Run the stages that the wanted layer needs, but for those that ``done`` has the layers of."""
    made: dict[str, tuple[Layer, ...]] = {}
    last = _maker(spec, wanted, given, root=root)
    key = tuple(layer.uri for layer in given)
    found = None
    for stage in spec.ordered():
        if stage.label != last and stage.label not in spec.before(last):
            continue
        key = (*key, stage.canonical_json())
        if key not in done:
            layers = {layer.name: layer for layer in given}
            for label in made.keys() & spec.before(stage.label):
                layers.update({layer.name: layer for layer in made[label]})
            plan = stage.expand(Site(root, layers, open_volume, open_objects))
            for layer in plan.layers:
                create_volume(layer.uri, layer.info)
            context = Context(open_volume=open_volume, open_objects=open_objects)
            for step in plan.steps:
                if step.prepare is not None:
                    step.prepare()
                for task in step.tasks():
                    task.run(context)
            done[key] = plan.layers
        made[stage.label] = done[key]
        found = next((layer for layer in made[stage.label] if layer.name == wanted), found)
    assert found is not None, "the last stage makes the wanted layer"
    return found


def _maker(spec: PipelineSpec, wanted: str, given: Sequence[Layer], *, root: str) -> str:
    """Return the label of the first stage that makes the wanted layer; expanding a stage touches nothing."""
    layers = {layer.name: layer for layer in given}
    for stage in spec.ordered():
        layers.update({x.name: x for x in stage.expand(Site(root, layers, open_volume, open_objects)).layers})
        if wanted in layers:
            return stage.label
    raise SpecError(f"no stage of the pipeline makes a layer {wanted!r}; there are: {', '.join(layers)}")


def _cut_out(name: str, uri: str, box: Box, *, to: str) -> Layer:
    """Copy a part of a layer into memory."""
    volume = open_volume(uri)
    if not volume.info.bounds.contains(box):
        raise SpecError(f"the box {box} is not inside {uri}, which covers {volume.info.bounds}")
    if box.is_empty:
        raise SpecError(f"the box {box} holds no voxel")
    x, y, z = (min(64, n) for n in box.shape)
    info = volume.info.model_copy(update={"bounds": box, "chunk_shape": (x, y, z), "sharding": None})
    create_volume(to, info).write(box, volume.read(box))
    return Layer(name, to, info)
