"""Where a result comes from: enough to make it again.

Keys::

    <root>/pipeline/provenance.json    specification, models, packages, container image, time of the first start
    <layer>/provenance                 the same in short, as cloud-volume and igneous write it: sources, processing

Both are written once, by whoever starts the run first, and never changed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from pydantic import AwareDatetime

from cloudseg.errors import NotFoundError
from cloudseg.pipelines.plan import PipelinePlan, PlannedStage
from cloudseg.specs import FrozenModel
from cloudseg.tasking.run_task import IMAGE_VARIABLE, versions
from cloudseg.tasking.steps import Layer
from cloudseg.volumes import open_objects
from cloudseg.volumes.objects import Objects

KEY = "pipeline/provenance.json"
LAYER_KEY = "provenance"


class Provenance(FrozenModel):
    """What a run was started with.

    Attributes
    ----------
    started
        When the run was started for the first time.
    spec
        The whole specification, as TOML, defaults included.
    models
        What stages say of themselves besides their options, by label: the model and the digest of its weights.
    image
        The container image that the run was started from (``CLOUDSEG_IMAGE``), or nothing. Receipts name the worker's.
    versions
        Of cloudseg, Python and the libraries that shape results.
    packages
        Every installed package.
    system
        Operating system and processor.
    """

    format: Literal["cloudseg-provenance/1"] = "cloudseg-provenance/1"
    started: AwareDatetime
    spec: str
    models: dict[str, dict[str, Any]]
    image: str = ""
    versions: dict[str, str]
    packages: dict[str, str]
    system: str


def write_provenance(expanded: PipelinePlan, objects: Objects) -> Provenance:
    """Write what is not there yet, into the root and into each layer; return what lies in the root."""
    found = load_provenance(objects)
    if found is None:
        made = Provenance(
            started=datetime.now(UTC),
            spec=expanded.spec.to_toml(),
            models={s.label: dict(s.plan.provenance) for s in expanded.stages if s.plan.provenance},
            image=os.environ.get(IMAGE_VARIABLE, ""),
            versions=versions(),
            packages=_packages(),
            system=f"{platform.platform()} {platform.machine()}",
        )
        objects.put_if_absent(KEY, made.model_dump_json(indent=1).encode())
        found = load_provenance(objects) or made  # another process may have been faster
    for stage in expanded.stages:
        for layer in stage.plan.layers:
            document = _of_layer(layer, stage, expanded, found)
            open_objects(layer.uri).put_if_absent(LAYER_KEY, json.dumps(document, indent=1).encode())
    return found


def load_provenance(objects: Objects) -> Provenance | None:
    """Return the provenance that lies in a root, or None."""
    try:
        return Provenance.load(objects.get(KEY), where=f"{objects.uri}/{KEY}")
    except NotFoundError:
        return None


def _of_layer(layer: Layer, stage: PlannedStage, expanded: PipelinePlan, run: Provenance) -> dict[str, Any]:
    return {
        "sources": list(stage.plan.sources or (expanded.spec.image,)),
        "description": f"{layer.name}, made by stage {stage.label!r} of a cloudseg pipeline in {expanded.spec.root}",
        "processing": [
            {
                "method": {
                    "task": other.stage.kind,
                    **other.stage.model_dump(mode="json", exclude={"kind", "after", "barrier"}),
                    **other.plan.provenance,
                    "versions": run.versions,
                    "image": run.image,
                    "run": f"{expanded.spec.root}/{KEY}",
                },
                "by": f"cloudseg {run.versions.get('cloudseg', '')}".strip(),
                "date": run.started.strftime("%Y-%m-%d %H:%M %Z"),
            }
            for other in (stage, *_working_on(layer, expanded))
        ],
        "owners": [],
    }


def _working_on(layer: Layer, expanded: PipelinePlan) -> Iterator[PlannedStage]:
    """Yield the stages that make no layer of their own and add to this one: pyramids, meshes, tables."""
    for stage in expanded.stages:
        options = stage.stage.model_dump(mode="json")
        named = options.get("layers") or [options.get("layer")]
        if not stage.plan.layers and layer.name in named:
            yield stage


def _packages() -> dict[str, str]:
    found = {(x.metadata["Name"] or "").lower(): x.version for x in metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name}
