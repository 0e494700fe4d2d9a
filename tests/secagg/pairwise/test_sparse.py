"""Whole rounds on a sparse graph: 40 clients with 12 neighbours each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import CohortError, ConfigError, ProtocolError
from carefl_secure.noise import DeterministicKeySource, add_masks
from carefl_secure.secagg import PairwiseClient, RoundParameters, plan_graph
from carefl_secure.secagg.pairwise.graph_planner import neighbours, ring
from carefl_secure.secagg.pairwise.messages import Answer, Secret
from tests.support.played_pairwise import Rehearsal

Rehearse = Callable[..., Rehearsal]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]
SPARSE = {"neighbours": 12, "share_threshold": 9}


def near(rehearsal: Rehearsal, index: int) -> tuple[int, ...]:
    server = rehearsal.server
    return neighbours(server._key_context, server._transcript_hash, server._messages, index, 12)


def on_the_ring(rehearsal: Rehearsal) -> tuple[int, ...]:
    server = rehearsal.server
    return ring(server._key_context, server._transcript_hash, tuple(sorted(server._messages)))[0]


def total(vectors: dict[int, npt.NDArray[Any]], members: set[int]) -> npt.NDArray[Any]:
    summed = np.zeros_like(vectors[0])
    for index in members:
        summed = summed + vectors[index]
    return summed


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("bits", [16, 32])
def test_exact_with_dropouts_at_every_step(rehearse: Rehearse, vectors: Vectors, step: int, bits: int) -> None:
    rehearsal = rehearse(40, bits=bits, **SPARSE)
    given, gone = vectors(rehearsal), {1, 20, 39}
    rehearsal.advertise(gone if step == 0 else ())
    rehearsal.share(gone if step == 1 else ())
    rehearsal.mask(given, gone if step == 2 else ())
    rehearsal.sign(gone if step == 3 else ())
    rehearsal.unmask(gone if step == 4 else ())
    everyone = set(range(40))
    assert np.array_equal(rehearsal.finish(), total(given, everyone - gone if step < 3 else everyone))


def test_every_client_has_twelve_masks_and_one(
    rehearse: Rehearse, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def spy(vector: Any, keys: list[bytes], signs: list[int]) -> None:
        counts.append(len(keys))
        add_masks(vector, keys, signs)

    monkeypatch.setattr("carefl_secure.secagg.primitives.framing.add_masks", spy)
    rehearsal = rehearse(40, **SPARSE)
    rehearsal.run(vectors(rehearsal))
    assert counts == [13] * 40
    assert {len(box) for box in rehearsal.shares.values()} == {12}
    assert {len(message) for message in rehearsal.answers.values()} == {82 + 36 * 13}


def test_never_both_secrets_of_one_client(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(40, **SPARSE)
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(vectors(rehearsal), gone=(2, 5))
    rehearsal.sign()
    rehearsal.unmask()
    for index, message in rehearsal.answers.items():
        given = Answer.parse(message, index, rehearsal.parameters).shares
        assert set(given) == {index, *near(rehearsal, index)}
        for peer, (kind, _) in given.items():
            assert kind == (Secret.PAIR_KEY if peer in (2, 5) else Secret.SELF_MASK)


def test_an_arc_cannot_be_opened_alone(rehearse: Rehearse, vectors: Vectors) -> None:
    """The server drops six in a row on both sides of an arc, to get a sum over the arc."""
    rehearsal = rehearse(40, min_survivors=3, **SPARSE)
    given = vectors(rehearsal)
    rehearsal.advertise()
    rehearsal.share()
    order = on_the_ring(rehearsal)
    cut = {*order[:6], *order[20:26]}
    for index in range(40):
        inbox = rehearsal.server.inbox(index)
        rehearsal.uploads[index] = rehearsal.clients[index].mask(given[index], inbox)
        if index not in cut:
            rehearsal.server.uploaded(index, rehearsal.uploads[index])
    rehearsal.present -= cut
    rehearsal.sign()
    rehearsal.unmask()
    with pytest.raises(CohortError, match=r"^min_survivors: [78] holders of the secrets"):
        rehearsal.finish()


def test_neighbours_hidden_from_a_client(rehearse: Rehearse, vectors: Vectors) -> None:
    """Too few neighbours' shares are passed on, or the share set then leaves them out."""
    rehearsal = rehearse(40, **SPARSE)
    given = vectors(rehearsal)
    rehearsal.advertise()
    rehearsal.share()
    inbox = rehearsal.server.inbox(0)
    few = dict(list(inbox.items())[:7])
    with pytest.raises(CohortError, match=r"^min_survivors: 8 clients after sharing, at least 9"):
        rehearsal.clients[0].mask(given[0], few)
    first = next(iter(inbox))
    rehearsal.clients[0].mask(given[0], {p: m for p, m in inbox.items() if p != first})
    everyone = set(range(40))
    with pytest.raises(ProtocolError, match=r"^share set"):
        rehearsal.clients[0].sign(everyone, everyone)
    rehearsal.clients[0].sign(everyone - {first}, everyone - {first})


def test_survivors_that_never_advertised(rehearse: Rehearse, vectors: Vectors) -> None:
    """A client far away on the ring cannot check another's share, but knows who advertised."""
    rehearsal = rehearse(40, **SPARSE)
    rehearsal.advertise(gone=(3, 4))
    rehearsal.share()
    rehearsal.mask(vectors(rehearsal))
    everyone = set(range(40))
    for index in rehearsal.present:
        with pytest.raises(ProtocolError, match=r"^share set"):
            rehearsal.clients[index].sign(everyone, everyone)


def test_two_share_sets_far_from_the_client(rehearse: Rehearse, vectors: Vectors) -> None:
    """Half of the clients sign another share set: no signature of theirs counts for the rest."""
    rehearsal = rehearse(40, **SPARSE)
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(vectors(rehearsal))
    order = on_the_ring(rehearsal)
    everyone, victim = set(range(40)), order[0]
    fewer = everyone - {victim}
    far = set(order[7:-6])
    signed = {
        i: rehearsal.clients[i].sign(*((fewer, fewer) if i in far else (everyone, everyone))) for i in sorted(everyone)
    }
    with pytest.raises(ProtocolError, match=r"^survivor set signature"):
        rehearsal.clients[victim].unmask(signed)
    with pytest.raises(ProtocolError, match=r"^consent count: 13 signatures, 27"):
        rehearsal.clients[victim].unmask({i: m for i, m in signed.items() if i not in far})


def test_shares_for_strangers_are_refused(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(40, **SPARSE)
    rehearsal.advertise()
    listed = rehearsal.server.advertisements()
    messages = rehearsal.clients[0].share(listed)
    stranger = next(i for i in range(1, 40) if i not in messages)
    first = next(iter(messages))
    for false in ({**messages, stranger: messages[first]}, {first: messages[first]}):
        with pytest.raises(ProtocolError, match=r"^share recipients"):
            rehearsal.server.shared(0, false)
    rehearsal.server.shared(0, messages)


def test_a_client_is_restored_between_any_two_steps(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(40, **SPARSE)
    given = vectors(rehearsal)

    def restart() -> None:
        old = rehearsal.clients[5]
        rehearsal.clients[5] = PairwiseClient.restore(
            old.save(), old._identity, rehearsal.parameters, DeterministicKeySource(b"again")
        )

    rehearsal.advertise()
    restart()
    rehearsal.share()
    restart()
    rehearsal.mask(given, gone=(7,))
    restart()
    rehearsal.sign()
    restart()
    rehearsal.unmask()
    assert np.array_equal(rehearsal.finish(), total(given, set(range(40)) - {7}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"neighbours": 12}, "set both"),
        ({"share_threshold": 9}, "set both"),
        ({"neighbours": 13, "share_threshold": 9}, "even"),
        ({"neighbours": 2, "share_threshold": 3}, "even"),
        ({"neighbours": 26, "share_threshold": 20}, r"4 \.\. 25"),
        ({"neighbours": 12, "share_threshold": 7}, r"8 \.\. 12"),
        ({"neighbours": 12, "share_threshold": 13}, r"8 \.\. 12"),
    ],
)
def test_bad_graphs(parameters: Callable[..., RoundParameters], change: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parameters(40, **change)


def test_the_graph_is_part_of_the_agreement(parameters: Callable[..., RoundParameters]) -> None:
    made = [
        parameters(40),
        parameters(40, **SPARSE),
        parameters(40, neighbours=14, share_threshold=9),
        parameters(40, neighbours=12, share_threshold=10),
    ]
    assert len({one.context() for one in made}) == 4
    assert [one.max_colluders for one in made] == [13, 1, 0, 2]
    assert [one.rebuilding for one in made] == [27, 9, 9, 10]


@pytest.mark.slow
def test_a_planned_graph_of_two_hundred(parameters: Callable[..., RoundParameters]) -> None:
    """10 % gone before the upload, 5 % after it, at the degree that was planned for 15 %."""
    identities = [Ed25519PrivateKey.generate() for _ in range(200)]
    roster = tuple(key.public_key().public_bytes_raw() for key in identities)
    plan = plan_graph(200, colluders=4, dropouts=30, members=134)
    agreed = parameters(
        40, roster=roster, threshold=134, neighbours=plan.neighbours, share_threshold=plan.share_threshold
    )
    assert agreed.max_colluders >= 4
    rehearsal = Rehearsal(agreed, identities)
    random = np.random.default_rng(0)
    given = {i: random.integers(0, 1 << 32, 16).astype(np.uint32) for i in range(200)}
    gone = random.permutation(200)
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(given, gone=gone[:20].tolist())
    rehearsal.sign(gone=gone[20:30].tolist())
    rehearsal.unmask()
    assert np.array_equal(rehearsal.finish(), total(given, set(range(200)) - set(gone[:20])))
