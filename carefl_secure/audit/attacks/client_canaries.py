"""Canaries for a whole client: whether the release hides that it took part in a round.

Every client of a rehearsal flips a coin for every round: heads, its contribution is the clipping norm along one
coordinate; tails, nothing. One coin touches one round, so the guesses are compared with the guarantee of one round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from carefl_secure.audit.attacks.canaries import judge_coins
from carefl_secure.audit.bounds.one_run import Curve
from carefl_secure.audit.replay.canary_run import KnownTask
from carefl_secure.audit.replay.recording import Rehearsal, play
from carefl_secure.audit.views import Attack, Finding, ReleaseView
from carefl_secure.config import Config
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import KeySource
from carefl_secure.progress import Reporter

Coins = npt.NDArray[np.bool_]


class ClientCanaries(Attack[ReleaseView, npt.NDArray[np.float64]]):
    r"""Scores client j in round t by the likelihood ratio of the claimed noise.

    .. math:: s_{tj} = \frac{2 x_{tj} - 1}{2 \sigma_t^2}

    with x the opened sum at the client's coordinate, in units of the clipping norm.

    References
    ----------
    Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, for
    canary clients; the bounds are those of Steinke et al. 2023 and Mahloujifar et al. 2025.
    """

    name = "client-canaries"
    adversary = "anyone who sees the opened sums"
    view = ReleaseView

    def attack(self, view: ReleaseView) -> npt.NDArray[np.float64]:
        """Return one score per round and client, shape [rounds, clients]."""
        variance = np.maximum(view.noise, 1e-3)[:, None] ** 2
        return np.asarray((2.0 * view.sums[:, view.coordinates] - 1.0) / (2.0 * variance))


class _CoinTask(KnownTask):
    """A client whose part in each round is decided by a coin."""

    def __init__(self, index: int, coins: Coins, plan: RunPlan) -> None:
        super().__init__(np.zeros((1, plan.encoding.dimension)), 1)
        self._index, self._coins = index, coins
        self._norm = plan.privacy.clipping_norm

    def clipped_sum(
        self, adapter: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        total = np.zeros(self.dimension)
        total[self._index] = self._norm * self._coins[number - 1, self._index]
        return total

    def gradient(
        self, adapter: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], number: int
    ) -> npt.NDArray[np.float64]:
        """Return a gradient so steep that a step along it is always clipped to the norm."""
        return 1e6 * self.clipped_sum(adapter, indices, number)


def rehearse_clients(
    config: Config,
    key_source: Callable[[int], KeySource],
    plan: RunPlan,
    *,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> tuple[Rehearsal, Coins]:
    """Run the federation on clients that take part by coin flips.

    Returns the rehearsal, with one "canary" per client, and the coins, bool [rounds, clients].
    ``config`` gives the aggregation and the run's seed, ``seed`` only the coins. ``plan`` has at
    least as many coordinates as clients; every client is one unit, in every round.
    """
    privacy = plan.privacy
    coins = np.random.default_rng([seed, 0xC1]).random((privacy.rounds, privacy.clients)) < 0.5
    tasks = [_CoinTask(index, coins, plan) for index in range(privacy.clients)]
    rehearsal = play(config, key_source, plan, tasks, dropout=False, reporter=reporter)
    everyone = np.ones(privacy.clients, np.bool_)
    return dataclasses.replace(rehearsal, member=everyone, records=1), coins


def judge_clients(
    rehearsal: Rehearsal, scores: npt.NDArray[np.float64], coins: Coins, curve: Curve | None = None
) -> Finding:
    """Compare scores with coins, both [rounds, clients], and with the claim (default: the curve of one round)."""
    figures = {"coins": coins.size, "rounds": coins.shape[0], "clients": coins.shape[1]}
    event = rehearsal.plan.event
    return judge_coins(
        "one run with coin-flipped canary clients",
        scores.ravel(),
        coins.ravel(),
        claim=None if event is None else [event.times(1)],
        delta=rehearsal.plan.privacy.delta,
        attack=ClientCanaries,
        figures=figures,
        curve=curve,
    )
