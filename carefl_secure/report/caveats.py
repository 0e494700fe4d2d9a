"""What the numbers do not cover, each with its severity."""

from __future__ import annotations

from carefl_secure.privacy import SampledSkellam
from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import Caveat, Severity
from carefl_secure.report.what_if import tuning_runs


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
            "All clients ran on one machine, so secure aggregation hides nothing from its "
            "operator. "
            "Between parties, each must run its own client.",
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
            stage.event.beta * stage.privacy.rounds
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
