"""What a committee member or the key holder can learn from the messages that it handles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from carefl_secure.audit.attacks.transcript_checks import Weakness, asked_twice, opened_chance
from carefl_secure.audit.views import Attack, Finding, Heard, HolderView, MemberView

__all__ = ["HolderEyes", "MemberEyes", "judge_helpers"]

_HEADER = 16
_SIGNATURE = 64
_CHANCE = 1e-12
_ENTRY_MOST = 4096  # digests, commitments and one sealed seed; with spares some shares of seeds

MEMBER_KINDS = {
    "vectors at a member": "a message to a member that is long enough to hold clients' vectors",
    "lists below the floor": "a list with fewer clients than the floor",
    "answers of a member": "two sums of masks of one member in one round",
}
HOLDER_KINDS = {
    "bare sum at the holder": "a decrypted sum that is not uniform: the peers' masks are off",
    "sums of the holder": "two sums opened with one key",
    "messages to the holder": "a message to the key holder that is not the sum",
}


class MemberEyes(Attack[MemberView, list[Weakness]]):
    """Searches what one member was sent for clients' vectors, and for answers given twice."""

    name: ClassVar[str] = "helper-view"
    adversary: ClassVar[str] = "one member of the committee"
    view: ClassVar[type] = MemberView

    def attack(self, view: MemberView) -> list[Weakness]:
        """Return every weakness found."""
        found = []
        for message in view.messages:
            listing = message.fields.get("listing")
            if message.from_client or not isinstance(listing, bytes):
                continue
            count = int.from_bytes(listing[_HEADER : _HEADER + 2], "little")
            if count < view.floor:
                found.append(_weak("lists below the floor", message, f"{count} clients"))
            entry = (len(listing) - _HEADER - 2) / max(1, count)
            if entry > _ENTRY_MOST and entry >= view.vector_bytes:
                found.append(_weak("vectors at a member", message, f"{entry:.0f} bytes a client"))
        for number, _ in asked_twice(view.messages, "query.committee_answer"):
            found.append(Weakness("answers of a member", f"round {number}"))
        return found


class HolderEyes(Attack[HolderView, list[Weakness]]):
    """Inspects the decrypted sums, which should be uniform, and all else the holder received."""

    name: ClassVar[str] = "helper-view"
    adversary: ClassVar[str] = "the key holder"
    view: ClassVar[type] = HolderView

    def attack(self, view: HolderView) -> list[Weakness]:
        """Return every weakness found."""
        found = []
        for message in view.messages:
            opened = message.fields.get("opened")
            bare = (
                message.from_client
                and isinstance(opened, bytes)
                and opened_chance(opened[_HEADER:-_SIGNATURE]) < _CHANCE
            )
            if bare:
                found.append(_weak("bare sum at the holder", message, "not uniform"))
            extra = set(message.fields) - _HOLDER_FIELDS.get(message.action, set())
            if not message.from_client and extra:
                found.append(_weak("messages to the holder", message, ", ".join(sorted(extra))))
        for number, _ in asked_twice(view.messages, "query.open_sum"):
            found.append(Weakness("sums of the holder", f"round {number}"))
        return found


_HOLDER_FIELDS: dict[str, set[str]] = {
    "query.role": {"ask"},
    "query.holder_key": {"round", "plan"},
    "query.open_sum": {"model", "sum"},
}


def _weak(kind: str, message: Heard, words: str) -> Weakness:
    return Weakness(kind, f"round {message.round}: {words}")


def judge_helpers(members: Sequence[MemberView], holder: HolderView | None) -> list[Finding]:
    """Let every helper attack with its own view, and return the findings."""
    kinds: dict[str, str] = {}
    found: list[Weakness] = []
    if members:
        kinds |= MEMBER_KINDS
        found += [weakness for view in members for weakness in MemberEyes()(view)]
    if holder is not None:
        kinds |= HOLDER_KINDS
        found += HolderEyes()(holder)
    if not kinds:
        words = "Among peers nobody helps to open a sum, so there is no helper to look through."
        return [Finding(MemberEyes.name, "helpers", "skipped", words, {})]
    findings = []
    messages = sum(len(view.messages) for view in members) + (
        0 if holder is None else len(holder.messages)
    )
    for kind, meaning in kinds.items():
        places = [weakness.words for weakness in found if weakness.kind == kind]
        bad = bool(places) or not messages
        words = (
            f"A helper found {meaning}: {'; '.join(places[:3])}."
            if places
            else f"Looked for {meaning}; found none in {messages} messages."
        )
        findings.append(
            Finding(
                MemberEyes.name,
                kind,
                "falsified" if bad else "passed",
                words,
                {"found": len(places), "messages": messages},
            )
        )
    return findings
