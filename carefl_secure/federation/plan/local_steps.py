"""What the parties agree on about steps that clients take on their own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.canonical_json import dataclass_from_json


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    r"""Local training: several steps between two sums; the released vector is the local update.

    Step k of a client, from the global adapter :math:`w_0 = w_g`, with g its gradient at :math:`w_k` (noisy and from
    clipped records under trust none):

    .. math:: w_{k+1} = w_k - \eta\,r(g - h_i + (\mu + \alpha)(w_k - w_g))

    where r is the rule; the identity for ``sgd``. Raises ConfigError when a value is out of range, or the pull of the
    regularisers would overshoot.

    Parameters
    ----------
    learning_rate : float
        Step size eta, above 0.
    batch_share : float
        Share of a client's records in one step, in (0, 1]. Under trust none every record is drawn
        with this probability; elsewhere shuffled records are cut into batches of this share.
    proximal_mu : float
        Strength mu of FedProx (Li et al., MLSys 2020, arXiv 1812.06127); 0 leaves it out.
    feddyn_alpha : float
        FedDyn's regulariser alpha (Acar et al., ICLR 2021, arXiv 2111.04263); each client then keeps a correction h_i.
        0 leaves it out.
    stragglers : float
        Share of the clients that take fewer steps in a round, as in FedProx's experiments: drawn
        anew in every round from ``seed``, each with 1 to ``steps - 1`` steps. Public.
    rule : str
        Name in :mod:`carefl_secure.federation.local_update.local_training`.
    """

    steps: int
    learning_rate: float
    batch_share: float
    proximal_mu: float = 0.0
    feddyn_alpha: float = 0.0
    stragglers: float = 0.0
    seed: int = 0
    rule: str = "sgd"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"local_steps is {self.steps}; it must be a whole number above 0")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"local_lr is {self.learning_rate}; choose it above 0")
        if not 0.0 < self.batch_share <= 1.0:
            raise ConfigError(f"a batch share of {self.batch_share} is none; choose (0, 1]")
        for name in ("proximal_mu", "feddyn_alpha"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}; choose 0 or more")
        if self.proximal_mu and self.feddyn_alpha:
            raise ConfigError("FedProx and FedDyn are two rules; choose one of them")
        if self.learning_rate * self.pull >= 1.0:
            raise ConfigError(
                f"a local step of {self.learning_rate:g} under a pull of {self.pull:g} jumps over "
                "the global adapter; lower federation.local_lr, or proximal_mu or feddyn_alpha"
            )
        if not 0.0 <= self.stragglers < 1.0:
            raise ConfigError(f"stragglers is {self.stragglers}; choose a share in [0, 1)")
        if self.stragglers and self.steps < 2:
            raise ConfigError("a straggler does part of several steps; set federation.local_steps")

    @property
    def pull(self) -> float:
        """Strength of the pull back to the global adapter."""
        return self.proximal_mu + self.feddyn_alpha

    @property
    def noise_gain(self) -> float:
        r"""Variance of the sum of all steps' noise over that of one step's.

        :math:`\sum_{k<K} (1 - \eta (\mu + \alpha))^{2k}`; the loss's own curvature is not counted.
        """
        kept = 1.0 - self.learning_rate * self.pull
        return float(np.sum(kept ** (2.0 * np.arange(self.steps))))

    def steps_of(self, client: int, clients: int, number: int) -> int:
        """Return how many steps a client takes in round ``number``; public."""
        late = round(self.stragglers * clients)
        if not late:
            return self.steps
        rng = np.random.default_rng([self.seed, number, 0x57A6])
        chosen = rng.choice(clients, late, replace=False)
        taken = rng.integers(1, self.steps, late)
        places = np.flatnonzero(chosen == client)
        return int(taken[places[0]]) if places.size else self.steps

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> LocalPlan:
        """Return the plan that `to_json` gave; ConfigError where it is none."""
        return dataclass_from_json(cls, value)
