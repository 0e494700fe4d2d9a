"""The codec: what goes out comes back, and junk raises ProtocolError only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carefl_secure.errors import ProtocolError
from carefl_secure.secagg import RoundParameters, sender
from carefl_secure.secagg.pairwise.messages import (
    Advertisement,
    Answer,
    Consent,
    Kind,
    Secret,
    Share,
    Upload,
    pack_pair,
    unpack_pair,
)
from carefl_secure.secagg.primitives.framing import HEADER_BYTES, header
from carefl_secure.secagg.primitives.shamir import PRIME

Make = Callable[..., RoundParameters]
Parser = Callable[[Any, RoundParameters], object]

PARSERS: dict[Kind, Parser] = {
    Kind.ADVERTISEMENT: lambda m, p: Advertisement.parse(m, 1, p),
    Kind.SHARE: lambda m, p: Share.parse(m, 1, p).to(2),
    Kind.UPLOAD: lambda m, p: Upload.parse(m, 1, p),
    Kind.CONSENT: lambda m, p: Consent.parse(m, 1, p),
    Kind.ANSWER: lambda m, p: Answer.parse(m, 1, p),
}


def samples(parameters: RoundParameters) -> dict[Kind, bytes]:
    context, key_context = parameters.context(), parameters.key_context()
    words = memoryview(bytes(range(64)))
    shares = {0: (Secret.SELF_MASK, 5), 1: (Secret.SELF_MASK, PRIME - 1), 4: (Secret.PAIR_KEY, 0)}
    return {
        Kind.ADVERTISEMENT: Advertisement(b"e" * 32, b"m" * 32, b"c" * 32, b"s" * 64).encode(1, key_context),
        Kind.SHARE: Share(2, b"x" * 82).encode(1, key_context),
        Kind.UPLOAD: Upload(words, b"s" * 64).encode(1, context),
        Kind.CONSENT: Consent(b"s" * 64).encode(1, context),
        Kind.ANSWER: Answer(shares, b"s" * 64).encode(1, context),
    }


def test_round_trip(parameters: Make) -> None:
    agreed = parameters(5)
    for kind, message in samples(agreed).items():
        parsed: Any = PARSERS[kind](message, agreed)
        context = agreed.key_context() if parsed.BEFORE_MODEL else agreed.context()
        assert parsed.encode(1, context) == message
        assert sender(message) == 1
        view: Any = PARSERS[kind](memoryview(bytearray(message)), agreed)
        assert view.encode(1, context) == message


def test_sizes_are_documented(parameters: Make) -> None:
    sizes = {kind: len(message) for kind, message in samples(parameters(5)).items()}
    assert HEADER_BYTES == 16
    assert sizes == {
        Kind.ADVERTISEMENT: 176,
        Kind.SHARE: 100,
        Kind.UPLOAD: 80 + 64,
        Kind.CONSENT: 80,
        Kind.ANSWER: 82 + 3 * 36,
    }


def test_layout_by_hand(parameters: Make) -> None:
    agreed = parameters(5)
    message = samples(agreed)[Kind.ANSWER]
    assert message[:8] == b"CFSA\x02\x05\x01\x00"
    assert message[8:16] == agreed.context()[:8]
    assert message[16:18] == b"\x03\x00"
    assert message[18:54] == b"\x00\x00\x00\x05" + bytes(32)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_other_length_is_refused(parameters: Make, kind: Kind) -> None:
    agreed = parameters(5)
    message = samples(agreed)[kind]
    for length in range(len(message)):
        with pytest.raises(ProtocolError, match=r"^message length"):
            PARSERS[kind](message[:length], agreed)
    with pytest.raises(ProtocolError, match=r"^message length"):
        PARSERS[kind](message + b"\x00", agreed)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_header_field_is_checked(parameters: Make, kind: Kind) -> None:
    agreed = parameters(5)
    message = samples(agreed)[kind]
    checks = [(0, "magic"), (3, "magic"), (4, "version"), (5, "kind"), (6, "sender")]
    checks += [(7, "sender"), (8, "context"), (15, "context")]
    for place, check in checks:
        changed = bytearray(message)
        changed[place] ^= 0x10
        with pytest.raises(ProtocolError, match=f"^message {check}"):
            PARSERS[kind](bytes(changed), agreed)


def test_wrong_kind_for_every_pair(parameters: Make) -> None:
    agreed = parameters(5)
    for kind, message in samples(agreed).items():
        for other, parse in PARSERS.items():
            if other != kind:
                with pytest.raises(ProtocolError, match=r"^message kind"):
                    parse(message, agreed)


@pytest.mark.parametrize("junk", [None, 3, "text", [1], np.zeros(40, np.float64)])
def test_other_types_are_refused(parameters: Make, junk: Any) -> None:
    for parse in PARSERS.values():
        with pytest.raises(ProtocolError, match=r"^message type"):
            parse(junk, parameters(5))


def test_odd_views_are_refused(parameters: Make) -> None:
    view = np.zeros((40, 40), np.uint8).data
    for odd in (view, memoryview(bytes(80))[::2], np.zeros(40, np.uint32).data):
        with pytest.raises(ProtocolError, match=r"^message type"):
            Consent.parse(odd, 1, parameters(5))


@pytest.mark.parametrize(
    ("shares", "check"),
    [
        ([(1, 0, 5), (1, 0, 5)], "answer entries"),
        ([(2, 0, 5), (1, 0, 5)], "answer entries"),
        ([(5, 0, 5)], "answer entries"),
        ([(1, 2, 5)], "answer kind"),
        ([(1, 0, PRIME)], "share range"),
        ([(1, 0, (1 << 264) - 1)], "share range"),
    ],
)
def test_bad_answers(parameters: Make, shares: list[tuple[int, int, int]], check: str) -> None:
    agreed = parameters(5)
    body = len(shares).to_bytes(2, "little") + b"".join(
        peer.to_bytes(2, "little") + bytes([kind]) + value.to_bytes(33, "little") for peer, kind, value in shares
    )
    message = header(Kind.ANSWER, 1, agreed.context()) + body + bytes(64)
    with pytest.raises(ProtocolError, match=f"^{check}"):
        Answer.parse(message, 1, agreed)


def test_bad_pairs() -> None:
    assert unpack_pair(pack_pair(1, PRIME - 1)) == (1, PRIME - 1)
    with pytest.raises(ProtocolError, match=r"^share length"):
        unpack_pair(bytes(65))
    with pytest.raises(ProtocolError, match=r"^share range"):
        unpack_pair(bytes(33) + b"\xff" * 33)


def test_share_for_someone_else(parameters: Make) -> None:
    agreed = parameters(5)
    with pytest.raises(ProtocolError, match=r"^share recipient"):
        Share.parse(samples(agreed)[Kind.SHARE], 1, agreed).to(3)


def attempt(message: bytes, agreed: RoundParameters) -> None:
    for kind, parse in PARSERS.items():
        try:
            parsed: Any = parse(message, agreed)
        except ProtocolError as error:
            assert ":" in str(error)
        else:
            early = parsed.BEFORE_MODEL
            context = agreed.key_context() if early else agreed.context()
            assert parsed.encode(1, context) == message
            assert message[5] == kind


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=300))
def test_fuzz_any_bytes(parameters: Make, junk: bytes) -> None:
    agreed = parameters(5)
    attempt(junk, agreed)
    attempt(header(Kind.ANSWER, 1, agreed.context()) + junk, agreed)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(list(Kind)))
def test_fuzz_near_messages(parameters: Make, data: st.DataObject, kind: Kind) -> None:
    agreed = parameters(5)
    message = bytearray(samples(agreed)[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    start = data.draw(st.integers(0, len(message)))
    attempt(bytes(message[:start] + data.draw(st.binary(max_size=5)) + message[start:]), agreed)
