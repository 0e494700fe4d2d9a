"""What all tests share: a quiet environment and the real photographs, where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch or flwr is imported anywhere.
for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "OMP_NUM_THREADS": "1",  # the suite runs one process a core
    "TORCHDYNAMO_DISABLE": "1",  # bitsandbytes loads the compiler otherwise, which nothing uses
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}.items():
    os.environ.setdefault(_name, _value)

import pytest
from hypothesis import settings

# A busy machine is slow, which is no fault of the code under test.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")

pytest_plugins = ["tests.support.federation"]

# Files that take longest, begun first: a long one at the end would leave the other processes idle.
LONGEST = (
    "runs/test_train.py",
    "deployment/superlink/test_local.py",
    "experiment/test_run.py",
    "runs/test_train_staged.py",
    "privacy/accounting",
    "audit",
    "deployment",
    "federation",
    "captions",
    "runs",
    "report",
)
TESTS = Path(__file__).resolve().parent
LONDON = Path(__file__).resolve().parents[2] / "shared" / "data" / "london-faces"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order whole files by how long they take; the order within a file stays."""

    def rank(item: pytest.Item) -> int:
        file = item.path.relative_to(TESTS).as_posix()
        return next((i for i, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def london_faces() -> Path:
    """Return the folder of the London faces, or skip where it is absent."""
    if not (LONDON / "metadata.jsonl").is_file():
        pytest.skip("the London faces are not next to this checkout (../shared/data/london-faces)")
    return LONDON


@pytest.fixture
def clipping_error() -> Callable[[Any, str], float]:
    """Return what measures how far a clipped sum is from records that are clipped one by one.

    ``clipping_error(learner, engine)`` takes the first six records of a learner.
    """
    import numpy as np
    import torch  # slow, and most tests need neither it nor the engines

    from carefl_secure.privacy.clipping.clipped_sum import Clipping, clipped_sum

    def measure(held: Any, engine: Any) -> float:
        adapter = held.scorer.adapter
        adapter.module.train()
        norm, expected = 0.05, np.zeros(adapter.dimension)
        for i in range(6):
            parts = torch.autograd.grad(held.losses([i]).sum(), [p for _, p in adapter.parameters])
            one = torch.cat([g.flatten() for g in parts]).double().numpy()
            expected += one * min(1.0, norm / float(np.linalg.norm(one)))
        found = clipped_sum(
            adapter.module,
            adapter.parameters,
            held.losses,
            np.arange(6),
            Clipping(norm, False, engine=engine, micro_batch=4),
        ).vector
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    return measure
