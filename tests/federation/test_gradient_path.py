"""How many files of the package a record's gradient passes through, measured on a real round.

A file counts if one of its functions takes or returns the gradient in any form: a tensor, a vector
of reals, integers or masked words, or the bytes of an upload, on its own or in a list, a mapping or
a dataclass. The same round of pairwise masking is run twice with the same keys, and one record
differs; a value belongs to the gradient if it is long and differs between the two runs. What only
names the vector by a digest, or carries a closed Flower message, does not count, nor does a caller
that keeps it in a local variable. The way ends at the step of the server's optimizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import carefl_secure
from carefl_secure.federation import in_process as parties
from carefl_secure.federation.server.optimizers import FedAvg
from carefl_secure.model.loader import ParallelBatches
from carefl_secure.noise import DeterministicKeySource
from carefl_secure.privacy.clipping.clipped_sum import Clipping
from carefl_secure.run_folder import RunFolder
from carefl_secure.runs.client_task import ModelTask
from tests.support.federation import known_plan
from tests.support.running import federate

PACKAGE = Path(carefl_secure.__file__).parent
CLIENTS, INPUTS, OUTPUTS, RECORDS = 4, 32, 32, 6
MOST = 14
SMALLEST = INPUTS * OUTPUTS  # entries of a gradient; what is shorter is a digest or a key


class Learner:
    """Squared losses of one linear layer, with the interface of the real label scorer."""

    def __init__(self, seed: int, shift: float) -> None:
        rng = np.random.default_rng(seed)
        self.inputs = torch.tensor(rng.normal(size=(RECORDS, INPUTS)), dtype=torch.float32)
        self.inputs[0] += shift  # the one thing that differs between the two runs
        layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
        with torch.no_grad():
            layer.weight.zero_()
        self.scorer = SimpleNamespace(
            adapter=SimpleNamespace(
                module=layer,
                dimension=layer.weight.numel(),
                lock=threading.Lock(),
                base=SimpleNamespace(parallel_batches=ParallelBatches(1)),
                load=lambda adapter: None,
                active=lambda number: list(layer.named_parameters()),
                trainable_entries=lambda number: np.ones(layer.weight.numel(), bool),
            )
        )

    def __len__(self) -> int:
        return RECORDS

    def losses(self, indices: Any) -> torch.Tensor:
        return (self.scorer.adapter.module(self.inputs[indices]) - 1.0).square().sum(1)


def values(thing: Any, depth: int = 2) -> Iterator[bytes]:
    """Yield the bytes of every long vector in a value: arrays, tensors, buffers."""
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().numpy()
    if isinstance(thing, np.ndarray):
        if thing.size >= SMALLEST:
            yield np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, bytes | bytearray | memoryview):
        if len(thing) >= SMALLEST:
            yield bytes(thing)
    elif depth:
        parts: Any = ()
        if isinstance(thing, list | tuple):
            parts = thing
        elif isinstance(thing, dict):
            parts = thing.values()
        elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            names = [field.name for field in dataclasses.fields(thing)]
            parts = [getattr(thing, name) for name in names if hasattr(thing, name)]
        for part in parts:
            yield from values(part, depth - 1)


class Trace:
    """The long vectors that functions of each file took or returned before the server's step."""

    def __init__(self) -> None:
        self.found: dict[str, Counter[bytes]] = {}
        self.over = False

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        path = frame.f_code.co_filename
        if self.over or event not in ("call", "return") or not path.startswith(str(PACKAGE)):
            return
        code, here = frame.f_code, frame.f_locals
        count = code.co_argcount + code.co_kwonlyargcount
        taken = [here[name] for name in code.co_varnames[:count] if name in here and name != "self"]
        file = str(Path(path).relative_to(PACKAGE))
        for thing in taken if event == "call" else [result]:
            for content in values(thing):
                digest = hashlib.blake2b(content, digest_size=16).digest()
                self.found.setdefault(file, Counter())[digest] += 1
        self.over = event == "return" and code.co_qualname == "FedAvg.step"


def traced_round(folder: Path, shift: float, monkeypatch: pytest.MonkeyPatch) -> Trace:
    identities = iter(range(1, 99))
    monkeypatch.setattr(
        parties.Ed25519PrivateKey,
        "generate",
        lambda: Ed25519PrivateKey.from_private_bytes(bytes([next(identities)] * 32)),
    )
    plan = known_plan(CLIENTS, SMALLEST, rounds=1, sample_rate=1.0, public_records=24)
    tasks = [
        ModelTask(Learner(seed, shift if seed == 1 else 0.0), Clipping(1.0, True, micro_batch=4))
        for seed in range(CLIENTS)
    ]
    trace = Trace()
    sys.setprofile(trace)
    try:
        federate(
            plan,
            tasks,
            np.zeros(SMALLEST, np.float32),
            optimizer=FedAvg(1.0),
            folder=RunFolder.create(folder, "", "run"),
            base_hash=bytes(32),
            key_source=lambda index: DeterministicKeySource(bytes([index + 1])),
        )
    finally:
        sys.setprofile(None)
    assert trace.over
    return trace


def test_a_gradient_passes_through_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = traced_round(tmp_path / "one", 0.0, monkeypatch)
    two = traced_round(tmp_path / "two", 1.0, monkeypatch)
    files = sorted(f for f in one.found if one.found[f] != two.found.get(f))
    assert {"privacy/clipping/clipped_sum.py", "federation/server/optimizers.py"} <= set(files)
    assert len(files) <= MOST, files
