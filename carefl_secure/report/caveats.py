"""What the numbers do not cover, each with how much it weighs."""

from __future__ import annotations

from carefl_secure.privacy import SampledSkellam
from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import Caveat, Severity
from carefl_secure.report.what_if import tuning_runs

__all__ = ["caveats"]


def caveats(record: RunRecord) -> list[Caveat]:
    """List the caveats of a run, the heaviest first.

    Returns
    -------
    list of Caveat
        *Critical*: can break what a reader would expect. *Theoretical*: no practical attack is
        known, or it needs a party to cheat. *Negligible*: bounded by a number stated here.

    References
    ----------
    The three words are those of JAX-Privacy's list of known caveats.
    """
    privacy = record.privacy
    found: list[Caveat] = []

    def add(severity: Severity, text: str) -> None:
        found.append(Caveat(severity=severity, text=text))

    if privacy.unit == "none":
        add("Critical", "Updates and adapter may give away single images and persons.")
    elif tuning_runs(record) is None:
        add(
            "Critical",
            "Runs made to choose settings are uncounted: whatever they spent on these records is "
            "NOT in this epsilon. State privacy.tuning_runs.",
        )
    if privacy.unit == "person":
        add(
            "Theoretical",
            "Who is one person is taken from the names in the corpus. Somebody at several clients "
            "is protected less: the combined figures state epsilon for two clients.",
        )
    if privacy.unit == "record":
        add(
            "Critical",
            "A person with k records is protected for each of them, not for all together: epsilon "
            "grows several times over for a handful. Nothing here limits k.",
        )
    if record.simulated:
        add(
            "Critical",
            "All clients ran in one process on one machine, so the secure sum hides nothing from "
            "whoever runs that machine. Between parties, each must run its own client.",
        )
    if privacy.unit != "none":
        add(
            "Theoretical",
            "The draw of records happens inside each client. A client that draws otherwise weakens "
            "its own records' protection, unseen by the others.",
        )
    if privacy.trust == "secagg" and privacy.unit != "none":
        add(
            "Theoretical",
            "Clients can tell the server their noise, or leave it out. If more than "
            f"{privacy.max_colluders} do, the bound for everybody else is weaker than this one.",
        )
    add(
        "Theoretical",
        "How long a client works shows roughly how many records it drew; no attack on one record "
        "through it is known here.",
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
        add(
            "Negligible",
            "Noise and sums are integers, so floating-point attacks on the noise do not apply.",
        )
    return found
