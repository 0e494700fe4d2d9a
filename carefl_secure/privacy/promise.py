"""The privacy promise in plain words, for people whose records these are."""

from __future__ import annotations

import math

from carefl_secure.errors import ConfigError

__all__ = ["promise_text", "verdict"]

_STRONG = 1.0
_REASONABLE = 10.0

_UNITS = {
    "record": "any one record (an image with its text and labels)",
    "client": "everything that any one client holds",
}
_NEIGHBOURS = {
    "record": "one record more or less at one client",
    "client": "one client more or less",
}
_OPEN = (
    "Not protected: the label space, the number of records per client as declared, and the public "
    "split. "
)
_REPEATS = (
    "A person with several records is protected for each of them, not for all of them together."
)


def verdict(epsilon: float) -> str:
    """Name the strength of an epsilon.

    Parameters
    ----------
    epsilon : float
        In nats, not below 0.

    Returns
    -------
    str
        ``"strong"`` up to 1, ``"reasonable, not strong"`` up to 10, ``"weak"`` above.

    Raises
    ------
    ConfigError
        ``epsilon`` is negative or NaN.

    References
    ----------
    Tiers of Ponomareva et al., "How to DP-fy ML", arXiv 2303.00654, section 5.2.
    """
    if not epsilon >= 0.0:
        raise ConfigError(f"epsilon is {epsilon}; an accountant never gives less than 0")
    if epsilon <= _STRONG:
        return "strong"
    return "reasonable, not strong" if epsilon <= _REASONABLE else "weak"


def promise_text(*, unit: str, trust: str, epsilon: float, delta: float, colluders: int) -> str:
    """Write the promise.

    Parameters
    ----------
    unit : {"record", "client", "none"}
        What is protected.
    trust : {"secagg", "none"}
        Whether the noise is shared under a secure sum.
    epsilon, delta : float
        The bound, as the accountant found it.
    colluders : int
        How many clients may work with the server.

    Returns
    -------
    str
        Some sentences on one line.

    Raises
    ------
    ConfigError
        ``epsilon`` is negative or NaN.
    """
    strength = verdict(epsilon)
    if unit == "none":
        return (
            "Nothing is protected: no noise is added, so the trained adapter"
            + (" and each summed update" if trust == "secagg" else " and every client's update")
            + " may give away single records and persons. No epsilon holds for this run."
        )
    if not math.isfinite(epsilon):
        return (
            "Nothing is promised: no finite epsilon could be proved for this run. Treat every "
            "record as disclosed."
        )
    shown = _up(epsilon)
    return (
        f"Protected is {_UNITS[unit]}: adding or removing it ({_NEIGHBOURS[unit]}) changes the "
        f"probability of anything that can be seen by a factor of at most e^{shown}, except "
        f"with probability {delta:g} (epsilon {shown}, delta {delta:g}, add-or-remove-one; "
        f"{strength}). This holds against {_against(trust, colluders)}. "
        + _OPEN
        + (_REPEATS if unit == "record" else "")
    ).rstrip()


def _up(epsilon: float) -> str:
    """Show three decimals, never less than the value."""
    return f"{math.ceil(epsilon * 1000.0) / 1000.0:.3f}".rstrip("0").rstrip(".")


def _against(trust: str, colluders: int) -> str:
    others = "and against the other clients and everyone who gets the adapter"
    if trust == "none":
        return f"the server, whatever it works with, {others}"
    if colluders == 0:
        return f"the server, as long as no client works with it, {others}"
    clients = "1 colluding client" if colluders == 1 else f"{colluders} colluding clients"
    return f"the server together with up to {clients}, {others}"
