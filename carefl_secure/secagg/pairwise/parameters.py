"""What all parties of a round must agree on, and the hash that binds every message to it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.pairwise.graph_planner import tolerated_colluders
from carefl_secure.secagg.primitives.agreement import check_agreement, check_hash, word_type
from carefl_secure.secagg.primitives.checks import refuse
from carefl_secure.secagg.primitives.crypto import digest, pack
from carefl_secure.secagg.primitives.late_model import _Ahead

__all__ = [
    "MAX_CLIENTS",
    "AheadParameters",
    "RoundParameters",
    "agreed_numbers",
    "default_threshold",
]


MAX_CLIENTS = 1000
"""Above this the complete graph costs too much; 300 is where it stops being cheap."""


def default_threshold(clients: int) -> int:
    """Return ``floor(2 * clients / 3) + 1``, the smallest threshold that is safe here.

    With ``t > 2n/3`` two sets of ``t`` signers share more than ``n/3`` members, so a server with
    fewer than ``n/3`` colluding clients cannot gather signatures over two survivor sets.
    """
    return 2 * clients // 3 + 1


@dataclass(frozen=True)
class RoundParameters:
    """The agreement behind one round.

    Parameters
    ----------
    task
        Name of the run, as bytes; not secret.
    round
        Number of the round, from 0.
    dimension
        Length of the integer vectors (after padding).
    bits
        Size of one word: 16 or 32. Sums are taken modulo ``2**bits``.
    threshold
        How many shares rebuild a secret, and how many signatures a survivor set needs; at least
        ``default_threshold(len(roster))``.
    min_survivors
        The floor below which clients refuse; at least 3.
    model_hash, base_hash, plan_hash
        32 bytes each: the trained vector at the start of the round, the frozen base model with
        the code and configuration, the privacy and encoding plan.
    roster
        The Ed25519 public keys of all clients, 32 bytes each, agreed out of band. A client's
        index is its place here.
    neighbours
        Masks per client on a sparse graph, even; None for the complete graph. ``plan_graph``
        gives this and the next for a stated corruption and dropout.
    share_threshold
        On a sparse graph, how many of a client's ``neighbours + 1`` holders rebuild its secrets;
        ``threshold`` then counts signatures only.

    Raises
    ------
    ConfigError
        If a value is out of range or contradicts another.

    Guarantees
    ----------
    :meth:`context` is a collision-resistant hash of all of it and enters every signature, key
    and commitment of the round. Two clients that were told different models, plans or rosters
    refuse each other's first message, so a server gains nothing from telling them.
    """

    task: bytes
    round: int
    dimension: int
    bits: int
    threshold: int
    min_survivors: int
    model_hash: bytes
    base_hash: bytes
    plan_hash: bytes
    roster: tuple[bytes, ...]
    neighbours: int | None = None
    share_threshold: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        check_agreement(self, MAX_CLIENTS)
        self._check_model()
        count = self.clients
        if not default_threshold(count) <= self.threshold <= count:
            raise ConfigError(
                f"the threshold for {count} clients must lie in"
                f" {default_threshold(count)} .. {count}, not {self.threshold}"
            )
        self._check_graph()

    def _check_model(self) -> None:
        check_hash(self.model_hash, "model_hash")

    def _check_graph(self) -> None:
        degree, threshold = self.neighbours, self.share_threshold
        if degree is None and threshold is None:
            return
        if degree is None or threshold is None:
            raise ConfigError("a sparse graph needs neighbours and share_threshold; set both")
        if degree % 2 or not 4 <= degree <= self.floor - 2:
            raise ConfigError(
                f"neighbours must be even and lie in 4 .. {self.floor - 2} (two below the cohort"
                f" floor), not {degree}; for small cohorts leave it out"
            )
        if not degree // 2 + 2 <= threshold <= degree:
            raise ConfigError(
                f"share_threshold for {degree} neighbours must lie in {degree // 2 + 2} .."
                f" {degree}, not {threshold}"
            )

    @property
    def clients(self) -> int:
        """Number of clients in the roster."""
        return len(self.roster)

    @property
    def floor(self) -> int:
        """The smallest cohort that anyone goes on with: the threshold or min_survivors."""
        return max(self.threshold, self.min_survivors)

    @property
    def rebuilding(self) -> int:
        """How many shares rebuild a secret: ``share_threshold`` or, if complete, the threshold."""
        return self.threshold if self.share_threshold is None else self.share_threshold

    @property
    def max_colluders(self) -> int:
        """How many clients may side with the server: at most ``2 * threshold - clients - 1``.

        Every honest client signs one survivor set, so ``h`` honest clients and ``c`` colluders
        who sign everything reach two sets of ``threshold`` signatures only if
        ``2 * (threshold - c) <= h = clients - c``. On a sparse graph also at most as many as
        :func:`tolerated_colluders` allows at a failure probability of ``2**-80``.
        """
        most = 2 * self.threshold - self.clients - 1
        if self.neighbours is None or self.share_threshold is None:
            return most
        return min(most, tolerated_colluders(self.floor, self.neighbours, self.share_threshold))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of one word."""
        return word_type(self.bits)

    def context(self) -> bytes:
        """Return the 32-byte hash of everything above."""
        return _context(self)

    def key_context(self) -> bytes:
        """Return what advertisements and shares are bound to: ``context()`` again."""
        return self.context()

    def latest_context(self) -> bytes:
        """Return what a saved state is bound to: ``context()`` again."""
        return self.context()

    def bind(self, model_hash: bytes) -> RoundParameters:
        """Return the agreement with its model, where keys are made before that is known.

        Raises
        ------
        ProtocolError
            Always; what can be bound are ``AheadParameters``.
        """
        raise refuse("model", "the round has had its model from the start; nothing is to be bound")

    def zeros(self) -> npt.NDArray[Any]:
        """Return a zero vector of the round's shape and type."""
        return np.zeros(self.dimension, self.dtype)


def agreed_numbers(parameters: RoundParameters) -> bytes:
    """Write all numbers of an agreement one after another."""
    graph: tuple[int, ...] = ()
    if parameters.neighbours is not None:
        graph = (parameters.neighbours, parameters.rebuilding)
    return pack(
        parameters.round,
        parameters.dimension,
        parameters.bits,
        parameters.threshold,
        parameters.min_survivors,
        parameters.clients,
        *graph,
    )


@functools.lru_cache(maxsize=64)
def _context(parameters: RoundParameters) -> bytes:
    return digest(
        b"context",
        parameters.task,
        agreed_numbers(parameters),
        parameters.model_hash,
        parameters.base_hash,
        parameters.plan_hash,
        *parameters.roster,
    )


@dataclass(frozen=True, kw_only=True)
class AheadParameters(_Ahead, RoundParameters):
    """The agreement behind a round among peers whose keys are made ahead.

    Parameters
    ----------
    model_hash
        Empty until :meth:`bind`; 32 bytes then.

    Raises
    ------
    ConfigError
        As ``RoundParameters``.

    Guarantees
    ----------
    :meth:`key_context` is a collision-resistant hash of all but the model, in words that no round
    of another form uses; :meth:`context` of that and the model. Two clients that were told
    different models derive different mask keys for one another and sign different survivor sets, so
    a sum over both does not open: nothing but uniform words comes out.
    """

    def key_context(self) -> bytes:
        """Return the 32-byte hash of everything but the model."""
        return _key_context(self)

    def latest_context(self) -> bytes:
        """Return what a saved state is bound to: all that is known."""
        return self.context() if self.model_hash else self.key_context()


@functools.lru_cache(maxsize=64)
def _key_context(parameters: AheadParameters) -> bytes:
    return digest(
        b"key context",
        parameters.task,
        agreed_numbers(parameters),
        parameters.base_hash,
        parameters.plan_hash,
        *parameters.roster,
    )
