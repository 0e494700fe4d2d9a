"""Who shares masks with whom, and how many neighbours a sparse round needs, from exact hypergeometric tails."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from carefl_secure.errors import ConfigError
from carefl_secure.noise import KeyStream
from carefl_secure.secagg.primitives.crypto import digest, refuse

PRIVACY_BITS = 80
"""Privacy fails on a graph with probability ``2**-80`` at most: who picks the last advertisement or
the members can try some ``2**40`` graphs and still has a chance below ``2**-40``."""

RECOVERY_BITS = 20
"""A round cannot be opened with probability ``2**-20`` at most, under the stated dropout."""


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

    Fisher-Yates over the key stream of ``digest("graph", context, transcript_hash)``: for ``i`` from the last place
    down to 1, words of 64 bits are drawn until one is below the largest multiple of ``i + 1``; ``i`` and its remainder
    swap.
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


@dataclass(frozen=True)
class GraphPlan:
    """The sparse graph of a round and what it was planned for.

    ``neighbours`` (k, even) is the number of masks per client; ``share_threshold`` of the ``k + 1`` holders rebuild a
    secret; at least ``members`` clients advertise, the fewest survivors of the round. ``privacy_bits`` and
    ``recovery_bits`` are failure probabilities as negative powers of two.
    """

    neighbours: int
    share_threshold: int
    members: int
    colluders: int
    dropouts: int
    privacy_bits: int
    recovery_bits: int

    @property
    def text(self) -> str:
        """Say in one sentence what hiding a client's vector on this graph rests on."""
        return (
            f"Each client shares masks with {self.neighbours} others, and {self.share_threshold} of the "
            f"{self.neighbours + 1} holders of its shares can rebuild its secrets. Such a graph, drawn after it "
            "is fixed who colludes, fails to hide the vectors behind their sum with probability "
            f"2^-{self.privacy_bits} at most."
        )


def _tail(population: int, marked: int, draws: int, least: int) -> tuple[int, int]:
    """Return ``P[at least so many marked among the draws]`` as numerator and denominator."""
    total = 0
    for hits in range(max(least, 0), min(marked, draws) + 1):
        total += math.comb(marked, hits) * math.comb(population - marked, draws - hits)
    return total, math.comb(population, draws)


def _below(times: int, tail: tuple[int, int], bits: int) -> bool:
    """Tell whether ``times * tail <= 2**-bits``, exactly."""
    return times * tail[0] << bits <= tail[1]


def _private(members: int, colluders: int, neighbours: int, threshold: int) -> bool:
    half = neighbours // 2
    return _below(members, _tail(members - 1, colluders, half, threshold - half - 1), PRIVACY_BITS)


@functools.lru_cache(maxsize=256)
def tolerated_colluders(members: int, neighbours: int, share_threshold: int) -> int:
    """Return the most colluders that a ring of ``members`` bears; see :func:`plan_graph`."""
    low, high = 0, members - 1  # _private is monotone in the colluders
    while low < high:
        middle = (low + high + 1) // 2
        if _private(members, middle, neighbours, share_threshold):
            low = middle
        else:
            high = middle - 1
    return low


@functools.lru_cache(maxsize=64)
def plan_graph(clients: int, *, colluders: int, dropouts: int, members: int | None = None) -> GraphPlan:
    """Return the sparsest ring that withstands the stated corruption and dropout.

    Parameters
    ----------
    colluders
        Clients that may side with the server (c); who they are is fixed before the round.
    dropouts
        Clients that may vanish (d), by chance and not by choice of the server.
    members
        Fewest clients that may advertise (m); ``clients - dropouts`` if None.

    Raises
    ------
    ConfigError
        If a number is out of range, or only the complete graph is enough.

    Guarantees
    ----------
    Let ``n = clients``, ``h = k / 2``, and let ``t`` of the ``k + 1`` holders of a secret (its owner and ``k``
    neighbours) rebuild it. Suppose no honest client has ``t - h - 1`` or more colluders among the ``h`` members after
    it on the ring. Then the survivors' masks keep all honest survivors in one sum, *whichever* survivor set the server
    has signed and whoever it dropped. Proof: if they fell into two groups, take a member ``v`` of one group and the
    next honest survivor after it, of another group. They share no mask, so more than ``h`` places lie between them,
    and the ``h`` members after ``v`` are colluders or not among the survivors. Only survivors answer, so at most ``1 +
    h + (t - h - 2) = t - 1`` shares of ``v``'s self mask exist, and its upload stays masked. In the same way colluders
    alone, at most ``t - 2`` around any client, rebuild nothing. The supposition fails with probability at most ``m
    P[Hyp(m - 1, c, h) >= t - h - 1]``, a union bound over an exact hypergeometric tail; fewer members make it worse,
    so ``m`` is ``required_survivors``. Survivor sets are signed by more than half of all honest clients, as in the
    complete graph; that the secrets of a client are never both given rests on this.

    Opening fails where a client has fewer than ``t`` answering neighbours: with probability at most
    ``n P[Hyp(n - 1, n - 1 - d, k) < t]`` for ``d`` random dropouts.

    The ring is the graph of Bell et al. 2020 (ePrint 2020/704), the bound is ours: theirs counts
    dropouts as chance, while a server can choose them to cut the ring.
    """
    least = clients - dropouts if members is None else members
    if not 0 <= colluders < least <= clients or not 0 <= dropouts < clients:
        raise ConfigError(
            f"a graph over {clients} clients cannot stand {colluders} colluders, {dropouts}"
            f" dropouts and {least} members"
        )
    for neighbours in range(4, least - 1, 2):
        threshold = _smallest_threshold(least, colluders, neighbours)
        if threshold > neighbours:
            continue
        absent = _tail(clients - 1, dropouts, neighbours, neighbours - threshold + 1)
        if _below(clients, absent, RECOVERY_BITS):
            return GraphPlan(neighbours, threshold, least, colluders, dropouts, PRIVACY_BITS, RECOVERY_BITS)
    raise ConfigError(
        f"no sparse graph over {clients} clients stands {colluders} colluders and {dropouts}"
        " dropouts at these failure probabilities; use the complete graph (neighbours=None)"
    )


def _smallest_threshold(members: int, colluders: int, neighbours: int) -> int:
    """Return the smallest private threshold; above ``neighbours`` if there is none."""
    low, high = neighbours // 2 + 2, neighbours + 1
    while low < high:
        middle = (low + high) // 2
        if _private(members, colluders, neighbours, middle):
            high = middle
        else:
            low = middle + 1
    return low
