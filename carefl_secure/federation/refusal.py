"""How a client's refusal travels: a number and a fixed sentence, never a value.

A client that refuses must stop the run; a client that falls silent must not. Both reach the server
as Flower error replies, so the number tells them apart. Numbers from 1000 on are ours: 1000 plus
the exit code of the error class. The sentence that goes with a number is fixed here, because the
text of an error is written for the client's own log and may describe the client's data.
"""

from __future__ import annotations

from flwr.app import Error

from carefl_secure.errors import (
    AdapterUnmovedError,
    BudgetExceededError,
    CareflError,
    CohortError,
    ConfigError,
    DataError,
    EngineError,
    LabelError,
    LedgerError,
    ModelError,
    NonFiniteError,
    PrivacyError,
    ProtocolError,
    RunError,
)

__all__ = ["LOST", "error_of_reply", "is_dropout", "refusal"]

BASE = 1000
LOST = 5
# Flower's own numbers for a message or a node that is simply gone (3, 4, 5) and for an app that
# stopped answering (8).
_DROPOUTS = frozenset({3, 4, LOST, 8})

_REASONS: dict[type[CareflError], str] = {
    CareflError: "the client refused; its own log says why",
    ConfigError: "the client's settings contradict the plan; compare the configurations",
    DataError: "the client cannot read its records; its own log says which",
    LabelError: "the client holds a label outside the agreed label space",
    ModelError: "the client's model is not the agreed one; compare the hashes of the base model",
    AdapterUnmovedError: "the client's adapter did not move",
    NonFiniteError: (
        "the client met NaN or infinity and sent nothing; lower the learning rate "
        "or check the model's precision"
    ),
    BudgetExceededError: (
        "the client's ledger has no budget left for this round; stop here "
        "or agree on a larger epsilon"
    ),
    PrivacyError: "a condition of the privacy guarantee does not hold on the client",
    LedgerError: "the client cannot trust or write its ledger, so it sent nothing",
    ProtocolError: (
        "the client refused a protocol message; keys, roster, plan or survivor set "
        "are not what it expects"
    ),
    CohortError: "too few clients take part for this client's floor",
    RunError: "the client's run folder cannot be used",
    EngineError: "the client's engine failed",
}
_CLASSES = {BASE + kind.exit_code: kind for kind in _REASONS}


def refusal(error: CareflError) -> Error:
    """Return the Flower error that stands for a refusal.

    Parameters
    ----------
    error : CareflError
        What the client raised.

    Returns
    -------
    flwr.app.Error
        Code ``1000 + exit_code`` and the fixed sentence of the nearest known class; nothing of the
        error's own text.
    """
    for kind in type(error).__mro__:
        if kind in _REASONS:
            return Error(code=BASE + kind.exit_code, reason=_REASONS[kind])
    return Error(code=BASE + CareflError.exit_code, reason=_REASONS[CareflError])


def is_dropout(error: Error) -> bool:
    """Tell whether an error reply only means that the client is gone."""
    return error.code in _DROPOUTS


def error_of_reply(error: Error, node: int) -> CareflError:
    """Return the exception the server raises for an error reply that is not a dropout.

    Parameters
    ----------
    error : flwr.app.Error
        Error of the reply. A text that came over the wire is never repeated: it could be anything.
    node : int
        Flower's number of the node.

    Returns
    -------
    CareflError
        The class named by the code; `EngineError` for a code that is not ours, which means a fault
        in the client's software.
    """
    kind = _CLASSES.get(error.code)
    if kind is None:
        return EngineError(
            f"node {node} failed with Flower code {error.code}; "
            "this is a fault, not a dropout: read the node's log"
        )
    return kind(f"node {node}: {_REASONS[kind]}")
