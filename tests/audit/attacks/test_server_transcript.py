"""The server's attack: blind on our build, and not blind where one thing is broken."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from carefl_secure.audit.attacks.server_transcript import KINDS, ServerEyes, judge_transcript
from carefl_secure.audit.attacks.transcript import uniform_chance
from carefl_secure.audit.conformance.checks import Conformance
from carefl_secure.audit.replay.canary_run import rehearse
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.audit.views import Heard, TranscriptView
from carefl_secure.config import Config
from carefl_secure.errors import PrivacyError
from carefl_secure.noise import DeterministicKeySource, KeySource, SystemKeySource
from carefl_secure.secagg.primitives import framing
from tests.audit.conftest import system


def found(view: TranscriptView) -> set[str]:
    return {weakness.kind for weakness in ServerEyes()(view)}


def changed(view: TranscriptView, action: str, **fields: Any) -> TranscriptView:
    """Return a transcript with fields of the first reply of one kind changed."""
    messages = list(view.messages)
    for place, message in enumerate(messages):
        if message.from_client and message.action == action:
            messages[place] = replace(message, fields={**message.fields, **fields})
            break
    return replace(view, messages=tuple(messages))


def test_the_server_finds_nothing_in_ours(sound: Rehearsal) -> None:
    view = sound.transcript()
    assert found(view) == set()
    findings = judge_transcript(view, [])
    assert [f.verdict for f in findings] == ["passed"] * len(KINDS["pairwise"])
    assert all(f.figures["uploads"] == 4 * 6 for f in findings)


def test_one_client_unmasked(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    original = framing.add_masks

    def masks(accumulator: Any, keys: Any, signs: Any) -> None:
        masks.calls += 1  # type: ignore[attr-defined]
        if masks.calls % 4 != 2:  # type: ignore[attr-defined]
            original(accumulator, keys, signs)

    masks.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(framing, "add_masks", masks)
    assert "unmasked" in found(rehearse(config, system, canaries=400).transcript())


def test_masks_that_are_used_twice(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    original = framing.add_masks

    def masks(accumulator: Any, keys: Any, signs: Any) -> None:
        original(accumulator, [bytes(32)], [1])

    monkeypatch.setattr(framing, "add_masks", masks)
    kinds = found(rehearse(config, system, canaries=400).transcript())
    assert kinds == {"mask reused"}


def test_keys_that_repeat_in_every_round(config: Config) -> None:
    class Frozen:
        def __init__(self, index: int) -> None:
            self._fixed = DeterministicKeySource(b"nobody guesses this" + bytes([index]))
            self._fresh = SystemKeySource()
            self._kept: dict[str, bytes] = {}

        def key(self, label: str) -> bytes:
            if label in ("mask key", "encryption key"):
                return self._kept.setdefault(label, self._fixed.key(label))
            return self._fresh.key(label)

    kinds = found(rehearse(config, lambda index: Frozen(index), canaries=300).transcript())
    assert kinds == {"key repeated"}


@pytest.mark.parametrize("seed", ["0", "17"])
def test_keys_from_a_small_seed(config: Config, seed: str) -> None:
    def keys(index: int) -> KeySource:
        return DeterministicKeySource(f"{seed}/{index}".encode())

    assert found(rehearse(config, keys, canaries=300).transcript()) == {"weak seed"}


def test_two_survivor_sets(sound: Rehearsal) -> None:
    view = sound.transcript()
    messages = list(view.messages)
    asks = [i for i, m in enumerate(messages) if m.round == 1 and m.action == "query.sign" and not m.from_client]
    first = messages[asks[0]]
    shorter = list(first.fields["survivors"])[:-1]  # type: ignore[call-overload]
    messages[asks[0]] = replace(first, fields={**first.fields, "survivors": shorter})
    assert found(replace(view, messages=tuple(messages))) == {"survivor sets"}


def test_both_secrets_of_a_client(sound: Rehearsal) -> None:
    view = sound.transcript()
    reply = next(m for m in view.messages if m.from_client and m.action == "query.unmask")
    answer = bytearray(reply.fields["answer"])  # type: ignore[arg-type]
    answer[16 + 2 + 2] ^= 1  # the kind of the first share: the client's other secret
    assert found(changed(view, "query.unmask", answer=bytes(answer))) == {"both secrets"}


def test_a_reply_that_says_more(sound: Rehearsal) -> None:
    view = changed(sound.transcript(), "train.masked", num_examples=12)
    assert found(view) == {"more than a vector"}
    (bad,) = [f for f in judge_transcript(view, ServerEyes()(view)) if f.verdict == "falsified"]
    assert "num_examples" in bad.words


def test_a_transcript_without_uploads_is_no_good_news(sound: Rehearsal) -> None:
    empty = replace(sound.transcript(), messages=())
    assert {f.verdict for f in judge_transcript(empty, [])} == {"falsified"}


def test_uniform_words_pass_and_small_numbers_do_not() -> None:
    rng = np.random.default_rng(0)
    for kind, top in ((np.uint32, 1 << 32), (np.uint16, 1 << 16)):
        chances = [uniform_chance(rng.integers(0, top, 1000).astype(kind)) for _ in range(200)]
        assert 0.01 < np.mean(np.array(chances) < 0.05) < 0.12
        small = rng.integers(-500, 500, 1000).astype(np.int64)
        assert uniform_chance((small % top).astype(kind)) < 1e-12


def test_a_wrong_view_cannot_be_passed(sound: Rehearsal) -> None:
    with pytest.raises(PrivacyError, match="sees a TranscriptView, not a Rehearsal"):
        ServerEyes()(sound)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="not a TranscriptView"):
        Conformance()(sound.transcript())  # type: ignore[arg-type]


def test_no_view_of_the_server_holds_the_coins(sound: Rehearsal) -> None:
    view = sound.transcript()
    assert {field.name for field in fields(view)} == {"messages", "plan", "cohort", "seed"}
    assert all(isinstance(message, Heard) for message in view.messages)


def test_a_message_that_no_codec_reads_is_named(sound: Rehearsal) -> None:
    view = sound.transcript()
    reply = next(m for m in view.messages if m.from_client and m.action == "train.masked")
    longer = bytes(reply.fields["upload"]) + bytes(4)  # type: ignore[arg-type]
    for upload in (longer, b"short", 7):
        assert found(changed(view, "train.masked", upload=upload)) == {"unreadable"}
