"""Everything a run is agreed on before its first round: privacy, encoding and noise, fixed at once.

The noise is found for the whole number of rounds, from the very norms that the integer encoding
will have, so no later step can choose another one.
"""

from __future__ import annotations

import functools

from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.federation.plan.ciphertext_packing import leave_room
from carefl_secure.federation.plan.ledger_history import History, noise_after
from carefl_secure.federation.plan.local_steps import LocalPlan
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.privacy import Event, PrivacyPlan, calibrate_noise, epsilon
from carefl_secure.privacy.plan import Trust, Unit
from carefl_secure.secagg import (
    default_threshold,
    plan_clients,
    plan_plain,
    plan_records,
)
from carefl_secure.secagg.encoding.tail_bounds import batch_bound

__all__ = ["plan_run"]

# Largest entry of a move without privacy: far above any adapter weight, and still of 1e-7 grain.
_FREE_MOVE = 16.0
# Entries of a noisy move past so many deviations are cut, which is free.
_DEVIATIONS = 12.0


def plan_run(
    *,
    unit: Unit,
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
    trust: Trust = "secagg",
    records_per_person: int | None = None,
    local: LocalPlan | None = None,
    limit: float | None = None,
    earlier: frozenset[History] = frozenset(),
    noise_multiplier: float | None = None,
) -> RunPlan:
    """Fix privacy, encoding and noise for a whole run.

    Parameters
    ----------
    unit : {"record", "person", "client", "none"}
        What is protected; ``"none"`` switches noise off, masks stay.
    dimension : int
        Length D of the flat adapter.
    clients, rounds : int
        How many.
    public_records : int
        Declared number of records, or persons, of all clients together.
    sample_rate : float
        Probability of each record, or person, in each round or local step. Unit client draws
        nobody: there it must be 1, and the size of a batch stands in ``local``.
    clipping_norm : float
        Bound on the Euclidean norm of one record's gradient, one person's, or one client's move.
    delta : float
        Probability with which epsilon may fail.
    target_epsilon : float, optional
        What all rounds together may spend; needed for every unit but none.
    min_survivors : int, optional
        Fewest clients a round may end with; ``floor(2 n / 3) + 1`` by default.
    max_colluders : int, optional
        How many clients may side with the server.
    normalise : bool, optional
        Whether the clients scale gradients to the norm in place of clipping them.
    trust : {"secagg", "none"}, optional
        Whether noise is shared in the secure sum, or made whole by every client.
    records_per_person : int, optional
        As in `PrivacyPlan`.
    local : LocalPlan, optional
        Needed for unit client and for trust none; refused where one gradient sum is released.

    limit : float, optional
        The most that any of the ledgers in ``earlier`` may come to with this run.
    earlier : frozenset of tuple of Event, optional
        What earlier runs left in the clients' ledgers.
    noise_multiplier : float, optional
        Take this one, and search and price nothing: `plan_stages` does both for all stages.

    Returns
    -------
    RunPlan

    Raises
    ------
    ConfigError
        A value is out of range or contradicts another.
    BudgetExceededError
        No amount of noise reaches the target, or the limit after what was spent earlier.

    Guarantees
    ----------
    With z the noise multiplier and l2 the integer norm bound, each client adds Skellam noise of
    variance ``(z l2)^2 / (min_survivors - max_colluders)``, so the honest survivors of any round
    that opens hold variance ``(z l2)^2`` or more; and ``rounds`` such rounds cost at most
    ``target_epsilon`` at ``delta``. Under trust none each client's own Gaussian noise of deviation
    ``z C`` in each of its local steps carries the same promise alone, and the sum adds none.
    """
    _check_local(unit, trust, local)
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
        trust=trust,
        mechanism="none" if unit == "none" else "skellam" if trust == "secagg" else "gaussian",
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
        records_per_person=records_per_person,
        local_steps=local.steps if local is not None and trust == "none" else 1,
    )
    draft = make_plan(noise_multiplier=0.0 if unit == "none" else 1.0)
    if unit == "none":
        bound = _FREE_MOVE if local else batch_bound(draft.expected_batch) * clipping_norm
        return RunPlan(draft, leave_room(plan_plain(dimension, bound, clients)), threshold, local)
    if target_epsilon is None:
        raise ConfigError(f"unit {unit!r} needs target_epsilon (8 is usual)")

    def plan(noise: float) -> RunPlan:
        privacy = make_plan(noise_multiplier=noise)
        if trust == "none":
            encoding = leave_room(plan_plain(dimension, _noisy_move(privacy, local), clients))
        elif unit == "client":
            encoding = plan_clients(dimension, clipping_norm, noise, clients, draft.noise_clients)
        else:
            encoding = plan_records(
                dimension,
                privacy.sensitivity,
                noise,
                draft.expected_batch,
                clients,
                draft.noise_clients,
            )
        return RunPlan(privacy, encoding, threshold, local)

    if noise_multiplier is not None:
        return plan(noise_multiplier)

    def whole_run(noise: float) -> Event:
        if trust == "none":
            return make_plan(noise_multiplier=noise).gaussian_event(rounds)
        return plan(noise).skellam_event().times(rounds)

    noise = calibrate_noise(whole_run, target_epsilon, delta)
    if limit is not None:
        noise = noise_after(whole_run, noise, limit, delta, earlier)
    return _within_target(plan(noise), target_epsilon)


def _check_local(unit: Unit, trust: Trust, local: LocalPlan | None) -> None:
    """Hold that clients take steps of their own exactly where what they move is protected."""
    if local is None and (unit == "client" or trust == "none"):
        raise ConfigError(
            f"unit {unit!r} with trust {trust!r} sums what clients move in local steps; give a "
            "LocalPlan (federation.local_steps and federation.local_lr)"
        )
    if local is not None and trust == "none" and local.rule != "sgd":
        raise ConfigError(
            f"federation.local_rule={local.rule} is not accepted under privacy.trust=none, where "
            "the noise of a round is computed for sgd; set federation.local_rule=sgd"
        )
    if local is not None and unit in ("record", "person") and trust == "secagg":
        raise ConfigError(
            f"unit {unit!r} under the secure sum releases one sum of gradients in a round, so "
            "there are no local steps; set federation.local_steps to 1, or privacy.trust to none"
        )


def _noisy_move(privacy: PrivacyPlan, local: LocalPlan | None) -> float:
    """Bound an entry of what local DP-SGD moves; public, and past it entries are cut.

    Each of K steps moves an entry by at most ``eta (M C + 12 z C) n / (q N)`` with the Chernoff
    bound M on the records drawn; FedDyn's correction may add as much again.
    """
    if local is None:
        raise ConfigError("trust 'none' needs local steps")
    batch = privacy.expected_batch / privacy.clients
    reach = batch_bound(batch) + _DEVIATIONS * privacy.noise_multiplier
    step = local.learning_rate * privacy.clipping_norm * reach / batch
    return local.steps * step * (2.0 if local.feddyn_alpha else 1.0)


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
