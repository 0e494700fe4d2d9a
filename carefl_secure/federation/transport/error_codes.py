"""How a refusal is sent: a number and a fixed sentence, never a value.

A refusal is a fault of its sender for the round; a client that falls silent has only dropped out. Both reach the
server as Flower error replies, so the number distinguishes them. Numbers from 1000 on are ours: the exit code of the
error class plus 1000 from a client, 2000 from a committee member and 3000 from the key holder. The sentence is fixed
here, because the text of an error is written for the party's own log and may describe the client's data. What leaves a
site is sealed in addition: every cause that may depend on its records or its ledger gives one and the same refusal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flwr.app import Error

from carefl_secure import errors
from carefl_secure.errors import CareflError, ProtocolError
from carefl_secure.secagg import SenderError
from carefl_secure.strict_json import load_json

Party = Literal["client", "committee member", "key holder", "helper"]
"""Who can refuse."""

_BASES: dict[Party, int] = {"client": 1000, "committee member": 2000, "key holder": 3000, "helper": 4000}
LOST = 5
# Flower's own numbers for a message or a node that is simply gone (3, 4, 5) and for an app that stopped answering (8).
_DROPOUTS = frozenset({3, 4, LOST, 8})

_SENTENCES = load_json(Path(__file__).with_name("refusals.json").read_text("utf-8"))
_REASONS: dict[type[CareflError], str] = {getattr(errors, name): text for name, text in _SENTENCES["reasons"].items()}
# A message of another party that is invalid is refused with that party's index.
_SENDER, _SENDERS = 20_000, 1 << 16
# A clause of a site's policy has a number of its own, so that the submitter learns which.
_POLICY = 9000
_CLAUSES: dict[str, str] = _SENTENCES["clauses"]  # the order gives the numbers: add at the end
_CLAUSE_NAMES = tuple(_CLAUSES)

_CLASSES: dict[int, tuple[type[CareflError], Party]] = {
    base + kind.exit_code: (kind, party) for party, base in _BASES.items() for kind in _REASONS
}

# All that a site says of what it holds. These classes follow from public agreements alone; any
# other class, also one that is added later, is sealed.
_SEALED = Error(
    code=_BASES["client"] + errors.PrivateRefusalError.exit_code,
    reason=_REASONS[errors.PrivateRefusalError].format(party="client"),
)
_PUBLIC = (errors.ConfigError, errors.ModelError, errors.PolicyError, ProtocolError, errors.CohortError)


def refusal(error: CareflError, party: Party = "client") -> Error:
    """Return the Flower error that stands for a refusal.

    It holds the party's number plus the exit code, and the fixed sentence of the nearest known
    class (or of the clause of a site's policy); nothing of the error's own text.
    """
    if isinstance(error, errors.PolicyError) and error.clause in _CLAUSES:
        number = _POLICY + _CLAUSE_NAMES.index(error.clause)
        return Error(code=number, reason=_CLAUSES[error.clause])
    if isinstance(error, SenderError):
        reason = f"what client {error.sender} made for the {party} does not open or is invalid"
        return Error(code=_SENDER + error.sender, reason=reason)
    kind = next((kind for kind in type(error).__mro__ if kind in _REASONS), CareflError)
    return Error(code=_BASES[party] + kind.exit_code, reason=_REASONS[kind].format(party=party))


def seal(error: Error) -> Error:
    """Return what of a refusal may leave a site: itself, or the one refusal for private causes.

    Guarantees
    ----------
    Two refusals whose causes depend on records, subjects, labels, images, captions or the ledger have the same number
    and the same sentence, byte for byte. How long a refusal takes is not hidden.
    """
    public = error.code in _DROPOUTS or _POLICY <= error.code < _POLICY + len(_CLAUSES)
    public = public or _SENDER <= error.code < _SENDER + _SENDERS
    kind = _CLASSES.get(error.code, (CareflError,))[0]
    return error if public or kind in _PUBLIC else _SEALED


def is_dropout(error: Error) -> bool:
    """Tell whether an error reply only means that the party is gone."""
    return error.code in _DROPOUTS


def error_of_reply(error: Error, sender: str) -> CareflError:
    """Return the exception the server raises for an error reply that is not a dropout.

    The class named by the code; `EngineError` for a code that is not ours, which means a fault in
    the party's software. A text that came over the wire is never repeated: it could be anything.
    ``sender`` is what a person calls the node; which party the code names is the node's own claim.
    """
    if _POLICY <= error.code < _POLICY + len(_CLAUSES):
        clause = _CLAUSE_NAMES[error.code - _POLICY]
        return errors.PolicyError(f"{sender}: {_CLAUSES[clause]}", clause)
    if _SENDER <= error.code < _SENDER + _SENDERS:
        accused = error.code - _SENDER
        text = f"{sender}: what client {accused} made for it does not open or is invalid"
        return SenderError(ProtocolError(text), accused)
    if error.code not in _CLASSES:
        return errors.EngineError(
            f"{sender} failed with Flower code {error.code}, a fault, not a dropout: read its log"
        )
    kind, party = _CLASSES[error.code]
    return kind(f"{sender}: {_REASONS[kind].format(party=party)}")
