"""Attacks on messages: what they share, and what a committee member or the key holder can learn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, kstest

from carefl_secure.audit.views import Attack, Finding, Heard, HolderView, MemberView
from carefl_secure.errors import ProtocolError
from carefl_secure.secagg.committee.messages import Listing, MemberAnswer, MemberKey, Opening, Submission
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
    """The ``kind`` of attack that found a client's vector or weakened its masking; ``words`` say where."""

    kind: str
    words: str


@dataclass(frozen=True)
class Replies:
    """What parties sent, by type of message, and what no codec reads."""

    read: Mapping[type[Message], list[tuple[Heard, Any]]]
    unread: tuple[Weakness, ...]


def read_replies(messages: Iterable[Heard], aggregation: str, shape: Any) -> Replies:
    """Read what clients and helpers of one protocol sent; ``shape`` is an agreement, which gives the lengths."""
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
    """Return the p-value of a chi-squared test that the four leading bits are uniform."""
    cells = np.bincount((words >> np.array(words.itemsize * 8 - 4, words.dtype)), minlength=16)
    expected = words.size / 16
    return float(chi2.sf(np.sum((cells - expected) ** 2) / expected, 15))


def residue_chance(numbers: npt.NDArray[np.uint64]) -> float:
    """Return the p-value that numbers are uniform below an unknown modulus; unmasked sums lie near both ends."""
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
    """Return a finding per weakness (``kinds``: in words); ``who`` looked through ``count`` of what is ``counted``."""
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


_MEMBER_KINDS = {
    "more than a list": "a message to a member that is more than digests, seeds and signatures",
    "short lists": "a list with fewer clients than min_survivors",
    "answers of a member": "two sums of masks of one member in one round",
}
_HOLDER_KINDS = {
    "bare sum at the holder": "a decrypted sum that is not uniform: the peers' masks are off",
    "sums of the holder": "two sums opened with one key",
    "messages to the holder": "a message to the key holder that is not the sum",
    "unreadable": "an answer of the key holder that the protocol does not know",
}
_HOLDER_FIELDS: dict[str, set[str]] = {
    "query.role": {"ask"},
    "query.holder_key": {"round", "plan"},
    "query.open_sum": {"model", "keys", "last", "uploads", "uploads.peers"},
}


class MemberEyes(Attack[MemberView, list[Weakness]]):
    """Searches what one member was sent for more than lists, and for answers given twice."""

    name = "helper-view"
    adversary = "one member of the committee"
    view = MemberView

    def attack(self, view: MemberView) -> list[Weakness]:
        """Return every weakness found."""
        found = []
        for message in view.messages:
            octets = message.fields.get("listing")
            if message.from_client or octets is None:
                continue
            where = f"round {message.round}"
            try:
                count = len(Listing.decode(octets, view.shape).clients)  # type: ignore[arg-type]
            except ProtocolError as error:
                found.append(Weakness("more than a list", f"{where}: {error}"))
                continue
            if count < view.shape.min_survivors:
                found.append(Weakness("short lists", f"{where}: {count} clients"))
        for number, _ in asked_twice(view.messages, "query.committee_answer"):
            found.append(Weakness("answers of a member", f"round {number}"))
        return found


class HolderEyes(Attack[HolderView, list[Weakness]]):
    """Inspects the decrypted sums, which should be uniform, and all else the holder received."""

    name = "helper-view"
    adversary = "the key holder"
    view = HolderView

    def attack(self, view: HolderView) -> list[Weakness]:
        """Return every weakness found."""
        replies = read_replies(view.messages, "encrypted", view.shape)
        found = [
            Weakness("bare sum at the holder", f"round {heard.round}: not uniform")
            for heard, opened in replies.read[OpenedSum]
            if residue_chance(opened.numbers()) < CHANCE
        ]
        for message in view.messages:
            extra = set(message.fields) - _HOLDER_FIELDS.get(message.action, set())
            if not message.from_client and extra:
                where = f"round {message.round}: {', '.join(sorted(extra))}"
                found.append(Weakness("messages to the holder", where))
        for number, _ in asked_twice(view.messages, "query.open_sum"):
            found.append(Weakness("sums of the holder", f"round {number}"))
        return [*found, *replies.unread]


def judge_helpers(members: Sequence[MemberView], holder: HolderView | None) -> list[Finding]:
    """Let every helper attack with its own view, and return the findings."""
    if not members and holder is None:
        words = "Among peers nobody helps to open a sum, so there is no helper to look through."
        return [MemberEyes.skip("helpers", words)]
    kinds = _MEMBER_KINDS if holder is None else _HOLDER_KINDS
    found = [weakness for view in members for weakness in MemberEyes()(view)]
    count = sum(len(view.messages) for view in members)
    if holder is not None:
        found += HolderEyes()(holder)
        count += len(holder.messages)
    return judge(MemberEyes.name, kinds, found, who="A helper", count=count, counted="messages")
