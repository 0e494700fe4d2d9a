"""Hashes and keys against definitions written out by hand."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from carefl_secure.errors import ProtocolError
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.primitives import crypto


def fields(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def test_digest_and_derive_by_hand() -> None:
    info = hashlib.sha256(fields(b"carefl-secagg-2/label", b"a", b"", b"bc")).digest()
    assert crypto.digest(b"label", b"a", b"", b"bc") == info
    extracted = hmac.new(bytes(32), b"secret", hashlib.sha256).digest()
    expected = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    assert crypto.derive(b"secret", b"label", b"a", b"", b"bc") == expected


def test_field_borders_count() -> None:
    seen = {
        crypto.digest(b"l", b"ab", b"c"),
        crypto.digest(b"l", b"a", b"bc"),
        crypto.digest(b"l", b"abc"),
        crypto.digest(b"l", b"abc", b""),
        crypto.digest(b"la", b"bc"),
    }
    assert len(seen) == 5


def test_signature_binds_label_and_fields() -> None:
    identity = Ed25519PrivateKey.from_private_bytes(b"i" * 32)
    public = crypto.public_bytes(identity)
    signature = crypto.sign(identity, b"upload", b"x")
    crypto.verify(public, signature, 3, b"upload", b"x")
    for label, part in ((b"answer", b"x"), (b"upload", b"y")):
        with pytest.raises(ProtocolError, match=f"^{label.decode()} signature: client 3"):
            crypto.verify(public, signature, 3, label, part)
    with pytest.raises(ProtocolError, match="signature"):
        crypto.verify(public[:31], signature, 3, b"upload", b"x")


@pytest.mark.parametrize("point", [0, 1])
def test_degenerate_exchange_keys_are_refused(point: int) -> None:
    with pytest.raises(ProtocolError, match="degenerate key"):
        crypto.check_exchange_key(point.to_bytes(32, "little"), 2)


def test_sealed_message_binds_key_and_header() -> None:
    sealed = crypto.seal(b"k" * 32, b"hello", b"head")
    assert crypto.open_sealed(b"k" * 32, sealed, b"head", 1) == b"hello"
    for key, box, head in (
        (b"l" * 32, sealed, b"head"),
        (b"k" * 32, sealed, b"tail"),
        (b"k" * 32, sealed[:-1], b"head"),
        (b"k" * 32, b"", b"head"),
    ):
        with pytest.raises(ProtocolError, match="share seal"):
            crypto.open_sealed(key, box, head, 1)


def test_pair_keys_have_full_entropy_and_two_ends() -> None:
    keys = []
    for trial in range(100):
        one = X25519PrivateKey.generate()
        for peer in range(20):
            other = X25519PrivateKey.generate()
            here = crypto.agree(one, crypto.public_bytes(other), 0)
            there = crypto.agree(other, crypto.public_bytes(one), 0)
            key = transcript.pair_key(here, b"c" * 32, b"b" * 32, trial, 200 + peer)
            assert key == transcript.pair_key(there, b"c" * 32, b"b" * 32, 200 + peer, trial)
            keys.append(key)
    assert len({key[i : i + 8] for key in keys for i in range(0, 32, 8)}) == 4 * len(keys)
    numbers = [int.from_bytes(key, "big") for key in keys]
    anded, ored = numbers[0], 0
    for number in numbers:
        anded, ored = anded & number, ored | number
    assert anded == 0
    assert ored == 2**256 - 1


def test_sealing_keys_are_directional_and_bound() -> None:
    base = (b"s" * 32, b"c" * 32, b"b" * 32, 1, 2)
    keys = {
        transcript.sealing_key(*base),
        transcript.sealing_key(b"s" * 32, b"c" * 32, b"b" * 32, 2, 1),
        transcript.sealing_key(b"s" * 32, b"d" * 32, b"b" * 32, 1, 2),
        transcript.sealing_key(b"s" * 32, b"c" * 32, b"a" * 32, 1, 2),
        transcript.pair_key(*base),
        transcript.self_mask_key(b"s" * 32, b"c" * 32, b"b" * 32),
    }
    assert len(keys) == 6
