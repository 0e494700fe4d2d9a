"""The plan that all parties of a run hold, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from carefl_secure.errors import ConfigError
from carefl_secure.privacy import PrivacyPlan, SampledGaussian, SampledSkellam
from carefl_secure.privacy.banded import response
from carefl_secure.privacy.sampling import OVERFLOW
from carefl_secure.secagg import EncodingPlan, GraphPlan, plan_graph
from carefl_secure.strict_json import canonical_hash, dataclass_from_json

_ABOVE_ZERO = ("dimension", "scale", "clipping_norm", "noise_clients", "l1_sensitivity", "l2_sensitivity")

SPARSE_ABOVE = 200
"""The most clients that all share masks with one another; more of them share on a sparse graph."""


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
        r"""Variance of all steps' noise over one step's: :math:`\sum_{k<K} (1 - \eta (\mu + \alpha))^{2k}`."""
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


@dataclass(frozen=True)
class RunPlan:
    """What all parties hold before the first round.

    ``threshold`` is the number of shares that open a secret and of signatures that a survivor set
    needs. With ``local``, clients release the update of several local steps; without it, sums of
    gradients at the global adapter. ``graph`` is that of `masking_graph`, where clients mask in pairs.
    """

    privacy: PrivacyPlan
    encoding: EncodingPlan
    threshold: int
    local: LocalPlan | None = None
    graph: GraphPlan | None = None

    @property
    def protected(self) -> bool:
        """Whether the run adds noise at all."""
        return self.privacy.mechanism != "none"

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the counted noise over the norm bound; 0 without privacy."""
        return self.privacy.noise_multiplier

    @property
    def share_variance(self) -> float:
        """Variance per coordinate, in integer units, of the fresh noise that each client adds."""
        return self.encoding.share_variance()

    @property
    def event(self) -> SampledSkellam | SampledGaussian | None:
        """What one round releases, under banded noise one cycle of ``bands`` rounds; None without privacy."""
        if self.privacy.mechanism == "gaussian":
            return self.privacy.gaussian_event()
        return self.skellam_event() if self.protected else None

    def skellam_event(self) -> SampledSkellam:
        """Return what `event` is for a protected run; ConfigError when it is unprotected.

        Under banded noise it is that of one record in one round of its own and in the rounds after it that take noise
        back: a shift, by m times the record's rounded vector, of the fresh noise of each of the counted clients.
        """
        privacy, encoding = self.privacy, self.encoding
        # Where records are sampled, a sample longer than its bound counts like a broken norm.
        beta = encoding.dither_failure + (0.0 if privacy.unit == "client" else OVERFLOW)
        if privacy.correlation is None:
            return privacy.skellam_event(
                l1=encoding.l1_sensitivity,
                l2=encoding.l2_sensitivity,
                share_variance=self.share_variance,
                beta=beta,
                dimension=encoding.padded,
            )
        honest, m = privacy.noise_clients, privacy.correlation
        if encoding.step != honest * m[0]:
            raise ConfigError(f"banded noise needs an encoding of step {honest * m[0]}, not {encoding.step}")
        l1 = honest * sum(map(abs, m)) * encoding.l1_sensitivity
        l2 = math.sqrt(honest * sum(each**2 for each in m)) * encoding.l2_sensitivity
        if self.share_variance < (privacy.noise_multiplier * l2) ** 2 * (1.0 - 1e-9):
            raise ConfigError("the encoding has less noise than the plan promises; size it for this plan")
        vectors = honest * privacy.bands * encoding.padded
        return SampledSkellam(privacy.round_rate, l1, l2, self.share_variance, 1, beta, vectors)

    def expected_batch(self, survivors: int) -> float:
        """Return the public divisor of an opened sum, ``q N s / n``."""
        return self.privacy.expected_batch * survivors / self.privacy.clients

    def divisor(self, survivors: int) -> float:
        """Return the public divisor of an opened sum: ``q N s / n``, or ``-s`` for s survivors' updates."""
        return self.expected_batch(survivors) if self.local is None else -float(survivors)

    def noise_variance(self, survivors: int) -> float:
        r"""Return the variance of the noise in one entry of the mean gradient.

        :math:`s v / (\text{scale} \cdot \text{step} \cdot \text{divisor})^2` for s survivors and a variance v of
        a client's noise in a round; where clients make their own noise, what a client's steps leave of it, over s.
        """
        if self.local is not None and self.privacy.mechanism == "gaussian":
            privacy = self.privacy
            batch = privacy.expected_batch / privacy.clients
            one = self.local.learning_rate * privacy.noise_multiplier * privacy.clipping_norm
            return (one / batch) ** 2 * self.local.noise_gain / survivors
        encoding = self.encoding
        stdev = math.sqrt(survivors * encoding.round_variance()) / (encoding.scale * encoding.step)
        return (stdev / self.divisor(survivors)) ** 2

    def noise_norm(self, survivors: int) -> float:
        """Return the root mean square Euclidean norm of the noise in the mean gradient."""
        return math.sqrt(self.encoding.dimension * self.noise_variance(survivors))

    def lasting_noise_norm(self, survivors: int) -> float:
        r"""Return `noise_norm` as far as later rounds do not take it back: that of all rounds' sum, over root T."""
        if self.privacy.correlation is None:
            return self.noise_norm(survivors)
        sums = np.cumsum(response(self.privacy.correlation, self.privacy.rounds))
        left = float(np.mean(sums**2)) / self.encoding.noise_gain
        return self.noise_norm(survivors) * math.sqrt(left)

    def to_json(self) -> dict[str, Any]:
        """Return the plan, and the event of one round that follows from it, as JSON values."""
        whole = {
            "privacy": self.privacy.to_json(),
            "encoding": self.encoding.fields(),
            "threshold": self.threshold,
            "event": None if self.event is None else self.event.to_json(),
        }
        if self.graph is not None:
            whole["masking_graph"] = dataclasses.asdict(self.graph)
        return whole if self.local is None else {**whole, "local": self.local.to_json()}

    @classmethod
    def from_json(cls, value: Any, *, check_event: bool = True) -> RunPlan:
        """Return the plan that `to_json` gave; ConfigError where a part is invalid or does not follow from others."""
        parts = {"privacy", "encoding", "threshold", "event"}
        if not isinstance(value, Mapping) or not parts <= set(value) <= parts | {"local", "masking_graph"}:
            raise ConfigError(
                f"a plan is a JSON object with {', '.join(sorted(parts))} and perhaps local and masking_graph"
            )
        encoding = dataclass_from_json(EncodingPlan, value["encoding"], "conditional", "step", "noise_gain")
        threshold, local = value["threshold"], value.get("local")
        if type(threshold) is not int or threshold < 1:
            raise ConfigError(f"the plan's threshold cannot be {threshold!r}")
        privacy = PrivacyPlan.from_json(value["privacy"])
        graph = masking_graph(privacy, threshold) if "masking_graph" in value else None
        if "masking_graph" in value and (graph is None or dataclasses.asdict(graph) != value["masking_graph"]):
            raise ConfigError("the plan states a masking graph that does not follow from it")
        plan = cls(privacy, encoding, threshold, None if local is None else LocalPlan.from_json(local), graph)
        for name in _ABOVE_ZERO if plan.privacy.mechanism == "skellam" else ():
            if not getattr(encoding, name) > 0:
                raise ConfigError(f"the plan's encoding states no number above 0 for {name}")
        if not 0 <= encoding.dither_failure < 1:
            raise ConfigError("the plan's encoding states no probability for dither_failure")
        if check_event and value["event"] != plan.to_json()["event"]:
            raise ConfigError("the plan states an event that does not follow from it")
        return plan

    def hash(self) -> bytes:
        """Return SHA-256 over the canonical JSON of the plan, 32 bytes."""
        return canonical_hash(self.to_json())


def masking_graph(privacy: PrivacyPlan, threshold: int) -> GraphPlan | None:
    """Return the graph of pairwise masks of a plan; None for the complete graph.

    Up to `SPARSE_ABOVE` clients every two of them share a mask. Above, each shares masks with its neighbours on a ring
    only, as many as the plan's colluders and a tenth of the clients dropping out need (`plan_graph`), with the failure
    probabilities of `GraphPlan`. All of it follows from the plan; degree and threshold are hashed into every round's
    context.

    Raises ConfigError when no graph sparser than the complete one withstands so many colluders.
    """
    if privacy.clients <= SPARSE_ABOVE:
        return None
    return plan_graph(
        privacy.clients,
        colluders=privacy.max_colluders,
        dropouts=privacy.clients // 10,
        members=max(threshold, privacy.min_survivors),
    )
