"""What a committee member or the key holder can learn from the messages that it handles."""

from __future__ import annotations

from collections.abc import Sequence

from carefl_secure.audit.attacks.transcript import CHANCE, Weakness, asked_twice, judge, read_replies, residue_chance
from carefl_secure.audit.views import Attack, Finding, HolderView, MemberView
from carefl_secure.errors import ProtocolError
from carefl_secure.secagg.committee.messages import Listing
from carefl_secure.secagg.encrypted.messages import OpenedSum

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
