"""The server's own attack: everything it was sent, searched for one client's vector."""

from __future__ import annotations

import itertools
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.audit.attacks.transcript_checks import (
    KINDS_COMMITTEE,
    KINDS_ENCRYPT,
    Weakness,
    committee_weaknesses,
    encrypted_weaknesses,
    uniform_chance,
)
from carefl_secure.audit.views import Attack, Finding, Heard, TranscriptView
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg.pairwise.parameters import default_threshold

__all__ = ["KINDS", "ServerEyes", "Weakness", "judge_transcript", "uniform_chance"]

_HEADER = 16
_SIGNATURE = 64
_ADVERTISING = ("query.advertise", "query.sign", "query.advertise_prefetch")
_ENTRY = struct.Struct("<HB33s")
_SEEDS = 64
_CHANCE = 1e-12
_LEAST_WORDS = 256


KINDS: Mapping[str, str] = {
    "unmasked": "an upload whose words are not uniform",
    "mask reused": "two uploads whose sum or difference is not uniform: a mask cancels",
    "key repeated": "one public key advertised twice",
    "weak seed": "keys that follow from the run's seed or a small number",
    "survivor sets": "one round with two survivor sets, both signed",
    "both secrets": "shares of both secrets of one client",
    "more than a vector": "a reply to training with more than the masked upload",
}


_AMONG_PEERS: Mapping[str, str] = {
    kind: meaning for kind, meaning in KINDS.items() if kind not in ("unmasked", "mask reused")
}


def _kinds(view: TranscriptView) -> Mapping[str, str]:
    """Return the kinds of weakness to look for under the aggregation in use."""
    if view.aggregation == "committee":
        return KINDS_COMMITTEE
    if view.aggregation == "pairwise":
        return KINDS
    return {**KINDS_ENCRYPT, **_AMONG_PEERS}


class ServerEyes(Attack[TranscriptView, list[Weakness]]):
    """Tries to recover a client's vector from what the server was sent.

    It looks for uploads that are not uniform, alone and in pairs; for keys that repeat or that can
    be guessed from the run's seed; for two signed survivor sets in one round; for answers that give
    both secrets of a client away; and for replies that hold more than they should. With a committee
    or a key holder the same is asked of what these sent.
    """

    name: ClassVar[str] = "server-view"
    adversary: ClassVar[str] = "the server"
    view: ClassVar[type] = TranscriptView

    def attack(self, view: TranscriptView) -> list[Weakness]:
        """Return every weakness found."""
        if view.aggregation == "committee":
            return [*_plain(view), *committee_weaknesses(view), *_extra(view)]
        return [
            *(encrypted_weaknesses(view) if view.aggregation == "encrypted" else ()),
            *(_plain(view) if view.aggregation == "pairwise" else ()),
            *_repeated(view),
            *_guessed(view),
            *_two_sets(view),
            *_both_secrets(view),
            *_extra(view),
        ]


def _replies(view: TranscriptView, action: str) -> Iterator[Heard]:
    return (m for m in view.messages if m.from_client and m.action == action and m.fields)


def _uploads(view: TranscriptView) -> Iterator[Heard]:
    action = "train.submit" if view.aggregation == "committee" else "train.masked"
    return _replies(view, action)


def _octets(message: Heard, name: str) -> bytes:
    value = message.fields.get(name)
    return value if isinstance(value, bytes) else b""


def _plain(view: TranscriptView) -> Iterator[Weakness]:
    kind = np.dtype(np.uint16 if view.bits == 16 else np.uint32).newbyteorder("<")
    vectors: dict[tuple[int, int], npt.NDArray[np.unsignedinteger]] = {}
    for message in _uploads(view):
        words = _octets(message, "upload")[_HEADER:-_SIGNATURE]
        if view.aggregation == "committee":  # commitments and envelopes follow the words
            words = words[: view.dimension * kind.itemsize]
        if len(words) // kind.itemsize >= _LEAST_WORDS:
            vector = np.frombuffer(words[: len(words) // kind.itemsize * kind.itemsize], kind)
            vectors[message.round, message.client] = vector.astype(kind.newbyteorder("="))
    for (number, client), vector in vectors.items():
        if uniform_chance(vector) < _CHANCE:
            yield Weakness("unmasked", f"the upload of client {client} in round {number}")
    for a, b in itertools.combinations(vectors, 2):
        if a[0] != b[0] and a[1] != b[1]:
            continue
        x, y = vectors[a], vectors[b]
        if x.size != y.size:
            continue
        if min(uniform_chance(x - y), uniform_chance(x + y)) < _CHANCE:
            yield Weakness(
                "mask reused", f"client {a[1]} in round {a[0]} and client {b[1]} in round {b[0]}"
            )


def _keys(view: TranscriptView) -> Iterator[tuple[Heard, tuple[bytes, ...]]]:
    for message in (m for action in _ADVERTISING for m in _replies(view, action)):
        body = _octets(message, "message")[_HEADER:]
        if len(body) >= 96:
            yield message, (body[:32], body[32:64], body[64:96])


def _repeated(view: TranscriptView) -> Iterator[Weakness]:
    seen: dict[bytes, Heard] = {}
    for message, keys in _keys(view):
        for key in keys:
            if key in seen:
                first = seen[key]
                yield Weakness(
                    "key repeated",
                    f"client {first.client} in round {first.round}, then client {message.client} "
                    f"in round {message.round}",
                )
            seen.setdefault(key, message)


def _guessed(view: TranscriptView) -> Iterator[Weakness]:
    """Replay the key derivation of tests from every likely seed."""
    advertised: dict[int, set[bytes]] = defaultdict(set)
    for message, keys in _keys(view):
        advertised[message.client].update(keys[:2])
    for client, keys_of_client in advertised.items():
        for seed in {view.seed, *range(_SEEDS)}:
            if _first_keys(f"{seed}/{client}".encode()) & keys_of_client or (
                _first_keys(str(seed).encode()) & keys_of_client
            ):
                yield Weakness("weak seed", f"client {client}, from the seed {seed}")
                break


def _first_keys(seed: bytes) -> set[bytes]:
    source = DeterministicKeySource(seed)
    return {
        X25519PrivateKey.from_private_bytes(source.key(label)).public_key().public_bytes_raw()
        for label in ("mask key", "encryption key")
    }


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
                yield Weakness(
                    "survivor sets", f"client {place[1]} was asked twice in round {place[0]}"
                )
            asked[place] = sets
        elif message.fields and place in asked:
            signers[message.round][asked[place]].add(message.client)
    for number, by_sets in signers.items():
        enough = [s for s in by_sets.values() if len(s) >= default_threshold(view.clients)]
        if len(by_sets) > 1:
            quorum = "each" if len(enough) > 1 else "not by enough clients to open both"
            yield Weakness("survivor sets", f"round {number}: {len(by_sets)} sets, {quorum}")


def _both_secrets(view: TranscriptView) -> Iterator[Weakness]:
    told: dict[tuple[int, int], set[int]] = defaultdict(set)
    for message in _replies(view, "query.unmask"):
        body = _octets(message, "answer")[_HEADER:-_SIGNATURE]
        count = int.from_bytes(body[:2], "little")
        for peer, kind, _ in _ENTRY.iter_unpack(body[2 : 2 + count * _ENTRY.size]):
            told[message.round, peer].add(kind)
    for (number, peer), kinds in told.items():
        if len(kinds) > 1:
            yield Weakness("both secrets", f"client {peer} in round {number}")


def _extra(view: TranscriptView) -> Iterator[Weakness]:
    for message in _uploads(view):
        if set(message.fields) != {"upload"}:
            names = ", ".join(sorted(set(message.fields) - {"upload"})) or "no upload"
            yield Weakness(
                "more than a vector", f"client {message.client} in round {message.round}: {names}"
            )


def judge_transcript(view: TranscriptView, found: list[Weakness]) -> list[Finding]:
    """Return one finding per kind of weakness."""
    uploads = sum(1 for _ in _uploads(view))
    findings = []
    for kind, meaning in _kinds(view).items():
        places = [weakness.words for weakness in found if weakness.kind == kind]
        bad = bool(places) or not uploads
        shown = "; ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        words = (
            f"The server found {meaning}: {shown}."
            if places
            else f"Looked for {meaning}; found none in {uploads} uploads."
        )
        findings.append(
            Finding(
                ServerEyes.name,
                kind,
                "falsified" if bad else "passed",
                words,
                {"found": len(places), "uploads": uploads},
            )
        )
    return findings
