"""A small configured run, its rehearsal, and a client task that needs no model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from carefl_secure.audit.conformance.checks import MachineView
from carefl_secure.audit.conformance.released import drive
from carefl_secure.audit.replay.canary_run import plan_like, rehearse
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.config import Config, load_config
from carefl_secure.noise import KeySource, SystemKeySource

SETTINGS = [
    "federation.clients=5",
    "federation.rounds=6",
    "simulation.dropout=0.2",
    "data.records=500",
    "privacy.delta=0.0001",
    "privacy.sample_rate=0.25",
]
PROBED = 6


def patch_everywhere(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """Replace a name in every module of the federation that imported it."""
    found = [
        module
        for key, module in list(sys.modules.items())
        if key.startswith("carefl_secure.federation.") and hasattr(module, name)
    ]
    assert found, name
    for module in found:
        monkeypatch.setattr(module, name, value)


def system(index: int) -> KeySource:
    return SystemKeySource()


class VectorTask:
    """Records of known gradients, clipped as agreed.

    ``tiles`` clips each piece on its own; the last ``outside`` entries, a label head, are left out of clipping.
    """

    def __init__(self, dimension: int, norm: float, tiles: int = 1, mean: bool = False, outside: int = 0) -> None:
        rng = np.random.default_rng(5)
        self._pieces = rng.normal(size=(PROBED, tiles, dimension))
        if tiles > 1:  # the pieces of one picture point nearly the same way
            self._pieces += 3 * self._pieces[:, :1]
        self._norm, self._mean = norm, mean
        self._inside = dimension - outside

    @property
    def dimension(self) -> int:
        return self._pieces.shape[2]

    @property
    def records(self) -> int:
        return PROBED

    def clipped_sum(
        self, adapter: NDArray[np.float32], indices: NDArray[np.int64], number: int
    ) -> NDArray[np.float64]:
        chosen = self._pieces[indices]
        lengths = np.linalg.norm(chosen[..., : self._inside], axis=2, keepdims=True)
        scaled = chosen / lengths * self._norm * 0.999
        total: NDArray[np.float64] = scaled.sum(axis=(0, 1))
        if self._mean:  # one record decides how much the others count
            total *= PROBED / len(indices) if 0 in indices else 0.2
        return total


@dataclass
class VectorProbe:
    task: VectorTask
    mixed: bool = False

    def losses(self, indices: NDArray[np.int64], disturbed: int | None) -> NDArray[np.float64]:
        values = np.linspace(1.0, 2.0, len(indices))
        if disturbed is not None:
            values[disturbed] += 5.0
        return values - values.mean() if self.mixed else values


@pytest.fixture
def config() -> Config:
    return load_config(None, SETTINGS)


@pytest.fixture
def machine() -> Callable[..., MachineView]:
    """Return a maker of what the auditor sees, run on the build as it is at the moment."""

    def make(
        probe: VectorProbe | None = None,
        keys: Callable[[int], KeySource] = system,
        dimension: int = 2000,
        driven: bool = False,
        settings: Sequence[str] = (),
        **options: Any,
    ) -> MachineView:
        from dataclasses import replace

        config = load_config(None, [*SETTINGS, *settings])
        plan = plan_like(config, dimension, 200)
        bands = plan.privacy.bands
        one = replace(plan, privacy=replace(plan.privacy, rounds=1 if bands == 1 else bands + 1))
        first, second = (rehearse(config, keys, canaries=0, plan=one, empty=True, **options) for _ in range(2))
        norm = plan.privacy.clipping_norm
        return MachineView(
            plan,
            rehearse(config, keys, canaries=300, **options),
            (first, second),
            probe or VectorProbe(VectorTask(dimension, norm)),
            np.zeros(dimension, np.float32),
            drive(config) if driven else None,
        )

    return make


@pytest.fixture(scope="session")
def sound() -> Rehearsal:
    """Return one rehearsal of the build as it is."""
    return rehearse(load_config(None, SETTINGS), system, canaries=400)
