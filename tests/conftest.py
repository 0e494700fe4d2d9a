"""What all tests share: a quiet environment and the real photographs, where they are."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch or flwr is imported anywhere.
for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}.items():
    os.environ.setdefault(_name, _value)

import pytest
from hypothesis import settings

# A busy machine is slow, which is no fault of the code under test.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")

LONDON = Path(__file__).resolve().parents[2] / "shared" / "data" / "london-faces"


@pytest.fixture(scope="session")
def london_faces() -> Path:
    """Return the folder of the London faces, or skip where it is absent."""
    if not (LONDON / "metadata.jsonl").is_file():
        pytest.skip("the London faces are not beside this checkout (../shared/data/london-faces)")
    return LONDON
