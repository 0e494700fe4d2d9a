"""A client's rounds: how they are charged, at the server alike, and the state of the present and the next one."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.base import ClientSetup, ClientSum
from carefl_secure.federation.aggregation.registry import protocol_of
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Event, Ledger
from carefl_secure.privacy.ledger.entry import count_rounds, last_number, spends_due

_SAVED = struct.Struct("<q?32sqI")
_NONE = -1


class RoundBudget:
    """A ledger together with the plan whose rounds are charged to it.

    ``limit`` is the most the whole ledger, earlier runs included, may come to; the plan's target by
    default. Without privacy nothing is charged, and every round is recorded as unprotected.
    """

    def __init__(self, ledger: Ledger, plan: RunPlan, cohort: Cohort, limit: float | None = None) -> None:
        privacy = plan.privacy
        self._ledger, self._event, self._delta = ledger, plan.event, privacy.delta
        self._run = cohort.run.decode(errors="backslashreplace")
        self._payload = {"run": self._run, "planned": privacy.rounds, "unit": privacy.unit, "trust": privacy.trust}
        self._bands = privacy.bands
        self._payload |= {"bands": self._bands} if self._bands > 1 else {}
        self._limit = privacy.limit if limit is None else limit

    def check(self, number: int) -> None:
        """Raise what `charge` would raise; write nothing."""
        if self._event is not None:
            self._ledger.guard(self._event, self._limit, self._delta, {**self._payload, "round": number})

    def charge(self, number: int) -> None:
        """Write one round to the ledger, on disk, before anything of it is released.

        Raises BudgetExceededError, and writes nothing, when it would overspend or the rounds of the plan are all
        charged, in however many attempts; LedgerError when the ledger cannot be trusted or written.
        """
        entry = {**self._payload, "round": number}
        if self._event is None:
            self._ledger.append("note", {**entry, "unprotected": True})
        else:
            self._ledger.spend(self._event, self._limit, self._delta, entry)

    def record_release(self, number: int, survivors: int) -> None:
        """Note that a round was opened."""
        self._ledger.append("release", {"run": self._run, "round": number, "survivors": survivors})

    def epsilon(self) -> float:
        """Return what the whole ledger costs; infinity without privacy."""
        return math.inf if self._event is None else self._ledger.epsilon(self._delta)

    def after(self, rounds: int) -> float:
        """Return what the ledger comes to with more rounds, for comparison with the limit."""
        more = self.further(rounds)
        return self._ledger.filtered_epsilon(more, self._limit, self._delta, self._payload) if more else self.epsilon()

    def further(self, rounds: int) -> Event | None:
        """Return what more rounds would still have to spend; None where that is nothing."""
        if self._event is None:
            return None
        if self._bands > 1:
            entries, last = self._ledger.entries(), max(self.last_number(), 0)
            rounds = spends_due(entries, self._run, self._bands, range(last + 1, last + 1 + rounds))
        return self._event.times(self._event.count * rounds) if rounds > 0 else None

    def last_number(self) -> int:
        """Return the highest number of a charged round of this run; -1 where there is none."""
        return last_number(self._ledger.entries(), self._run)

    def charged(self) -> int:
        """Return how many rounds of this run were charged."""
        return count_rounds(self._ledger.entries(), self._run)


class OpenRounds:
    """What a client holds of the round in progress and of the next one.

    Guarantees
    ----------
    The numbers of begun rounds only go up. Prefetched keys serve one round, at most once, and are erased when another
    round begins, when newer ones are made, and on `close`; for one round they are made once. A round is bound to one
    model.
    """

    def __init__(self, setup: ClientSetup) -> None:
        self._setup, self._protocol, self._plan_hash = setup, protocol_of(setup.cohort), setup.plan.hash()
        self.number, self._next_number, self._model_hash = _NONE, _NONE, b""
        self._sum: ClientSum | None = None
        self._next: ClientSum | None = None

    def begin(self, number: int, plan_hash: bytes, key: bytes = b"") -> ClientSum:
        """Begin a round with fresh keys and drop what is open; ProtocolError when round, plan or key is not due."""
        self._check(number, plan_hash)
        begun = self._protocol.client(self._setup, number, key)
        self.close()
        self._sum = begun
        self.number, self._model_hash = number, b""
        return self._sum

    def current(self) -> ClientSum:
        """Return the round in progress; ProtocolError when there is none."""
        if self._sum is None:
            raise ProtocolError("there is no open round; it was answered, abandoned or never begun")
        return self._sum

    def enter(self, number: int, plan_hash: bytes, model_hash: bytes) -> ClientSum:
        """Return the round that a vector is asked for, bound to its model; one with prefetched keys begins here.

        Raises ProtocolError for any other round, another plan, or a round bound to another model.
        """
        if self._sum is None or number != self.number:
            return self._begin_prefetched(number, plan_hash, model_hash)
        if plan_hash != self._plan_hash:
            raise ProtocolError("the server follows another privacy plan; compare the run plans")
        if not self._model_hash:
            self._sum.bind(model_hash)
            self._model_hash = model_hash
        elif self._model_hash != model_hash:
            raise ProtocolError("the round is bound to another adapter; its keys serve one")
        return self._sum

    def _begin_prefetched(self, number: int, plan_hash: bytes, model_hash: bytes) -> ClientSum:
        self._check(number, plan_hash)
        if self._next is None or number != self._next_number:
            raise ProtocolError(f"key prefetch: there are no keys for round {number}")
        self._next.bind(model_hash)
        self.end()
        self._sum, self._next = self._next, None
        self.number, self._model_hash = number, model_hash
        return self._sum

    def advertise_prefetch(self, number: int, plan_hash: bytes) -> bytes:
        """Show fresh keys for a later round; ProtocolError when not agreed, or round, keys or plan are not due."""
        if not self._setup.cohort.prefetches:
            raise ProtocolError(
                "key prefetch: the server asks for keys of a later round, which was not agreed; "
                "compare federation.key_prefetch"
            )
        self._check(number, plan_hash)
        if number <= self._next_number:
            raise ProtocolError(f"key prefetch: keys for round {number} were shown before")
        self._drop_next()
        self._next, self._next_number = self._protocol.client(self._setup, number, b""), number
        return self._next.advertise()

    def share_prefetch(self, advertisements: Mapping[int, bytes]) -> dict[int, bytes]:
        """Split the prefetched secrets among the clients of that round."""
        if self._next is None:
            raise ProtocolError("key prefetch: there are no keys whose secrets could be shared")
        return self._next.share(advertisements)

    def save(self) -> bytes:
        """Return both rounds, their secrets sealed."""
        now = b"" if self._sum is None else self._sum.save()
        later = b"" if self._next is None else self._next.save()
        bound, model_hash = bool(self._model_hash), self._model_hash or bytes(32)
        top = _SAVED.pack(self.number, bound, model_hash, self._next_number, len(now))
        return top + now + later

    def restore(self, saved: bytes) -> None:
        """Go on from what `save` returned; ProtocolError when a state in it does not open."""
        self.close()
        number, bound, model_hash, next_number, length = _SAVED.unpack_from(saved)
        model_hash = model_hash if bound else b""
        now, later = saved[_SAVED.size :][:length], saved[_SAVED.size + length :]
        if now:
            self._sum = self._protocol.restore(self._setup, now, number, model_hash)
        if later:
            self._next = self._protocol.restore(self._setup, later, next_number, b"")
        self.number, self._model_hash, self._next_number = number, model_hash, next_number

    def end(self) -> None:
        """Erase the secrets of the round in progress, if there is one; prefetched keys stay."""
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

    def _check(self, number: int, plan_hash: bytes) -> None:
        if plan_hash != self._plan_hash:
            raise ProtocolError("the server follows another privacy plan; compare the run plans")
        if number <= self.number:
            raise ProtocolError(f"round {number} comes after round {self.number}; a round is never repeated")
