"""From a configuration to the plan of a run: the request to `plan_run`, the same at every party."""

from __future__ import annotations

from carefl_secure.config import Config
from carefl_secure.data.splits import subject_groups
from carefl_secure.errors import ConfigError
from carefl_secure.federation.plan.calibrate import History, PlanRequest, earlier_spends, plan_run
from carefl_secure.federation.plan.cohort import PROTOCOLS, AggregationConfig
from carefl_secure.federation.plan.run_plan import LocalPlan, RunPlan
from carefl_secure.privacy.accounting.budget import Budget, BudgetQuestion, solve_budget
from carefl_secure.privacy.banded import choose_bands, coefficients
from carefl_secure.runs.corpora import Corpora

UNCLIPPED = 1e3
"""Far above the norm of any record's gradient: without privacy nothing is to be cut."""


def aggregation_of(config: Config) -> AggregationConfig:
    """Return the aggregation protocol of a configuration; the same at every party."""
    federation = config.federation
    if federation.aggregation in PROTOCOLS:
        return AggregationConfig.from_settings(federation.model_dump())
    from carefl_secure.federation.aggregation.registry import find_protocol

    own = find_protocol(federation.aggregation).helpers(federation.committee_members)
    return AggregationConfig.from_settings(federation.model_dump(), own)


def earlier_of(config: Config, run: str | None) -> frozenset[History]:
    """Return what the clients' ledgers hold of other runs, where a limit over all runs is set."""
    privacy = config.privacy
    if privacy.ledgers is None or privacy.max_epsilon is None or privacy.unit == "none":
        return frozenset()
    return earlier_spends(privacy.ledgers, config.federation.clients, run)


def request_of(config: Config, corpora: Corpora, dimension: int) -> PlanRequest:
    """Return what a plan is made from, the same at every party; undeclared records are counted (simulations only)."""
    return _request(config, *public_counts(config, corpora), dimension + entries_beside(config))


def public_counts(config: Config, corpora: Corpora) -> tuple[int, int]:
    """Return units (records, or persons) and records of all clients: as declared, or counted in a simulation."""
    declared = config.federation.public_records
    if declared is not None:
        return declared, declared
    held = corpora.private.records
    return len(subject_groups(held)) if config.privacy.unit == "person" else len(held), len(held)


def entries_beside(config: Config) -> int:
    """Return how many entries of the vector that clients receive are not the model's: one for an adaptive norm."""
    return int(config.privacy.target_unclipped_quantile is not None)


def plan_with(config: Config, public_records: int, dimension: int) -> RunPlan:
    """Return the plan for a declared number of records (persons), without looking at any.

    ``privacy.sample_rate=auto`` is the default here: what would raise it depends on a run's label head.
    """
    return plan_run(_request(config.with_sample_rate(), public_records, public_records, dimension))


def _request(config: Config, units: int, records: int, dimension: int) -> PlanRequest:
    privacy = config.privacy
    private = privacy.unit != "none"
    if private and privacy.delta >= 1 / records:
        raise ConfigError(
            f"privacy.delta={privacy.delta:g} is not below one over the {records} private records, which would allow "
            f"one record to be published whole; set privacy.delta below {1 / records:.2g}"
        )
    return PlanRequest(
        unit=privacy.unit,
        trust=privacy.trust,
        records_per_person=privacy.records_per_person,
        local=local_plan(config),
        dimension=dimension,
        clients=config.federation.clients,
        rounds=config.federation.rounds,
        public_records=units,
        sample_rate=1.0 if privacy.unit == "client" else config.sample_rate,
        clipping_norm=privacy.clipping_norm if private else UNCLIPPED,
        delta=privacy.delta,
        target_epsilon=privacy.epsilon if private else None,
        min_survivors=config.federation.min_survivors,
        max_colluders=privacy.max_colluders,
        normalise=privacy.normalise and private,
        masks_in_pairs=config.federation.aggregation in ("pairwise", "encrypted"),
        correlation=correlation_of(config),
        target_unclipped_quantile=privacy.target_unclipped_quantile,
    )


def _bands_of(config: Config) -> tuple[int, float, float]:
    """Return the bands, and their error over that of independent noise: with all clients, and with `min_survivors`."""
    privacy, federation = config.privacy, config.federation
    fixed = None if privacy.bands == "auto" else min(privacy.bands, federation.rounds)  # an audit plays fewer rounds
    budget = (federation.rounds, config.sample_rate, privacy.epsilon, privacy.delta, config.momentum)
    bands, error = choose_bands(*budget, fixed)
    return bands, error, choose_bands(*budget, bands, federation.min_survivors / federation.clients)[1]


def correlation_of(config: Config) -> tuple[int, ...] | None:
    """Return the correlation of banded noise; None where the noise of the rounds is independent.

    The number of bands is that of least predicted error; ``auto`` takes them where that error stays below the one of
    independent noise even if as many clients as ``federation.min_survivors`` allows miss each round.
    """
    if config.privacy.mechanism == "independent" or config.rules_out_bands:
        return None
    bands, _, missed = _bands_of(config)
    if config.privacy.mechanism == "auto" and missed >= 1.0:
        return None
    return coefficients(bands, config.federation.rounds, config.momentum)


def mechanism_text(config: Config, plan: RunPlan) -> str:
    """Say in one sentence what noise a protected run has and why; empty for the default."""
    if config.privacy.mechanism == "independent" or not plan.protected:
        return ""
    if config.rules_out_bands:
        return f"independent noise, as banded noise cannot be used with {config.rules_out_bands}"
    (bands, error, missed), clients = _bands_of(config), config.federation.clients
    least = f"{error:.2f} of the error of independent noise in the sums that the optimizer sees"
    if absent := clients - config.federation.min_survivors:
        least += f", {missed:.2f} where {absent} of {clients} clients miss each round"
    banded = plan.privacy.correlation is not None
    return f"banded noise of {bands} bands, {least}" if banded else f"independent noise: {bands} bands leave {least}"


def noise_text(config: Config, plan: RunPlan) -> str:
    """Say what a run's noise is, what it costs, and why it is of this kind."""
    budget = plan.privacy.budget_text() if plan.protected else "NO PRIVACY: privacy.unit is none"
    return "; ".join(filter(None, [budget, mechanism_text(config, plan)]))


def central_budget(config: Config) -> Budget:
    """Return the noise, and its price, of DP-SGD on all records at one party."""
    privacy = config.privacy
    return solve_budget(
        BudgetQuestion(
            mechanism="gaussian",
            delta=privacy.delta,
            epsilon=privacy.epsilon,
            rounds=config.federation.rounds,
            sample_rate=config.sample_rate,
        )
    )


def local_plan(config: Config) -> LocalPlan | None:
    """Return the local steps of a configuration; None where clients release sums of gradients."""
    federation = config.federation
    if not config.sums_updates:
        return None
    rule = federation.aggregator
    return LocalPlan(
        steps=config.local_steps,
        learning_rate=config.local_lr,
        rule=config.federation.local_rule,
        batch_share=config.sample_rate,
        proximal_mu=federation.proximal_mu if rule == "fedprox" else 0.0,
        feddyn_alpha=federation.feddyn_alpha if rule == "feddyn" else 0.0,
        stragglers=config.simulation.stragglers,
        seed=config.run.seed,
    )
