"""What all parties of a round of pairwise masking agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from carefl_secure.errors import ConfigError
from carefl_secure.secagg.pairwise.graph_planner import tolerated_colluders
from carefl_secure.secagg.primitives.agreement import Agreement

MAX_CLIENTS = 1000
"""Above this even a sparse graph costs too much; 300 is where the complete one does."""


def default_threshold(clients: int) -> int:
    """Return ``floor(2 * clients / 3) + 1``, the smallest threshold that is safe here.

    With ``t > 2n/3`` two sets of ``t`` signers share more than ``n/3`` members, so a server with
    fewer than ``n/3`` colluding clients cannot gather signatures over two survivor sets.
    """
    return 2 * clients // 3 + 1


@dataclass(frozen=True, kw_only=True)
class RoundParameters(Agreement):
    """The agreement behind one round of pairwise masking.

    Parameters
    ----------
    threshold
        How many shares rebuild a secret, and how many signatures a survivor set needs; at least
        ``default_threshold(len(roster))``.
    neighbours
        Masks per client on a sparse graph, even, from ``plan_graph``; None for the complete graph.
    share_threshold
        On a sparse graph, how many of a client's ``neighbours + 1`` holders rebuild its secrets;
        ``threshold`` then counts signatures only.
    """

    threshold: int
    neighbours: int | None = None
    share_threshold: int | None = None

    LABEL: ClassVar[bytes] = b"pairwise"
    MAX_CLIENTS: ClassVar[int] = MAX_CLIENTS

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.clients
        if not default_threshold(count) <= self.threshold <= count:
            raise ConfigError(
                f"the threshold for {count} clients must lie in"
                f" {default_threshold(count)} .. {count}, not {self.threshold}"
            )
        self._check_graph()

    def _check_graph(self) -> None:
        degree, threshold = self.neighbours, self.share_threshold
        if degree is None and threshold is None:
            return
        if degree is None or threshold is None:
            raise ConfigError("a sparse graph needs neighbours and share_threshold; set both")
        most = self.required_survivors - 2
        if degree % 2 or not 4 <= degree <= most:
            raise ConfigError(
                f"neighbours must be even and lie in 4 .. {most} (two below the fewest"
                f" survivors), not {degree}; for small cohorts leave it out"
            )
        if not degree // 2 + 2 <= threshold <= degree:
            raise ConfigError(
                f"share_threshold for {degree} neighbours must lie in {degree // 2 + 2} .. {degree}, not {threshold}"
            )

    @property
    def required_survivors(self) -> int:
        """The fewest clients that anyone goes on with: the threshold or min_survivors."""
        return max(self.threshold, self.min_survivors)

    @property
    def rebuilding(self) -> int:
        """How many shares rebuild a secret: ``share_threshold`` or, if complete, the threshold."""
        return self.threshold if self.share_threshold is None else self.share_threshold

    @property
    def max_colluders(self) -> int:
        """How many clients may side with the server: at most ``2 * threshold - clients - 1``.

        Every honest client signs one survivor set, so ``h`` honest clients and ``c`` colluders who sign everything
        reach two sets of ``threshold`` signatures only if ``2 * (threshold - c) <= h = clients - c``. On a sparse
        graph :func:`tolerated_colluders` at a failure probability of ``2**-80`` is a second limit.
        """
        most = 2 * self.threshold - self.clients - 1
        if self.neighbours is None or self.share_threshold is None:
            return most
        return min(most, tolerated_colluders(self.required_survivors, self.neighbours, self.share_threshold))

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers, in the order in which they are hashed."""
        graph = () if self.neighbours is None else (self.neighbours, self.rebuilding)
        return (self.round, self.dimension, self.bits, self.threshold, self.min_survivors, self.clients, *graph)
