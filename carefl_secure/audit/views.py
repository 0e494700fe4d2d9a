"""What each adversary sees, and attacks that cannot be handed anything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from carefl_secure.errors import PrivacyError

__all__ = [
    "Attack",
    "Finding",
    "Heard",
    "HolderView",
    "MemberView",
    "ReleaseView",
    "TranscriptView",
    "Verdict",
]

Verdict = Literal["passed", "falsified", "measured", "skipped"]
"""``measured`` proves nothing either way; ``skipped``: nothing of the kind is promised."""

Figure = float | int | str | bool | None
V = TypeVar("V")
E = TypeVar("E")


@dataclass(frozen=True)
class Finding:
    """What one attack came to.

    Parameters
    ----------
    attack : str
        Name of the attack.
    check : str
        What was tried.
    verdict : {"passed", "falsified", "measured", "skipped"}
    words : str
        One sentence for a person.
    figures : mapping
        The numbers behind it.
    """

    attack: str
    check: str
    verdict: Verdict
    words: str
    figures: Mapping[str, Figure]


class Attack(ABC, Generic[V, E]):
    """One attack: a pure function of what its adversary sees.

    Whether it succeeded is judged elsewhere, by somebody who knows the truth; the truth is in no
    view.

    Attributes
    ----------
    name : str
        As threat models name it.
    adversary : str
        Whose eyes it uses, in words.
    view : type
        The one class of view that it accepts.
    """

    name: ClassVar[str]
    adversary: ClassVar[str]
    view: ClassVar[type]

    def __call__(self, view: V) -> E:
        """Attack.

        Raises
        ------
        PrivacyError
            If handed another adversary's view: its result would be a statement about nobody.
        """
        if type(view) is not self.view:
            raise PrivacyError(
                f"the attack {self.name!r} is one of {self.adversary} and sees a "
                f"{self.view.__name__}, not a {type(view).__name__}"
            )
        return self.attack(view)

    @abstractmethod
    def attack(self, view: V) -> E:
        """Do the work on a view that was checked."""


@dataclass(frozen=True)
class Heard:
    """One message on the wire between the server and a client.

    Parameters
    ----------
    round : int
    client : int
        Index of the party at the other end: clients first, then helpers.
    from_client : bool
        Direction.
    action : str
        Such as ``train.masked``.
    fields : mapping
        Integers, bytes, and lists of them, by name.
    """

    round: int
    client: int
    from_client: bool
    action: str
    fields: Mapping[str, object]


@dataclass(frozen=True)
class TranscriptView:
    """What the server sees of a run: every message, and what is public anyway.

    Parameters
    ----------
    messages : tuple of Heard
        In order.
    clients : int
    bits : int
        Word size of the uploads.
    seed : int
        The run's seed, which stands in its configuration and is no secret.
    aggregation : {"pairwise", "committee", "encrypted"}
        The way of summing.
    dimension : int
        Words in an upload.
    """

    messages: tuple[Heard, ...]
    clients: int
    bits: int
    seed: int
    aggregation: str = "pairwise"
    dimension: int = 0


@dataclass(frozen=True)
class MemberView:
    """What one member of a committee sees: the messages to it and from it.

    Parameters
    ----------
    messages : tuple of Heard
    floor : int
        Fewest clients that a list may have.
    vector_bytes : int
        Length of one client's masked vector.
    """

    messages: tuple[Heard, ...]
    floor: int
    vector_bytes: int


@dataclass(frozen=True)
class HolderView:
    """What the holder of the decryption key sees: the messages to it and from it.

    Parameters
    ----------
    messages : tuple of Heard
    """

    messages: tuple[Heard, ...]


@dataclass(frozen=True)
class ReleaseView:
    """What everybody in the run sees: the opened sum of each round, and the agreed plan.

    Parameters
    ----------
    sums : ndarray of float64, shape [rounds, D]
        In units of the clipping norm.
    noise : ndarray of float64, shape [rounds]
        Standard deviation per coordinate that the plan puts into each sum, same unit.
    sample_rate : float
    coordinates : ndarray of int64, shape [canaries]
        Where each possible canary would show: the attacker made them.
    """

    sums: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]
    sample_rate: float
    coordinates: npt.NDArray[np.int64]
