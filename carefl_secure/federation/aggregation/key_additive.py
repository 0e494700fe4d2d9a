"""Summing under keys that add up: ciphertexts and masked keys in one upload. EXPERIMENTAL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from carefl_secure.federation.aggregation.base import MaskedIntegers
from carefl_secure.federation.aggregation.pairwise import PairwiseClientSum, PairwiseServerSum
from carefl_secure.federation.plan.ciphertext_packing import narrow, widen
from carefl_secure.federation.transport.exchange import Exchange
from carefl_secure.secagg import AdditiveParameters, AdditiveServer

__all__ = ["EXPERIMENTAL", "AdditiveClientSum", "AdditiveServerSum"]

EXPERIMENTAL = (
    "federation.encryption=additive is EXPERIMENTAL: its cipher is hand-made and nobody has "
    "reviewed it; do not rest anything on it that matters"
)


class AdditiveClientSum(PairwiseClientSum):
    """A client among peers that masks its key, and encrypts its vector with that."""

    def mask(self, vector: NDArray[Any], messages: Mapping[int, bytes]) -> bytes:
        """Widen and encrypt the vector, and mask the key; ``messages`` are the peers' shares."""
        return super().mask(widen(vector), messages)


class AdditiveServerSum(PairwiseServerSum):
    """The server of a sum under keys that add up: the peers' phases, and no helper.

    Parameters
    ----------
    exchange : Exchange
        The wire of this round.
    hello : RecordDict
        Round, model and plan: what every party is told first.
    parameters : AdditiveParameters
        What the round was agreed to be.
    bits : int
        Size of the words of the plan, to which the sum is narrowed.
    """

    def __init__(
        self, exchange: Exchange, hello: RecordDict, parameters: AdditiveParameters, bits: int
    ) -> None:
        super().__init__(exchange, hello, AdditiveServer(parameters))
        self._bits = bits

    def open(self) -> tuple[MaskedIntegers, tuple[int, ...]]:
        """Have the survivors agree on who they are, open the sum of their keys, then the sum."""
        total, survivors = super().open()
        return narrow(total, self._bits), survivors
