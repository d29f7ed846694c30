"""What every test shares: where real data lies, and how hypothesis searches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from cloudseg.testing.emulators import aws_emulator, gcs_emulator

REPOSITORY = Path(__file__).resolve().parents[1]

# The gate must say the same thing twice, so it tries the same examples; `search` tries new ones.
# Deadlines measure the machine, not the code; compiled kernels make the first example slow.
settings.register_profile(
    "gate", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "search", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def cloudseg_data() -> Path:
    """The folder of real volumes: $CLOUDSEG_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("CLOUDSEG_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set CLOUDSEG_DATA to the folder that holds fib25/")
    return folder


# One server of a kind for the whole run: tensorstore keeps the address that it saw first.
@pytest.fixture(scope="session")
def gcs(tmp_path_factory):
    """A GCS stand-in; the value is its front, which can inject faults."""
    with gcs_emulator(tmp_path_factory.mktemp("gcs") / "server.log") as front:
        yield front


@pytest.fixture(scope="session")
def aws(tmp_path_factory):
    """An S3 and SQS stand-in."""
    with aws_emulator(tmp_path_factory.mktemp("aws") / "server.log") as url:
        yield url
