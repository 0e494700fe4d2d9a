"""Everything the server ever receives in a run on a real model, and what it can make of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from carefl_secure.config import load_config
from carefl_secure.data.records import EMOTIC
from carefl_secure.federation.client import session as session_module
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.server import strategy as strategy_module
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.federation.transport.messages import piggybacked
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.client_task import ModelTask, model_tasks
from carefl_secure.runs.staged_corpora import load_corpora
from tests.support.running import federate

ROUNDS = 2


@dataclass
class Transcript:
    """What crossed the wire, and what stayed inside clients and server."""

    received: list[Message]
    truth: dict[int, NDArray[np.float64]]  # 100 * round + client
    encoded: list[NDArray[np.int64]]  # in the order of computing, seven a round
    opened: list[NDArray[np.unsignedinteger]]
    folder: RunFolder


@pytest.fixture(scope="module")
def transcript(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Transcript:
    """Run two rounds and keep what crossed the wire, and what stayed inside the clients."""
    home = tmp_path_factory.mktemp("transcript")
    adapter = Adapter(load_base(str(base)), rank=2, alpha=4)
    config = load_config(None, ["data.records=160", f"data.cache_dir={home / 'cache'}", "privacy.delta=0.001"])
    corpora = load_corpora(config, SilentReporter())
    tasks = model_tasks(
        LabelScorer(adapter, EMOTIC, "Which emotions?"),
        corpora,
        Clipping(1.0, True, engine="native", micro_batch=16),
        SilentReporter(),
    )
    plan = plan_run(
        PlanRequest(
            unit="record",
            dimension=adapter.dimension,
            clients=8,
            rounds=ROUNDS,
            public_records=160,
            sample_rate=0.5,
            clipping_norm=1.0,
            delta=1e-3,
            target_epsilon=8.0,
        )
    )
    received: list[Message] = []
    truth: dict[int, NDArray[np.float64]] = {}
    encoded: list[NDArray[np.int64]] = []

    class Watched:
        def __init__(self, task: ModelTask, index: int) -> None:
            self.task, self.index = task, index
            self.dimension, self.records = task.dimension, task.records

        def clipped_sum(
            self, vector: NDArray[np.float32], indices: NDArray[np.int64], number: int
        ) -> NDArray[np.float64]:
            total = self.task.clipped_sum(vector, indices, number)
            truth[number * 100 + self.index] = total
            return total

    original = session_module.wrap

    def watch_wrap(integers: NDArray[np.int64], bits: int) -> NDArray[np.unsignedinteger]:
        encoded.append(integers.copy())
        return original(integers, bits)

    opened: list[NDArray[np.unsignedinteger]] = []
    decoding = strategy_module.decode

    def watch_decode(total: NDArray[np.unsignedinteger], *rest: Any) -> NDArray[np.float64]:
        opened.append(total.copy())
        return decoding(total, *rest)

    folder = RunFolder.create(home / "runs", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "wrap", watch_wrap)
        patch.setattr(strategy_module, "decode", watch_decode)
        federate(
            plan,
            [Watched(task, i) for i, task in enumerate(tasks)],
            adapter.vector(),
            optimizer=FedAvg(0.1),
            folder=folder,
            base_hash=adapter.base.digest,
            dropout=0.1,
            record=lambda node, message: received.append(message),
        )
    return Transcript(received, truth, encoded, opened, folder)


def uploads(messages: list[Message]) -> list[bytes]:
    """The one field of every reply that carries a vector: the longest bytes of the message."""
    found = []
    for message in messages:
        if message.metadata.message_type != "train.masked" or not message.has_content():
            continue
        if message.metadata.src_node_id < 1000:
            continue  # the server's own question
        fields = [
            value
            for record in message.content.config_records.values()
            for value in record.values()
            if isinstance(value, bytes)
        ]
        found.append(max(fields, key=len))
    return found


def test_a_reply_to_training_holds_one_field_and_nothing_else(transcript: Transcript) -> None:
    received = transcript.received
    replies = [m for m in received if m.metadata.message_type == "train.masked" and m.metadata.src_node_id >= 1000]
    assert len(replies) == 7 * ROUNDS
    for message in replies:
        assert not message.content.array_records and not message.content.metric_records
        (record,) = message.content.config_records.values()
        assert len(record) == 1


def test_the_second_round_had_its_keys_made_in_the_first(transcript: Transcript) -> None:
    """So what follows holds for a round in the plain form and for one with keys ahead."""
    asked = {(m.metadata.group_id, m.metadata.message_type) for m in transcript.received}
    names = {"1": set[str](), "2": set[str]()}
    for number, name in asked:
        names[number].add(name)
    keys = {"query.advertise", "query.share"}
    assert keys <= names["1"] and not keys & names["2"]
    riding = [m for m in transcript.received if piggybacked(m.content) is not None]
    replies = [m.metadata.message_type for m in riding if m.metadata.src_node_id >= 1000]
    assert sorted(replies) == ["query.sign"] * 7 + ["query.unmask"] * 7


def test_no_vector_correlates_with_any_true_update(transcript: Transcript) -> None:
    received, truth = transcript.received, transcript.truth
    found = uploads(received)
    assert len(found) == 7 * ROUNDS and len(truth) == 7 * ROUNDS
    dimension = len(next(iter(truth.values())))
    limit = 5.5 / np.sqrt(dimension)  # five and a half standard errors of a chance correlation
    words = np.uint16 if len(found[0]) < 3 * dimension else np.uint32
    for upload in found:
        tail = upload[len(upload) % words().itemsize :]
        for lead in range(0, 400, words().itemsize):  # wherever in the message a vector may start
            vector = np.frombuffer(tail, words)[lead // words().itemsize :][:dimension]
            if len(vector) < dimension:
                break
            signed = vector.astype(np.int32 if words is np.uint32 else np.int16).astype(float)
            for update in truth.values():
                assert abs(np.corrcoef(signed, update)[0, 1]) < limit


def test_no_vector_correlates_with_any_encoded_vector(transcript: Transcript) -> None:
    """The masks hide even the rotated, noised integers, from a server that undoes the rotation."""
    received, encoded = transcript.received, transcript.encoded
    length = len(encoded[0])
    limit = 5.5 / np.sqrt(length)
    item = 2 if len(uploads(received)[0]) < 3 * length else 4
    for upload in uploads(received):
        words = np.frombuffer(upload[len(upload) % item :], f"<i{item}").astype(float)
        for start in range(len(words) - length + 1):
            window = words[start : start + length]
            for integers in encoded:
                assert abs(np.corrcoef(window, integers)[0, 1]) < limit


def test_the_opened_sum_is_exactly_that_of_the_survivors(transcript: Transcript) -> None:
    assert [row["survivors"] for row in transcript.folder.read_metrics()] == [7, 7]
    assert len(transcript.encoded) == 7 * ROUNDS and len(transcript.opened) == ROUNDS
    for number, total in enumerate(transcript.opened):
        survivors = transcript.encoded[7 * number : 7 * number + 7]
        np.testing.assert_array_equal(total, np.sum(survivors, axis=0).astype(total.dtype))


def test_the_noise_in_the_opened_sum_is_the_planned_one(transcript: Transcript) -> None:
    for number, row in enumerate(transcript.folder.read_metrics(), start=1):
        whole = sum(v for k, v in transcript.truth.items() if k // 100 == number)
        mean_norm = np.linalg.norm(whole) / (160 * 0.5 * 7 / 8)
        expected = np.hypot(mean_norm, float(row["noise_norm"]))
        assert float(row["gradient_norm"]) == pytest.approx(expected, rel=0.1)
