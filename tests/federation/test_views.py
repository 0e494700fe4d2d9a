"""What each party sees in a run with helpers, and that no vector shows in any of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from carefl_secure.errors import ProtocolError
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.secagg.encrypted.bfv import PLAIN_MODULUS, PublicKey, SecretKey
from carefl_secure.secagg.encrypted.packing import choose_fields, pack_fields, to_residues

MakeBench = Callable[..., Any]
Floats = NDArray[np.float64]
DIMENSION = 500  # padded to 504
LIMIT = 7 / math.sqrt(512)  # seven standard errors: above what millions of chances reach


class View:
    """A round, who said what to whom, and the vectors that nobody may see."""

    def __init__(self, bench: Any, vectors: dict[int, Floats]) -> None:
        self.bench, self.vectors = bench, vectors
        self.clients = len(bench.tasks)

    def messages(self, helper: bool, replies: bool) -> list[Message]:
        """Messages to or from clients or helpers."""
        return [
            message
            for node, message in self.bench.seen
            if (node - FIRST_NODE >= self.clients) == helper and bool(message.metadata.reply_to_message_id) == replies
        ]

    def uploads(self) -> list[bytes]:
        """Return every client's vector message."""
        return [
            m.content["fields"]["upload"]
            for m in self.messages(helper=False, replies=True)
            if m.metadata.message_type.startswith("train.")
        ]


@pytest.fixture(params=["committee", "encrypted"])
def view(request: pytest.FixtureRequest, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> View:
    vectors: dict[int, Floats] = {}
    original = ClientSession._protected

    def protected(session: ClientSession, adapter: Any) -> Any:
        words = original(session, adapter)
        signed: NDArray[Any] = words.view(f"i{words.itemsize}")
        vectors[session.index] = signed.astype(np.float64)
        return words

    monkeypatch.setattr(ClientSession, "_protected", protected)
    bench = make_bench(3, DIMENSION, sample_rate=1.0, max_colluders=0, aggregation=request.param)
    bench.start()
    return View(bench, vectors)


def octets(message: Message) -> Iterator[bytes]:
    """Yield every byte string in a message, the public adapter apart."""
    for record in message.content.values():
        if not isinstance(record, ArrayRecord):
            for value in record.values():
                items = value if isinstance(value, list) else [value]
                yield from (item for item in items if type(item) is bytes)


def strongest(stretch: Floats, vector: Floats) -> float:
    """Return the largest |correlation| of a vector with any window of a longer stretch."""
    size = vector.size
    if stretch.size < size:
        return 0.0
    target = vector - vector.mean()
    target /= np.linalg.norm(target)
    sums = np.concatenate([[0.0], np.cumsum(stretch)])
    squares = np.concatenate([[0.0], np.cumsum(stretch**2)])
    mean = (sums[size:] - sums[:-size]) / size
    spread = np.maximum((squares[size:] - squares[:-size]) / size - mean**2, 1e-9)
    found = np.correlate(stretch, target, "valid") / np.sqrt(spread * size)
    return float(np.abs(found).max())


def readings(blob: bytes, item: int) -> Iterator[Floats]:
    """Yield some bytes as signed words, from every place a word may start."""
    for lead in range(item):
        part = blob[lead:]
        words = np.frombuffer(part[: len(part) // item * item], f"<i{item}")
        yield words.astype(np.float64) / 2.0 ** (8 * item - 1)


def test_no_word_that_the_server_receives_follows_a_vector(view: View) -> None:
    item = view.bench.plan.encoding.bits // 8
    received = [*view.messages(helper=False, replies=True), *view.messages(helper=True, replies=True)]
    blobs = {blob for message in received for blob in octets(message)}
    assert sum(len(blob) >= 512 * item for blob in blobs) >= 4
    found = max(
        strongest(words, vector)
        for blob in blobs
        for words in readings(blob, item)
        for vector in view.vectors.values()
    )
    assert found < LIMIT
    bare = b"odd" + view.vectors[1].astype(f"<i{item}").tobytes() + b"tail"
    assert max(strongest(words, view.vectors[1]) for words in readings(bare, item)) > 0.999


def test_a_helper_never_receives_what_a_client_sent_to_the_server(view: View) -> None:
    """Of a submission, only its own envelope; the key holder gets encrypted uploads."""
    mode = view.bench.clients.cohort.aggregation
    to_helpers = [b"".join(octets(m)) for m in view.messages(helper=True, replies=False)]
    item = view.bench.plan.encoding.bits // 8
    for upload in view.uploads():
        end = 100 + 512 * item - 64 if mode == "committee" else len(upload) - 32
        slices = [upload[at : at + 32] for at in range(100, end, 97)]
        assert len(slices) > 8
        whole = mode == "encrypted"  # the key holder gets the signed ciphertexts, all of them
        assert any(piece in blob for piece in slices for blob in to_helpers) == whole
        if mode == "committee":  # the same search finds the envelopes, one for each member
            tail = [upload[at : at + 32] for at in range(end + 200, len(upload) - 128, 97)]
            holding = [any(piece in blob for piece in tail) for blob in to_helpers]
            assert sum(holding) == 3


def test_helpers_are_told_what_their_step_needs_and_no_more(view: View) -> None:
    allowed = {
        "query.role": ({"ask"}, {"role", "index"}),
        "query.committee_announce": ({"round", "plan"}, {"announcement"}),
        "query.committee_open": (
            {"round", "plan", "model", "announcements", "announcements.peers", "listing"},
            {"opening"},
        ),
        "query.committee_answer": ({"openings", "openings.peers"}, {"answer"}),
        "query.holder_key": ({"round", "plan"}, {"key"}),
        "query.open_sum": ({"model", "keys", "last", "uploads", "uploads.peers"}, {"opened"}),
    }
    steps = set()
    for place, replies in enumerate((False, True)):
        for message in view.messages(helper=True, replies=replies):
            steps.add(message.metadata.message_type)
            kind = message.metadata.message_type
            assert set(message.content) <= {"fields", "next"}
            assert set(message.content["fields"]) == allowed[kind][place]
            if "next" in message.content:  # a member's key for the next round
                assert kind == "query.committee_answer"
                ride = ({"round", "plan"}, {"announcement"})[place]
                assert set(message.content["next"]) == ride
    wanted = "committee" if view.bench.clients.cohort.aggregation == "committee" else "holder"
    assert len(steps) == (4 if wanted == "committee" else 3)


def test_a_clients_reply_is_its_upload_and_of_one_length(view: View) -> None:
    committee = view.bench.clients.cohort.aggregation == "committee"
    replies = view.messages(helper=False, replies=True)
    kinds = {m.metadata.message_type for m in replies}
    assert (kinds == {"query.role", "train.submit"}) == committee  # one message, and it may leave
    for message in replies:
        if message.metadata.message_type.startswith("train."):
            assert list(message.content) == ["fields"]
            assert set(message.content["fields"]) == {"upload"}
    if committee:
        assert len({len(upload) for upload in view.uploads()}) == 1


@pytest.mark.parametrize("view", ["encrypted"], indirect=True)
def test_what_the_key_holder_decrypts_is_still_masked_and_its_key_stays(view: View) -> None:
    bench = view.bench
    fields = {m.metadata.message_type: m.content["fields"] for m in view.messages(helper=True, replies=True)}
    # the key that left it encrypts only; the same check refuses one that decrypts
    PublicKey(fields["query.holder_key"]["key"][64:])
    secret = SecretKey()._context.serialize(save_public_key=True, save_secret_key=True)
    with pytest.raises(ProtocolError, match="secret key"):
        PublicKey(secret)
    room = choose_fields(bench.plan.encoding)
    width, per = room.field_bits, 60 // room.field_bits
    slots = -(-bench.plan.encoding.padded // per)
    opened = fields["query.open_sum"]["opened"]
    body = opened[len(opened) - 64 - 8 * slots : len(opened) - 64]
    total = sum(view.vectors.values())

    def follows(numbers: NDArray[Any]) -> float:
        low = (numbers & np.uint64((1 << width) - 1)).astype(np.int64)
        signed = np.where(low >= 1 << width - 1, low - (1 << width), low).astype(np.float64)
        positive = numbers < PLAIN_MODULUS // 2
        return abs(float(np.corrcoef(signed[positive], total[:slots][positive])[0, 1]))

    assert follows(np.frombuffer(body, "<u8")) < 7 / math.sqrt(slots / 2)
    bare = to_residues(pack_fields(total.astype(np.int64), width), PLAIN_MODULUS)
    assert follows(bare) > 0.999
