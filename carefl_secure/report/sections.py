"""Parts of a report that follow from the plan and the ledgers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from carefl_secure.federation.plan.cohort import AggregationConfig
from carefl_secure.privacy import SampledSkellam
from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import Accounting, Caveat, Mechanism, RoundLine, RunLine, Severity, Trust, Unit
from carefl_secure.report.spending import Accounts, tuning_runs
from carefl_secure.rounding import finite

_CLIPPED = {
    "record": "per record",
    "person": "per person, of the mean gradient of its records",
    "client": "per client, of its update",
    "none": "per record; protects nothing without noise",
}

_NOT_METRICS = {
    *("round", "epsilon", "clients", "survivors", "bytes_up", "bytes_down", "gradient_norm", "noise_norm", "seconds"),
    *("clipping_norm", "bands"),
}

_UNITS = {
    "record": "one image of one person, with its text and labels, held by one client",
    "person": "one person: all of their images at one client, with texts and labels",
    "client": "everything that one client holds",
    "none": "nothing: privacy is switched off",
}


def unit_part(record: RunRecord) -> Unit:
    """Describe the unit of privacy."""
    privacy = record.privacy
    return Unit(
        kind=privacy.unit,
        definition=_UNITS[privacy.unit],
        adjacency=privacy.adjacency,
        max_records_per_person=privacy.records_per_person,
    )


def aggregation_of(record: RunRecord) -> str:
    """Say what the guarantee needs besides honest clients: other parties, a sparse graph; empty for nothing."""
    if record.privacy.trust == "none":
        return ""
    needs = AggregationConfig.from_settings(record.setting("federation") or {}).assumptions
    return f"{needs} {record.graph}".strip()


def _figure(value: object) -> bool:
    """Tell whether a value of a row is a number that can be shown."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def run_part(record: RunRecord, accounts: Accounts) -> RunLine:
    """Say which run this is."""
    times = [entry.time for entry in record.server.entries]
    source = record.setting("data.source") or "not stated"
    labels, spaces = record.setting("data.labels"), record.setting("stages.spaces")
    words = f"labels in stages: {', then '.join(map(str, spaces))}" if spaces else f"labels {labels}"
    return RunLine(
        id=record.run_id,
        first_entry=times[0] if times else "unknown",
        last_entry=times[-1] if times else "unknown",
        rounds_planned=record.privacy.rounds,
        rounds_released=len(accounts.survivors) or len(record.rows),
        data=f"{source}, {words}" if labels else str(source),
        base_model=str(record.setting("model.base") or "not stated"),
        simulated=record.simulated,
    )


def mechanism_part(record: RunRecord, accounts: Accounts) -> Mechanism:
    """Describe noise, clipping and sampling."""
    privacy, q = record.privacy, record.privacy.target_unclipped_quantile
    names = {
        "skellam": "Skellam noise, in shares, on a secure sum of clipped per-record gradients",
        "gaussian": "Gaussian noise of each client on its sum of clipped per-record gradients",
        "none": "none: sums are released as they are",
    }
    source = "AES-256 in counter mode, keyed by the operating system's entropy"
    if record.setting("unsafe_deterministic_noise") is True:
        source = "a predictable seed"
    if privacy.mechanism == "none":
        source = "none"
    return Mechanism(
        name=names[privacy.mechanism] + ", banded over rounds" * (privacy.bands > 1),
        event=None if record.event is None else record.event.to_json(),
        count=sum(event.count for event in accounts.events) or len(accounts.survivors),
        noise_multiplier=privacy.noise_multiplier,
        clipping_norm=privacy.clipping_norm,
        normalised=privacy.normalise,
        sample_rate=privacy.sample_rate,
        sampling=_sampling(record),
        clipped=_CLIPPED[privacy.unit] + f" in the first round, then at a noised quantile {q:g} of the norms"
        if q is not None
        else _CLIPPED[privacy.unit]
        if privacy.records_per_person is None
        else f"per record, so {privacy.records_per_person} times that per person",
        normaliser=(
            "public: the number of survivors; never a count of the data"
            if "local" in record.plan
            else f"public: sampling rate x {privacy.public_records} declared "
            f"{'persons' if privacy.unit == 'person' else 'records'} x share of clients that "
            "survived; never a count of the data"
        ),
        noise_source=source,
    )


def _sampling(record: RunRecord) -> str:
    privacy = record.privacy
    if privacy.unit == "client":
        return "none: every client is in every sum"
    single = privacy.unit != "person" or privacy.records_per_person is not None
    k = privacy.records_per_person
    return (
        f"each {'record' if single else 'person'} enters a sum with probability "
        f"{privacy.sample_rate:g} (Poisson; the server does not see which)"
        + (f"; a record in one round of {privacy.bands}, with {privacy.round_rate:g}" if privacy.bands > 1 else "")
        + (f"; a person with {k} records with {privacy.event_rate:.4g}" if k else "")
    )


def trust_part(record: RunRecord) -> Trust:
    """Describe who sees what, and who is assumed honest."""
    privacy = record.privacy
    secure = privacy.trust == "secagg"
    helper = {
        "committee": {"a member of the committee": "its share of the masks of the sums"},
        "encrypted": {"the holder of the key": "the opened sum of every round, where there is one"},
    }.get(str(record.setting("federation.aggregation")), {})
    return Trust(
        setting="federated, with a secure sum" if secure else "federated, each client on its own",
        secure_sum=secure,
        clients=privacy.clients,
        min_survivors=privacy.min_survivors,
        max_colluders=privacy.max_colluders,
        honest_noise_clients=privacy.noise_clients,
        masking_graph=record.plan.get("masking_graph"),
        sees={
            "each client": "its own records, and the adapter of every round",
            **helper,
            "the server": (
                f"the sum over at least {privacy.min_survivors} clients of every round, who took "
                "part, and its own public images"
                if secure
                else "every client's noisy sum, who took part, and its own public images"
            ),
            "whoever gets the adapter": "the adapter, this report, and nothing else",
        },
    )


def accounting_part(record: RunRecord, accounts: Accounts) -> Accounting:
    """Describe how epsilon was computed."""
    claims = [float(row["epsilon"]) for row in record.rows if _figure(row.get("epsilon"))]
    rounds = sum(event.count for event in accounts.events)
    return Accounting(
        accountant=accounts.accountant if record.privacy.unit != "none" else "none",
        library="carefl-secure",
        composition="none"
        if record.privacy.unit == "none"
        else (
            f"{rounds} sums in one account, with parameters fixed before the first; clients hold "
            "different records, so each record is charged in one ledger and the largest counts"
        ),
        recomputed_epsilon=finite(accounts.epsilon),
        claimed_epsilon=claims[-1] if claims else None,
        agreed_epsilon=accounts.agreed,
        by_round=accounts.by_round_words,
    )


def round_line(row: Mapping[str, Any], price: float | None) -> RoundLine:
    """Return the figures of a finished round with the epsilon of all rounds so far."""
    return RoundLine(
        round=int(row["round"]),
        epsilon=price,
        survivors=int(row["survivors"]) if "survivors" in row else None,
        clipping_norm=float(row["clipping_norm"]) if "clipping_norm" in row else None,
        metrics={name: float(value) for name, value in row.items() if name not in _NOT_METRICS and _figure(value)},
    )


def caveats(record: RunRecord) -> list[Caveat]:
    """List the caveats of a run, the most severe first.

    *Critical*: can break what a reader would expect. *Theoretical*: no practical attack is known,
    or it needs a party to cheat. *Negligible*: bounded by a number stated here. The three words are
    those of JAX-Privacy's list of known caveats.
    """
    privacy = record.privacy
    found: list[Caveat] = []

    def add(severity: Severity, text: str) -> None:
        found.append(Caveat(severity=severity, text=text))

    if privacy.unit == "none":
        add("Critical", "Updates and adapter may reveal single images and persons.")
    elif tuning_runs(record) is None:
        add(
            "Critical",
            "Runs made to choose settings are uncounted: what they spent on these records is "
            "NOT in this epsilon. State their number in privacy.tuning_runs.",
        )
    if privacy.unit == "person":
        add(
            "Theoretical",
            "Persons are identified by the names in the corpus. A person at several clients is "
            "protected less: the combined figures state epsilon for two clients.",
        )
    if privacy.unit == "record":
        add(
            "Critical",
            "Each record of a person is protected, not all of them together: for k records epsilon "
            "is several times larger. Nothing here limits k.",
        )
    if record.simulated:
        add(
            "Critical",
            "All clients ran on one machine, so secure aggregation hides nothing from its operator. Between parties, "
            "each must run its own client.",
        )
    if privacy.unit != "none":
        add(
            "Theoretical",
            "Each client samples its own records. A client that samples differently weakens the "
            "protection of its own records, and the others cannot detect it.",
        )
    if privacy.trust == "secagg" and privacy.unit != "none":
        add(
            "Theoretical",
            "Clients can reveal their noise to the server, or omit it. If more than "
            f"{privacy.max_colluders} do, the guarantee of the others is weaker than stated here.",
        )
    add(
        "Theoretical",
        "The time that a client takes reveals roughly how many records it sampled; we know of no "
        "attack on a single record through it.",
    )
    if isinstance(record.event, SampledSkellam):
        total = sum(
            stage.event.beta * stage.privacy.cycles
            for stage in record.stages
            if isinstance(stage.event, SampledSkellam)
        )
        add(
            "Negligible",
            "Rounding to integers breaks its norm bound in some round with a probability of at "
            f"most {total:.1e}; it is charged to delta.",
        )
        add("Negligible", "Noise and sums are integers, so floating-point attacks on the noise do not apply.")
    return found
