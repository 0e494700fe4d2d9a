"""The client: each step once and in order, min_survivors, restarts, erased secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.noise import DeterministicKeySource, SystemKeySource
from carefl_secure.secagg import PairwiseClient, Phase, RoundParameters
from tests.support.played_pairwise import Rehearsal

Rehearse = Callable[..., Rehearsal]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]
Make = Callable[..., RoundParameters]
Identities = list[Ed25519PrivateKey]


def steps(rehearsal: Rehearsal, vectors: dict[int, npt.NDArray[Any]]) -> list[Any]:
    """The five steps of the whole cohort."""
    return [rehearsal.advertise, rehearsal.share, lambda: rehearsal.mask(vectors), rehearsal.sign, rehearsal.unmask]


def calls(rehearsal: Rehearsal, vectors: dict[int, npt.NDArray[Any]]) -> list[Any]:
    """The five steps of client 0, with the honest arguments once the round is over."""
    who = rehearsal.clients[0]
    inbox = {peer: box[0] for peer, box in rehearsal.shares.items() if peer}
    everyone = tuple(rehearsal.clients)
    return [
        who.advertise,
        lambda: who.share(rehearsal.adverts),
        lambda: who.mask(vectors[0], inbox),
        lambda: who.sign(everyone, everyone),
        lambda: who.unmask(rehearsal.consents),
    ]


@pytest.mark.parametrize("done", range(6))
def test_each_step_once_and_in_order(rehearse: Rehearse, vectors: Vectors, done: int) -> None:
    rehearsal = rehearse(4)
    given = vectors(rehearsal)
    for step in steps(rehearsal, given)[:done]:
        step()
    for place, call in enumerate(calls(rehearsal, given)):
        if place == done:
            continue
        expected = "answered before" if place < done else "not due yet"
        with pytest.raises(ProtocolError, match=f"^step order: .*{expected}"):
            call()
    assert rehearsal.clients[0].phase == Phase(done)


@pytest.mark.parametrize("done", range(6))
def test_a_closed_client_refuses_everything(rehearse: Rehearse, vectors: Vectors, done: int) -> None:
    rehearsal = rehearse(4)
    given = vectors(rehearsal)
    for step in steps(rehearsal, given)[:done]:
        step()
    rehearsal.clients[0].close()
    for call in calls(rehearsal, given):
        with pytest.raises(ProtocolError, match=r"^step order: .*closed"):
            call()


def test_a_refused_step_can_be_tried_again(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(4)
    rehearsal.advertise()
    bad = {**rehearsal.adverts, 2: rehearsal.adverts[3]}
    with pytest.raises(ProtocolError):
        rehearsal.clients[0].share(bad)
    given = vectors(rehearsal)
    rehearsal.share()
    with pytest.raises(ProtocolError):
        rehearsal.clients[0].mask(given[0][:-1], {})
    rehearsal.mask(given)
    with pytest.raises(ProtocolError):
        rehearsal.clients[0].sign([0, 1, 2, 3], [1, 2, 3])
    rehearsal.sign()
    with pytest.raises(ProtocolError):
        rehearsal.clients[0].unmask({})
    rehearsal.unmask()
    assert np.array_equal(rehearsal.finish(), given[0] + given[1] + given[2] + given[3])


def test_the_client_enforces_the_floor(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(7, min_survivors=6)  # threshold 5
    rehearsal.advertise()
    some = {i: m for i, m in rehearsal.adverts.items() if i < 5}
    with pytest.raises(CohortError, match="5 clients after advertising, at least 6"):
        rehearsal.clients[0].share(some)
    rehearsal.share()
    inbox = rehearsal.server.inbox(0)
    few = {i: m for i, m in inbox.items() if i < 5}
    given = vectors(rehearsal)
    with pytest.raises(CohortError, match="5 clients after sharing, at least 6"):
        rehearsal.clients[0].mask(given[0], few)
    rehearsal.mask(given)
    with pytest.raises(CohortError, match="5 clients after uploading, at least 6"):
        rehearsal.clients[0].sign(range(7), range(5))
    rehearsal.sign()
    four = {i: m for i, m in rehearsal.consents.items() if i < 4}
    with pytest.raises(ProtocolError, match=r"^consent count: 4 signatures, 5"):
        rehearsal.clients[0].unmask(four)


def test_roster_is_checked(parameters: Make, identities: Identities) -> None:
    for index, identity in ((0, identities[1]), (4, identities[4]), (-1, identities[3])):
        with pytest.raises(ProtocolError, match=r"^roster"):
            PairwiseClient(parameters(4), index, identity, SystemKeySource())


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(15, np.uint32),
        np.zeros(16, np.uint16),
        np.zeros(16, np.int32),
        np.zeros(16, np.float64),
        np.zeros((1, 16), np.uint32),
        [0] * 16,
    ],
)
def test_wrong_vectors_are_refused(rehearse: Rehearse, vector: Any) -> None:
    rehearsal = rehearse(3)
    rehearsal.advertise()
    rehearsal.share()
    with pytest.raises(ProtocolError, match=r"^vector shape"):
        rehearsal.clients[0].mask(vector, rehearsal.server.inbox(0))


def test_strided_vectors_are_fine(rehearse: Rehearse) -> None:
    rehearsal = rehearse(3)
    wide = np.arange(32, dtype=np.uint32)
    assert np.array_equal(rehearsal.run(dict.fromkeys(range(3), wide[::2])), 3 * wide[::2])


def reload(rehearsal: Rehearsal) -> None:
    for index, one in rehearsal.clients.items():
        blob = one.save()
        fresh = PairwiseClient.restore(blob, one._identity, rehearsal.parameters, SystemKeySource())
        assert (fresh.index, fresh.phase) == (index, one.phase)
        rehearsal.clients[index] = fresh


def test_restart_between_all_messages(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(5)
    given = vectors(rehearsal)
    played = steps(rehearsal, given)
    for place, step in enumerate(played):
        reload(rehearsal)
        if place == 2:
            rehearsal.mask(given, gone=[3])
        else:
            step()
    opened = rehearsal.finish()
    assert np.array_equal(opened, given[0] + given[1] + given[2] + given[4])


@pytest.mark.parametrize("done", range(1, 6))
def test_a_restored_client_answers_no_step_twice(rehearse: Rehearse, vectors: Vectors, done: int) -> None:
    rehearsal = rehearse(4)
    given = vectors(rehearsal)
    for step in steps(rehearsal, given)[:done]:
        step()
    reload(rehearsal)
    for call in calls(rehearsal, given)[:done]:
        with pytest.raises(ProtocolError, match=r"^step order: .*answered before"):
            call()


def test_a_restored_client_keeps_its_survivor_set(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(5)
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(vectors(rehearsal))
    rehearsal.sign()
    reload(rehearsal)
    with pytest.raises(ProtocolError, match=r"^step order"):
        rehearsal.clients[0].sign(range(5), [0, 1, 2, 3])
    rehearsal.unmask()


def test_saved_state_is_sealed(rehearse: Rehearse, parameters: Make, identities: Identities) -> None:
    rehearsal = rehearse(3)
    rehearsal.advertise()
    one = rehearsal.clients[0]
    blob = one.save()
    assert one.save() != blob  # a fresh salt each time
    secret = DeterministicKeySource(b"seed\x00").key("self mask")
    assert bytes(one._state.self_mask) == secret
    assert secret not in blob
    assert secret.hex().encode() not in blob
    source = SystemKeySource()
    for place in (0, 4, 5, 36, 37, 60, len(blob) - 1):
        changed = bytearray(blob)
        changed[place] ^= 1
        with pytest.raises(ProtocolError, match=r"^saved state"):
            PairwiseClient.restore(bytes(changed), identities[0], parameters(3), source)
    for junk in (b"", blob[:20], blob[:-1], blob + b"x", "text"):
        with pytest.raises(ProtocolError, match=r"^saved state"):
            PairwiseClient.restore(junk, identities[0], parameters(3), source)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=r"^saved state"):
        PairwiseClient.restore(blob, identities[1], parameters(3), source)
    with pytest.raises(ProtocolError, match=r"^saved state"):
        PairwiseClient.restore(blob, identities[0], parameters(3, round=8), source)


def everything(value: object, seen: set[int]) -> Iterator[bytes]:
    """All bytes reachable from an object through attributes and containers."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        yield value.to_bytes((value.bit_length() + 7) // 8, "little")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from everything(key, seen)
            yield from everything(item, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from everything(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, DeterministicKeySource):
        yield from everything(vars(value), seen)


def holds(client: PairwiseClient, secret: bytes) -> bool:
    return any(secret in found for found in everything(client, set()))


def test_secrets_are_erased_as_soon_as_they_are_not_needed(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(4)
    one = rehearsal.clients[0]
    source = DeterministicKeySource(b"seed\x00")
    names = ("encryption key", "mask key", "self mask")
    keys = {name: source.key(name) for name in names}
    rehearsal.advertise()
    assert [holds(one, keys[name]) for name in names] == [True, True, True]
    rehearsal.share()
    assert [holds(one, keys[name]) for name in names] == [False, True, True]
    opening = {peer: bytes(key) for peer, key in one._state.opening_keys.items()}
    assert all(holds(one, key) for key in opening.values())
    rehearsal.mask(vectors(rehearsal))
    assert [holds(one, keys[name]) for name in names] == [False, False, False]
    assert not any(holds(one, key) for key in opening.values())
    held = [bytes(raw) for raw in one._state.held.values()]
    references = list(one._state.held.values())
    own = bytes(one._state.own_share)
    assert len(held) == 3
    assert all(holds(one, raw) for raw in held)
    rehearsal.sign()
    assert all(holds(one, raw) for raw in held)
    rehearsal.unmask()
    assert not any(holds(one, raw[:33]) or holds(one, raw[33:]) for raw in held)
    assert not holds(one, own)
    assert not any(references)


@pytest.mark.parametrize("done", range(1, 5))
def test_close_erases_everything(rehearse: Rehearse, vectors: Vectors, done: int) -> None:
    rehearsal = rehearse(4)
    for step in steps(rehearsal, vectors(rehearsal))[:done]:
        step()
    one = rehearsal.clients[0]
    secrets = [bytes(secret) for secret in one._state._secrets() if secret]
    assert secrets
    one.close()
    assert not any(holds(one, secret) for secret in secrets)
    blob = one.save()
    again = PairwiseClient.restore(blob, one._identity, rehearsal.parameters, SystemKeySource())
    assert again.phase == Phase.CLOSED
    assert not any(holds(again, secret) for secret in secrets)


def test_state_does_not_print_its_secrets(rehearse: Rehearse) -> None:
    rehearsal = rehearse(3)
    rehearsal.advertise()
    state = rehearsal.clients[0]._state
    assert repr(bytes(state.self_mask))[2:-1] not in repr(state)
    assert "self_mask=" not in repr(state)
