"""Server optimisers against their formulas, and through a checkpoint."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carefl_secure.errors import ConfigError, NonFiniteError, RunError
from carefl_secure.federation.server.optimizers import Alternating, FedAdam, FedAvg


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


def test_a_scale_multiplies_the_steps_of_its_entries() -> None:
    gradient, start = np.array([5.0, -1e-3, 200.0]), np.zeros(3, np.float32)
    scale = np.array([1.0, 30.0, 0.5])
    plain, scaled = FedAdam(0.01).step(start, gradient), FedAdam(0.01, scale=scale).step(start, gradient)
    assert np.allclose(scaled, plain * scale, rtol=1e-5) and plain.all()


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
        return Alternating([(FedAvg(1.0, 0.5), mask), (FedAvg(1.0, 0.5), ~mask)])

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


def test_noise_correction_finds_the_signal_under_the_noise() -> None:
    """Pure noise keeps the floor, a signal gets the step that it would get without noise."""
    rng = np.random.default_rng(8)
    size, noise, signal = 2000, 0.5, np.zeros(2000)
    signal[:1000] = 1.0

    def direction(correct: bool, with_noise: bool) -> np.ndarray:
        optimiser = FedAdam(1.0, (0.9, 0.999), noise_correction=correct)
        point = np.zeros(size, np.float32)
        for _ in range(400):
            optimiser.observe(1.0, noise**2 if with_noise else 0.0)
            gradient = signal + (noise * rng.normal(size=size) if with_noise else 0.0)
            before, point = point, optimiser.step(np.zeros(size, np.float32), gradient)
        del before
        return -point

    clean = direction(False, False)
    plain, corrected = direction(False, True), direction(True, True)
    assert np.mean(clean[:1000]) == pytest.approx(1.0, abs=1e-3)
    # with noise of variance 1/4 the plain root is sqrt(1.25) times too long
    assert np.mean(plain[:1000]) == pytest.approx(1 / math.sqrt(1.25), rel=0.02)
    assert np.mean(corrected[:1000]) == pytest.approx(1.0, rel=0.02)
    # where there is no signal the step grows, but by no more than the floor allows
    grown = np.std(corrected[1000:]) / np.std(plain[1000:])
    assert 1.5 < grown < 1.1 / math.sqrt(0.1)  # and a tenth for the estimate of the root


def test_noise_correction_follows_the_formula_and_a_checkpoint() -> None:
    rng = np.random.default_rng(9)
    gradients = rng.normal(size=(5, 3))
    variances = [0.5, 0.7, 0.2, 0.9, 0.4]
    first, second, noise = np.zeros(3), np.zeros(3), 0.0
    whole = FedAdam(0.1, (0.8, 0.9), noise_correction=True)
    point = np.zeros(3, np.float32)
    for t, (g, u) in enumerate(zip(gradients, variances, strict=True), start=1):
        if t == 4:
            resumed = FedAdam(0.1, (0.8, 0.9), noise_correction=True)
            resumed.load(whole.state())
            whole = resumed
        first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g**2
        noise = 0.9 * noise + 0.1 * u
        scale = 1 - 0.9**t
        root = np.maximum(second / scale - noise / scale, 0.1 * noise / scale)
        expected = point - 0.1 * (first / (1 - 0.8**t)) / (np.sqrt(root) + 1e-8)
        whole.observe(1.0, u)
        point = whole.step(point, g)
        np.testing.assert_allclose(point, expected, rtol=1e-5)
    with pytest.raises(RunError, match="noise of this step"):
        whole.step(point, gradients[0])
    with pytest.raises(RunError):
        FedAdam(0.1, noise_correction=True).load(FedAdam(0.1).state())
    assert "noise" not in FedAdam(0.1).state()


def test_alternating_passes_what_it_hears_on_to_the_half_whose_turn_it_is() -> None:
    mask = np.array([True, False])
    both = Alternating([(FedAdam(1.0, noise_correction=True), part) for part in (mask, ~mask)])
    point = np.zeros(2, np.float32)
    for _ in range(4):
        both.observe(1.0, 0.25)
        point = both.step(point, np.ones(2))
    with pytest.raises(RunError):
        both.step(point, np.ones(2))
    plain = Alternating([(FedAvg(1.0), mask), (FedAvg(1.0), ~mask)])
    plain.observe(1.0, 0.25)
    plain.step(point, np.ones(2))


def test_the_halves_follow_the_number_of_the_round_after_an_odd_offset() -> None:
    mask = np.array([True, False])
    for finished in (0, 1, 6, 7):
        both = Alternating([(FedAvg(1.0), mask), (FedAvg(1.0), ~mask)], finished)
        for number in (finished + 1, finished + 2):
            trains = mask if number % 2 else ~mask
            gradient = trains.astype(np.float64)  # what clients of this round send
            updated = both.step(np.zeros(2, np.float32), gradient)
            np.testing.assert_array_equal(updated, -trains.astype(np.float32))
