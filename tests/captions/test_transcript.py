"""No caption and no image in any message: a whole run is recorded and searched, byte by byte."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from carefl_secure.config import load_config
from carefl_secure.data.records import EMOTIC
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.model.embedded import QUESTIONS
from carefl_secure.model.label_scorer import LabelScorer
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.progress import SilentReporter
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.captions import Contexts, load_contexts
from carefl_secure.runs.client_task import model_tasks
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.evaluation.evaluator import Evaluator
from carefl_secure.runs.staged_corpora import load_corpora
from tests.support.running import federate

WINDOW = 12  # bytes; a run of that length by chance has odds of 2**-96 a place


@dataclass
class Recorded:
    messages: list[Message]
    corpora: Corpora
    contexts: Contexts
    folder: Path
    scorer: LabelScorer


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    home = tmp_path_factory.mktemp("context")
    adapter = Adapter(load_base("embedded", quantization="none"), rank=2, alpha=4)
    scorer = LabelScorer(adapter, EMOTIC, QUESTIONS["emotic"])
    config = load_config(None, ["data.records=80", "model.context=own", "federation.clients=4", "run.seed=5"])
    corpora = load_corpora(config, SilentReporter())
    contexts = load_contexts(config, corpora, SilentReporter())
    assert contexts is not None
    tasks = model_tasks(
        scorer, corpora, Clipping(1.0, True, engine="native", micro_batch=64), SilentReporter(), contexts=contexts
    )
    plan = plan_run(
        PlanRequest(
            unit="record",
            dimension=adapter.dimension,
            clients=4,
            rounds=2,
            public_records=80,
            sample_rate=0.5,
            clipping_norm=1.0,
            delta=1e-3,
            target_epsilon=8.0,
        )
    )
    messages: list[Message] = []
    folder = RunFolder.create(home / "runs", "")
    federate(
        plan,
        tasks,
        adapter.vector(),
        optimizer=FedAvg(0.1),
        folder=folder,
        base_hash=adapter.base.digest,
        evaluate=Evaluator(scorer, corpora, 64, SilentReporter(), contexts),
        record=lambda node, message: messages.append(message),
    )
    return Recorded(messages, corpora, contexts, folder.path, scorer)


def leaves(value: Any) -> Iterator[bytes]:
    """Yield all bytes of a message's content, names and metadata included."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, list | tuple):
        yield np.asarray(value).tobytes() if value and isinstance(value[0], int | float) else b""
        for one in value:
            yield from leaves(one)
    elif isinstance(value, int | float):
        yield str(value).encode()
    elif hasattr(value, "items"):
        for name, one in value.items():
            yield str(name).encode()
            yield from leaves(one)
    elif hasattr(value, "data"):  # one array
        yield value.data


def wire(messages: list[Message]) -> list[bytes]:
    out = []
    for message in messages:
        parts = [repr(vars(message.metadata)).encode()]
        if message.has_content():
            for kind in ("array_records", "metric_records", "config_records"):
                parts += leaves(getattr(message.content, kind))
        out.append(b"\0".join(parts))
    return out


def windows(blobs: list[bytes], step: int = 1) -> set[bytes]:
    """All runs of bytes with some variety: a run of zeros says nothing about an image."""
    found = set()
    for blob in blobs:
        for i in range(0, len(blob) - WINDOW + 1, step):
            run = blob[i : i + WINDOW]
            if len(set(run)) >= 6:
                found.add(run)
    return found


def of_images(corpora: Corpora) -> list[bytes]:
    """Every private image as pixels, as file, and as either in base 64."""
    blobs = []
    for i in range(len(corpora.private.records)):
        image = corpora.private.image(i)
        blobs.append(image.tobytes())
        for kind in ("PNG", "JPEG"):
            file = io.BytesIO()
            image.save(file, kind)
            blobs.append(file.getvalue()[64:])  # behind the head that all files share
    return [*blobs, *(base64.b64encode(blob) for blob in blobs)]


@pytest.fixture(scope="module")
def image_runs(recorded: Recorded) -> set[bytes]:
    return windows(of_images(recorded.corpora), step=3)


def of_captions(recorded: Recorded) -> list[bytes]:
    """Every caption as text, in base 64, and as token ids of either width."""
    blobs = []
    prompter = recorded.scorer.adapter.base.prompter
    for caption in recorded.contexts.private:
        blobs += [caption.encode(), base64.b64encode(caption.encode())]
        ids = np.array(prompter.ids(f"Context: {caption}."))
        blobs += [ids.astype(kind).tobytes() for kind in (np.int64, np.int32, np.uint16)]
    return blobs


def test_no_caption_and_no_image_is_in_any_message(recorded: Recorded, image_runs: set[bytes]) -> None:
    assert len(recorded.messages) > 30
    sent = wire(recorded.messages)
    assert sum(map(len, sent)) > 4 * 2 * recorded.scorer.adapter.dimension
    seen = windows(sent)
    assert not seen & windows(of_captions(recorded))
    assert not seen & image_runs


@pytest.mark.parametrize("what", ["caption", "pixels"])
@pytest.mark.parametrize("where", ["text", "bytes", "metric"])
def test_the_search_finds_what_is_hidden_in_a_message(
    recorded: Recorded, image_runs: set[bytes], what: str, where: str
) -> None:
    caption = max(recorded.contexts.private, key=len)
    data = caption.encode() if what == "caption" else recorded.corpora.private.image(7).tobytes()
    value: Any = b"lead" + data
    if where == "text":
        value = base64.b64encode(data).decode()
    elif where == "metric":
        value = np.frombuffer(data[: len(data) // 8 * 8], np.int64).tolist()
    original = next(m for m in recorded.messages if m.has_content())
    forged = Message(RecordDict({"x": ConfigRecord({"field": value})}), reply_to=original)
    seen = windows(wire([forged]))
    assert seen & (windows(of_captions(recorded)) if what == "caption" else image_runs)


def test_no_caption_is_in_the_run_folder(recorded: Recorded) -> None:
    files = [path for path in recorded.folder.rglob("*") if path.is_file()]
    assert files
    found = windows([path.read_bytes() for path in files])
    assert not found & windows([caption.encode() for caption in recorded.contexts.private])
