"""Files that a client keeps, sealed: a known answer, and everything that must not open."""

from __future__ import annotations

from pathlib import Path

import pytest

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.client.sealed_files import SealedFiles
from carefl_secure.noise import DeterministicKeySource, SystemKeySource

SECRET, PLACE, CONTENT = bytes(range(32)), (b"run", bytes(32), b"\x03" + bytes(7)), b"noise of a round"
KNOWN = bytes.fromhex(
    "43464b4601a665c8132f80b7dc6bc42f66e023c62629af28a53771a9c0e36bb087a4b851abe7c3ac84a386400f2ab5ff71"
)


def files(folder: Path, secret: bytes = SECRET, place: tuple[bytes, ...] = PLACE) -> SealedFiles:
    return SealedFiles(folder / "kept", secret, place, DeterministicKeySource(b"seed"))


def test_known_answer(tmp_path: Path) -> None:
    """Magic, nonce and ciphertext; computed apart from the package, with hashlib, hmac and AES-GCM alone."""
    files(tmp_path).write("noise", 5, CONTENT)
    file = tmp_path / "kept-5.noise"
    assert file.read_bytes() == KNOWN
    assert files(tmp_path).find("noise") == {5: file}
    assert files(tmp_path).read(file, "noise", 5) == CONTENT


def test_a_flipped_bit_anywhere_does_not_open(tmp_path: Path) -> None:
    file = tmp_path / "kept-5.noise"
    for place in range(len(KNOWN)):
        file.write_bytes(KNOWN[:place] + bytes([KNOWN[place] ^ 4]) + KNOWN[place + 1 :])
        with pytest.raises(ProtocolError, match=r"does not open|no sealed file"):
            files(tmp_path).read(file, "noise", 5)


@pytest.mark.parametrize("length", [0, 4, 5, 16, 17, 32, len(KNOWN) - 1])
def test_what_was_truncated_does_not_open(tmp_path: Path, length: int) -> None:
    file = tmp_path / "kept-5.noise"
    file.write_bytes(KNOWN[:length])
    with pytest.raises(ProtocolError, match=r"does not open|no sealed file"):
        files(tmp_path).read(file, "noise", 5)


@pytest.mark.parametrize(
    ("secret", "place", "kind", "number"),
    [
        (bytes(32), PLACE, "noise", 5),  # another key
        (SECRET, (b"run2", *PLACE[1:]), "noise", 5),
        (SECRET, (PLACE[0], b"\x01" * 32, PLACE[2]), "noise", 5),  # another plan
        (SECRET, (*PLACE[:2], b"\x04" + bytes(7)), "noise", 5),  # another client
        (SECRET, (b"ru", b"n" + PLACE[1], PLACE[2]), "noise", 5),  # the same bytes, cut elsewhere
        (SECRET, PLACE, "groups", 5),
        (SECRET, PLACE, "noise", 6),  # another round
    ],
)
def test_what_was_moved_does_not_open(
    tmp_path: Path, secret: bytes, place: tuple[bytes, ...], kind: str, number: int
) -> None:
    file = tmp_path / "kept-5.noise"
    file.write_bytes(KNOWN)
    with pytest.raises(ProtocolError, match="does not open"):
        files(tmp_path, secret, place).read(file, kind, number)


def test_nonces_are_fresh(tmp_path: Path) -> None:
    held = SealedFiles(tmp_path / "kept", SECRET, PLACE, SystemKeySource())
    seen = set()
    for _ in range(20):
        held.write("noise", 5, CONTENT)
        seen.add((tmp_path / "kept-5.noise").read_bytes()[5:17])
    assert len(seen) == 20


def test_an_unreadable_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        files(tmp_path).read(tmp_path / "kept-1.noise", "noise", 1)
