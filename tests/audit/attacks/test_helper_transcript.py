"""Committee and encryption under the audit: nothing to find in ours, broken builds are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from carefl_secure.audit.attacks.server_transcript import ServerEyes, judge_transcript
from carefl_secure.audit.attacks.transcript import HolderEyes, MemberEyes, judge_helpers, residue_chance
from carefl_secure.audit.replay.canary_run import rehearse
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.audit.views import Heard, TranscriptView
from carefl_secure.config import Config, load_config
from carefl_secure.errors import PrivacyError
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg.committee.messages import Listing, MemberAnswer, Opening
from carefl_secure.secagg.encrypted import packing
from carefl_secure.secagg.encrypted.messages import EncryptedUpload
from carefl_secure.secagg.primitives import framing
from tests.audit.conftest import SETTINGS, system

MODES = ("committee", "encrypted")


@pytest.fixture(scope="module")
def runs() -> dict[str, Rehearsal]:
    """Return one sound rehearsal in each mode."""
    few = [word for word in SETTINGS if not word.startswith("federation.rounds")]
    config = load_config(None, [*few, "federation.rounds=3"])
    return {m: rehearse(config, system, canaries=300, aggregation=m) for m in MODES}  # type: ignore[arg-type]


def found(view: TranscriptView) -> set[str]:
    return {weakness.kind for weakness in ServerEyes()(view)}


@pytest.mark.parametrize("mode", MODES)
def test_nobody_finds_anything_in_ours(runs: dict[str, Rehearsal], mode: str) -> None:
    run = runs[mode]
    view = run.transcript()
    assert view.aggregation == mode and found(view) == set()
    findings = judge_transcript(view, []) + judge_helpers(run.members(), run.holder())
    assert len(findings) > 8 and {f.verdict for f in findings} == {"passed"}
    assert (len(run.members()), run.holder() is None) == ((3, True) if mode == "committee" else (0, False))


def test_peers_have_no_helpers(sound: Rehearsal) -> None:
    (finding,) = judge_helpers(sound.members(), sound.holder())
    assert finding.verdict == "skipped"


@pytest.mark.parametrize("mode", MODES)
def test_keys_from_the_seed(config: Config, mode: Any) -> None:
    def keys(index: int) -> DeterministicKeySource:
        return DeterministicKeySource(f"0/{index}".encode())

    run = rehearse(config, keys, canaries=300, aggregation=mode)
    assert "weak seed" in found(run.transcript())


def test_a_committee_without_masks(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "add_masks", lambda words, keys, signs: None)
    # Neither clients nor members add masks, so the uploads are bare.
    view = rehearse(config, system, canaries=400, aggregation="committee").transcript()
    assert "unmasked" in found(view)


def test_peers_masks_off_under_encryption(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "add_residue_masks", lambda *_: None)
    run = rehearse(config, system, canaries=400, aggregation="encrypted")
    assert "bare sum" in found(run.transcript())
    holder = run.holder()
    assert holder is not None
    assert {w.kind for w in HolderEyes()(holder)} == {"bare sum at the holder"}


def doubled(messages: tuple[Heard, ...], action: str) -> tuple[Heard, ...]:
    reply = next(m for m in messages if m.from_client and m.action == action)
    return (*messages, reply)


def test_two_openings_in_one_round(runs: dict[str, Rehearsal]) -> None:
    for mode, action in (("committee", "query.committee_answer"), ("encrypted", "query.open_sum")):
        view = runs[mode].transcript()
        assert found(replace(view, messages=doubled(view.messages, action))) == {"opened twice"}
    member = runs["committee"].members()[0]
    again = replace(member, messages=doubled(member.messages, "query.committee_answer"))
    assert {w.kind for w in MemberEyes()(again)} == {"answers of a member"}
    holder = runs["encrypted"].holder()
    assert holder is not None
    again_ = replace(holder, messages=doubled(holder.messages, "query.open_sum"))
    assert {w.kind for w in HolderEyes()(again_)} == {"sums of the holder"}


def changed(view: Any, action: str, name: str, value: bytes, own: bool = True) -> Any:
    messages = list(view.messages)
    for place, message in enumerate(messages):
        if message.from_client == own and message.action == action and name in message.fields:
            messages[place] = replace(message, fields={**message.fields, name: value})
            break
    return replace(view, messages=tuple(messages))


def test_what_was_tampered_with_is_named(runs: dict[str, Rehearsal]) -> None:
    committee, encrypt = (runs[mode].transcript() for mode in MODES)
    shape: Any = encrypt.shape
    plain = EncryptedUpload((bytes(60_000),) * shape.chunks, bytes(64)).encode(0, bytes(8))
    assert found(changed(encrypt, "train.masked", "upload", plain)) == {"not encrypted"}
    words = np.arange(committee.shape.dimension, dtype=f"<u{committee.shape.bits // 8}")
    answer = MemberAnswer(bytes(32), memoryview(words.tobytes()), bytes(64)).encode(0, bytes(8))
    assert found(changed(committee, "query.committee_answer", "answer", answer)) == {"bare answer"}
    other = Opening(bytes(32), (), bytes(64)).encode(0, bytes(8))
    assert found(changed(committee, "query.committee_open", "opening", other)) == {"client lists"}
    member = runs["committee"].members()[0]
    own = next(m.fields["listing"] for m in member.messages if "listing" in m.fields)
    full = Listing.decode(own, member.shape)  # type: ignore[arg-type]
    few = Listing({0: full.clients[0]}).encode(0, bytes(8))
    for listing, kind in ((few, "short lists"), (few + bytes(9000), "more than a list")):
        view = changed(member, "query.committee_open", "listing", listing, False)
        assert {w.kind for w in MemberEyes()(view)} == {kind}
    holder = runs["encrypted"].holder()
    stated = changed(holder, "query.holder_key", "adapter", b"x" * 32, False)
    stated = replace(stated, messages=tuple(
        replace(m, fields={**m.fields, "upload": b"bytes"}) if not m.from_client else m
        for m in stated.messages
    ))  # fmt: skip
    assert {w.kind for w in HolderEyes()(stated)} == {"messages to the holder"}


def test_silence_is_no_good_news(runs: dict[str, Rehearsal]) -> None:
    empty = [replace(member, messages=()) for member in runs["committee"].members()]
    assert {f.verdict for f in judge_helpers(empty, None)} == {"falsified"}


def test_views_cannot_be_exchanged(runs: dict[str, Rehearsal]) -> None:
    with pytest.raises(PrivacyError, match="one member of the committee"):
        MemberEyes()(runs["encrypted"].holder())  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="key holder"):
        HolderEyes()(runs["committee"].transcript())  # type: ignore[arg-type]


def test_packed_small_numbers_are_not_uniform() -> None:
    rng = np.random.default_rng(0)
    modulus = (1 << 60) - 93
    full = rng.integers(0, modulus, 200, dtype=np.uint64)
    small = (rng.integers(-500, 500, 200) << 30) % modulus
    assert residue_chance(full) > 1e-9 > residue_chance(small.astype(np.uint64))
    assert residue_chance(np.zeros(5, np.uint64)) == 0.0
