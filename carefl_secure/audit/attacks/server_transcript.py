"""The server's own attack: everything it was sent, searched for one client's vector."""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.audit.attacks.transcript import (
    CHANCE,
    Replies,
    Weakness,
    asked_twice,
    judge,
    read_replies,
    residue_chance,
    uniform_chance,
)
from carefl_secure.audit.views import Attack, Finding, Heard, TranscriptView
from carefl_secure.errors import ProtocolError
from carefl_secure.federation.aggregation.encrypted import read_key
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import default_threshold
from carefl_secure.secagg.committee.messages import MemberAnswer, MemberKey, Opening, Submission
from carefl_secure.secagg.encrypted.messages import EncryptedUpload, OpenedSum
from carefl_secure.secagg.pairwise.messages import Advertisement, Answer, Upload

_UPLOADS = ("train.masked", "train.submit")
_SEEDS = 64
_LEAST_WORDS = 256
_PACKED = 0.9  # a ciphertext is as long as its entropy, so zlib gains nothing on it

_ALWAYS = {
    "more than a vector": "a reply to training with more than the masked upload",
    "unreadable": "a message that the protocol does not know",
}
_VECTORS = {
    "unmasked": "an upload whose words are not uniform",
    "mask reused": "two uploads whose sum or difference is not uniform: a mask cancels",
}
_CLIENT_KEYS = {
    "key repeated": "one public key advertised twice",
    "weak seed": "keys that follow from the run's seed or a small number",
    "survivor sets": "one round with two survivor sets, both signed",
    "both secrets": "shares of both secrets of one client",
}
KINDS: Mapping[str, Mapping[str, str]] = {
    "pairwise": {**_VECTORS, **_CLIENT_KEYS, **_ALWAYS},
    "committee": {
        **_VECTORS,
        "bare answer": "a member's sum of masks that is not uniform",
        "key repeated": "one key of a member announced twice",
        "weak seed": "a member's key that follows from the run's seed or a small number",
        "client lists": "one round in which members spoke for two lists of clients",
        "opened twice": "a member that opened two sums in one round",
        **_ALWAYS,
    },
    "encrypted": {
        "not encrypted": "an upload with structure, as no ciphertext has",
        "ciphertext repeated": "two uploads that are equal",
        "bare sum": "a decrypted sum that is not uniform: the peers' masks are off",
        "holder key repeated": "one key of the key holder used in two rounds",
        "opened twice": "a key holder that opened two sums in one round",
        **_CLIENT_KEYS,
        **_ALWAYS,
    },
}
"""What is looked for under each protocol, in words."""


class ServerEyes(Attack[TranscriptView, list[Weakness]]):
    """Tries to recover a client's vector from what the server was sent.

    It looks for uploads that are not uniform, alone and in pairs; for keys that repeat or that can be guessed from the
    run's seed; for two signed survivor sets in one round; for answers that give both secrets of a client away; and for
    replies that hold more than they should. With a committee or a key holder the same is asked of what these sent.
    """

    name = "server-view"
    adversary = "the server"
    view = TranscriptView

    def attack(self, view: TranscriptView) -> list[Weakness]:
        """Return every weakness found."""
        replies = read_replies(view.messages, view.aggregation, view.shape)
        checks = {
            "pairwise": (_plain, _clients_keys),
            "committee": (_plain, _committee),
            "encrypted": (_encrypted, _clients_keys),
        }
        found = [one for check in checks[view.aggregation] for one in check(view, replies)]
        return [*found, *_extra(view), *replies.unread]


def _plain(view: TranscriptView, replies: Replies) -> Iterator[Weakness]:
    vectors = {
        (heard.round, heard.client): upload.vector(view.shape)
        for heard, upload in (*replies.read[Upload], *replies.read[Submission])
    }
    if view.shape.dimension < _LEAST_WORDS:
        return
    for (number, client), vector in vectors.items():
        if uniform_chance(vector) < CHANCE:
            yield Weakness("unmasked", f"the upload of client {client} in round {number}")
    for a, b in itertools.combinations(vectors, 2):
        if a[0] != b[0] and a[1] != b[1]:
            continue
        x, y = vectors[a], vectors[b]
        if min(uniform_chance(x - y), uniform_chance(x + y)) < CHANCE:
            yield Weakness("mask reused", f"client {a[1]} in round {a[0]} and client {b[1]} in round {b[0]}")


def _repeated(kind: str, party: str, sent: Iterable[tuple[Heard, Hashable]], before: int = 0) -> Iterator[Weakness]:
    """Find values that were sent twice; ``before`` is the number of parties of other sorts."""
    seen: dict[Hashable, Heard] = {}
    for heard, value in sent:
        if value in seen:
            first = seen[value]
            yield Weakness(
                kind,
                f"{party} {first.client - before} in round {first.round}, then {party} "
                f"{heard.client - before} in round {heard.round}",
            )
        seen.setdefault(value, heard)


def _guessed(
    party: str, keys: Mapping[int, set[bytes]], seed: int, labels: Iterable[str], before: int = 0
) -> Iterator[Weakness]:
    """Replay the key derivation of tests from every likely seed."""
    for client, sent in keys.items():
        for guess in {seed, *range(_SEEDS)}:
            made = {_public(material, label) for material in (f"{guess}/{client}", str(guess)) for label in labels}
            # A hybrid key ends with its X25519 half.
            if any(key.endswith(public) for key in sent for public in made):
                yield Weakness("weak seed", f"{party} {client - before}, from the seed {guess}")
                break


def _public(material: str, label: str) -> bytes:
    secret = DeterministicKeySource(material.encode()).key(label)
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _clients_keys(view: TranscriptView, replies: Replies) -> Iterator[Weakness]:
    """Look through the clients' keys, what they signed and the shares that they gave out."""
    sent = replies.read[Advertisement]
    values = ((h, key) for h, a in sent for key in (a.encryption_key, a.mask_key, a.commitment))
    yield from _repeated("key repeated", "client", values)
    keys: dict[int, set[bytes]] = defaultdict(set)
    for heard, one in sent:
        keys[heard.client] |= {one.encryption_key, one.mask_key}
    yield from _guessed("client", keys, view.seed, ("mask key", "encryption key"))
    yield from _two_sets(view)
    given: dict[tuple[int, int], set[int]] = defaultdict(set)
    for heard, answer in replies.read[Answer]:
        for peer, (kind, _) in answer.shares.items():
            given[heard.round, peer].add(kind)
    for (number, peer), kinds in given.items():
        if len(kinds) > 1:
            yield Weakness("both secrets", f"client {peer} in round {number}")


def _two_sets(view: TranscriptView) -> Iterator[Weakness]:
    """Find rounds in which enough clients signed each of two different pairs of sets."""
    asked: dict[tuple[int, int], tuple[str, str]] = {}
    signers: dict[int, dict[tuple[str, str], set[int]]] = defaultdict(lambda: defaultdict(set))
    for message in view.messages:
        if message.action != "query.sign":
            continue
        place = message.round, message.client
        if not message.from_client:
            sets = (repr(message.fields.get("shared")), repr(message.fields.get("survivors")))
            if place in asked and asked[place] != sets:
                yield Weakness("survivor sets", f"client {place[1]} was asked twice in round {place[0]}")
            asked[place] = sets
        elif message.fields and place in asked:
            signers[message.round][asked[place]].add(message.client)
    for number, by_sets in signers.items():
        enough = [s for s in by_sets.values() if len(s) >= default_threshold(view.shape.clients)]
        if len(by_sets) > 1:
            quorum = "each" if len(enough) > 1 else "not by enough clients to open both"
            yield Weakness("survivor sets", f"round {number}: {len(by_sets)} sets, {quorum}")


def _committee(view: TranscriptView, replies: Replies) -> Iterator[Weakness]:
    """Look through what the members of a committee sent."""
    clients = view.shape.clients
    for heard, answer in replies.read[MemberAnswer]:
        if uniform_chance(answer.vector(view.shape)) < CHANCE:
            yield Weakness("bare answer", f"member {heard.client - clients} in round {heard.round}")
    # An answer given twice is found as that; the key on it is one key.
    announced = {
        (h.round, h.client, h.action, key.public): (h, key.public) for h, key in replies.read[MemberKey]
    }.values()
    yield from _repeated("key repeated", "member", announced, clients)
    keys: dict[int, set[bytes]] = defaultdict(set)
    for heard, public in announced:
        keys[heard.client].add(public)
    yield from _guessed("member", keys, view.seed, ("member X25519",), clients)
    listed: dict[int, set[bytes]] = defaultdict(set)
    for heard, opening in replies.read[Opening]:
        listed[heard.round].add(opening.listed)
    for number, digests in listed.items():
        if len(digests) > 1:
            yield Weakness("client lists", f"round {number}: {len(digests)} lists")
    for number, party in asked_twice(view.messages, "query.committee_answer"):
        yield Weakness("opened twice", f"member {party - clients} in round {number}")


def _encrypted(view: TranscriptView, replies: Replies) -> Iterator[Weakness]:
    """Look through the ciphertexts, and through what the key holder sent."""
    uploads = [(heard, b"".join(upload.chunks)) for heard, upload in replies.read[EncryptedUpload]]
    for heard, octets in uploads:
        if len(zlib.compress(octets, 1)) < _PACKED * len(octets):
            yield Weakness("not encrypted", f"the upload of client {heard.client} in round {heard.round}")
    yield from _repeated("ciphertext repeated", "client", uploads)
    keys = []
    for heard in view.messages:
        key = heard.fields.get("key")
        if heard.from_client and heard.action == "query.holder_key" and isinstance(key, bytes):
            try:
                keys.append((heard, read_key(key, view.cohort, view.plan, heard.round)[1]))
            except ProtocolError as error:
                yield Weakness("unreadable", f"a key in round {heard.round}: {error}")
    yield from _repeated("holder key repeated", "party", keys)
    for heard, opened in replies.read[OpenedSum]:
        if residue_chance(opened.numbers()) < CHANCE:
            yield Weakness("bare sum", f"round {heard.round}")
    for number, _ in asked_twice(view.messages, "query.open_sum"):
        yield Weakness("opened twice", f"round {number}")


def _uploads(view: TranscriptView) -> Iterator[Heard]:
    return (m for m in view.messages if m.from_client and m.action in _UPLOADS and m.fields)


def _extra(view: TranscriptView) -> Iterator[Weakness]:
    for message in _uploads(view):
        if set(message.fields) != {"upload"}:
            names = ", ".join(sorted(set(message.fields) - {"upload"})) or "no upload"
            yield Weakness("more than a vector", f"client {message.client} in round {message.round}: {names}")


def judge_transcript(view: TranscriptView, found: Iterable[Weakness]) -> list[Finding]:
    """Return one finding for each kind of weakness."""
    count = sum(1 for _ in _uploads(view))
    kinds = KINDS[view.aggregation]
    return judge(ServerEyes.name, kinds, found, who="The server", count=count, counted="uploads")
