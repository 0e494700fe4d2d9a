"""Rounds for the tests of the secure sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import CommitteeParameters, RoundParameters, default_threshold
from tests.support.played_committee import CommitteeRehearsal
from tests.support.played_pairwise import Rehearsal

IDENTITIES = [Ed25519PrivateKey.from_private_bytes(bytes([i + 1]) * 32) for i in range(40)]
MEMBERS = [Ed25519PrivateKey.from_private_bytes(bytes([i + 201]) * 32) for i in range(5)]


def _parameters(clients: int, **changes: Any) -> RoundParameters:
    fields: dict[str, Any] = {
        "task": b"test",
        "round": 7,
        "dimension": 16,
        "bits": 32,
        "threshold": default_threshold(clients),
        "min_survivors": 3,
        "model_hash": b"m" * 32,
        "base_hash": b"b" * 32,
        "plan_hash": b"p" * 32,
        "roster": tuple(i.public_key().public_bytes_raw() for i in IDENTITIES[:clients]),
    }
    return RoundParameters(**{**fields, **changes})


@pytest.fixture
def parameters() -> Callable[..., RoundParameters]:
    """Parameters for so many clients, fields changed by name."""
    return _parameters


@pytest.fixture
def identities() -> list[Ed25519PrivateKey]:
    """Signing keys that the rosters are made of."""
    return IDENTITIES


@pytest.fixture
def rehearse() -> Callable[..., Rehearsal]:
    """A round for so many clients, played from a seed, fields changed by name."""

    def make(clients: int, seed: bytes = b"seed", **changes: Any) -> Rehearsal:
        return Rehearsal(
            _parameters(clients, **changes),
            IDENTITIES[:clients],
            lambda index: DeterministicKeySource(seed + bytes([index])),
        )

    return make


@pytest.fixture
def vectors() -> Callable[..., dict[int, npt.NDArray[Any]]]:
    """Random vectors over the whole group, one per client."""

    def make(rehearsal: Rehearsal | CommitteeRehearsal, seed: int = 0) -> dict[int, npt.NDArray[Any]]:
        random = np.random.default_rng(seed)
        shape = rehearsal.parameters
        return {
            index: random.integers(0, 1 << shape.bits, shape.dimension).astype(shape.dtype)
            for index in rehearsal.clients
        }

    return make


@pytest.fixture
def committee() -> Callable[..., CommitteeRehearsal]:
    """A committee round for so many clients and members, fields changed by name."""

    def make(clients: int, members: int, /, seed: bytes = b"seed", **changes: Any) -> CommitteeRehearsal:
        fields: dict[str, Any] = {
            "task": b"test",
            "round": 7,
            "dimension": 16,
            "bits": 32,
            "min_survivors": 3,
            "model_hash": b"m" * 32,
            "base_hash": b"b" * 32,
            "plan_hash": b"p" * 32,
            "roster": tuple(i.public_key().public_bytes_raw() for i in IDENTITIES[:clients]),
            "members": tuple(i.public_key().public_bytes_raw() for i in MEMBERS[:members]),
        }
        return CommitteeRehearsal(
            CommitteeParameters(**{**fields, **changes}),
            IDENTITIES[:clients],
            MEMBERS[:members],
            lambda name: DeterministicKeySource(seed + name.encode()),
        )

    return make
