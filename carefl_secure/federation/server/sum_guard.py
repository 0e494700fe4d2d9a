"""What one lying client costs: a bound on the opened sum, and the search for who exceeds it."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.server.optimizers import Alternating, ServerOptimizer, State
from carefl_secure.secagg.encoding.planner import batch_bound

FAILURE = 1e-9
"""Probability with which a sum of honest clients exceeds `honest_norm` in a round."""

_MISSED = 2.0  # variance of banded noise after rounds that clients missed, over that without: at most 1.4 where tried
_EVIDENCE = 3
"""Accepted sums without a suspect, while it was the only one, before it is excluded."""


def honest_norm(plan: RunPlan, survivors: int, agreement: float = 1.0) -> float:
    r"""Bound the Euclidean norm of an opened sum of honest clients; public.

    With A a bound on the norm of the clipped contributions, n integer coordinates, and t and N bounds on a projection
    and on the norm of the noise,

    .. math:: R = \sqrt{A^2 + N^2 + 2 A t} + \text{rounding}.

    A is C times a Chernoff bound on the units drawn; C per client where updates of whole clients are clipped. It is
    reached where all of them point the same way; with ``agreement`` below 1 it is assumed that they never do so by
    more than that share. Skellam noise X of variance v has the tail :math:`P(X \ge x) \le e^{-I(x)}` with :math:`I(x)
    = x \operatorname{asinh}(x/v) - \sqrt{x^2 + v^2} + v`, and so has every projection on a unit vector, as
    :math:`\cosh(\lambda u) - 1 \le u^2 (\cosh \lambda - 1)` for :math:`|u| \le 1`. N follows from Bernstein's
    inequality for squares cut off at that tail. Where clients add their own Gaussian noise in local steps, R is A + N.

    Guarantees
    ----------
    A sum of ``survivors`` clients that follow the plan, on no more than the declared records, is longer with a
    probability of at most :data:`FAILURE`: whatever the records and the adapter are if ``agreement`` is 1, and if that
    assumption holds otherwise. Not counted is that a coordinate wraps around (``EncodingPlan.overflow_probability``).

    References
    ----------
    Boucheron, Lugosi, Massart, *Concentration Inequalities*, theorem 2.10; Laurent and Massart, Annals of Statistics
    2000, lemma 1, for the Gaussian.
    """
    privacy, encoding, local = plan.privacy, plan.encoding, plan.local
    size, level = encoding.dimension, math.log(4 / FAILURE)
    rounding = encoding.rounding_bound * (1.0 if encoding.rotated else math.sqrt(size))
    if local is None:
        signal = batch_bound(privacy.expected_batch) * privacy.sensitivity
    elif privacy.unit == "client":
        signal = survivors * privacy.clipping_norm
    elif privacy.mechanism == "gaussian":
        batch = privacy.expected_batch / privacy.clients
        one = local.learning_rate * privacy.clipping_norm * batch_bound(batch) / batch
        variance = plan.noise_variance(survivors) * survivors**2
        noise = math.sqrt(variance * (size + 2 * math.sqrt(size * level) + 2 * level))
        corrections = 2.0 if local.feddyn_alpha else 1.0  # FedDyn adds as much again
        steps = agreement * survivors * local.steps
        return corrections * (steps * one + noise) + rounding
    else:
        signal = survivors * encoding.vector_bound * math.sqrt(size)
    signal *= agreement
    if privacy.mechanism != "skellam":
        return signal + rounding
    variance = survivors * encoding.round_variance() * (1.0 if privacy.bands == 1 else _MISSED)
    tail = _skellam_tail(variance, FAILURE / 4)
    most = _skellam_tail(variance, FAILURE / (8 * encoding.padded)) ** 2
    spread = math.sqrt(2 * encoding.padded * (3 * variance**2 + variance) * level)
    squares = encoding.padded * variance + spread + most * level / 3
    unit = encoding.scale * encoding.step
    cross = 2 * signal * tail / unit
    return math.sqrt(signal**2 + squares / unit**2 + cross) + rounding


def _skellam_tail(variance: float, chance: float) -> float:
    """Return what Skellam noise exceeds on one side with probability ``chance`` at most."""

    def excess(x: float) -> float:
        rate = x * math.asinh(x / variance) - math.hypot(x, variance) + variance
        return rate + math.log(chance)

    high = 10.0 * math.sqrt(variance) + 10.0
    while excess(high) < 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-6))


class SumGuard:
    """A server optimizer that takes no step on a sum that honest clients cannot have made.

    After such a sum it leaves some clients out of every round, chosen by chance among the suspects: those that were in
    every rejected sum and in no accepted one since. Half of the clients beyond ``min_survivors`` stay in reserve for
    dropouts. The only suspect left, without which three sums were accepted, is excluded from the run, which ends after
    ``max_rejected`` rejected sums. ``optimizer`` takes the steps; ``agreement`` is that of `honest_norm`.

    Guarantees
    ----------
    Every step is computed from sums within the bound alone. All of it is post-processing of opened sums and costs no
    privacy; rejected rounds are charged like others. A round still needs ``min_survivors`` clients, for which the
    noise is sized. Honest clients that are always in rejected sums with a liar are left out for some rounds; a liar
    that behaves well by chance in exactly the rounds without an honest client can have that client excluded.
    """

    def __init__(self, optimizer: ServerOptimizer, max_rejected: int, agreement: float = 1.0) -> None:
        self.optimizer, self.agreement, self._max_rejected = optimizer, agreement, max_rejected
        self.excluded: set[int] = set()
        self.rejected = self._accepted = 0
        self.excess = 0.0
        """How many times the bound the last sum is long, if it was rejected; else 0."""
        self.found: set[int] = set()
        """Clients that are excluded since the last sum."""
        self._suspects: set[int] = set()

    def leave_out(self, present: Collection[int], min_survivors: int) -> set[int]:
        """Choose who is not asked for a vector, among the clients that are ready to send one."""
        out = self.excluded & set(present)
        spare = len(present) - len(out) - min_survivors
        suspects = sorted(self._suspects & set(present))
        if suspects and spare > 0:
            count = min(max(1, spare // 2), (len(suspects) + 1) // 2)
            out |= set(random.SystemRandom().sample(suspects, count))
        return out

    def observe_sum(self, survivors: Collection[int], norm: float, bound: float) -> None:
        """Judge the sum of the next step, and who is behind it; ``excess`` and ``found`` say so."""
        members, self.found = set(survivors), set()
        if norm > bound:
            self.excess, self.rejected, self._accepted = norm / bound, self.rejected + 1, 0
            # Nobody in common: several liars, or one that behaves well at times.
            self._suspects = (self._suspects & members) or members
            return
        self.excess = 0.0
        self._suspects -= members
        self._accepted = self._accepted + 1 if len(self._suspects) == 1 else 0
        if self._accepted >= _EVIDENCE:
            self.found, self._suspects, self._accepted = self._suspects, set(), 0
            self.excluded |= self.found

    def step(self, adapter: NDArray[np.float32], gradient: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the next adapter, the same after a rejected sum; ProtocolError when too many were rejected."""
        if not self.excess:
            return self.optimizer.step(adapter, gradient)
        if self.rejected > self._max_rejected:
            raise ProtocolError(
                f"{self.rejected} opened sums were longer than honest clients can make them, and "
                "no single client explains it; nothing of them was used. Find out who sends such "
                "vectors (docs/poisoning.md), or raise federation.max_rejected_rounds"
            )
        if isinstance(self.optimizer, Alternating):
            self.optimizer.skip()
        return adapter.copy()

    def state(self) -> State:
        """Return the optimizer's state, who is excluded or suspected, and the counts."""
        return {
            **self.optimizer.state(),
            "guard.rejected": self.rejected,
            "guard.accepted": self._accepted,
            "guard.excluded": np.array(sorted(self.excluded), np.float64),
            "guard.suspects": np.array(sorted(self._suspects), np.float64),
        }

    def load(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` returned."""
        own = {name: state.get(f"guard.{name}") for name in ("rejected", "accepted")}
        sets = {name: state.get(f"guard.{name}") for name in ("excluded", "suspects")}
        if not all(isinstance(value, int) for value in own.values()) or not all(
            isinstance(value, np.ndarray) for value in sets.values()
        ):
            raise ProtocolError(
                "the checkpoint was written without federation.max_rejected_rounds; resume the run as it was begun"
            )
        self.optimizer.load({k: v for k, v in state.items() if not k.startswith("guard.")})
        self.rejected, self._accepted = int(own["rejected"]), int(own["accepted"])  # type: ignore[call-overload]
        self.excluded, self._suspects = ({int(index) for index in np.asarray(value)} for value in sets.values())
