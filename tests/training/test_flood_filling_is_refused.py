"""A network that cannot be taught here is refused before anything is read."""

from __future__ import annotations

import pytest

from cloudseg.errors import SpecError


def test_a_flood_filling_network_is_refused(runs):
    network = runs.settings()["network"] | {"architecture": "ffn", "arguments": {"depth": 1, "width": 2}}
    with pytest.raises(SpecError, match="learns while its field of view moves"):
        runs.config(network=network)
