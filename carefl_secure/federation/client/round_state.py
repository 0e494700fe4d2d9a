"""A client's rounds: the one in progress, and the next one, whose keys may be made ahead of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.base import ClientSum
from carefl_secure.federation.aggregation.registry import ClientSums

__all__ = ["OpenRounds"]

_SAVED = struct.Struct("<q32s?qI")
_NONE = -1


class OpenRounds:
    """What a client holds of the round in progress and of the next one.

    Parameters
    ----------
    sums : ClientSums
        Makes its part in a round.
    plan_hash : bytes
        Of the one plan that it follows.
    rides : bool
        Whether it agreed to make keys for the next round on the way of this one.

    Guarantees
    ----------
    The numbers of rounds that are begun only go up. Keys made ahead are for one round, used in it
    at most once and erased when another round begins, when newer ones are made, and on `close`;
    for one round they are made ahead once.
    """

    def __init__(self, sums: ClientSums, plan_hash: bytes, rides: bool) -> None:
        self._sums = sums
        self._plan_hash = plan_hash
        self._rides = rides
        self.number = _NONE
        self.model_hash = bytes(32)
        self._ahead = False
        self._sum: ClientSum | None = None
        self._next: ClientSum | None = None
        self._next_number = _NONE

    def begin(
        self,
        number: int,
        model_hash: bytes,
        plan_hash: bytes,
        key: bytes = b"",
        *,
        ahead: bool = False,
    ) -> None:
        """Begin a round in which this client makes its own keys, and give up whatever is open.

        Parameters
        ----------
        number, model_hash, plan_hash, key
            As in `ClientSession.advertise`.
        ahead : bool, optional
            Whether a committee made its keys before the model was known.

        Raises
        ------
        ProtocolError
            When the round is not new, the plan or the key holder's key is another one, or keys
            ahead were not agreed.
        """
        self.close()
        self._check(number, plan_hash)
        if ahead:
            self._agreed()
        self._sum = self._sums.begin(number, model_hash, key, ahead=ahead)
        self.number, self.model_hash, self._ahead = number, model_hash, False

    def current(self) -> ClientSum:
        """Return the round in progress.

        Raises
        ------
        ProtocolError
            When there is none.
        """
        if self._sum is None:
            raise ProtocolError("there is no open round; it was answered, abandoned or never begun")
        return self._sum

    def advertise_ahead(self, number: int, plan_hash: bytes) -> bytes:
        """Make and show fresh keys for a later round, while this one goes on.

        Raises
        ------
        ProtocolError
            When this client did not agree to that, follows another plan, took part in that round,
            or has shown keys for it or a later one.
        """
        self._agreed()
        self._check(number, plan_hash)
        if number <= self._next_number:
            raise ProtocolError(f"keys ahead: keys for round {number} were shown before")
        self._drop_next()
        self._next, self._next_number = self._sums.ahead(number), number
        return self._next.advertise()

    def share_ahead(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split the secrets made ahead among the peers of that round."""
        if self._next is None:
            raise ProtocolError("keys ahead: there are none whose secrets could be shared")
        return self._next.share(advertisements)

    def take_up(self, number: int, plan_hash: bytes, model_hash: bytes) -> None:
        """Begin the round whose keys were made ahead, with its model; the one in progress ends.

        Raises
        ------
        ProtocolError
            When there are no keys for exactly this round, or the plan is another one.
        """
        self._check(number, plan_hash)
        if self._next is None or number != self._next_number:
            raise ProtocolError(f"keys ahead: there are none for round {number}")
        self._next.bind(model_hash)
        self.end()
        self._sum, self._next = self._next, None
        self.number, self.model_hash, self._ahead = number, model_hash, True

    def save(self) -> bytes:
        """Return both rounds, their secrets sealed."""
        now = b"" if self._sum is None else self._sum.save()
        later = b"" if self._next is None else self._next.save()
        top = _SAVED.pack(self.number, self.model_hash, self._ahead, self._next_number, len(now))
        return top + now + later

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` returned.

        Raises
        ------
        ProtocolError
            When a state in it does not open.
        """
        self.close()
        number, model_hash, ahead, next_number, length = _SAVED.unpack_from(saved)
        now, later = saved[_SAVED.size :][:length], saved[_SAVED.size + length :]
        if now and ahead:
            self._sum = self._sums.restore_ahead(now, number, model_hash)
        elif now:
            self._sum = self._sums.restore(now, number, model_hash)
        if later:
            self._next = self._sums.restore_ahead(later, next_number)
        self.number, self.model_hash, self._ahead = number, model_hash, ahead
        self._next_number = next_number

    def end(self) -> None:
        """Erase the secrets of the round in progress, if there is one; keys made ahead stay."""
        if self._sum is not None:
            self._sum.close()
            self._sum = None

    def close(self) -> None:
        """Erase the secrets of both rounds."""
        self.end()
        self._drop_next()

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None

    def _agreed(self) -> None:
        if not self._rides:
            raise ProtocolError(
                "keys ahead: the server wants keys that are made before their round, which was "
                "not agreed; compare federation.key_prefetch"
            )

    def _check(self, number: int, plan_hash: bytes) -> None:
        if plan_hash != self._plan_hash:
            raise ProtocolError("the server follows another privacy plan; compare the run plans")
        if number <= self.number:
            raise ProtocolError(
                f"round {number} comes after round {self.number}; a round is never repeated"
            )
