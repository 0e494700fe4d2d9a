"""What attacks on messages share: reading them with the protocols' codecs, tests, and findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, kstest

from carefl_secure.audit.views import Finding, Heard
from carefl_secure.errors import ProtocolError
from carefl_secure.secagg.committee.messages import MemberAnswer, MemberKey, Opening, Submission
from carefl_secure.secagg.encrypted.messages import EncryptedUpload, OpenedSum
from carefl_secure.secagg.pairwise.messages import Advertisement, Answer, Upload
from carefl_secure.secagg.primitives.framing import Message

CHANCE = 1e-12
"""A p-value below this is a finding: no sound run meets it."""

Codecs = Mapping[tuple[str, str], type[Message]]
_PAIRWISE: Codecs = {
    ("query.advertise", "message"): Advertisement,
    ("query.advertise_prefetch", "message"): Advertisement,
    ("query.sign", "message"): Advertisement,
    ("query.unmask", "answer"): Answer,
}
_CODECS: Mapping[str, Codecs] = {
    "pairwise": {**_PAIRWISE, ("train.masked", "upload"): Upload},
    "encrypted": {**_PAIRWISE, ("train.masked", "upload"): EncryptedUpload, ("query.open_sum", "opened"): OpenedSum},
    "committee": {
        ("query.committee_announce", "announcement"): MemberKey,
        ("query.committee_announce_prefetch", "announcement"): MemberKey,
        ("train.submit", "upload"): Submission,
        ("query.committee_open", "opening"): Opening,
        ("query.committee_answer", "answer"): MemberAnswer,
        ("query.committee_answer", "announcement"): MemberKey,
    },
}


@dataclass(frozen=True)
class Weakness:
    """Something in a transcript that reveals a client's vector or weakens its masking.

    ``kind`` names the attack that worked, ``words`` say where, without any secret.
    """

    kind: str
    words: str


@dataclass(frozen=True)
class Replies:
    """What parties sent, by type of message, and what no codec reads."""

    read: Mapping[type[Message], list[tuple[Heard, Any]]]
    unread: tuple[Weakness, ...]


def read_replies(messages: Iterable[Heard], aggregation: str, shape: Any) -> Replies:
    """Read what the clients and helpers of one protocol sent.

    ``shape`` is an agreement of a round, which the lengths of its messages follow from.
    """
    read: dict[type[Message], list[tuple[Heard, Any]]] = defaultdict(list)
    unread = []
    for heard in messages:
        for name, octets in heard.fields.items() if heard.from_client else ():
            codec = _CODECS[aggregation].get((heard.action, name))
            if codec is None:
                continue
            try:
                read[codec].append((heard, codec.decode(octets, shape)))  # type: ignore[arg-type]
            except ProtocolError as error:
                where = f"{heard.action} of party {heard.client} in round {heard.round}"
                unread.append(Weakness("unreadable", f"{where}: {error}"))
    return Replies(read, tuple(unread))


def uniform_chance(words: npt.NDArray[np.unsignedinteger]) -> float:
    """Return the p-value of a chi-squared test that the four leading bits are uniform.

    A vector of small signed integers fills only the lowest and the highest of the 16 cells.
    """
    cells = np.bincount((words >> np.array(words.itemsize * 8 - 4, words.dtype)), minlength=16)
    expected = words.size / 16
    return float(chi2.sf(np.sum((cells - expected) ** 2) / expected, 15))


def residue_chance(numbers: npt.NDArray[np.uint64]) -> float:
    """Return the p-value that numbers are uniform below an unknown modulus.

    Sums without masks are small numbers packed next to each other: their leading parts lie near
    both ends of the range and nowhere else.
    """
    top = float(numbers.max())
    return float(kstest(numbers.astype(np.float64) / top, "uniform").pvalue) if top > 0 else 0.0


def asked_twice(messages: Iterable[Heard], action: str) -> Iterator[tuple[int, int]]:
    """Yield round and party wherever one kind of answer was given twice."""
    seen: set[tuple[int, int]] = set()
    for message in messages:
        if message.from_client and message.action == action and message.fields:
            place = message.round, message.client
            if place in seen:
                yield place
            seen.add(place)


def judge(
    attack: str, kinds: Mapping[str, str], found: Iterable[Weakness], *, who: str, count: int, counted: str
) -> list[Finding]:
    """Return one finding for each kind of weakness; nothing to look at is no good news.

    ``kinds`` says in words what each kind is; ``who`` looked through ``count`` of what is ``counted``.
    """
    places: dict[str, list[str]] = {kind: [] for kind in kinds}
    for weakness in found:
        places[weakness.kind].append(weakness.words)
    findings = []
    for kind, where in places.items():
        shown = "; ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
        words = (
            f"{who} found {kinds[kind]}: {shown}."
            if where
            else f"Looked for {kinds[kind]}; found none in {count} {counted}."
        )
        verdict = "passed" if count and not where else "falsified"
        figures = {"found": len(where), counted: count}
        findings.append(Finding(attack, kind, verdict, words, figures))  # type: ignore[arg-type]
    return findings
