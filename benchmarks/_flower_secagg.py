"""Flower's SecAgg+ functions, driven without a network: one client in full, and the server.

Stages and loops are those of ``flwr.client.mod.secure_aggregation.secaggplus_mod`` and of
``flwr.server.workflow.secure_aggregation.secaggplus_workflow`` (flwr 1.41), whose functions are
called; every peer is a neighbour. Only what the measured party does not compute is made up: the
peers' shares have the right size and random content for the client, and are real for the server.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from _bench import cpu
from flwr.app import ConfigRecord
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

# The package has a function of the module's name, which hides the module from ``import``.
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

MODULUS = 1 << 32


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one client and of the server, and bytes of the client's upload."""

    client: float
    server: float
    upload: int
    whole: bool


def _configuration(clients: int) -> ConfigRecord:
    return ConfigRecord(
        {
            Key.SAMPLE_NUMBER: clients,
            Key.SHARE_NUMBER: clients,
            Key.THRESHOLD: round(0.67 * clients),
            Key.CLIPPING_RANGE: 8.0,
            Key.TARGET_RANGE: 1 << 22,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: 1000.0,
        }
    )


def client(clients: int, vector: npt.NDArray[np.float32]) -> tuple[float, int, list[Any]]:
    """Play client 0 through all four stages; return CPU seconds, upload bytes and the upload."""
    state = mod.SecAggPlusState()
    state.nid = 0
    _, seconds = cpu(lambda: mod._setup(state, _configuration(clients)))
    peers = {0: (state.pk1, state.pk2)}
    secrets = {}
    for peer in range(1, clients):
        (one, public_one), (two, public_two) = generate_key_pairs(), generate_key_pairs()
        peers[peer] = (public_key_to_bytes(public_one), public_key_to_bytes(public_two))
        secrets[peer] = (one, two)
    keys = ConfigRecord({str(nid): list(pair) for nid, pair in peers.items()})
    _, spent = cpu(lambda: mod._share_keys(state, keys))
    seconds += spent
    seed_share, key_share = (len(d[0]) for d in (state.rd_seed_share_dict, state.sk1_share_dict))
    sealed = [
        encrypt(
            generate_shared_key(secrets[peer][1], bytes_to_public_key(state.pk2)),
            share_keys_plaintext_concat(peer, 0, os.urandom(seed_share), os.urandom(key_share)),
        )
        for peer in range(1, clients)
    ]
    inbox = ConfigRecord({Key.CIPHERTEXT_LIST: sealed, Key.SOURCE_LIST: list(range(1, clients))})
    parameters = ndarrays_to_parameters([vector])
    result, spent = cpu(lambda: mod._collect_masked_vectors(state, inbox, 100, parameters))
    seconds += spent
    request = ConfigRecord({Key.ACTIVE_NODE_ID_LIST: list(range(clients)), Key.DEAD_NODE_ID_LIST: []})
    _, spent = cpu(lambda: mod._unmask(state, request))
    upload = result[Key.MASKED_PARAMETERS]
    return seconds + spent, sum(len(part) for part in upload), upload


def _shares(secret: bytes, clients: int, answering: int) -> list[bytes]:
    return create_shares(secret, round(0.67 * clients), clients)[:answering]


def server(clients: int, dropped: int, upload: list[Any], whole: bool) -> float:
    """Add the uploads and take the masks off; return CPU seconds.

    Not ``whole``: two survivors and one dropped client are worked through, and multiplied.
    """
    alive = clients - dropped
    shapes = [bytes_to_ndarray(part).shape for part in upload]
    total = [np.zeros(shape, np.int64) for shape in shapes]
    added = alive if whole else 2

    def add() -> None:
        nonlocal total
        for _ in range(added):
            total = parameters_addition(total, [bytes_to_ndarray(part) for part in upload])
        total = parameters_mod(total, MODULUS)

    seconds = cpu(add)[1] * alive / added

    opened = alive if whole else min(2, alive)
    seeds = [_shares(os.urandom(32), clients, alive) for _ in range(opened)]

    def remove_own() -> None:
        nonlocal total
        for shares in seeds:
            mask = pseudo_rand_gen(combine_shares(shares), MODULUS, shapes)
            total = parameters_subtraction(total, mask)

    seconds += cpu(remove_own)[1] * alive / opened
    rebuilt = dropped if whole else min(1, dropped)
    if not rebuilt:
        return seconds
    publics = [public_key_to_bytes(generate_key_pairs()[1]) for _ in range(alive)]
    privates = [_shares(private_key_to_bytes(generate_key_pairs()[0]), clients, alive) for _ in range(rebuilt)]

    def remove_pairs() -> None:
        nonlocal total
        for shares in privates:
            private = bytes_to_private_key(combine_shares(shares))
            for public in publics:
                key = generate_shared_key(private, bytes_to_public_key(public))
                total = parameters_addition(total, pseudo_rand_gen(key, MODULUS, shapes))

    return seconds + cpu(remove_pairs)[1] * dropped / rebuilt


def play(clients: int, dimension: int, dropped: int, whole: bool) -> Cost:
    """Measure one client and the server of one round."""
    vector = np.random.default_rng(0).normal(0, 0.01, dimension).astype(np.float32)
    seconds, size, upload = client(clients, vector)
    return Cost(seconds, server(clients, dropped, upload, whole), size, whole)
