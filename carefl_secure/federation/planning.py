"""Everything a run is agreed on before its first round: privacy, encoding and noise, fixed at once.

The noise is found for the whole number of rounds, from the very norms that the integer encoding
will have, so no later step can choose another one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.federation.cohort import Cohort, rotation_key
from carefl_secure.federation.fields import leave_room
from carefl_secure.privacy import PrivacyPlan, SampledSkellam, calibrate_noise, epsilon
from carefl_secure.secagg import (
    EncodingPlan,
    default_threshold,
    plan_plain,
    plan_records,
)
from carefl_secure.secagg.planner import batch_bound

__all__ = ["Cohort", "RunPlan", "plan_run", "rotation_key"]

# A client whose sample is longer than the encoding allows refuses, which shows. The planner keeps
# that this unlikely in a round; it counts like a broken norm bound.
_REFUSAL = 2.0**-40


@dataclass(frozen=True)
class RunPlan:
    """What all parties hold before the first round.

    Parameters
    ----------
    privacy : PrivacyPlan
        Unit, sampling, clipping, cohort and target.
    encoding : EncodingPlan
        How a vector becomes integers.
    threshold : int
        Shares that open a secret and signatures that a survivor set needs.
    """

    privacy: PrivacyPlan
    encoding: EncodingPlan
    threshold: int

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
        """Variance per coordinate, in integer units, of the noise that each client adds."""
        return self.encoding.share_variance()

    @property
    def event(self) -> SampledSkellam | None:
        """What one round releases; None without privacy, where there is nothing to price."""
        return self.skellam_event() if self.protected else None

    def skellam_event(self) -> SampledSkellam:
        """Return what one round of a protected run releases.

        Raises
        ------
        ConfigError
            When the run is not protected.
        """
        return self.privacy.skellam_event(
            l1=self.encoding.l1_sensitivity,
            l2=self.encoding.l2_sensitivity,
            share_variance=self.share_variance,
            beta=self.encoding.dither_failure + _REFUSAL,
            dimension=self.encoding.padded,
        )

    def expected_batch(self, survivors: int) -> float:
        """Return the public divisor of an opened sum, ``q N s / n``."""
        return self.privacy.expected_batch * survivors / self.privacy.clients

    def noise_norm(self, survivors: int) -> float:
        """Return the root mean square Euclidean norm of the noise in the mean gradient.

        ``sqrt(D s v) / scale / (q N s / n)`` for dimension D, survivors s and share variance v;
        what one would compare the norm of the opened gradient with.
        """
        integers = math.sqrt(self.encoding.dimension * survivors * self.share_variance)
        return integers / self.encoding.scale / self.expected_batch(survivors)

    def to_json(self) -> dict[str, Any]:
        """Return the plan, and the event of one round that follows from it, as JSON values."""
        return {
            "privacy": self.privacy.to_json(),
            "encoding": dataclasses.asdict(self.encoding),
            "threshold": self.threshold,
            "event": None if self.event is None else self.event.to_json(),
        }

    def hash(self) -> bytes:
        """Return SHA-256 over the canonical JSON of the plan, 32 bytes."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).digest()


def plan_run(
    *,
    unit: Literal["record", "none"],
    dimension: int,
    clients: int,
    rounds: int,
    public_records: int,
    sample_rate: float,
    clipping_norm: float,
    delta: float,
    target_epsilon: float | None = None,
    min_survivors: int | None = None,
    max_colluders: int = 1,
    normalise: bool = True,
) -> RunPlan:
    """Fix privacy, encoding and noise for a whole run.

    Parameters
    ----------
    unit : {"record", "none"}
        What is protected; ``"none"`` switches noise off, masks stay.
    dimension : int
        Length D of the flat adapter.
    clients, rounds : int
        How many.
    public_records : int
        Declared number of records of all clients together.
    sample_rate : float
        Probability of each record in each round.
    clipping_norm : float
        Bound on the Euclidean norm of one record's gradient.
    delta : float
        Probability with which epsilon may fail.
    target_epsilon : float, optional
        What all rounds together may spend; needed for unit record.
    min_survivors : int, optional
        Fewest clients a round may end with; ``floor(2 n / 3) + 1`` by default.
    max_colluders : int, optional
        How many clients may side with the server.
    normalise : bool, optional
        Whether the clients scale gradients to the norm in place of clipping them.

    Returns
    -------
    RunPlan

    Raises
    ------
    ConfigError
        A value is out of range or contradicts another.
    BudgetExceededError
        No amount of noise reaches the target.

    Guarantees
    ----------
    With z the noise multiplier and l2 the integer norm bound, each client adds Skellam noise of
    variance ``(z l2)^2 / (min_survivors - max_colluders)``, so the honest survivors of any round
    that opens hold variance ``(z l2)^2`` or more; and ``rounds`` such rounds cost at most
    ``target_epsilon`` at ``delta``.
    """
    threshold = max(default_threshold(clients), (clients + max_colluders + 2) // 2)
    if threshold > clients:
        raise ConfigError(
            f"{max_colluders} colluders among {clients} clients could sign two survivor sets; "
            "lower max_colluders or invite more clients"
        )
    floor = threshold if min_survivors is None else min_survivors
    if floor < threshold:
        raise ConfigError(
            f"min_survivors is {floor}, but {clients} clients with {max_colluders} colluders need "
            f"{threshold}; raise it or leave it out"
        )
    make_plan = functools.partial(
        PrivacyPlan,
        unit=unit,
        trust="secagg",
        mechanism="none" if unit == "none" else "skellam",
        rounds=rounds,
        clients=clients,
        min_survivors=floor,
        max_colluders=max_colluders,
        public_records=public_records,
        delta=delta,
        sample_rate=sample_rate,
        clipping_norm=clipping_norm,
        target_epsilon=target_epsilon,
        normalise=normalise,
    )
    draft = make_plan(noise_multiplier=0.0 if unit == "none" else 1.0)
    if unit == "none":
        bound = batch_bound(draft.expected_batch) * clipping_norm
        return RunPlan(draft, leave_room(plan_plain(dimension, bound, clients)), threshold)
    if target_epsilon is None:
        raise ConfigError("unit 'record' needs target_epsilon (8 is usual)")

    def plan(noise: float) -> RunPlan:
        encoding = plan_records(
            dimension, clipping_norm, noise, draft.expected_batch, clients, draft.noise_clients
        )
        return RunPlan(make_plan(noise_multiplier=noise), encoding, threshold)

    def whole_run(noise: float) -> SampledSkellam:
        return plan(noise).skellam_event().times(rounds)

    return _within_target(plan(calibrate_noise(whole_run, target_epsilon, delta)), target_epsilon)


def _within_target(plan: RunPlan, target_epsilon: float) -> RunPlan:
    """Price the plan as the ledgers will, round by round, before anyone trusts it."""
    event, privacy = plan.event, plan.privacy
    if event is not None:
        price = epsilon([event] * privacy.rounds, privacy.delta)
        if price > target_epsilon:
            raise PrivacyError(
                f"the plan would spend epsilon {price:.6g} of {target_epsilon:g}; report this"
            )
    return plan
