"""Who shares masks with whom: everyone with everyone, or with the nearest on a shuffled ring."""

from __future__ import annotations

import functools
from collections.abc import Collection

import numpy as np

from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import digest


def neighbours(
    context: bytes, transcript_hash: bytes, members: Collection[int], index: int, degree: int | None = None
) -> tuple[int, ...]:
    """Return the neighbours of one client, ascending.

    Without a degree: all other members (the complete graph). With an even degree ``k``: the ``k / 2`` members before
    and the ``k / 2`` after the client on a ring drawn from the hash of all advertised keys; being neighbours is
    mutual. With at most ``k + 1`` members, the graph is complete again.

    Guarantees
    ----------
    For a transcript hash that no single party picks, the neighbourhood of a client is a uniform set of ``k`` others,
    and the ``k / 2`` after it a uniform set of ``k / 2``. The last to advertise, and a server that picks the members,
    can try many hashes: plan the degree with a failure probability that leaves room for that (``plan_graph``).
    """
    if index not in members:
        raise refuse("graph member", f"client {index} is not among those that advertised")
    if degree is None or len(members) <= degree + 1:
        return tuple(sorted(member for member in members if member != index))
    order, places = ring(context, transcript_hash, tuple(sorted(members)))
    place, half = places[index], degree // 2
    steps = (*range(-half, 0), *range(1, half + 1))
    return tuple(sorted(order[(place + step) % len(order)] for step in steps))


@functools.lru_cache(maxsize=4)
def ring(context: bytes, transcript_hash: bytes, members: tuple[int, ...]) -> tuple[tuple[int, ...], dict[int, int]]:
    """Shuffle the members and return the order and each one's place in it.

    Fisher-Yates over the key stream of ``digest("graph", context, transcript_hash)``: for ``i``
    from the last place down to 1, 64-bit words are drawn until one lies below the largest multiple
    of ``i + 1``; its remainder is the place that ``i`` is swapped with.
    """
    order = list(members)
    stream = KeyStream(digest(b"graph", context, transcript_hash))
    words = iter(stream.words(len(order), np.uint64).tolist())
    for last in range(len(order) - 1, 0, -1):
        bound = (1 << 64) - (1 << 64) % (last + 1)
        while True:
            word = next(words, None)
            if word is None:
                words = iter(stream.words(len(order), np.uint64).tolist())
            elif word < bound:
                break
        swap = word % (last + 1)
        order[last], order[swap] = order[swap], order[last]
    return tuple(order), {member: place for place, member in enumerate(order)}
