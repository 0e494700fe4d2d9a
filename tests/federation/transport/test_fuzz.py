"""Ten thousand damaged saved sessions: a client says no by one of our errors, or goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from carefl_secure.errors import CareflError, ProtocolError
from tests.support.steps import take

COUNT = 10_000


def damaged(rng: random.Random, saved: bytes) -> bytes:
    """Cut, flipped, random, spliced or drawn out; headers more often than the rest."""
    how, place = rng.randrange(5), rng.randrange(len(saved))
    if how == 0:
        return saved[:place]
    if how == 1:
        changed = bytearray(saved)
        for _ in range(rng.randint(1, 4)):
            reach = len(saved) if rng.random() < 0.5 else min(64, len(saved))
            changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how == 2:
        return rng.randbytes(rng.randrange(200))
    if how == 3:
        return saved[:place] + saved[rng.randrange(len(saved)) :]
    return saved[:place] + rng.randbytes(rng.randint(1, 40)) + saved[place:]


@pytest.mark.parametrize("mode", ["pairwise", "encrypted"])
def test_damaged_saved_sessions(make_bench: Callable[..., Any], mode: str) -> None:
    bench = make_bench(aggregation=mode)
    session = bench.clients.sessions[0]
    plan = bench.plan.hash()
    key = take(bench.clients.helpers[0], "holder_key", round=1, plan=plan) if mode == "encrypted" else b""
    session.advertise(1, plan, *([key] if key else []))
    saved = session.save()
    rng, refused = random.Random(mode), 0
    for _ in range(COUNT):
        bad = damaged(rng, saved)
        try:
            session.restore(bad)
        except CareflError as error:
            refused += isinstance(error, ProtocolError)
        else:
            assert bad == saved
    assert refused > COUNT // 20
    session.restore(saved)
    session._rounds.current()  # raises where no round is open
