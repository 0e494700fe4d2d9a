"""Every error that a person can meet, and its exit code on the command line."""

from __future__ import annotations


class CareflError(Exception):
    """Base of all errors raised on purpose; its text says what to do next."""

    exit_code = 1


class ConfigError(CareflError):
    """A setting is unknown, out of range, or contradicts another."""

    exit_code = 2


class DataError(CareflError):
    """A corpus is missing, empty, or holds something that cannot be read."""

    exit_code = 10


class LabelError(DataError):
    """A label is not in the label space."""

    exit_code = 11


class ModelError(CareflError):
    """A base model or adapter cannot be loaded, or is not what was agreed."""

    exit_code = 12


class AdapterUnmovedError(ModelError):
    """Training did not change the adapter."""

    exit_code = 13


class NonFiniteError(CareflError):
    """A loss, gradient or vector holds NaN or infinity; nothing was released."""

    exit_code = 20


class BudgetExceededError(CareflError):
    """The step asked for would spend more privacy than is allowed."""

    exit_code = 21


class PrivacyError(CareflError):
    """A condition that the privacy guarantee rests on does not hold."""

    exit_code = 22


class LedgerError(CareflError):
    """A ledger was changed, cut, or cannot be written."""

    exit_code = 23


class PolicyError(CareflError):
    """A site's own policy does not allow the run.

    ``text`` is for the site's own log; ``clause``, the part of the policy, selects the sentence that is sent back.
    """

    exit_code = 24

    def __init__(self, text: str, clause: str = "other") -> None:
        super().__init__(text)
        self.clause = clause


class PrivateRefusalError(CareflError):
    """A site refused for a reason that it keeps to itself: its records or its ledger."""

    exit_code = 25


class UnconfirmedError(CareflError):
    """A run is forecast to be nearly all noise, and nobody confirmed it; nothing was spent."""

    exit_code = 26


class ProtocolError(CareflError):
    """A message of the secure sum was refused."""

    exit_code = 30


class CohortError(ProtocolError):
    """Fewer clients take part than min_survivors; nothing was released."""

    exit_code = 31


class RunError(CareflError):
    """A run folder is missing, incomplete, or belongs to another run."""

    exit_code = 40


class EngineError(CareflError):
    """The federation engine failed outside the protocol."""

    exit_code = 41


class OutputError(CareflError):
    """Standard output cannot be written."""

    exit_code = 42
