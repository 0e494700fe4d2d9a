"""Everything a run is agreed on before its first round: privacy, encoding and noise, fixed at once.

The noise is found for the whole number of rounds, from the norms of the integer encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from carefl_secure.errors import BudgetExceededError, ConfigError, PrivacyError
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan, masking_graph
from carefl_secure.federation.plan.staged import StagedPlan
from carefl_secure.privacy import Event, Ledger, PrivacyPlan, calibrate_noise, epsilon
from carefl_secure.privacy.accounting.composition import filtered_epsilon
from carefl_secure.privacy.banded import norm, response
from carefl_secure.privacy.ledger.entry import split_runs
from carefl_secure.privacy.plan import Mechanism, Trust, Unit
from carefl_secure.secagg import default_threshold, plan_clients, plan_plain, plan_records
from carefl_secure.secagg.encoding.planner import batch_bound, on_finer_grid
from carefl_secure.secagg.encrypted.packing import leave_room

_NOT_PRIVACY = ("dimension", "local", "masks_in_pairs")  # of what a request holds
# Largest entry of an update without privacy: far above any adapter weight, and still of 1e-7 grain.
_FREE_UPDATE = 16.0
# Entries of a noisy update past so many deviations are cut, which is free.
_DEVIATIONS = 12.0

Events = tuple[Event, ...]
History = tuple[Events, Events]
"""Events of a ledger's first run, with its whole plan, and of all later runs."""

_NOTHING = 1e-3  # of the limit: what is left below it is of no use to any run


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a plan is made from: everything that the parties choose.

    Parameters
    ----------
    unit : {"record", "person", "client", "none"}
        What is protected; ``"none"`` switches noise off, masks stay.
    public_records : int
        Declared number of records, or persons, of all clients together.
    sample_rate : float
        Probability of a record, or person, in a round or local step. 1 for unit client, whose batch is in ``local``.
    clipping_norm : float
        Bound on the Euclidean norm of one record's gradient, one person's, or one client's update.
    target_epsilon : float, optional
        What all rounds together may spend; needed for every unit but none.
    min_survivors : int, optional
        Fewest clients a round may end with; ``floor(2 n / 3) + 1`` by default.
    normalise : bool
        Whether the clients scale gradients to the norm in place of clipping them.
    local : LocalPlan, optional
        Needed for unit client and for trust none; refused where one gradient sum is released.
    masks_in_pairs : bool
        Whether the aggregation protocol masks in pairs; more than 200 clients then need a sparse graph.
    """

    unit: Unit
    dimension: int
    clients: int
    rounds: int
    public_records: int
    sample_rate: float
    clipping_norm: float
    delta: float
    target_epsilon: float | None = None
    min_survivors: int | None = None
    max_colluders: int = 1
    normalise: bool = True
    trust: Trust = "secagg"
    records_per_person: int | None = None
    local: LocalPlan | None = None
    masks_in_pairs: bool = True
    correlation: tuple[int, ...] | None = None
    target_unclipped_quantile: float | None = None

    def threshold(self) -> int:
        """Return how many shares open a secret, and how many signatures a set of survivors needs."""
        clients, colluders = self.clients, self.max_colluders
        threshold = max(default_threshold(clients), (clients + colluders + 2) // 2)
        if threshold > clients:
            raise ConfigError(
                f"{colluders} colluders among {clients} clients could sign two survivor sets; "
                "lower max_colluders or invite more clients"
            )
        return threshold

    def privacy(self, noise_multiplier: float) -> PrivacyPlan:
        """Return the privacy plan under a noise multiplier."""
        threshold = self.threshold()
        min_survivors = threshold if self.min_survivors is None else self.min_survivors
        if min_survivors < threshold:
            raise ConfigError(
                f"min_survivors is {min_survivors}, but {self.clients} clients with "
                f"{self.max_colluders} colluders need {threshold}; raise it or leave it out"
            )
        mechanism: Mechanism = "skellam" if self.trust == "secagg" else "gaussian"
        own_noise = self.local is not None and self.trust == "none"
        chosen = {name: value for name, value in vars(self).items() if name not in _NOT_PRIVACY}
        return PrivacyPlan(
            **{**chosen, "min_survivors": min_survivors},
            mechanism="none" if self.unit == "none" else mechanism,
            local_steps=self.local.steps if self.local is not None and own_noise else 1,
            noise_multiplier=noise_multiplier,
        )


def plan_run(
    request: PlanRequest, *, limit: float | None = None, earlier: frozenset[History] = frozenset()
) -> RunPlan:
    """Fix privacy, encoding and noise for a run of one stage; see `plan_stages`."""
    return plan_stages(("",), (request,), limit=limit, earlier=earlier).plans[0]


def plan_stages(
    names: Sequence[str],
    requests: Sequence[PlanRequest],
    *,
    limit: float | None = None,
    earlier: frozenset[History] = frozenset(),
) -> StagedPlan:
    """Fix privacy, encoding and noise of all stages at once; a plain run is one with the name "".

    There is one request for each stage, with the same promise; the target is for all stages together. None of the
    ledgers in ``earlier``, which hold what earlier runs left, may come to more than ``limit`` with this run.
    ConfigError is raised where a value is out of range, contradicts another, or differs between stages where it must
    not; BudgetExceededError where no amount of noise reaches the target, or the limit after what was spent earlier.

    Guarantees
    ----------
    With z the noise multiplier and l2 the integer norm bound, each client adds Skellam noise of variance
    ``(z l2)^2 / (min_survivors - max_colluders)``, so the honest survivors of any round that opens hold variance
    ``(z l2)^2`` or more. Under trust none each client's own Gaussian noise of deviation ``z C`` in each of its local
    steps carries the same promise alone, and the sum adds none. All rounds of all stages cost at most
    ``target_epsilon`` at ``delta`` under sequential composition, as if every record were in every stage; this holds
    whether the stages share records or not. The noise of every stage is fixed before the first round.
    """
    first = requests[0]
    for one in requests:
        _check_local(one.unit, one.trust, one.local)
        one.privacy(0.0 if one.unit == "none" else 1.0)  # refuses what no noise makes right
    target, delta = first.target_epsilon, first.delta
    if first.unit == "none":
        return StagedPlan(tuple(names), tuple(_plan_with(one, 0.0) for one in requests))
    if target is None:
        raise ConfigError(f"unit {first.unit!r} needs target_epsilon (8 is usual)")

    def whole_run(noise: float) -> list[Event]:
        if first.trust == "none":
            return [one.privacy(noise).gaussian_event(one.rounds) for one in requests]
        return [
            plan.skellam_event().times(plan.privacy.cycles) for plan in (_plan_with(one, noise) for one in requests)
        ]

    noise = calibrate_noise(whole_run, target, delta)
    if limit is not None:
        noise = noise_after(whole_run, noise, limit, delta, earlier)
    plans = tuple(_plan_with(one, noise) for one in requests)
    # Priced once more, round by round as the ledgers will, before anyone trusts it.
    rounds = [plan.event for plan in plans for _ in range(plan.privacy.cycles) if plan.event]
    if (price := epsilon(rounds, delta)) > target:
        raise PrivacyError(f"the plan would spend epsilon {price:.6g} of {target:g}; report this")
    return StagedPlan(tuple(names), plans)


def _plan_with(request: PlanRequest, noise: float) -> RunPlan:
    """Return the plan under a noise multiplier."""
    privacy, local, dimension = request.privacy(noise), request.local, request.dimension
    clients, others = request.clients, privacy.noise_clients
    if request.unit == "none":
        bound = _FREE_UPDATE
        if local is None:
            bound = batch_bound(privacy.expected_batch) * request.clipping_norm
        encoding = leave_room(plan_plain(dimension, bound, clients))
    elif request.trust == "none":
        encoding = leave_room(plan_plain(dimension, _noisy_update(privacy, local), clients))
    elif request.unit == "client":
        encoding = plan_clients(dimension, request.clipping_norm, noise, clients, others)
    else:
        band = request.correlation or (1,)
        wanted = noise * norm(band)
        encoding = plan_records(dimension, privacy.sensitivity, wanted, privacy.expected_batch, clients, others)
        if request.correlation is not None:
            gain = response(band, request.rounds)
            encoding = on_finer_grid(encoding, others * band[0], float(gain @ gain))
    threshold = request.threshold()
    graph = masking_graph(privacy, threshold) if request.masks_in_pairs else None
    return RunPlan(privacy, encoding, threshold, local, graph)


def _check_local(unit: Unit, trust: Trust, local: LocalPlan | None) -> None:
    """Check that clients take local steps exactly where their updates are released."""
    if local is None and (unit == "client" or trust == "none"):
        raise ConfigError(
            f"unit {unit!r} with trust {trust!r} sums updates from local steps; give a "
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


def _noisy_update(privacy: PrivacyPlan, local: LocalPlan | None) -> float:
    """Bound an entry of an update of local DP-SGD; public, and past it entries are cut.

    Each of K steps changes an entry by at most ``eta (M C + 12 z C) n / (q N)`` with the Chernoff
    bound M on the records drawn; FedDyn's correction may add as much again.
    """
    if local is None:
        raise ConfigError("trust 'none' needs local steps")
    batch = privacy.expected_batch / privacy.clients
    reach = batch_bound(batch) + _DEVIATIONS * privacy.noise_multiplier
    step = local.learning_rate * privacy.clipping_norm * reach / batch
    return local.steps * step * (2.0 if local.feddyn_alpha else 1.0)


def earlier_spends(ledgers: Path, clients: int, run: str | None = None) -> frozenset[History]:
    """Return the different histories of other runs in the clients' ledgers.

    ``ledgers`` is a folder of ``<index>.jsonl``; a missing ledger is empty. The spends of ``run``, which is being
    resumed, are left out. BudgetExceededError is raised where a ledger holds rounds without any noise, as no further
    run keeps any limit; LedgerError where one cannot be trusted.
    """
    found: set[History] = set()
    for index in range(clients):
        path = ledgers / f"{index}.jsonl"
        kept = []
        for entry in Ledger(path).entries() if path.is_file() else ():
            if run is not None and entry.of_run(run):
                continue
            if entry.unprotected:
                raise BudgetExceededError(
                    f"{path} holds rounds that were released without any noise, so no limit can "
                    "be kept over all runs; leave privacy.max_epsilon out, or use other records"
                )
            kept.append(entry)
        first, later = split_runs(kept, another=True)
        found.add((tuple(first), tuple(later)))
    return frozenset(found)


def noise_after(
    whole_run: Callable[[float], Event | Sequence[Event]],
    noise: float,
    limit: float,
    delta: float,
    earlier: frozenset[History],
) -> float:
    """Raise a noise multiplier until every history and a whole new run stay within a limit.

    ``whole_run`` leads from a noise multiplier to the event of the new run, or to those of its stages; its own target
    needs ``noise``. A client's ledger may come to ``limit`` at ``delta`` over all runs.

    Guarantees
    ----------
    With the returned noise every ledger has room for the whole run at the start, so no client has to refuse in the
    middle of it. BudgetExceededError when no noise leaves room.
    """
    for first, later in sorted(earlier, key=repr):

        def price(events: Sequence[Event], delta: float, first: Events = first, later: Events = later) -> float:
            if not first:
                return epsilon(events, delta)
            return filtered_epsilon(first, (*later, *events), limit, delta)

        planned = whole_run(noise)
        if price(planned if isinstance(planned, Sequence) else (planned,), delta) <= limit:
            continue
        spent = filtered_epsilon(first, later, limit, delta)
        try:
            if spent >= limit * (1.0 - _NOTHING):
                raise BudgetExceededError("nothing is left")
            noise = max(noise, calibrate_noise(whole_run, limit, delta, price=price))
        except (BudgetExceededError, ConfigError) as error:  # or no word holds so much noise
            raise BudgetExceededError(
                f"earlier runs spent epsilon {spent:.4g} of privacy.max_epsilon={limit:g} at delta "
                f"{delta:g}, so {max(0.0, limit - spent):.4g} is left, and no noise fits this run "
                "into it; raise privacy.max_epsilon, plan fewer rounds, or use other records"
            ) from error
    return noise
