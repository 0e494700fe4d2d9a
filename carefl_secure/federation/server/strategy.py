"""Flower's strategy for a sum that only opens as a whole.

`Strategy.start` drives it unchanged on every engine: what comes before the vectors runs in
`configure_train`, what comes after them in `aggregate_train`. A `ServerSum` makes the sum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from carefl_secure.errors import CohortError, EngineError
from carefl_secure.federation.aggregation.base import ServerSum
from carefl_secure.federation.aggregation.registry import ServerSums
from carefl_secure.federation.client.round_state import RoundBudget
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import Listener, ServerOptimizer
from carefl_secure.federation.server.sum_guard import SumGuard, honest_norm
from carefl_secure.federation.transport.exchange import Directory, Exchange, Faults, wait_for_nodes
from carefl_secure.federation.transport.local_grid import OneRunGrid
from carefl_secure.federation.transport.messages import pack_adapter, unpack_adapter, vector_hash, with_adapter
from carefl_secure.privacy import Ledger
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm
from carefl_secure.secagg import decode

Adapter = NDArray[np.float32]
Scalar = float | int | str
Messages = Iterable[Message]
OnRound = Callable[[dict[str, Scalar], Adapter], None]
_RETRY = 20.0  # seconds before a round is tried again for the first time; then twice as long


class _Round:
    """What the server holds while a round is open."""

    def __init__(self, exchange: Exchange, number: int, adapter: Adapter, total: ServerSum) -> None:
        self.exchange, self.number, self.adapter, self.sum = exchange, number, adapter, total
        self.began = time.monotonic()


class SecureSumStrategy(Strategy):
    """One private gradient step per round.

    With S the sum over survivors of clipped per-record gradients and noise, q the sampling rate, N the public number
    of records, n the clients and s the survivors, the optimizer is given ``g = S / (q N s / n)``. Where clients take
    local steps, S is the sum of their updates and ``g = -S / s``. The divisors are public. Under a `SumGuard` no step
    is taken on a sum longer than honest clients can make it, and clients may be left out of a round.

    Parameters
    ----------
    ledger : Ledger
        The server's account of the run. Uploads that a round needs twice are kept in its folder.
    on_round : callable(row, adapter) -> None, optional
        Called once a round is finished, with its figures and the new adapter.
    finished, last : int, optional
        Rounds finished before a resumption; the last to run, which prefetches no keys, by default the last planned.
    waiting : tuple of float, optional
        Seconds to wait for the replies of a phase; and for all nodes before a round, until some once came too late.

    Guarantees
    ----------
    The server opens nothing but the sum over at least ``plan.privacy.min_survivors`` clients, and writes the round
    into its ledger before it asks for a vector. A party that is silent, refuses, or sends a message that fails its
    check counts as dropped out of the round (`Faults`). With too few parties left the round is lost: if somebody was
    excluded for it and enough others remain, the run goes on with the next round, else it ends with the first fault.
    This describes an honest server; what a dishonest one could learn is bounded by the clients' own checks.
    """

    def __init__(
        self,
        plan: RunPlan,
        cohort: Cohort,
        ledger: Ledger,
        optimizer: ServerOptimizer,
        *,
        on_round: OnRound | None = None,
        finished: int = 0,
        last: int | None = None,
        waiting: tuple[float, float] = (3600.0, 60.0),
    ) -> None:
        self._plan, self._cohort, self._optimizer = plan, cohort, optimizer
        self._budget = RoundBudget(ledger, plan, cohort)
        self._guard = optimizer if isinstance(optimizer, SumGuard) else None
        self._on_round, self._finished = on_round, finished
        self._timeout, self._patience = waiting
        directory = Directory(len(cohort.roster), len(cohort.helpers))
        self._final = plan.privacy.rounds if last is None else last
        self._sums = ServerSums(plan, cohort, directory, self._final, ledger.path.parent)
        self._round: _Round | None = None
        self._lost = False
        self._waited = 0.0
        self.faults = Faults()
        self.count_bytes: Callable[[int, Mapping[int, tuple[int, int]]], None] = lambda *_: None

    def summary(self) -> None:
        """Print nothing: the reporter shows what a user should know."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Messages:
        """Run what comes before the vectors, write the ledger, and address the training messages.

        ``server_round`` is Flower's count, from 1 in every start; ``config`` is not used. BudgetExceededError is
        raised where the round would overspend, before any client is asked for anything; CohortError where too few
        clients or helpers are there; else the class that a client refused with.
        """
        number = self._finished + server_round
        self._budget.check(number)
        adapter = unpack_adapter(arrays, self._plan.encoding.dimension)
        exchange = Exchange(grid, number, self._timeout, self.faults)
        total = self._sums.begin(exchange, number, vector_hash(adapter))
        self._round, self._lost = _Round(exchange, number, adapter, total), False
        excluded = len(self.faults.excluded)
        try:
            boxes = total.prepare(lambda: self._nodes(grid))
        except CohortError as error:
            if number < self._final and self._retries(grid, str(exchange.explained(error))):
                self._round, self._lost = None, True
            else:
                self._lose(error, excluded)
            return []
        self._waited = 0.0
        self._budget.charge(number)
        indices, out = total.clients(), set[int]()
        if self._guard is not None:
            out = self._guard.leave_out([indices[node] for node in boxes], self._plan.privacy.min_survivors)
        trains = {node: with_adapter(box, arrays) for node, box in boxes.items() if indices[node] not in out}
        return exchange.address(trains, total.action)

    def aggregate_train(self, server_round: int, replies: Messages) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the hidden vectors, have the sum opened, take the step, and return the next adapter.

        The figures of the round go to ``on_round`` instead of the returned metrics. Raises CohortError when too few
        clients or helpers remain (nothing was opened), or what a client refused with.
        """
        if self._round is None:
            if self._lost:
                return None, None
            raise EngineError("replies came without a round; start the strategy anew")
        this, exchange = self._round, self._round.exchange
        excluded = len(self.faults.excluded)
        try:
            exchange.collect(replies, this.sum.collect)
            self._judge(this)
            total, survivors = this.sum.open()
        except CohortError as error:
            self._lose(error, excluded)
            return None, None
        self._judge(this)
        self._budget.record_release(this.number, len(survivors))

        rotation = self._cohort.rotation(self._plan, this.number, vector_hash(this.adapter))
        gradient = decode(total, self._plan.encoding, rotation)
        if self._guard is not None:
            bound = honest_norm(self._plan, len(survivors), self._guard.agreement)
            self._guard.observe_sum(survivors, float(np.linalg.norm(gradient)), bound)
        gradient /= self._plan.divisor(len(survivors))
        inner = self._optimizer if self._guard is None else self._guard.optimizer
        if isinstance(inner, Listener):
            share = len(survivors) / self._plan.privacy.clients
            inner.observe(share, self._plan.noise_variance(len(survivors)))
        adapter = self._optimizer.step(this.adapter, gradient)
        self._round = None
        self._report(this, len(survivors), float(np.linalg.norm(gradient)), adapter)
        return pack_adapter(adapter), None

    def _judge(self, this: _Round) -> None:
        """Find who lied among the parties of a round that contradict one another."""
        this.exchange.judge(this.sum.places(), this.sum.contradictions, self._plan.privacy.max_colluders)

    def _lose(self, error: CohortError, excluded: int) -> None:
        """Give a round up; raise unless parties were excluded in it and enough others remain."""
        if self._round is None:
            raise error
        this, self._round = self._round, None
        remaining = len(self._cohort.roster) - len(self.faults.excluded)
        found = len(self.faults.excluded) > excluded
        if not found or remaining < self._plan.privacy.min_survivors:
            raise this.exchange.explained(error) from error
        self._lost = True

    def _retries(self, grid: Grid, reason: str) -> bool:
        """Wait for parties that may come back, for ``timeout`` seconds in a row at most; False once that is over.

        No vector was asked for, so nothing was charged. The next number is taken: a site begins no round twice.
        """
        pause = max(_RETRY, self._waited)
        retrying = grid.retrying if isinstance(grid, OneRunGrid) else None
        if retrying is None or self._waited + pause > self._timeout:
            return False
        retrying(pause, reason)
        time.sleep(pause)
        self._waited += pause
        return True

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Messages:
        """Ask no client to evaluate: a score on private records is one more release."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing, as nothing was asked."""
        return None

    def _nodes(self, grid: Grid) -> list[int]:
        """Return the nodes that are there; one that did not come is waited for once only."""
        parties = len(self._cohort.roster) + len(self._cohort.helpers)
        nodes = wait_for_nodes(grid, parties, self._patience)
        if len(nodes) < parties:
            self._patience = 0.0
        return [node for node in nodes if node not in self.faults.excluded]

    def _report(self, this: _Round, survivors: int, norm: float, adapter: Adapter) -> None:
        """Hand the figures of a finished round on; all of them are public or already private."""
        epsilon = self._budget.epsilon()
        row: dict[str, Scalar] = {
            "round": this.number,
            "epsilon": epsilon if math.isfinite(epsilon) else "none",
            "clients": self._plan.privacy.clients,
            "survivors": survivors,
            "gradient_norm": norm,
            "noise_norm": self._plan.noise_norm(survivors),
            "seconds": time.monotonic() - this.began,
        }
        if (bands := self._plan.privacy.bands) > 1:
            row["bands"] = bands  # whose noise is not judged by one round
        if (adaptive := AdaptiveNorm.of(self._plan.privacy)) is not None:
            row["clipping_norm"] = adaptive.norm(this.adapter)
        traffic = this.exchange.traffic()
        self.count_bytes(this.number, traffic)
        if counts := [traffic[node] for node in this.sum.clients() if node in traffic]:
            row["bytes_up"], row["bytes_down"] = (round(sum(way) / len(way)) for way in zip(*counts, strict=True))
        if self._guard is not None and self._guard.excess:
            row["rejected"] = self._guard.excess
        if self._on_round is not None:
            self._on_round(row, adapter)
