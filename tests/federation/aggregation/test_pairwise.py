"""Whole rounds: the sum is exact, dropouts are survived, and the server sees nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from numpy.typing import NDArray

from carefl_secure.errors import CohortError
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.server import strategy as strategy_module
from carefl_secure.federation.transport.local_grid import FIRST_NODE
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.secagg import decode

MakeBench = Callable[..., Any]
MaskedIntegers = NDArray[np.unsignedinteger[Any]]
PHASES = ["query.advertise", "query.share", "train.masked", "query.sign", "query.unmask"]


class Watch:
    """Keeps what clients masked and what the server opened, without changing either."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.vectors: dict[int, MaskedIntegers] = {}
        self.sums: list[MaskedIntegers] = []
        original = ClientSession._protected

        def protected(session: ClientSession, adapter: NDArray[np.float32]) -> MaskedIntegers:
            vector = original(session, adapter)
            self.vectors[session.index] = vector.copy()
            return vector

        def opened(total: MaskedIntegers, *rest: Any) -> NDArray[np.float64]:
            self.sums.append(total.copy())
            return decode(total, *rest)

        patch.setattr(ClientSession, "_protected", protected)
        patch.setattr(strategy_module, "decode", opened)

    def expected(self, indices: list[int]) -> MaskedIntegers:
        first = self.vectors[indices[0]]
        return np.sum([self.vectors[i] for i in indices], axis=0, dtype=first.dtype)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def losing(action: str, clients: set[int], replies: bool) -> Callable[[int, Message], bool]:
    def drop(node: int, message: Message) -> bool:
        is_reply = bool(message.metadata.reply_to_message_id)
        return node - FIRST_NODE in clients and message.metadata.message_type == action and is_reply == replies

    return drop


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("unit", ["record", "none"])
def test_the_opened_sum_is_exactly_that_of_all_clients(
    make_bench: MakeBench, watch: Watch, unit: str, workers: int
) -> None:
    bench = make_bench(unit=unit)
    bench.start(workers=workers)
    (total,) = watch.sums
    np.testing.assert_array_equal(total, watch.expected([0, 1, 2, 3, 4, 5]))
    assert bench.rows[0]["survivors"] == 6


def test_without_privacy_the_step_is_the_mean_gradient(make_bench: MakeBench) -> None:
    bench = make_bench(unit="none", sample_rate=1.0)
    adapter = bench.start()
    whole = np.concatenate([task.gradients for task in bench.tasks])
    np.testing.assert_allclose(adapter, -whole.mean(axis=0), atol=1e-5)
    assert bench.rows[0]["epsilon"] == "none"
    assert [len(task.calls[0]) for task in bench.tasks] == [30] * 6


@pytest.mark.parametrize("replies", [False, True])
@pytest.mark.parametrize("action", PHASES)
def test_a_dropout_at_any_phase_leaves_the_exact_sum_of_the_rest(
    make_bench: MakeBench, watch: Watch, action: str, replies: bool
) -> None:
    bench = make_bench(clients=7, max_colluders=0)  # floor 5: two may go
    bench.start(drop=losing(action, {1, 4}, replies))
    gone = {1, 4} if PHASES.index(action) <= 2 else set()
    rest = sorted(set(range(7)) - gone)
    (total,) = watch.sums
    np.testing.assert_array_equal(total, watch.expected(rest))
    assert bench.rows[0]["survivors"] == len(rest)
    assert bench.releases() == 1


@pytest.mark.parametrize("replies", [False, True])
@pytest.mark.parametrize("action", PHASES)
def test_below_min_survivors_nothing_is_opened(
    make_bench: MakeBench, watch: Watch, action: str, replies: bool
) -> None:
    bench = make_bench(clients=7, max_colluders=0)
    with pytest.raises(CohortError):
        bench.start(drop=losing(action, {0, 1, 4}, replies))
    assert watch.sums == []
    assert bench.rows == []
    assert bench.releases() == 0
    # asked for vectors or not, the book errs on the dear side only
    assert bench.server_spends() == (1 if PHASES.index(action) >= 2 else 0)
    assert all(spent <= bench.server_spends() for spent in bench.client_spends())


def test_nobody_answering_is_a_cohort_error(make_bench: MakeBench) -> None:
    bench = make_bench()
    with pytest.raises(CohortError):
        bench.start(drop=losing("query.share", set(range(6)), replies=False))
    with pytest.raises(CohortError):
        bench.start(drop=losing("query.advertise", set(range(6)), replies=False))


def test_different_clients_may_vanish_in_every_phase_of_every_round(make_bench: MakeBench, watch: Watch) -> None:
    bench = make_bench(clients=10, max_colluders=0, rounds=4)  # floor 7

    def drop(node: int, message: Message) -> bool:
        number = int(message.metadata.group_id)
        who = (node - FIRST_NODE + number) % 10
        return who < 3 and message.metadata.message_type == PHASES[1 + who]

    bench.start(rounds=4, drop=drop)
    assert [row["survivors"] for row in bench.rows] == [8, 8, 8, 8]
    assert bench.releases() == 4
    assert len(watch.sums) == 4


def test_the_mean_is_scaled_by_the_survivors(make_bench: MakeBench) -> None:
    bench = make_bench(unit="none", sample_rate=1.0, clients=7, max_colluders=0)
    adapter = bench.start(drop=losing("train.masked", {2, 3}, replies=False))
    rest = np.concatenate([bench.tasks[i].gradients for i in (0, 1, 4, 5, 6)])
    np.testing.assert_allclose(adapter, -rest.mean(axis=0), atol=1e-5)


def octets(message: Message) -> Iterator[bytes]:
    """Yield every byte string in a message."""
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            yield from (array.data for array in record.values())
        elif isinstance(record, ConfigRecord):
            for value in record.values():
                yield from (v for v in (value if isinstance(value, list) else [value]) if type(v) is bytes)


def strongest(blob: bytes, vector: MaskedIntegers) -> float:
    """Return the largest |correlation| of a vector with any stretch of words in some bytes."""
    size, kind = vector.nbytes, vector.dtype
    signed = np.dtype(kind.str.replace("u", "i"))
    target = vector.view(signed).astype(np.float64)
    target -= target.mean()
    target /= np.linalg.norm(target)
    best = 0.0
    for offset in range(len(blob) - size + 1):
        words = np.frombuffer(blob[offset : offset + size], signed).astype(np.float64)
        words -= words.mean()
        best = max(best, abs(float(words @ target)) / max(float(np.linalg.norm(words)), 1e-9))
    return best


def test_nothing_that_reaches_the_server_looks_like_a_clients_vector(make_bench: MakeBench, watch: Watch) -> None:
    bench = make_bench(dimension=500, sample_rate=1.0)
    bench.start(drop=losing("train.masked", {3}, replies=False))
    replies = [m for _, m in bench.seen if m.metadata.reply_to_message_id]
    blobs = [blob for reply in replies for blob in octets(reply)]
    size = watch.vectors[0].nbytes
    assert sum(len(blob) >= size for blob in blobs) == 5
    found = max(strongest(blob, v) for blob in blobs for v in watch.vectors.values())
    # 512 entries: chance alone stays below 6 / sqrt(512) = 0.27 over these few thousand stretches
    assert found < 6 / math.sqrt(512)
    # the same search finds a vector that was sent unmasked, behind any header
    bare = b"header of odd length." + watch.vectors[2].tobytes() + b"signature"
    assert strongest(bare, watch.vectors[2]) > 0.999


def test_no_two_uploads_differ_by_something_that_looks_like_a_vector(make_bench: MakeBench, watch: Watch) -> None:
    bench = make_bench(dimension=500, sample_rate=1.0)
    bench.start()
    uploads = [
        m.content["fields"]["upload"]
        for _, m in bench.seen
        if m.metadata.reply_to_message_id and m.metadata.message_type == "train.masked"
    ]
    kind = watch.vectors[0].dtype
    size, head = watch.vectors[0].nbytes, len(uploads[0]) - watch.vectors[0].nbytes
    for offset in range(head + 1):
        words = [np.frombuffer(u[offset : offset + size], kind) for u in uploads]
        for i in range(6):
            for j in range(i):
                for mixed in (words[i] - words[j], words[i] + words[j]):
                    for vector in (watch.vectors[i], watch.vectors[j]):
                        assert strongest(mixed.tobytes(), vector) < 6 / math.sqrt(512)


def test_replies_hold_their_one_value_and_nothing_else(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.start(last=1)  # with keys for a next round, see test_federation_ahead
    allowed = {
        "query.advertise": {"index", "message"},
        "query.share": {"shares", "shares.peers"},
        "train.masked": {"upload"},
        "query.sign": {"signature"},
        "query.unmask": {"answer"},
    }
    replies = [m for _, m in bench.seen if m.metadata.reply_to_message_id]
    assert len(replies) == 5 * 6
    for reply in replies:
        assert list(reply.content) == ["fields"]
        assert set(reply.content["fields"]) == allowed[reply.metadata.message_type]
    # a client with more records, or another sample, sends no longer message
    for action in allowed:
        sizes = {sum(len(blob) for blob in octets(m)) for m in replies if m.metadata.message_type == action}
        assert len(sizes) == 1


def test_the_opened_noise_has_the_planned_variance(make_bench: MakeBench, watch: Watch) -> None:
    bench = make_bench(
        clients=6,
        dimension=4000,
        records=0,  # nobody has a record: what is opened is noise alone
        rounds=4,
        key_source=lambda index: DeterministicKeySource(b"fixed %d" % index),
    )
    bench.start(rounds=4)
    noise = np.concatenate([total.view(np.int16) for total in watch.sums]).astype(np.float64)
    assert bench.plan.encoding.bits == 16
    planned = 6 * bench.plan.share_variance
    # sum of squares over variance: mean N, variance 2N + N * excess kurtosis (1 / variance)
    count = noise.size
    deviation = math.sqrt(count * (2 + 1 / planned))
    assert abs(float(noise @ noise) / planned - count) < 4 * deviation
    assert abs(float(noise.mean())) < 4 * math.sqrt(planned / count)
    # and each round drew its own
    assert len({total.tobytes() for total in watch.sums}) == 4


def test_the_counted_noise_survives_dropouts_and_colluders(make_bench: MakeBench, watch: Watch) -> None:
    bench = make_bench(
        clients=6,
        dimension=4000,
        records=0,
        rounds=4,
        max_colluders=1,
        key_source=lambda index: DeterministicKeySource(b"other %d" % index),
    )
    variances = []
    for _ in range(4):
        watch.sums.clear()
        bench.clients.close()
        bench.start(finished=len(variances), drop=losing("train.masked", {5}, replies=False))
        signed = (watch.sums[0] - watch.vectors[0]).view(np.int16).astype(np.float64)
        variances.append(float(signed @ signed) / signed.size)
    event = bench.plan.event
    # five survive, one of them (client 0) tells the server its noise: the rest is what was priced
    spread = event.variance * math.sqrt(2 / (4 * 4096))
    assert abs(np.mean(variances) - event.variance) < 4 * spread


def test_the_noise_norm_in_the_row_is_that_of_the_noise(make_bench: MakeBench) -> None:
    bench = make_bench(
        dimension=3000, records=0, rounds=3, key_source=lambda index: DeterministicKeySource(b"norm %d" % index)
    )
    bench.start(rounds=3)
    for row in bench.rows:
        assert row["gradient_norm"] == pytest.approx(row["noise_norm"], rel=0.06)


def test_the_same_seeds_give_other_noise_every_time(make_bench: MakeBench, tasks_toy: Callable[..., Any]) -> None:
    results = []
    for _ in range(2):
        np.random.seed(0)
        bench = make_bench(tasks=tasks_toy(6, 60, 0))
        results.append(bench.start())
    assert np.linalg.norm(results[0] - results[1]) > 0.5 * np.linalg.norm(results[0])
