"""Keys made ahead: the sum is the same, the model is bound once, and nothing can be mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import CohortError, ConfigError, ProtocolError
from carefl_secure.noise import DeterministicKeySource, SystemKeySource, add_masks
from carefl_secure.secagg import PairwiseClient, Phase, RoundParameters
from carefl_secure.secagg.pairwise import transcript
from tests.support.played_pairwise import Rehearsal

Make = Callable[..., RoundParameters]
Identities = list[Ed25519PrivateKey]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]
Rehearse = Callable[..., Rehearsal]
MODEL = b"m" * 32


@pytest.fixture
def early(parameters: Make) -> Callable[..., RoundParameters]:
    """The agreement of a round without its model."""

    def make(clients: int, **changes: Any) -> RoundParameters:
        return RoundParameters(**{**vars(parameters(clients, **changes)), "model_hash": b""})

    return make


@pytest.fixture
def rehearse_unbound(early: Callable[..., RoundParameters], identities: Identities) -> Rehearse:
    """A round for so many clients whose keys are made ahead."""

    def make(clients: int, seed: bytes = b"seed", **changes: Any) -> Rehearsal:
        return Rehearsal(
            early(clients, **changes),
            identities[:clients],
            lambda index: DeterministicKeySource(seed + bytes([index])),
        )

    return make


def shared(rehearsal: Rehearsal) -> Rehearsal:
    """Play the two steps that come before the model."""
    rehearsal.advertise()
    rehearsal.share()
    return rehearsal


def test_the_sum_is_exact_with_dropouts_before_and_after_the_model(
    rehearse_unbound: Rehearse, vectors: Vectors
) -> None:
    rehearsal = rehearse_unbound(10)
    given = vectors(rehearsal)
    rehearsal.advertise(gone=[7])
    rehearsal.share(gone=[2])
    rehearsal.bind(MODEL)
    rehearsal.mask(given, gone=[4])
    rehearsal.sign()
    rehearsal.unmask()
    rest = [given[i] for i in range(10) if i not in (2, 4, 7)]
    assert np.array_equal(rehearsal.finish(), np.sum(rest, axis=0, dtype=np.uint32))


def test_the_sum_is_exact_on_a_sparse_graph(rehearse_unbound: Rehearse, vectors: Vectors) -> None:
    graph = {"neighbours": 6, "share_threshold": 5}
    rehearsal = shared(rehearse_unbound(16, min_survivors=11, **graph))
    given = vectors(rehearsal)
    rehearsal.bind(MODEL)
    rehearsal.mask(given, gone=[3])
    rehearsal.sign()
    rehearsal.unmask()
    rest = [given[i] for i in range(16) if i != 3]
    assert np.array_equal(rehearsal.finish(), np.sum(rest, axis=0, dtype=np.uint32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", b"other"),
        ("round", 8),
        ("dimension", 17),
        ("bits", 16),
        ("threshold", 8),
        ("min_survivors", 4),
        ("base_hash", b"!" * 32),
        ("plan_hash", b"!" * 32),
    ],
)
def test_everything_but_the_model_is_in_the_key_context(
    early: Callable[..., RoundParameters], field: str, value: Any
) -> None:
    one = early(9)
    other = dataclasses.replace(one, **{field: value})
    assert one.key_context() != other.key_context()
    assert one.bind(MODEL).context() != other.bind(MODEL).context()
    assert one.bind(MODEL).context() != one.bind(b"n" * 32).context()
    assert one.bind(MODEL).key_context() == one.key_context()


def test_a_model_is_bound_once_and_in_time(rehearse_unbound: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse_unbound(4)
    given, one = vectors(rehearsal), rehearsal.clients[0]
    with pytest.raises(ProtocolError, match=r"^model: .*not bound to a model yet"):
        rehearsal.parameters.context()
    for step in (lambda: None, rehearsal.advertise):
        step()
        with pytest.raises(ProtocolError, match=r"^step order: bind is not due yet"):
            one.bind(MODEL)
    rehearsal.share()
    inbox = rehearsal.server.inbox(0)
    with pytest.raises(ProtocolError, match=r"^model: .*not bound to a model yet"):
        one.mask(given[0], inbox)
    with pytest.raises(ConfigError, match="model_hash is a hash of 32 bytes"):
        one.bind(b"short")
    rehearsal.bind(MODEL)
    for again in (MODEL, b"n" * 32):
        for party in (one, rehearsal.server):
            with pytest.raises(ProtocolError, match=r"^model: .*bound to a model already"):
                party.bind(again)
    rehearsal.mask(given)
    with pytest.raises(ProtocolError, match=r"^step order: bind was answered before"):
        one.bind(MODEL)


def test_the_server_binds_only_with_enough_sharers(rehearse_unbound: Rehearse) -> None:
    rehearsal = rehearse_unbound(7)
    rehearsal.advertise()
    rehearsal.share(gone=[0, 1, 2])
    with pytest.raises(CohortError, match="4 clients after sharing, at least 5"):
        rehearsal.server.bind(MODEL)
    with pytest.raises(ProtocolError, match=r"^step order"):
        rehearsal.server.bind(MODEL)


# --- the server tells clients different models ---


def told_two_models(rehearsal: Rehearsal, victims: set[int], given: Any) -> dict[int, bytes]:
    """Bind the victims to another model and return all uploads."""
    shared(rehearsal)
    rehearsal.server.bind(MODEL)
    for index, one in rehearsal.clients.items():
        one.bind(b"!" * 32 if index in victims else MODEL)
    return {i: c.mask(given[i], rehearsal.server.inbox(i)) for i, c in rehearsal.clients.items()}


@pytest.mark.parametrize("victims", [{4}, {0, 3, 4, 8}])
def test_clients_with_two_models_are_named_by_an_honest_server(
    rehearse_unbound: Rehearse, vectors: Vectors, victims: set[int]
) -> None:
    rehearsal = rehearse_unbound(9)
    uploads = told_two_models(rehearsal, victims, vectors(rehearsal))
    for index, message in uploads.items():
        if index not in victims:
            rehearsal.server.uploaded(index, message)
            continue
        with pytest.raises(ProtocolError, match=r"^message context"):
            rehearsal.server.uploaded(index, message)
        dressed = message[:8] + rehearsal.server.parameters.context()[:8] + message[16:]
        with pytest.raises(ProtocolError, match=f"^upload signature: client {index}"):
            rehearsal.server.uploaded(index, dressed)


@pytest.mark.parametrize("victims", [{4}, {0, 3, 4, 8}])
def test_survivor_signatures_of_two_models_do_not_fit_together(
    rehearse_unbound: Rehearse, vectors: Vectors, victims: set[int]
) -> None:
    """With the victims among the survivors, nobody of the smaller group is ever unmasked."""
    rehearsal = rehearse_unbound(9)
    told_two_models(rehearsal, victims, vectors(rehearsal))
    everyone = range(9)
    signed = {i: one.sign(everyone, everyone) for i, one in rehearsal.clients.items()}
    for index, one in rehearsal.clients.items():
        with pytest.raises(ProtocolError, match=r"^message context"):
            one.unmask(signed)
        mine = {i: m for i, m in signed.items() if (i in victims) == (index in victims)}
        if len(mine) < 7:
            with pytest.raises(ProtocolError, match=r"^consent count: .* 7 are needed"):
                one.unmask(mine)
        context = one.parameters.context()
        dressed = {i: m[:8] + context[:8] + m[16:] for i, m in signed.items()}
        with pytest.raises(ProtocolError, match=r"^survivor set signature"):
            one.unmask(dressed)
    assert all(one.phase == Phase.CONSENTED for one in rehearsal.clients.values())


def test_what_opens_over_two_models_is_noise(rehearse_unbound: Rehearse, vectors: Vectors) -> None:
    """A server that ignores its own checks has the larger group unmask everybody's self mask."""
    size = 4096
    rehearsal = rehearse_unbound(9, dimension=size)
    given = dict.fromkeys(range(9), np.zeros(size, np.uint32))
    uploads = told_two_models(rehearsal, {4}, given)
    everyone = range(9)
    signed = {i: one.sign(everyone, everyone) for i, one in rehearsal.clients.items()}
    del signed[4]
    answers = {i: rehearsal.clients[i].unmask(signed) for i in signed}
    server = rehearsal.server
    server._uploaded = set(everyone)
    server._sum = np.sum([np.frombuffer(m[16:-64], "<u4") for m in uploads.values()], axis=0, dtype=np.uint32)
    server.survivors()
    for index, message in signed.items():
        server.signed(index, message)
    server.signatures()
    for index, message in answers.items():
        server.answered(index, message)
    total = server.finish()
    # The victim's self mask came off under the wrong model and its pair masks do not cancel:
    # every word is uniform, where the sum of nine zero vectors would be zero.
    assert np.count_nonzero(total) > size - 5
    assert abs(float((total >> 31).mean()) - 0.5) < 6 * 0.5 / np.sqrt(size)
    # Not even with the victim's own self mask, of which the answers hold all shares.
    secret = transcript.self_mask_key(
        DeterministicKeySource(b"seed\x04").key("self mask"),
        rehearsal.clients[4].parameters.context(),
        server._transcript_hash,
    )
    alone = np.frombuffer(uploads[4][16:-64], "<u4").astype(np.uint32)
    add_masks(alone, [secret], [-1])
    assert np.count_nonzero(alone) > size - 5


# --- messages of other rounds and plans ---


@pytest.mark.parametrize("dressed", [False, True])
@pytest.mark.parametrize("other", [{"round": 6}, {"round": 8}, {"plan_hash": b"!" * 32}, {"base_hash": b"!" * 32}])
def test_advertisements_and_shares_of_another_round_or_plan(
    rehearse_unbound: Rehearse, vectors: Vectors, other: Any, dressed: bool
) -> None:
    """Of r - 1, r + 1, another plan or base, all from the very same keys."""
    new = rehearse_unbound(4)
    old = shared(rehearse_unbound(4, **other))

    def stale(message: bytes) -> bytes:
        prefix = new.parameters.key_context()[:8]
        return message[:8] + prefix + message[16:] if dressed else message

    def refused(check: str, call: Callable[[], object]) -> None:
        with pytest.raises(ProtocolError, match=f"^{check if dressed else 'message context'}"):
            call()

    refused("advertisement signature", lambda: new.server.advertised(1, stale(old.adverts[1])))
    new.advertise()
    mixed = {**new.adverts, 1: stale(old.adverts[1])}
    refused("advertisement signature", lambda: new.clients[0].share(mixed))
    with pytest.raises(ProtocolError, match=r"^own advertisement"):
        new.clients[0].share({**new.adverts, 0: stale(old.adverts[0])})
    new.share()
    new.bind(MODEL)
    given = vectors(new)
    inbox = {**new.server.inbox(0), 1: stale(old.shares[1][0])}
    refused("share seal", lambda: new.clients[0].mask(given[0], inbox))


def test_two_books_of_advertisements(rehearse_unbound: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse_unbound(9)
    rehearsal.advertise()
    fewer = {i: m for i, m in rehearsal.adverts.items() if i != 8}
    boxes = {i: rehearsal.clients[i].share(rehearsal.adverts if i < 4 else fewer) for i in range(8)}
    rehearsal.clients[0].bind(MODEL)
    inbox = {i: box[0] for i, box in boxes.items() if i}
    with pytest.raises(ProtocolError, match=r"^share seal"):
        rehearsal.clients[0].mask(vectors(rehearsal)[0], inbox)


def test_a_withheld_or_replayed_advertisement(rehearse_unbound: Rehearse) -> None:
    rehearsal = rehearse_unbound(9)
    rehearsal.advertise()
    without = {i: m for i, m in rehearsal.adverts.items() if i}
    with pytest.raises(ProtocolError, match=r"^own advertisement"):
        rehearsal.clients[0].share(without)
    few = {i: m for i, m in rehearsal.adverts.items() if i < 6}
    with pytest.raises(CohortError, match="6 clients after advertising, at least 7"):
        rehearsal.clients[0].share(few)
    renamed = rehearsal.adverts[1][:6] + b"\x02\x00" + rehearsal.adverts[1][8:]
    with pytest.raises(ProtocolError, match=r"^advertisement signature: client 2"):
        rehearsal.clients[0].share({**rehearsal.adverts, 2: renamed})


def test_nothing_of_the_round_can_be_opened_before_its_model(rehearse_unbound: Rehearse) -> None:
    rehearsal = shared(rehearse_unbound(4))
    one = rehearsal.clients[0]
    with pytest.raises(ProtocolError, match=r"^step order: sign is not due yet"):
        one.sign(range(4), range(4))
    with pytest.raises(ProtocolError, match=r"^step order: unmask is not due yet"):
        one.unmask({})


# --- restarts ---


def reload(one: PairwiseClient, parameters: RoundParameters) -> PairwiseClient:
    return PairwiseClient.restore(one.save(), one._identity, parameters, SystemKeySource())


def test_restart_between_all_messages(rehearse_unbound: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse_unbound(5)
    given = vectors(rehearsal)

    def again() -> None:
        known = rehearsal.clients[0].parameters
        rehearsal.clients = {i: reload(one, known) for i, one in rehearsal.clients.items()}

    for step in (
        rehearsal.advertise,
        rehearsal.share,
        lambda: rehearsal.bind(MODEL),
        lambda: rehearsal.mask(given, gone=[3]),
        rehearsal.sign,
        rehearsal.unmask,
    ):
        again()
        step()
    assert np.array_equal(rehearsal.finish(), given[0] + given[1] + given[2] + given[4])


def test_a_state_belongs_to_its_round_and_model(
    rehearse_unbound: Rehearse, early: Callable[..., RoundParameters]
) -> None:
    rehearsal = shared(rehearse_unbound(4))
    one = rehearsal.clients[0]
    before = one.save()
    one.bind(MODEL)
    after = one.save()
    unbound, bound = early(4), early(4).bind(MODEL)
    for blob, wrong in (
        (before, bound),
        (after, unbound),
        (after, early(4).bind(b"n" * 32)),
        (before, early(4, round=8)),
    ):
        with pytest.raises(ProtocolError, match=r"^saved state"):
            PairwiseClient.restore(blob, one._identity, wrong, SystemKeySource())
    assert reload(one, bound).phase == Phase.SHARED


def test_closing_erases_what_was_prefetched(rehearse_unbound: Rehearse) -> None:
    rehearsal = shared(rehearse_unbound(4))
    one = rehearsal.clients[0]
    kept = [secret for secret in one._state._secrets() if secret]
    assert kept
    one.close()
    assert not any(kept)
    with pytest.raises(ProtocolError, match=r"^step order: bind was answered before"):
        one.bind(MODEL)
