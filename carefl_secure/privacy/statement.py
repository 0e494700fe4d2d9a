"""The privacy promise in plain words, for people whose records these are."""

from __future__ import annotations

import math

from carefl_secure.errors import ConfigError
from carefl_secure.privacy.accounting.events import check_whole
from carefl_secure.rounding import round_up

_STRONG = 1.0
_REASONABLE = 10.0

_UNITS = {
    "record": "any one record (an image, or a clip where records are clips, with its text and labels)",
    "person": "any one person (all images of it at one client, with their texts and labels)",
    "client": "everything that any one client holds",
}
_NEIGHBOURS = {
    "record": "one record more or less at one client",
    "person": "one person more or less at one client",
    "client": "the data of one client replaced by nothing, while it goes on taking part",
}
_CHANGES = {"record": "adding or removing it", "person": "adding or removing it", "client": "emptying it"}
_ADJACENCY = {"record": "add-or-remove-one", "person": "add-or-remove-one", "client": "zero-out"}
_OPEN = (
    "Still seen, and not protected: which clients take part and when, how long their answers take, "
    "the label space, the number of records per client as declared, and the public split. "
)
_REST = {
    "client": "That a client takes part at all is seen too; only what it holds is protected.",
    "record": "A person with several records is protected for each of them, not for all of them together.",
    "person": "Who is one person is taken from the names in the corpus: somebody with two names, or at two "
    "clients, is protected for each of them, not for both together.",
}
_BANDS = (
    " Each record was in one round of {} at most, drawn by its client, whose records and their order must not change "
    "during a run; rounds take back part of the noise of earlier ones, which the figure counts."
)
_FLOATS = (
    "The noise of every client is made of doubles, by a sampler that resists the known attacks on "
    "their last bits and not by proof; only its sum over the clients is made of integers."
)


def verdict(epsilon: float) -> str:
    """Name the strength of an epsilon in nats, as a string.

    ``"strong"`` up to 1, ``"reasonable, not strong"`` up to 10, ``"weak"`` above.

    References
    ----------
    Tiers of Ponomareva et al., "How to DP-fy ML", arXiv 2303.00654, section 5.2.
    """
    if not epsilon >= 0.0:
        raise ConfigError(f"epsilon is {epsilon}; an accountant never gives less than 0")
    if epsilon <= _STRONG:
        return "strong"
    return "reasonable, not strong" if epsilon <= _REASONABLE else "weak"


def promise_text(
    *, unit: str, trust: str, epsilon: float, delta: float, colluders: int, records_per_person: int | None = None,
    bands: int = 1,
) -> str:  # fmt: skip
    """Write the promise: some sentences on one line.

    Parameters
    ----------
    unit : str
        What is protected, one of record, person, client and none.
    trust : str
        Secagg where the noise is shared under a secure sum, else none.
    colluders : int
        How many clients may work with the server.
    records_per_person : int, optional
        For unit person, where single records were clipped: how many of each person were kept.
    bands : int, optional
        Rounds whose noise is correlated; 1 where it is independent.
    """
    strength = verdict(epsilon)
    if unit == "none":
        return (
            "Nothing is protected: no noise is added, so the trained adapter"
            + (" and each summed update" if trust == "secagg" else " and every client's update")
            + " may give away single records and persons. No epsilon holds for this run."
        )
    if not math.isfinite(epsilon):
        return "Nothing is promised: no finite epsilon could be proved for this run. Treat every record as disclosed."
    shown = round_up(epsilon)
    rest = [_REST[unit]] + [_FLOATS] * (trust == "none")
    if records_per_person is not None:
        rest.insert(1, f"Of every person at most {records_per_person} records were used.")
    return (
        f"Protected is {_UNITS[unit]}: {_CHANGES[unit]} ({_NEIGHBOURS[unit]}) changes the probability of any outcome "
        f"computed from the released sums, the adapter among them, by a factor of at most e^{shown}, except with "
        f"probability {delta:g} (epsilon {shown}, delta {delta:g}, {_ADJACENCY[unit]}; {strength}). "
        f"This holds against {_against(trust, colluders)}. " + _OPEN + " ".join(rest)
    ).rstrip() + _BANDS.format(bands) * (bands > 1)


def aggregation_text(aggregation: str = "pairwise", honest_members: int = 1) -> str:
    """Say in one sentence whom the promise of a secure sum needs besides its honest clients.

    Empty for ``pairwise``, which needs nobody else. ``aggregation`` names a protocol: ``pairwise``, ``committee``,
    ``encrypted``, or that of another package. Of a committee, ``honest_members`` must not side with the server.
    """
    check_whole("honest_members", honest_members, 1)
    if aggregation == "committee":
        members = "one member" if honest_members == 1 else f"at least {honest_members} members"
        verb = "does" if honest_members == 1 else "do"
        return f"It also needs {members} of the committee that {verb} not side with the server."
    if aggregation == "encrypted":
        return "It holds even if the holder of the key sides with the server."
    if aggregation == "pairwise":
        return ""
    return (
        f"It also needs the aggregation protocol {aggregation!r} to hide all but the sum; that "
        "protocol comes from another package and was not reviewed with carefl-secure."
    )


def _against(trust: str, colluders: int) -> str:
    others = "and against the other clients and everyone who gets the adapter"
    if trust == "none":
        return f"the server, whatever it works with, {others}"
    if colluders == 0:
        return f"the server, as long as no client works with it, {others}"
    clients = "1 colluding client" if colluders == 1 else f"{colluders} colluding clients"
    return f"the server together with up to {clients}, {others}"
