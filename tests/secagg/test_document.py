"""docs/protocol.md against the code: the tables, and every size that it states."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.secagg.committee.messages import CommitteeKind
from carefl_secure.secagg.encrypted.messages import EncryptedKind
from carefl_secure.secagg.pairwise.messages import Kind
from carefl_secure.secagg.primitives.crypto import OVERHEAD
from carefl_secure.secagg.primitives.framing import HEADER_BYTES, header

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def table(first: str) -> list[list[str]]:
    """The rows of the table whose header starts with a word, without its rule."""
    lines = iter(TEXT.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_header_table() -> None:
    """Read a header by the table alone."""
    context, at, found = bytes(range(32)), 0, []
    written = header(Kind.ANSWER, 0x0102, context)
    for offset, size, _ in table("offset"):
        assert int(offset) == at
        found.append(written[at : at + int(size)])
        at += int(size)
    assert at == HEADER_BYTES
    assert found == [b"CFSA", b"\x02", b"\x05", struct.pack("<H", 0x0102), context[:8]]


def test_type_table() -> None:
    named = {int(number): name for number, name, _, _ in table("type")}
    written = {**{kind: kind.name for kind in (*Kind, *CommitteeKind, *EncryptedKind)}}
    assert set(written) <= set(named)
    rename = {"UPLOAD": "upload", "SUM": "encrypted sum", "OPENED": "opened sum"}
    for kind, name in written.items():
        wanted = rename.get(name, name.lower().replace("_", " "))
        assert wanted in named[int(kind)]


def stated(name: str) -> tuple[int, ...]:
    """The numbers in the brackets behind the bold name of a message."""
    found = re.search(rf"\*\*\d+, {name}\*\* \(([^)]*)\)", TEXT)
    assert found is not None, name
    return tuple(int(number) for number in re.findall(r"\d+", found[1]))


def test_sizes_of_peer_messages(rehearse: Any, vectors: Any) -> None:
    played = rehearse(4, dimension=6)
    played.advertise()
    played.share()
    share = played.server.inbox(1)[0]
    played.mask(vectors(played), gone=[3])
    played.sign()
    played.unmask()
    assert stated("advertisement") == (len(played.adverts[0]),)
    assert stated("share") == (len(share),)
    fixed, bits = stated("upload")
    assert fixed + 6 * played.parameters.bits // bits == len(played.uploads[0])
    assert stated("consent") == (len(played.server.signatures()[0]),)
    fixed, entry = stated("answer")
    count = struct.unpack_from("<H", played.answers[0], 16)[0]
    assert fixed + entry * count == len(played.answers[0])


@pytest.mark.parametrize("spare", [0, 1])
def test_sizes_and_order_of_committee_messages(committee: Any, vectors: Any, spare: int) -> None:
    """Cut every message by the fields of section 4, in their order, and find nothing left."""
    played = committee(3, 3, dropout_tolerance=spare, dimension=6)
    played.announce()
    played.submit(vectors(played))
    listing = played.server.listing(0)
    played.open()
    played.answer(gone=[2] if spare else [])
    assert stated("member key") == (len(played.announcements[0]),)
    assert len(played.announcements[0]) == 16 + 1184 + 32 + 64
    assert OVERHEAD == 1120 + 16
    envelope = 1120 + 32 + 16 + (2 * 33 if spare else 0)
    words, m = 6 * 4, 3
    submission = played.submissions[0]
    assert len(submission) == 16 + words + m * 32 + m * envelope + 64
    per_client = 2 + 32 + m * 32 + m * 32 + 64 + envelope
    assert len(listing) == 16 + 2 + 3 * per_client
    first = listing[18 : 18 + per_client]
    assert first[:2] == b"\x00\x00"
    assert first[34 : 34 + m * 32] == submission[16 + words : 16 + words + m * 32]
    assert first[34 + 2 * m * 32 :][:64] == submission[-64:]
    assert first[-envelope:] == submission[16 + words + m * 32 :][:envelope]
    assert len(played.openings[0]) == 16 + 32 + 2 + 64
    assert len(played.answers[0]) == 16 + 32 + words + 64
    if spare:
        played.recover()
        assert len(played.consents[0]) == 16 + 32 + 2 + 2 + 64
        assert len(played.shares[0]) == 16 + 3 * 33 + 64


def test_the_round_key_message_and_the_widening_are_described() -> None:
    assert '`Sign("round key"; kctx)` (64 bytes)' in TEXT
    assert "reduces the opened sum modulo `2^16`" in TEXT
