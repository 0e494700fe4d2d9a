"""The registry of local rules: what a client's optimizer makes of each gradient in local training.

To add one, write a class with a `step` method and name it in :data:`LOCAL_RULES`, or register a
Python entry point in the group ``carefl_secure.local_rules``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError

Vector = NDArray[np.float64]
ENTRY_POINTS = "carefl_secure.local_rules"
"""The entry point group of rules that other packages bring."""


class LocalRule(Protocol):
    """A client's optimizer for the steps of one round; made anew for each.

    Guarantees
    ----------
    A rule needs no proof of its own: what leaves the client is bounded afterwards (unit client), or
    no privacy is promised (unit none). Under trust none only ``sgd`` is accepted, because the noise
    that the plan reports is computed for it.
    """

    def step(self, gradient: Vector) -> Vector:
        """Return the direction, float64, shape [D], that the learning rate is multiplied by.

        ``gradient`` is of the local objective, regularisers included.
        """


class Sgd:
    """Plain stochastic gradient descent."""

    def step(self, gradient: Vector) -> Vector:
        """Return the gradient."""
        return gradient


LOCAL_RULES: Mapping[str, Callable[[], LocalRule]] = {"sgd": Sgd}
"""Rules of the package by name."""


def find_rule(name: str) -> Callable[[], LocalRule]:
    """Return what makes a rule, by its name in the package or among the entry points.

    Raises ConfigError when no package or several bring it, or it cannot be imported.
    """
    if name in LOCAL_RULES:
        return LOCAL_RULES[name]
    found = entry_points(group=ENTRY_POINTS)
    named = [one for one in found if one.name == name]
    if len(named) != 1:
        known = ", ".join([*LOCAL_RULES, *sorted({one.name for one in found})])
        raise ConfigError(
            f"federation.local_rule is {name!r}, which "
            f"{'several packages bring' if named else 'is unknown'}; choose one of {known}"
        )
    try:
        found_rule: Callable[[], LocalRule] = named[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"federation.local_rule={name} comes from {named[0].value}, which cannot be imported: "
            f"{error}; repair that package"
        ) from error
    return found_rule
