"""Statistics that pass on the code as it is and fail on code broken on purpose, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import Tensor, nn

from carefl_secure.audit.conformance.hypothesis_tests import dispersion_p_value, noise_p_value
from carefl_secure.errors import ConfigError, PrivacyError
from carefl_secure.federation.aggregation.base import ClientSetup
from carefl_secure.federation.client import session as session_module
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.local_update import gradient_sum as local_module
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.cohort import Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.noise import DeterministicKeySource, KeySource, KeyStream, SkellamSampler, SystemKeySource
from carefl_secure.privacy import Ledger, poisson_sample
from carefl_secure.privacy.clipping import clipped_sum as clipping

DIMENSION, RECORDS, RATE = 4000, 200, 0.1
CLEAR = 1e-6  # below this a test says no; the code as it is falls below once in a million runs
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def sampling_p_values(draws: Sequence[NDArray[np.int64]], records: int, sample_rate: float) -> tuple[float, float]:
    r"""Test whether samples were drawn by Poisson sampling; two-sided p-values of sizes and counts.

    The batch sizes :math:`s_t` of T rounds should be binomial of n trials, the counts
    :math:`c_i` of n records binomial of T trials, both with the rate q; see `dispersion_p_value`.
    Fixed batch sizes break the first, going through shuffled records in turn both. ``draws`` must
    include empty rounds.
    """
    rounds = len(draws)
    if not (0.0 < sample_rate < 1.0 and rounds > 0 and records > 0):
        raise ConfigError(f"{rounds} rounds over {records} records at rate {sample_rate} cannot be tested")
    sizes = np.array([len(draw) for draw in draws], dtype=np.float64)
    counts = np.bincount(np.concatenate(draws).astype(np.int64), minlength=records)
    return (
        dispersion_p_value([(sizes, records)], sample_rate),
        dispersion_p_value([(counts.astype(np.float64), rounds)], sample_rate),
    )


class Task:
    """Records whose gradients are zero, so that a vector is noise alone; keeps what was drawn."""

    def __init__(self, dimension: int = DIMENSION, records: int = RECORDS) -> None:
        self.dimension, self.records = dimension, records
        self.drawn: list[Ints] = []

    def clipped_sum(self, adapter: NDArray[np.float32], indices: Ints, number: int) -> Floats:
        self.drawn.append(indices)
        return np.zeros(self.dimension)


def make_plan(dimension: int = DIMENSION) -> RunPlan:
    return plan_run(
        PlanRequest(
            unit="record",
            dimension=dimension,
            clients=4,
            rounds=20,
            public_records=4 * RECORDS,
            sample_rate=RATE,
            clipping_norm=1.0,
            delta=1e-5,
            target_epsilon=8.0,
        )
    )


PLAN, SMALL = make_plan(), make_plan(64)


@pytest.fixture
def make_client(tmp_path: Any) -> Callable[..., ClientSession]:
    def make(
        plan: RunPlan = PLAN,
        task: Task | None = None,
        keys: KeySource | None = None,
        kind: type[ClientSession] = ClientSession,
    ) -> ClientSession:
        identities = [Ed25519PrivateKey.generate() for _ in range(4)]
        roster = tuple(key.public_key().public_bytes_raw() for key in identities)
        cohort = Cohort(b"conformance", roster, bytes(32))
        task = task or Task(plan.encoding.dimension)
        ledger = Ledger(tmp_path / "ledger.jsonl")
        setup = ClientSetup(plan, cohort, 0, identities[0], keys or SystemKeySource())
        client = kind(setup, task, ledger)
        client.advertise(1, plan.hash())
        return client

    return make


def released(client: ClientSession, plan: RunPlan) -> Floats:
    """Return the integers a client would mask, before the mask, as signed numbers."""
    words = client._protected(np.zeros(plan.encoding.dimension, np.float32))
    signed = np.int16 if plan.encoding.bits == 16 else np.int32
    return words.view(signed).astype(np.float64)


# noise 5 % too small


class WeakSampler(SkellamSampler):
    def __init__(self, variance: float) -> None:
        super().__init__(variance * 0.95**2)


def test_noise_five_percent_too_small(
    make_client: Callable[..., ClientSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client()

    def p_value() -> float:
        values = np.concatenate([released(client, PLAN) for _ in range(8)])
        return noise_p_value(values, PLAN.share_variance)

    assert p_value() > CLEAR
    monkeypatch.setattr(session_module, "SkellamSampler", WeakSampler)
    assert p_value() < CLEAR


def test_noise_too_large_is_seen_as_well() -> None:
    strong = np.random.default_rng(0).normal(0, 105, 4000)
    assert noise_p_value(strong, 100.0**2) < 1e-4


def test_p_values_are_uniform_on_noise_that_is_right() -> None:
    rng = np.random.default_rng(1)
    found = np.array([noise_p_value(rng.normal(0, 3, 500), 9.0) for _ in range(400)])
    assert 0.42 < found.mean() < 0.58
    assert (found < 0.05).mean() < 0.09


# clipping


class Tokens:
    """Records of unlike length over one trainable layer; every loss sums over a record's rows."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(24, 16, bias=False)
        self.parameters = [("weight", self.module.weight)]
        lengths = torch.tensor([3, 3, 3, 3, 3, 3, 3, 60])
        self.mask = (torch.arange(60) < lengths[:, None]).float()
        shared = torch.randn(24)
        self.rows = shared + 0.3 * torch.randn(8, 60, 24)

    def each(self, indices: Ints) -> Tensor:
        """Return the losses of all rows, [B, 60]."""
        chosen = torch.from_numpy(indices)
        return self.module(self.rows[chosen]).square().sum(-1) * self.mask[chosen]

    def losses(self, indices: Ints) -> Tensor:
        return self.each(indices).sum(1) / self.mask[torch.from_numpy(indices)].sum(1)

    def token_mean(self, indices: Ints) -> Tensor:
        """Divide by the rows of the whole batch, as a mean over tokens does."""
        return len(indices) * self.each(indices).sum(1) / self.mask[torch.from_numpy(indices)].sum()

    def sum(self, losses: Callable[[Ints], Tensor], indices: Ints, norm: float = 1.0) -> Floats:
        return clipping.clipped_sum(
            self.module, self.parameters, losses, indices, clipping.Clipping(norm, False)
        ).vector

    def largest_record(self, norm: float = 1.0) -> float:
        return max(float(np.linalg.norm(self.sum(self.losses, np.array([i]), norm))) for i in range(8))

    def removal(self, losses: Callable[[Ints], Tensor], norm: float) -> float:
        """Return the largest change that leaving one record out makes, in clipping norms."""
        everyone = np.arange(8)
        full = self.sum(losses, everyone, norm)
        gaps = [full - self.sum(losses, np.delete(everyone, i), norm) for i in range(8)]
        return max(float(np.linalg.norm(gap)) for gap in gaps) / norm


def test_clipping_factor_two(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens()
    assert 0.99 < tokens.largest_record() <= 1.0 + 1e-6
    monkeypatch.setattr(clipping, "_MARGIN", -1.0)  # clips at twice the norm
    assert tokens.largest_record() > 1.9


def test_token_mean_loss() -> None:
    tokens = Tokens()
    single = [float(np.linalg.norm(tokens.sum(tokens.losses, np.array([i]), 1e9))) for i in range(7)]
    norm = max(single)  # no short record is clipped, as with a norm that was chosen well
    assert tokens.removal(tokens.losses, norm) <= 1.0 + 1e-6
    assert tokens.removal(tokens.token_mean, norm) > 2.0


class Tiles:
    """Records of one, two and five image tiles; the loss of a record adds up over its tiles."""

    owner = np.array([0, 1, 1, 2, 2, 2, 2, 2])

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.module = nn.Linear(12, 6, bias=False)
        self.parameters = [("weight", self.module.weight)]
        self.tiles = 5 * (torch.randn(12) + 0.2 * torch.randn(8, 12))

    def of_tiles(self, indices: Ints) -> Tensor:
        return self.module(self.tiles[torch.from_numpy(indices)]).square().sum(-1)

    def of_records(self, indices: Ints) -> Tensor:
        width = 5
        rows = torch.zeros(len(indices), width, 12)
        for place, record in enumerate(indices):
            own = self.tiles[torch.from_numpy(np.flatnonzero(self.owner == record))]
            rows[place, : len(own)] = own
        return self.module(rows).square().sum((1, 2))

    def norm(self, record: int, by_tile: bool) -> float:
        indices = np.flatnonzero(self.owner == record) if by_tile else np.array([record])
        losses = self.of_tiles if by_tile else self.of_records
        found = clipping.clipped_sum(self.module, self.parameters, losses, indices, clipping.Clipping(1.0, False))
        return float(np.linalg.norm(found.vector))


def test_image_tiles_clipped_as_records() -> None:
    tiles = Tiles()
    assert all(tiles.norm(record, by_tile=False) <= 1.0 + 1e-6 for record in range(3))
    assert tiles.norm(2, by_tile=True) > 4.0


def test_tiles_that_reach_the_engine_as_rows_are_refused() -> None:
    tiles = Tiles()

    def losses(indices: Ints) -> Tensor:
        values = tiles.of_tiles(np.arange(8))
        return torch.zeros(3).index_add(0, torch.from_numpy(tiles.owner), values)[indices]

    with pytest.raises(PrivacyError, match="image tiles"):
        clipping.clipped_sum(tiles.module, tiles.parameters, losses, np.arange(3), clipping.Clipping(1.0, True))


def test_bf16_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens()

    def half(indices: Ints) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return tokens.losses(indices).float()

    def worst() -> float:
        norms = [np.linalg.norm(tokens.sum(half, np.array([i]), 0.01 * (j + 1)) / (0.01 * (j + 1)))
                 for i in range(8) for j in range(10)]  # fmt: skip
        return float(max(norms))

    assert worst() <= 1.0 + 1e-6
    whole = clipping._add

    def in_half(totals: list[Tensor], found: list[Tensor | None], kind: clipping.Clipping, *_: Tensor | None) -> int:
        """Take norm and factor in bfloat16, as clipping inside autocast does."""
        for total, gradient in zip(totals, found[:-1], strict=True):
            assert gradient is not None
            flat = gradient.flatten(1)
            length = torch.linalg.vector_norm(flat.bfloat16(), dim=1)
            factor = (torch.tensor(kind.norm).bfloat16() / length).clamp(max=1.0)
            total += factor.double() @ flat.double()
        return 0

    monkeypatch.setattr(clipping, "_add", in_half)
    assert worst() > 1.0 + 1e-4
    monkeypatch.setattr(clipping, "_add", whole)
    assert worst() <= 1.0 + 1e-6


# sampling


class Shuffled:
    """Goes through the records in shuffled order, a tenth at a time."""

    def __init__(self) -> None:
        self.rng, self.queue = np.random.default_rng(0), np.empty(0, np.int64)

    def __call__(self, records: int, sample_rate: float, stream: Any) -> Ints:
        if self.queue.size == 0:
            self.queue = self.rng.permutation(records)
        size = round(records * sample_rate)
        taken, self.queue = self.queue[:size], self.queue[size:]
        return np.sort(taken)


def rounds_of(client: ClientSession, task: Task, plan: RunPlan, rounds: int) -> list[Ints]:
    task.drawn.clear()
    for _ in range(rounds):
        released(client, plan)
    return task.drawn


def test_shuffled_instead_of_poisson(
    make_client: Callable[..., ClientSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(64)
    client = make_client(SMALL, task)
    honest = sampling_p_values(rounds_of(client, task, SMALL, 200), RECORDS, RATE)
    assert min(honest) > CLEAR
    monkeypatch.setattr(local_module, "poisson_sample", Shuffled())
    sizes, counts = sampling_p_values(rounds_of(client, task, SMALL, 200), RECORDS, RATE)
    assert max(sizes, counts) < 1e-12


def test_fixed_sizes_drawn_anew_break_the_sizes_alone() -> None:
    rng = np.random.default_rng(5)
    draws = [rng.choice(RECORDS, 20, replace=False) for _ in range(200)]
    sizes, counts = sampling_p_values(draws, RECORDS, RATE)
    assert sizes < 1e-12
    assert counts > CLEAR


def test_another_rate_is_seen() -> None:
    draws = [poisson_sample(RECORDS, 0.13, KeyStream(SystemKeySource().key(""))) for _ in range(200)]
    assert sampling_p_values(draws, RECORDS, RATE)[1] < 1e-6


# empty batches


class Skipping(ClientSession):
    """Sends nothing worth the name when nobody was drawn."""

    def _protected(self, adapter: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        words = super()._protected(adapter)
        task = getattr(self._work, "_task", None)
        drawn = isinstance(task, Task) and any(one.size for one in task.drawn)
        return words if drawn else np.zeros_like(words)


def test_empty_batch_skipped(make_client: Callable[..., ClientSession]) -> None:
    honest, skipping = Task(records=0), Task(records=0)
    noise = released(make_client(PLAN, honest), PLAN)
    silence = released(make_client(PLAN, skipping, kind=Skipping), PLAN)
    assert not any(one.size for task in (honest, skipping) for one in task.drawn)
    assert noise_p_value(noise, PLAN.share_variance) > CLEAR
    assert noise_p_value(silence, PLAN.share_variance) == 0.0


# predictable noise


def test_noise_from_the_seed(make_client: Callable[..., ClientSession]) -> None:
    def twice(make_keys: Callable[[], KeySource]) -> tuple[float, float]:
        """Return the correlation of two runs' noise, and how far their difference is from noise."""
        first, second = (released(make_client(keys=make_keys()), PLAN) for _ in range(2))
        variance = 2 * PLAN.share_variance
        return float(np.corrcoef(first, second)[0, 1]), noise_p_value(first - second, variance)

    correlation, p_value = twice(SystemKeySource)
    assert abs(correlation) < 5 / math.sqrt(DIMENSION)
    assert p_value > CLEAR
    correlation, p_value = twice(lambda: DeterministicKeySource(b"seed 42"))
    assert correlation == pytest.approx(1.0)
    assert p_value == 0.0


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf])
def test_what_cannot_be_tested_is_refused(variance: float) -> None:
    with pytest.raises(ConfigError):
        noise_p_value(np.ones(3), variance)
    with pytest.raises(ConfigError):
        noise_p_value(np.ones(0), 1.0)
    for draws, records, rate in (([], 5, 0.1), ([np.arange(2)], 0, 0.1), ([np.arange(2)], 5, 1.0)):
        with pytest.raises(ConfigError):
            sampling_p_values(draws, records, rate)


def test_values_that_are_no_numbers_do_not_pass() -> None:
    assert noise_p_value(np.full(100, np.nan), 1.0) == 0.0
