"""The chart rendered with each of its examples, and how manifests are found in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "infra" / "charts" / "cloudseg"
EXAMPLES = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
RELEASE, NAMESPACE = "seg", "cloudseg"

Manifest = dict[str, Any]


def values_of(example: str) -> dict[str, Any]:
    return yaml.safe_load((CHART / "ci" / f"{example}.yaml").read_text())


def render(values: dict[str, Any]) -> list[Manifest]:
    """Return the manifests that the chart makes of ``values``."""
    found = helm.Chart.load(str(CHART)).render(values, name=RELEASE, namespace=NAMESPACE)
    return [
        document
        for name, text in found.items()
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


@cache
def _rendered(example: str) -> tuple[Manifest, ...]:
    return tuple(render(values_of(example)))


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> str:
    """Each values file of the chart's ``ci`` folder."""
    return str(request.param)


@pytest.fixture
def manifests(example: str) -> tuple[Manifest, ...]:
    return _rendered(example)


@pytest.fixture
def rendered() -> Callable[[str], tuple[Manifest, ...]]:
    """The manifests of one example, by its name."""
    return _rendered


@pytest.fixture
def render_chart() -> Callable[[dict[str, Any]], list[Manifest]]:
    return render


@pytest.fixture
def example_values() -> Callable[[str], dict[str, Any]]:
    return values_of


@pytest.fixture
def pod_specs() -> Callable[[Manifest], Iterator[Manifest]]:
    """Yield the pod's specification of a manifest that starts pods."""

    def find(manifest: Manifest) -> Iterator[Manifest]:
        if manifest["kind"] in ("Deployment", "Job"):
            yield manifest["spec"]["template"]["spec"]
        if manifest["kind"] == "ScaledJob":
            yield manifest["spec"]["jobTargetRef"]["template"]["spec"]

    return find


@pytest.fixture
def default_values() -> dict[str, Any]:
    return yaml.safe_load((CHART / "values.yaml").read_text())
