"""The server: phases, membership, one accumulator, nothing released on failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from carefl_secure.errors import CohortError, ProtocolError
from carefl_secure.secagg import PairwiseServer
from carefl_secure.secagg.pairwise import transcript
from carefl_secure.secagg.pairwise.messages import Advertisement
from carefl_secure.secagg.primitives import crypto
from tests.support.played_pairwise import Rehearsal

Rehearse = Callable[..., Rehearsal]
Vectors = Callable[..., dict[int, npt.NDArray[Any]]]


def test_phases_come_in_order(rehearse: Rehearse) -> None:
    server = rehearse(3).server
    for early in (server.survivors, server.signatures, server.finish, lambda: server.inbox(0)):
        with pytest.raises(ProtocolError, match=r"^step order"):
            early()
    for late in (server.uploaded, server.signed, server.answered):
        with pytest.raises(ProtocolError, match=r"^step order"):
            late(0, b"")
    with pytest.raises(ProtocolError, match=r"^step order"):
        server.shared(0, {})


def test_late_and_repeated_messages(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(5)
    server, given = rehearsal.server, vectors(rehearsal)
    rehearsal.advertise(gone=[4])
    with pytest.raises(ProtocolError, match=r"^duplicate message"):
        server.advertised(0, rehearsal.adverts[0])
    late = rehearsal.clients[4].advertise()
    rehearsal.share()
    with pytest.raises(ProtocolError, match=r"^step order"):
        server.advertised(4, late)
    with pytest.raises(ProtocolError, match=r"^duplicate message"):
        server.shared(0, rehearsal.shares[0])
    with pytest.raises(ProtocolError, match=r"^membership"):
        server.shared(4, {})
    rehearsal.mask(given)
    with pytest.raises(ProtocolError, match=r"^duplicate message"):
        server.uploaded(0, rehearsal.uploads[0])
    with pytest.raises(ProtocolError, match=r"^membership"):
        server.uploaded(4, rehearsal.uploads[0])
    with pytest.raises(ProtocolError, match=r"^membership"):
        server.inbox(4)
    rehearsal.sign()
    with pytest.raises(ProtocolError, match=r"^duplicate message"):
        server.signed(0, rehearsal.consents[0])
    rehearsal.unmask()
    with pytest.raises(ProtocolError, match=r"^duplicate message"):
        server.answered(0, rehearsal.answers[0])
    assert np.array_equal(rehearsal.finish(), given[0] + given[1] + given[2] + given[3])
    with pytest.raises(ProtocolError, match=r"^step order"):
        server.finish()


def test_phase_ends_may_be_asked_again(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(3)
    rehearsal.advertise()
    assert rehearsal.server.advertisements() == rehearsal.server.advertisements()
    rehearsal.share()
    assert rehearsal.server.inbox(1) == rehearsal.server.inbox(1)
    rehearsal.mask(vectors(rehearsal))
    assert rehearsal.server.survivors() == rehearsal.server.survivors() == ((0, 1, 2), (0, 1, 2))
    rehearsal.sign()
    assert rehearsal.server.signatures() == rehearsal.server.signatures()


def test_a_refused_message_leaves_the_round_whole(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(5)
    server, given = rehearsal.server, vectors(rehearsal)
    rehearsal.advertise()
    rehearsal.share()
    inbox = server.inbox(2)
    upload = bytearray(rehearsal.clients[2].mask(given[2], inbox))
    upload[30] ^= 1
    with pytest.raises(ProtocolError, match=r"^upload signature"):
        server.uploaded(2, bytes(upload))
    rehearsal.mask(given, gone=[2])
    rehearsal.sign()
    rehearsal.unmask()
    assert np.array_equal(rehearsal.finish(), given[0] + given[1] + given[3] + given[4])


def test_incomplete_shares_are_refused(rehearse: Rehearse) -> None:
    rehearsal = rehearse(4)
    rehearsal.advertise()
    messages = rehearsal.clients[0].share(rehearsal.server.advertisements())
    for wrong in ({k: v for k, v in messages.items() if k != 2}, {**messages, 0: messages[1]}, {}):
        with pytest.raises(ProtocolError, match=r"^share recipients"):
            rehearsal.server.shared(0, wrong)
    with pytest.raises(ProtocolError, match=r"^share recipient:"):
        rehearsal.server.shared(0, {**messages, 1: messages[2], 2: messages[1]})
    rehearsal.server.shared(0, messages)


def test_after_a_cohort_error_nothing_works(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(4)
    server = rehearsal.server
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(vectors(rehearsal), gone=[0, 1])
    with pytest.raises(CohortError, match="2 clients after uploading, at least 3"):
        server.survivors()
    assert server._sum is None
    for call in (server.survivors, server.signatures, server.finish, server.advertisements):
        with pytest.raises(ProtocolError, match=r"^step order"):
            call()


def forged_advert(rehearsal: Rehearsal, identity: Ed25519PrivateKey, index: int, keys: tuple[bytes, bytes]) -> bytes:
    """A well-signed advertisement with keys of the attacker's choice."""
    context = rehearsal.parameters.key_context()
    public = (*keys, bytes(32))
    fields = transcript.advertisement(context, index, *public)
    signature = crypto.sign(identity, transcript.ADVERTISEMENT, *fields)
    return Advertisement(*public, signature).encode(index, context)


def test_degenerate_and_copied_keys_are_refused(rehearse: Rehearse, identities: list[Ed25519PrivateKey]) -> None:
    rehearsal = rehearse(3)
    rehearsal.advertise(gone=[2])
    victim = rehearsal.adverts[0]
    copied = forged_advert(rehearsal, identities[2], 2, (b"\x09" + bytes(31), victim[48:80]))
    with pytest.raises(ProtocolError, match=r"^repeated key"):
        rehearsal.server.advertised(2, copied)
    twice = forged_advert(rehearsal, identities[2], 2, (b"\x09" + bytes(31),) * 2)
    with pytest.raises(ProtocolError, match=r"^repeated key"):
        rehearsal.server.advertised(2, twice)
    zero = forged_advert(rehearsal, identities[2], 2, (b"\x09" + bytes(31), bytes(32)))
    with pytest.raises(ProtocolError, match=r"^degenerate key"):
        rehearsal.server.advertised(2, zero)
    with pytest.raises(ProtocolError, match=r"^repeated key"):
        rehearsal.clients[0].share({**rehearsal.adverts, 2: copied})
    rehearsal.server.advertised(2, rehearsal.clients[2].advertise())


def test_one_vector_of_memory(rehearse: Rehearse, vectors: Vectors) -> None:
    rehearsal = rehearse(4, dimension=5000)
    given = vectors(rehearsal)
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(given)
    large = [v for v in vars(rehearsal.server).values() if getattr(v, "nbytes", 0) >= 20_000]
    assert len(large) == 1
    kept = [m for v in vars(rehearsal.server).values() if isinstance(v, dict) for m in v.values()]
    assert all(len(m) < 20_000 for m in kept if isinstance(m, bytes))


@pytest.mark.parametrize("index", [-1, 3, 70_000])
def test_strangers_are_refused(rehearse: Rehearse, index: int) -> None:
    server: PairwiseServer = rehearse(3).server
    with pytest.raises(ProtocolError, match=r"^membership"):
        server.advertised(index, b"")


def test_shares_are_kept_no_longer_than_the_uploads_last(rehearse: Rehearse, vectors: Vectors) -> None:
    """So that a server holds the sealed shares of one round, also while the next one's come in."""
    rehearsal = rehearse(5)
    given = vectors(rehearsal)
    rehearsal.advertise()
    rehearsal.share()
    rehearsal.mask(given, gone=[3])
    assert len(rehearsal.server.inbox(0)) == 4
    rehearsal.server.survivors()
    assert not any(rehearsal.server._boxes.values())
    with pytest.raises(ProtocolError, match=r"^step order: the shares were passed on"):
        rehearsal.server.inbox(0)
    rehearsal.sign()
    rehearsal.unmask()
    rest = [given[i] for i in (0, 1, 2, 4)]
    assert np.array_equal(rehearsal.finish(), np.sum(rest, axis=0, dtype=np.uint32))
