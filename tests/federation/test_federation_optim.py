"""Server optimisers against their formulas, and through a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import ConfigError, NonFiniteError, RunError
from carefl_secure.federation.optim import Alternating, FedAdam, FedAvg


def test_fedavg_is_plain_descent() -> None:
    adapter = np.array([1.0, -2.0], np.float32)
    moved = FedAvg(0.5).step(adapter, np.array([2.0, 4.0]))
    np.testing.assert_array_equal(moved, np.array([0.0, -4.0], np.float32))
    np.testing.assert_array_equal(adapter, np.array([1.0, -2.0], np.float32))
    assert moved.dtype == np.float32


def test_momentum_sums_old_gradients() -> None:
    optimiser = FedAvg(1.0, momentum=0.5)
    adapter = np.zeros(1, np.float32)
    for expected in (-1.0, -2.5, -4.25):
        adapter = optimiser.step(adapter, np.ones(1))
        assert adapter[0] == np.float32(expected)


def test_fedadam_agrees_with_the_formula_written_out() -> None:
    rng = np.random.default_rng(0)
    optimiser = FedAdam(0.1, (0.8, 0.95), 1e-6)
    adapter = rng.normal(size=9).astype(np.float32)
    reference = adapter.astype(np.float64)
    first = second = np.zeros(9)
    for step in range(1, 6):
        gradient = rng.normal(size=9)
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        hat = np.sqrt(second / (1 - 0.95**step)) + 1e-6
        reference = reference - 0.1 * first / (1 - 0.8**step) / hat
        adapter = optimiser.step(adapter, gradient)
    np.testing.assert_allclose(adapter, reference, rtol=2e-6, atol=2e-7)


def test_the_first_adam_step_has_the_learning_rate_as_its_size() -> None:
    moved = FedAdam(0.01).step(np.zeros(3, np.float32), np.array([5.0, -1e-3, 200.0]))
    np.testing.assert_allclose(moved, [-0.01, 0.01, -0.01], rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: FedAvg(0.1, 0.9), lambda: FedAdam(0.1)])
def test_state_and_load_continue_the_very_same_path(make: Callable[[], Any]) -> None:
    gradients = np.random.default_rng(1).normal(size=(6, 4))
    straight, first = make(), make()
    a = b = np.zeros(4, np.float32)
    for gradient in gradients[:3]:
        a, b = straight.step(a, gradient), first.step(b, gradient)
    second = make()
    second.load(first.state())
    for gradient in gradients[3:]:
        a, b = straight.step(a, gradient), second.step(b, gradient)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [lambda: FedAvg(0.1, 0.9), lambda: FedAdam(0.1)])
def test_what_is_not_finite_moves_nothing(make: Callable[[], Any]) -> None:
    optimiser = make()
    optimiser.step(np.zeros(2, np.float32), np.ones(2))
    before = optimiser.state()
    for bad in (np.array([1.0, np.nan]), np.array([np.inf, 1.0])):
        with pytest.raises(NonFiniteError):
            optimiser.step(np.zeros(2, np.float32), bad)
    for name, value in optimiser.state().items():
        np.testing.assert_array_equal(value, before[name])


def test_leaving_float32_is_an_error() -> None:
    with pytest.raises(NonFiniteError):
        FedAvg(1.0).step(np.zeros(1, np.float32), np.array([1e200]))


def test_another_models_gradient_or_state_is_refused() -> None:
    with pytest.raises(RunError):
        FedAvg(1.0).step(np.zeros(2, np.float32), np.zeros(3))
    with pytest.raises(RunError):
        FedAdam(1.0).load(FedAvg(1.0).state())
    with pytest.raises(RunError):
        FedAvg(1.0).load({})


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(0.0),
        lambda: FedAvg(float("nan")),
        lambda: FedAvg(0.1, 1.0),
        lambda: FedAvg(0.1, float("nan")),
        lambda: FedAdam(-1.0),
        lambda: FedAdam(0.1, (1.0, 0.9)),
        lambda: FedAdam(0.1, (0.9, 1.5)),
        lambda: FedAdam(0.1, eps=0.0),
    ],
)
def test_senseless_settings_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_alternating_moves_one_half_at_a_time_and_survives_a_checkpoint() -> None:
    mask = np.array([True, True, False, False])
    gradient = np.ones(4)

    def make() -> Alternating:
        return Alternating(FedAvg(1.0, 0.5), FedAvg(1.0, 0.5), mask)

    whole = make()
    points = [np.zeros(4, np.float32)]
    for _ in range(4):
        points.append(whole.step(points[-1], gradient))
    moves = [(b - a).tolist() for a, b in itertools.pairwise(points)]
    assert moves == [[-1, -1, 0, 0], [0, 0, -1, -1], [-1.5, -1.5, 0, 0], [0, 0, -1.5, -1.5]]
    broken_off = make()
    for i in range(3):
        broken_off.step(points[i], gradient)
    resumed = make()
    resumed.load(broken_off.state())
    assert np.array_equal(resumed.step(points[3], gradient), points[4])
    with pytest.raises(RunError):
        make().load(FedAvg(1.0).state())
