"""A clipping norm that follows a quantile: the ball that no norm leaves, and the quantile that it finds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from carefl_secure.errors import ConfigError
from carefl_secure.privacy import PrivacyPlan
from carefl_secure.privacy.clipping.adaptive import AdaptiveNorm
from carefl_secure.privacy.clipping.clipped_sum import Clipping, Engine, clipped_sum

PLAN = PrivacyPlan(
    unit="record", trust="secagg", mechanism="skellam", rounds=40, clients=8, min_survivors=6, max_colluders=1,
    public_records=2000, delta=1e-5, sample_rate=0.2, clipping_norm=0.5, noise_multiplier=1.3, target_epsilon=8.0,
    normalise=False, target_unclipped_quantile=0.5,
)  # fmt: skip
LIES = [0.0, 27.0, -28.0, 3e38, -3e38, 1e4, -1e4, math.inf, -math.inf]


def rule(**changes: Any) -> AdaptiveNorm:
    found = AdaptiveNorm.of(dataclasses.replace(PLAN, **changes))
    assert found is not None
    return found


class Rows(nn.Module):
    """Records whose gradients are their own rows, of any length."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        super().__init__()
        self.layer = nn.Linear(rows.shape[1], 1, bias=False)
        self.rows = torch.from_numpy(rows).float()

    def losses(self, indices: NDArray[np.int64]) -> Tensor:
        return self.layer(self.rows[torch.from_numpy(indices)][:, None])[:, 0, 0]  # type: ignore[no-any-return]

    def released(
        self, norm: AdaptiveNorm, told: float, chosen: list[int] | None = None, engine: Engine = "native", **more: Any
    ) -> NDArray[np.float64]:
        """Return what a client sends of some records where the server's adapter ends with ``told``."""
        indices = np.arange(len(self.rows)) if chosen is None else np.array(chosen, np.int64)
        at = norm.norm(np.array([0.0, told], np.float32))
        clipping = Clipping(at, False, engine, 7)
        found = clipped_sum(self, list(self.named_parameters()), self.losses, indices, clipping, **more)
        return norm.extend(found.vector, at, found.balance)


def rows(seed: int, count: int = 40, width: int = 9) -> NDArray[np.float64]:
    """Return gradients of lengths from 1e-9 to 1e9, and some that nothing should divide by."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, width))
    drawn *= 10.0 ** rng.uniform(-9, 9, (count, 1)) / np.linalg.norm(drawn, axis=1, keepdims=True)
    drawn[0], drawn[1], drawn[2] = 0.0, 1e-40, 1e19
    return drawn


@pytest.mark.parametrize("engine", ["native", "opacus"])
@pytest.mark.parametrize("told", LIES)
def test_whatever_the_server_says_no_record_leaves_the_ball(told: float, engine: Engine) -> None:
    """Alone, and as what it changes in a batch; with the least beta and the largest."""
    module = Rows(rows(1))
    for norm in (rule(), rule(public_records=10, delta=1e-3)):
        assert norm.beta in (0.3, pytest.approx(1.3 * math.sqrt(8 / 5) / (0.1 * 400)))
        with np.errstate(over="ignore"):
            alone = [module.released(norm, told, [i], engine) for i in range(40)]
        assert max(np.linalg.norm(one) for one in alone) <= 0.5
        # No record of any length is lost, but for those without a direction in float32.
        assert all(np.linalg.norm(one) >= 0.5 * norm.beta for one in alone)
        whole = module.released(norm, told, engine=engine)
        for left in (2, 7, 39):
            rest = module.released(norm, told, [i for i in range(40) if i != left], engine)
            assert np.linalg.norm(whole - rest) <= 0.5 * (1 + 1e-6)


@given(st.floats(width=32), st.floats(1e-12, 1e6), st.floats(0, 1e30), st.floats(0.01, 0.99), st.integers(1, 10**9))
def test_the_ball_holds_for_every_norm_and_length(
    told: float, initial: float, length: float, quantile: float, records: int
) -> None:
    plan = {"clipping_norm": initial, "public_records": records, "delta": 1e-10, "target_unclipped_quantile": quantile}
    norm = rule(**plan)
    assert 0 < norm.beta <= 0.3
    at = norm.norm(np.array([told], np.float32))
    if math.isnan(told):
        assert math.isnan(at)  # a client refuses such an adapter before it is charged, and clips nothing with it
        with pytest.raises(ConfigError):
            Clipping(at, False)
        return
    assert 0.999e-12 <= at <= 1.001e6
    bound = at * (1 - 1e-6)
    sent = norm.extend(np.array([min(length, bound)]), at, 1 if length <= bound else -1)
    assert np.linalg.norm(sent) <= initial
    follow = norm.follow(at, np.random.default_rng(0).normal() * 1e9)
    assert math.log(0.999e-12) <= follow <= math.log(1.001e6) and abs(follow - math.log(at)) <= norm.rate


def test_a_record_that_is_not_finite_adds_nothing_to_either_part() -> None:
    bad = rows(2)
    bad[5], bad[6] = np.nan, np.inf
    module, norm = Rows(bad), rule()
    assert not module.released(norm, 0.0, [5, 6]).any()
    assert np.array_equal(module.released(norm, 0.0, [3, 5, 6]), module.released(norm, 0.0, [3]))


def test_padding_and_persons_are_counted_as_what_they_are() -> None:
    """Records that only fill a batch count as nothing, and a person of five records as one unit."""
    module, norm = Rows(np.full((10, 4), 0.05)), rule()
    unit = norm.initial * norm.beta
    assert module.released(norm, math.log(0.5), [1, 2, 3], rows=9)[-1] == pytest.approx(3 * unit)
    assert module.released(norm, math.log(0.05), [1, 2, 3], rows=9)[-1] == pytest.approx(-3 * unit)
    owners = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2, 2])
    assert module.released(norm, math.log(0.5), groups=owners)[-1] == pytest.approx(3 * unit)


def test_beta_is_where_the_standard_error_of_the_share_is_a_twentieth() -> None:
    norm = rule()
    error = PLAN.noise_multiplier * math.sqrt(8 / 5) / (2 * norm.beta * PLAN.expected_batch)
    assert error == pytest.approx(0.05)
    assert rule(public_records=50).beta == 0.3
    assert 1 - math.sqrt(1 - 0.3**2) < 0.0461
    clients = rule(unit="client", sample_rate=1.0, public_records=10**6)
    assert clients.beta == 0.3  # of eight clients, whatever they hold
    assert [rule(rounds=rounds).rate for rounds in (5, 10, 20, 40, 50, 1000)] == [1, 1, 0.5, 0.25, 0.2, 0.2]


def descend(norm: AdaptiveNorm, lengths: NDArray[np.float64], seed: int, rounds: int, sign: float = 1.0) -> float:
    """Follow the quantile of known lengths under Poisson samples and the planned noise; return the last norm."""
    rng, point = np.random.default_rng(seed), norm.begin(np.zeros(0, np.float32))
    noise = PLAN.noise_multiplier * math.sqrt(8 / 5) * norm.initial
    for _ in range(rounds):
        at = norm.norm(point)
        drawn = lengths[rng.random(len(lengths)) < PLAN.sample_rate]
        balance = sign * float(np.where(drawn <= at, 1, -1).sum())
        opened = norm.initial * norm.beta * balance + noise * rng.normal()
        point = np.append(point[:-1], np.float32(norm.follow(at, opened / PLAN.expected_batch)))
    return norm.norm(point)


@pytest.mark.parametrize(("quantile", "initial"), [(0.5, 0.5), (0.5, 20.0), (0.8, 0.05), (0.2, 1.0)])
def test_the_norm_finds_the_quantile_under_noise(quantile: float, initial: float) -> None:
    """The mean of twelve runs, from norms far off on either side, against the exact quantile of the lengths."""
    lengths = np.exp(np.random.default_rng(5).normal(-0.7, 0.8, 2000))
    norm = rule(target_unclipped_quantile=quantile, clipping_norm=initial)
    found = [descend(norm, lengths, seed, 60) for seed in range(12)]
    shares = [float(np.mean(lengths <= one)) for one in found]
    # Twelve last norms, each within 0.1 or so; the noise of a share is 0.05, and the rate 0.2.
    assert abs(np.mean(shares) - quantile) < 0.03, shares
    assert max(abs(share - quantile) for share in shares) < 0.12, shares


def test_the_search_above_would_notice_a_wrong_sign() -> None:
    lengths = np.exp(np.random.default_rng(5).normal(-0.7, 0.8, 2000))
    assert not 0.4 < np.mean(lengths <= descend(rule(), lengths, 1, 60, sign=-1.0)) < 0.6


@pytest.mark.parametrize(
    "changes",
    [
        {"normalise": True},
        {"target_unclipped_quantile": 0.0},
        {"target_unclipped_quantile": 1.0},
        {"target_unclipped_quantile": math.nan},
        {"unit": "person", "records_per_person": 2},
        {"trust": "none", "mechanism": "gaussian"},
        {"correlation": (4, 3, 2)},
    ],
)
def test_a_plan_that_cannot_follow_a_quantile_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="quantile"):
        dataclasses.replace(PLAN, **changes)


def test_the_quantile_is_part_of_what_parties_agree_on() -> None:
    assert PrivacyPlan.from_json(PLAN.to_json()) == PLAN
    fixed = dataclasses.replace(PLAN, target_unclipped_quantile=None)
    assert AdaptiveNorm.of(fixed) is None
    assert "target_unclipped_quantile" not in fixed.to_json()  # plans without it keep their hash
    assert fixed.hash() != PLAN.hash() != dataclasses.replace(PLAN, target_unclipped_quantile=0.6).hash()
