"""Checks of the server's view of the messages of a committee or of a key holder."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy.stats import chi2, kstest

from carefl_secure.audit.views import Heard, TranscriptView
from carefl_secure.noise import DeterministicKeySource

__all__ = [
    "KINDS_COMMITTEE",
    "KINDS_ENCRYPT",
    "Weakness",
    "asked_twice",
    "committee_weaknesses",
    "encrypted_weaknesses",
    "opened_chance",
    "residue_chance",
    "uniform_chance",
]

_HEADER = 16
_SIGNATURE = 64
_HASH = 32
_CURVE = 32  # the last bytes of a member's public key are its X25519 half
_SEEDS = 64
_CHANCE = 1e-12
_PACKED = 0.9  # a ciphertext is as long as its entropy, so zlib gains nothing on it


@dataclass(frozen=True)
class Weakness:
    """Something in a transcript that reveals a client's vector or weakens its masking.

    ``kind`` names the attack that worked, ``words`` say where, without any secret.
    """

    kind: str
    words: str


KINDS_COMMITTEE: Mapping[str, str] = {
    "unmasked": "an upload whose words are not uniform",
    "mask reused": "two uploads whose sum or difference is not uniform: a mask cancels",
    "bare answer": "a member's sum of masks that is not uniform",
    "key repeated": "one key of a member announced twice",
    "weak seed": "a member's key that follows from the run's seed or a small number",
    "client lists": "one round in which members spoke for two lists of clients",
    "opened twice": "a member that opened two sums in one round",
    "more than a vector": "a reply to training with more than the masked upload",
}
KINDS_ENCRYPT: Mapping[str, str] = {
    "not encrypted": "an upload with structure, as no ciphertext has",
    "ciphertext repeated": "two uploads that are equal",
    "bare sum": "a decrypted sum that is not uniform: the peers' masks are off",
    "holder key repeated": "one key of the key holder used in two rounds",
    "opened twice": "a key holder that opened two sums in one round",
}


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


def opened_chance(octets: bytes) -> float:
    """Return the p-value that what the key holder decrypted still has masks in it."""
    return residue_chance(np.frombuffer(octets, "<u8").astype(np.uint64))


def _from(view: TranscriptView, action: str, field: str = "") -> Iterator[tuple[Heard, bytes]]:
    """Yield the good replies of one kind with their only bytes, or those of one field."""
    for message in view.messages:
        if message.from_client and message.action == action and message.fields:
            fields = message.fields.items()
            octets = [v for name, v in fields if isinstance(v, bytes) and field in ("", name)]
            if octets:
                yield message, max(octets, key=len)


def _announced(view: TranscriptView) -> Iterator[tuple[Heard, bytes]]:
    """Yield the members' keys, made in their round or prefetched."""
    yield from _from(view, "query.committee_announce", "announcement")
    yield from _from(view, "query.committee_announce_prefetch", "announcement")
    carried = _from(view, "query.committee_answer", "announcement")
    # An answer given twice is found as that; the key on it is one key.
    yield from {(m.round, m.client, octets): (m, octets) for m, octets in carried}.values()


def asked_twice(messages: tuple[Heard, ...], action: str) -> Iterator[tuple[int, int]]:
    """Yield round and party wherever one kind of answer was given twice."""
    seen: set[tuple[int, int]] = set()
    for message in messages:
        if message.from_client and message.action == action and message.fields:
            place = message.round, message.client
            if place in seen:
                yield place
            seen.add(place)


def _repeated(sent: Iterable[tuple[Heard, bytes]], kind: str) -> Iterator[Weakness]:
    seen: dict[bytes, Heard] = {}
    for message, octets in sent:
        body = octets[_HEADER:-_SIGNATURE]
        if body in seen:
            first = seen[body]
            yield Weakness(
                kind,
                f"party {first.client} in round {first.round}, then party {message.client} in "
                f"round {message.round}",
            )
        seen.setdefault(body, message)


def committee_weaknesses(view: TranscriptView) -> Iterator[Weakness]:
    """Look through what a committee sent."""
    kind = np.dtype(np.uint16 if view.bits == 16 else np.uint32).newbyteorder("<")
    for message, octets in _from(view, "query.committee_answer", "answer"):
        words = np.frombuffer(octets[_HEADER + _HASH : -_SIGNATURE], kind)
        if uniform_chance(words.astype(kind.newbyteorder("="))) < _CHANCE:
            yield Weakness(
                "bare answer", f"member {message.client - view.clients} in round {message.round}"
            )
    yield from _repeated(_announced(view), "key repeated")
    yield from _guessed(view)
    listed: dict[int, set[bytes]] = defaultdict(set)
    for message, octets in _from(view, "query.committee_open"):
        listed[message.round].add(octets[_HEADER : _HEADER + _HASH])
    for number, digests in listed.items():
        if len(digests) > 1:
            yield Weakness("client lists", f"round {number}: {len(digests)} lists")
    for number, party in asked_twice(view.messages, "query.committee_answer"):
        yield Weakness("opened twice", f"member {party - view.clients} in round {number}")


def _guessed(view: TranscriptView) -> Iterator[Weakness]:
    """Replay the key derivation of tests from every likely seed."""
    announced: dict[int, set[bytes]] = defaultdict(set)
    for message, octets in _announced(view):
        announced[message.client].add(octets[-_SIGNATURE - _CURVE : -_SIGNATURE])
    for party, keys in announced.items():
        for seed in {view.seed, *range(_SEEDS)}:
            source = DeterministicKeySource(f"{seed}/{party}".encode())
            secret = X25519PrivateKey.from_private_bytes(source.key("member X25519"))
            if secret.public_key().public_bytes_raw() in keys:
                yield Weakness("weak seed", f"member {party - view.clients}, from the seed {seed}")
                break


def encrypted_weaknesses(view: TranscriptView) -> Iterator[Weakness]:
    """Look through what clients and the key holder sent under encryption."""
    for message, octets in _from(view, "train.masked"):
        if len(zlib.compress(octets, 1)) < _PACKED * len(octets):
            yield Weakness(
                "not encrypted", f"the upload of client {message.client} in round {message.round}"
            )
    yield from _repeated(_from(view, "train.masked"), "ciphertext repeated")
    yield from _repeated(_from(view, "query.holder_key"), "holder key repeated")
    for message, octets in _from(view, "query.open_sum"):
        if opened_chance(octets[_HEADER:-_SIGNATURE]) < _CHANCE:
            yield Weakness("bare sum", f"round {message.round}")
    for number, _ in asked_twice(view.messages, "query.open_sum"):
        yield Weakness("opened twice", f"round {number}")
